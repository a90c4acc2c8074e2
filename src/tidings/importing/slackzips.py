"""Reading a Slack export as it lies in its zip: nothing is unpacked, one record at a time is held.

The zip is of somebody else's making. It is refused as a whole, before anything is imported, where
it is not what an export is: names that lead elsewhere, files that share their bytes, far more
content than its size can hold. A file of it that is damaged is read up to where it is.

Source: "How to read Slack data exports" in Slack's help pages.
"""

from __future__ import annotations

import codecs
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from tidings.errors import NotFound, ValidationFailed

FILES_MAX = 1_000_000
NAME_CHARACTERS_MAX = 1_000
UNPACKED_BYTES_FREE = 256 * 1024 * 1024
"""So much content any zip may have, however small it is."""
RATIO_MAX = 100
"""Above that, at most so many times its own size; exports have 10 to 30 times."""
CHUNK_BYTES = 64 * 1024
RECORD_CHARACTERS_MAX = 4_000_000
"""A longer record is odd: Slack's messages have 40,000 characters of text at most."""

LISTS = ("users.json", "channels.json", "groups.json", "dms.json", "mpims.json")
_DAY = re.compile(r"(?P<folder>[^/]+)/(?P<day>\d{4}-\d\d-\d\d)\.json")
_IS_LATIN = re.compile("[\udc80-\udcff]")
_IS_SURROGATE = re.compile("[\ud800-\udfff]")


class Found(msgspec.Struct, frozen=True):
    """One element of a list in a file, or what is wrong there."""

    source: str
    """Where it stands, such as `general/2024-02-01.json:7`."""
    record: dict[str, Any] = {}
    reason: str | None = None
    """Why there is no record, or why it is not as it was."""
    is_whole: bool = True
    """False where there is no record."""


class SlackZip:
    """An export that was opened and looked over."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound; ValidationFailed for what is no export, or may be a trap."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError as error:
            raise NotFound(f"There is no file {path}.") from error
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValidationFailed(
                f"{path} is no whole zip file; it may have been cut short: download it again."
            ) from error
        try:
            self._names = _checked(path, self._zip.infolist())
        except BaseException:
            self._zip.close()
            raise
        self.days: dict[str, list[str]] = {}
        """The day files of each folder, oldest first."""
        self.unread: list[str] = []
        """Files that have no part in an import."""
        for name in sorted(self._names):
            if day := _DAY.fullmatch(name):
                self.days.setdefault(day["folder"], []).append(name)
            elif name not in LISTS:
                self.unread.append(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._zip.close()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._names

    def size_bytes(self, name: str) -> int:
        """Bytes of a file's content, as the zip says."""
        return self._names[name].file_size

    def records(self, name: str) -> Iterator[Found]:
        """The elements of the list in a file, in its order; what can't be read is told last."""
        number = 0
        try:
            with self._zip.open(self._names[name]) as file:
                for number, element in enumerate(elements(file), start=1):
                    yield _found(f"{name}:{number}", element)
        except Broken as broken:
            yield Found(f"{name}:{number + 1}", reason=str(broken), is_whole=False)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            reason = "the rest of the file is damaged in the zip"
            record = {"error": str(error)}
            yield Found(f"{name}:{number + 1}", record, reason=reason, is_whole=False)


def _checked(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files by name, without the one folder that may hold all of them."""
    if len(infos) > FILES_MAX:
        raise ValidationFailed(f"{path} holds more than {FILES_MAX:,} files.")
    named: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename
        parts = name.rstrip("/").split("/")
        is_odd = any(part in ("", ".", "..") or "\\" in part for part in parts)
        if is_odd or not name.isprintable() or len(name) > NAME_CHARACTERS_MAX or ":" in parts[0]:
            raise ValidationFailed(f"{path} holds a file named {name[:100]!r}: it is no export.")
        if info.flag_bits & 0x1:
            raise ValidationFailed(f"{path} is encrypted.")
        if info.is_dir() or parts[0] == "__MACOSX" or parts[-1] == ".DS_Store":
            continue
        if name in named:
            raise ValidationFailed(f"{path} holds two files named {name!r}.")
        named[name] = info
    size_bytes = path.stat().st_size
    if sum(info.compress_size for info in named.values()) > size_bytes:
        raise ValidationFailed(f"{path} holds files that share their bytes: it is no export.")
    unpacked = sum(info.file_size for info in named.values())
    if unpacked > max(UNPACKED_BYTES_FREE, RATIO_MAX * size_bytes):
        raise ValidationFailed(
            f"{path} would be {unpacked:,} bytes unpacked, from {size_bytes:,}: it is no export."
        )
    roots = {name.split("/")[0] for name in named}
    if len(roots) == 1 and "users.json" not in named:
        (root,) = roots
        named = {name.removeprefix(f"{root}/"): info for name, info in named.items()}
    if "users.json" not in named or not any(name in named for name in LISTS[1:]):
        raise ValidationFailed(
            f"{path} is no Slack export: it has no users.json with a list of channels."
        )
    return named


class Broken(Exception):
    """The rest of a file is no JSON."""


def elements(file: IO[bytes]) -> Iterator[Any]:
    """The elements of the list that is the whole of a file, each read when it is asked for.

    Bytes that are not UTF-8 come as the surrogates that Python has for them. Raises Broken.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text, at, is_end, wanted = "", 0, False, CHUNK_BYTES
    is_begun = is_first = False
    while True:
        at = _after_blanks(text, at)
        try:
            if at == len(text):
                raise ValueError("nothing more is there yet")
            if not is_begun:
                if text[at] != "[":
                    raise Broken("the file is no list")
                is_begun, is_first, at = True, True, at + 1
                continue
            if text[at] == "]":
                return
            start = at
            if not is_first:
                if text[at] != ",":
                    raise Broken("no comma after the record")
                start = _after_blanks(text, at + 1)
            element, end = scan(text, start)
        except RecursionError:
            raise Broken("a record that is nested too deeply") from None
        except ValueError:  # of the scanner: it ends within a record, or is none
            if is_end:
                raise Broken("the file ends within a record, or holds what is none") from None
            if len(text) - at > RECORD_CHARACTERS_MAX:
                raise Broken("a record that is too long, or is none") from None
            chunk = file.read(wanted)
            is_end = not chunk
            text, at = text[at:] + decode(chunk, is_end), 0
            wanted = min(2 * wanted, RECORD_CHARACTERS_MAX)
            continue
        yield element
        at, is_first, wanted = end, False, CHUNK_BYTES


_blanks = re.compile(r"[ \t\r\n]*")


def _after_blanks(text: str, at: int) -> int:
    match = _blanks.match(text, at)
    return at if match is None else match.end()


def _found(source: str, element: Any) -> Found:
    if not isinstance(element, dict):
        return Found(source, {"record": str(element)[:200]}, "it is no object", is_whole=False)
    text = json.dumps(element, ensure_ascii=False)
    if _IS_SURROGATE.search(text) is None:
        return Found(source, element)
    is_latin = _IS_LATIN.search(text) is not None
    reason = "not UTF-8, read as Latin-1" if is_latin else "half a character, replaced"
    return Found(source, _mended(element), reason)


def _mended(value: Any) -> Any:
    """The value with texts that can be stored."""
    match value:
        case str():
            latin = _IS_LATIN.sub(lambda byte: chr(ord(byte[0]) - 0xDC00), value)
            return _IS_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", latin)
        case list():
            return [_mended(each) for each in value]
        case dict():
            return {_mended(name): _mended(each) for name, each in value.items()}
        case _:
            return value
