"""Kinds of files: which ones a browser may show, and how their bytes begin.

The list is closed. What is on it comes with its own type; everything else, whatever its uploader
called it (HTML, SVG and scripts among them), comes as bytes to be saved and is never shown.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote

import msgspec

UNSHOWN = "application/octet-stream"
"""How a file travels that no browser may show."""
HEAD_BYTES = 16
"""As much of a file as tells whether it is what it says."""

_BEGINNINGS: dict[str, str] = {
    "image/png": r"\x89PNG\r\n\x1a\n",
    "image/jpeg": r"\xff\xd8\xff",
    "image/gif": r"GIF8[79]a",
    "image/webp": r"RIFF....WEBP",
    "audio/mpeg": r"ID3|\xff[\xe2-\xff]",
    "audio/mp4": r"....ftyp",
    "audio/ogg": r"OggS",
    "audio/wav": r"RIFF....WAVE",
    "audio/webm": r"\x1aE\xdf\xa3",
    "video/mp4": r"....ftyp",
    "video/webm": r"\x1aE\xdf\xa3",
}
_SHOWN = {
    type_: re.compile(beginning.encode("latin-1"), re.DOTALL)
    for type_, beginning in _BEGINNINGS.items()
}
PICTURES = frozenset(type_ for type_ in _BEGINNINGS if type_.startswith("image/"))
"""Types that get a thumbnail."""
THUMBNAIL_TYPE = "image/webp"


class Served(msgspec.Struct, frozen=True):
    """How a file is sent: what the browser is told of it."""

    type: str
    disposition: str
    """Content-Disposition (RFC 6266)."""


def is_as_said(type_: str, head: bytes) -> bool:
    """Whether a file that begins so may be of the type; of one that is never shown any may be."""
    beginning = _SHOWN.get(type_)
    return beginning is None or beginning.match(head) is not None


def served(type_: str, name: str) -> Served:
    """How a file of that type and name is sent."""
    is_shown = type_ in _SHOWN
    how: Literal["inline", "attachment"] = "inline" if is_shown else "attachment"
    named = f"{how}; filename*=UTF-8''{quote(name, safe='')}"
    return Served(type_ if is_shown else UNSHOWN, named)
