"""Thumbnails: small, upright, without what cameras write; and pictures that are attacks."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.blobs.conftest import picture
from tidings.blobs import drawing as drawing_module
from tidings.blobs.draughtsman import PIXELS_MAX
from tidings.blobs.drawing import Drawings
from tidings.errors import ValidationFailed

ORIENTATION, MAKER = 0x0112, 0x010F


def _with_exif() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # lies on its side
    exif[MAKER] = "Spy Camera"
    return picture(1600, 800, "JPEG", exif=exif)


def _moving() -> bytes:
    into = BytesIO()
    frames = [Image.new("P", (300, 200), color) for color in range(3)]
    frames[0].save(into, "GIF", save_all=True, append_images=frames[1:])
    return into.getvalue()


@pytest.mark.parametrize(
    ("body", "size", "small"),
    [
        (picture(1200, 900), (1200, 900), (480, 360)),
        (picture(20, 10, "WEBP"), (20, 10), (20, 10)),
        (picture(5000, 3), (5000, 3), (480, 1)),
        (_with_exif(), (800, 1600), (240, 480)),
        (_moving(), (300, 200), (300, 200)),
    ],
)
async def test_thumbnails_are_small_and_upright(
    tmp_path: Path, body: bytes, size: tuple[int, int], small: tuple[int, int]
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(body)
    drawing = await Drawings().draw(path)
    assert (drawing.width, drawing.height) == size
    assert b"Spy Camera" not in drawing.thumbnail
    with Image.open(BytesIO(drawing.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", small)
        assert not thumbnail.getexif()


def _bomb(width: int, height: int, *, is_whole: bool) -> bytes:
    """A PNG that says it is so large: a few kilobytes, if all its pixels are the same."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    pixels = b""
    if is_whole:
        line = b"\0" * (1 + (width + 7) // 8)
        pixels = b"".join(packer.compress(line) for _ in range(height))
    pixels += packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GIF89a<script>",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 500,
        picture(300, 300)[:-200],
        _bomb(65_000, 65_000, is_whole=False),
        _bomb(PIXELS_MAX // 1_000 + 1, 1_000, is_whole=True),
        b"P6 2000 2000 255\n" + b"x" * 100,  # a format that is not on the list
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
async def test_what_is_no_picture_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(body)
    with pytest.raises(ValidationFailed):
        await Drawings().draw(path)


async def test_a_picture_that_takes_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_module, "DRAW_TIMEOUT_S", 0.001)
    path = tmp_path / "picture"
    path.write_bytes(picture())
    with pytest.raises(ValidationFailed, match="too long"):
        await Drawings().draw(path)
