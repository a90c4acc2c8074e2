"""`python -m tidings.blobs.draughtsman`: one picture from standard input becomes a thumbnail.

Writes a line of JSON, `{"width", "height"}` or `{"refusal"}`, and then the thumbnail as WebP. The
process limits itself before it looks at the first byte. The thumbnail has nothing of what cameras
write into pictures, such as where they were taken.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import warnings

from PIL import ExifTags, Image, ImageOps

MEMORY_BYTES_MAX = 1024**3
"""Address space, the interpreter's own included."""
PROCESSOR_S_MAX = 10
PIXELS_MAX = 50_000_000
SIDE_MAX = 480
"""Width and height of a thumbnail, at most, in pixels."""
QUALITY = 80
LYING = range(5, 9)
"""Orientations (Exif) in which width and height change places."""
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


def main() -> None:
    """Draw one thumbnail."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S_MAX, PROCESSOR_S_MAX))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    thumbnail = b""
    try:
        said, thumbnail = _draw()
    except (Image.DecompressionBombError, MemoryError):
        said = {"refusal": f"A picture has at most {PIXELS_MAX} pixels."}
    except Exception:  # noqa: BLE001  # the root of the process, and the file may be anything
        said = {"refusal": "It is not a picture of its type."}
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n" + thumbnail)


def _draw() -> tuple[dict[str, object], bytes]:
    """The picture's size and its thumbnail; of a moving picture, the first moment."""
    with Image.open(sys.stdin.buffer, formats=FORMATS) as picture:
        if picture.width * picture.height > PIXELS_MAX:
            raise Image.DecompressionBombError
        width, height = picture.size
        if picture.getexif().get(ExifTags.Base.Orientation, 1) in LYING:
            width, height = height, width
        picture.draft("RGB", (2 * SIDE_MAX, 2 * SIDE_MAX))  # a JPEG need not be read in full
        upright = ImageOps.exif_transpose(picture)
    return {"width": width, "height": height}, _thumbnail(upright)


def _thumbnail(picture: Image.Image) -> bytes:
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    small = picture.convert("RGBA" if has_alpha else "RGB")
    small.thumbnail((SIDE_MAX, SIDE_MAX))
    small.info.clear()
    into = io.BytesIO()
    small.save(into, "WEBP", quality=QUALITY)
    return into.getvalue()


if __name__ == "__main__":
    main()
