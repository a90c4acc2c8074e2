"""Thumbnails, drawn in a process of their own: what a hostile picture breaks is that process.

It gets the file as standard input, little memory and little time, and answers with a line of JSON
and the thumbnail (`tidings.blobs.draughtsman`).
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from tidings.errors import FieldError, ValidationFailed

DRAWN_TOGETHER_MAX = 2
"""Processes that draw at once."""
DRAW_TIMEOUT_S = 20.0
"""How long one may take, once it has begun."""
THUMBNAIL_BYTES_MAX = 1024 * 1024

_log = structlog.get_logger(__name__)


class Size(msgspec.Struct, frozen=True):
    """Of a picture in pixels, upright; or why it is none."""

    width: int = 0
    height: int = 0
    refusal: str = ""


class Drawing(msgspec.Struct, frozen=True):
    """A picture's size, and its thumbnail."""

    width: int
    height: int
    thumbnail: bytes


class Drawings:
    """Draws thumbnails, a few at a time."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(DRAWN_TOGETHER_MAX)

    async def draw(self, path: Path) -> Drawing:
        """The picture in the file. Raises ValidationFailed for what is none, or too large a one."""
        async with self._slots:
            try:
                answer = await _run(path)
            except TimeoutError:
                _log.warning("picture_took_too_long")
                raise _refused("It takes too long to draw.") from None
        first, _, thumbnail = answer.partition(b"\n")
        try:
            size = msgspec.json.decode(first, type=Size)
        except msgspec.DecodeError:  # it was ended by a limit
            raise _refused("It takes too much to draw.") from None
        if size.refusal or not 0 < len(thumbnail) <= THUMBNAIL_BYTES_MAX:
            raise _refused(size.refusal or "It can't be drawn.")
        return Drawing(size.width, size.height, thumbnail)


async def _run(path: Path) -> bytes:
    """What the process says about the file; it has ended by the time this does, however it does.

    Raises TimeoutError.
    """
    with path.open("rb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidings.blobs.draughtsman",
            stdin=file,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    try:
        async with asyncio.timeout(DRAW_TIMEOUT_S):
            answer, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return answer


def _refused(detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError("body", detail),))
