"""The files that browsers load: read once, known by content, under a path that changes with it."""

from __future__ import annotations

import hashlib
import posixpath
import re
from functools import cache
from importlib.resources import files

from msgspec import Struct, json

FOLDERS = ("client", "inbox", "ops", "shop", "widget")
SHELL_FOLDERS = ("client", "inbox")
"""What the inbox's service worker keeps, besides the page itself."""
LEAN_FOLDERS = ("widget",)
"""Sent without comments and indentation, since they are loaded by the pages of other sites."""
MEDIA_TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
"""By the end of a file's name; files of other types are not served."""
PAGE_TYPE = "text/html; charset=utf-8"
VERSION_CHARACTERS = 16
IMPORTED = re.compile(r'^(?:import|export)\b[^;"]*"(\.[^"]+)";', re.MULTILINE)
"""The module that a script imports by a statement; its own path is where it starts from."""
PRELOADED = re.compile(r"\{modules of (\S+)\}")


class Asset(Struct, frozen=True):
    """One file as it is sent."""

    body: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """A strong entity tag (RFC 9110, 8.8.3)."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:VERSION_CHARACTERS]}"'


@cache
def assets() -> dict[str, Asset]:
    """All files by `folder/name`."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((files("tidings.web") / folder).iterdir(), key=lambda each: each.name):
            media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
            if media_type is not None:
                body = file.read_bytes()
                if folder in LEAN_FOLDERS:
                    body = _lean(body.decode()).encode()
                found[f"{folder}/{file.name}"] = Asset(body, media_type)
    return found


@cache
def version() -> str:
    """One name for all files together: another one as soon as a byte of them is another."""
    digest = hashlib.sha256()
    for path, asset in assets().items():
        digest.update(b"%b %d " % (path.encode(), len(asset.body)) + asset.body)
    return digest.hexdigest()[:VERSION_CHARACTERS]


@cache
def page(path: str) -> Asset:
    """A page, or a script of pages elsewhere; `{assets}` in it is where the present version's files
    are, relative to its address at the top of the service. `{modules of F/M.js}` becomes links by
    which a browser loads that module and all that it needs at once, not one after the other.
    """
    text = (files("tidings.web") / path).read_text("utf-8")
    text = PRELOADED.sub(lambda found: _preloads(found[1]), text)
    media_type = MEDIA_TYPES.get(path.rpartition(".")[2], PAGE_TYPE)
    return Asset(text.replace("{assets}", f"assets/{version()}").encode(), media_type)


@cache
def entrance(path: str) -> Asset:
    """A module at a lasting address that stands for the present version of another.

    The address is relative, so that it holds behind a proxy that puts a prefix before it.
    """
    return Asset(
        f'export * from "./assets/{version()}/{path}";\n'.encode(),
        MEDIA_TYPES["js"],
    )


@cache
def worker() -> Asset:
    """The inbox's service worker: another one as soon as a byte of the page or its files is."""
    shell = page("inbox/inbox.html")
    folder = f"assets/{version()}"
    kept = [path for path in assets() if path.partition("/")[0] in SHELL_FOLDERS]
    text = (files("tidings.web") / "sw.js").read_text("utf-8")
    digest = hashlib.sha256(f"{folder} {shell.tag} {text}".encode()).hexdigest()
    for name, value in (
        ("{shell}", digest[:VERSION_CHARACTERS]),
        ("{assets}", folder),
        ("{files}", json.encode([f"{folder}/{path}" for path in kept]).decode()),
    ):
        text = text.replace(name, value)
    return Asset(text.encode(), MEDIA_TYPES["js"])


def _preloads(path: str) -> str:
    """Links to a module and to what it imports, straight and by others."""
    found = [path]
    for each in found:  # grows as it goes
        folder = posixpath.dirname(each)
        names = IMPORTED.findall(assets()[each].body.decode())
        paths = (posixpath.normpath(posixpath.join(folder, name)) for name in names)
        found += [one for one in dict.fromkeys(paths) if one not in found]
    return "\n    ".join(f'<link rel="modulepreload" href="{{assets}}/{one}">' for one in found)


def _lean(text: str) -> str:
    """A script without comments that have lines of their own, and without indentation.

    Lines keep their numbers. Neither may stand for anything within the script's templates.
    """
    lines = []
    is_comment = False
    for line in map(str.strip, text.splitlines()):
        is_comment = is_comment or line.startswith("/*")
        lines.append("" if is_comment or line.startswith("//") else line)
        is_comment = is_comment and not line.endswith("*/")
    return "\n".join(lines) + "\n"
