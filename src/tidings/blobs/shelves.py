"""Where bytes are kept: what a folder of files and a bucket of S3 have in common.

A key is that of the blob's rows, with the name of a thumbnail behind it; the name on the shelf is
the id in it, which the service made: nothing of what people write gets into paths.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from tidings import wire
from tidings.blobs.kinds import Served


class Shelf(Protocol):
    """Keeps bytes by key, each written once. Every call has a deadline.

    Raises `tidings.errors.Unavailable` where the bytes can't be reached.
    """

    async def upload_link(
        self, key: str, type_: str, size_bytes: int, expires_at_ms: int
    ) -> wire.Upload:
        """How bytes of exactly that size and type are sent there. A path is one of this service."""
        ...

    async def download_link(self, key: str, served: Served, expires_at_ms: int) -> str:
        """A link to the bytes for whoever has it; a path is one of this service.

        The same moment of its end gives the same link, so that browsers can keep what they got.
        """
        ...

    async def size_bytes(self, key: str) -> int | None:
        """How many bytes are there; None where nothing is."""
        ...

    async def head(self, key: str) -> bytes:
        """The first HEAD_BYTES, or all where there are fewer. Raises NotFound."""
        ...

    def as_file(self, key: str) -> AbstractAsyncContextManager[Path]:
        """A file with the bytes, to be read within. Raises NotFound."""
        ...

    async def put(self, key: str, body: bytes, type_: str) -> None:
        """Keep bytes of our own making, in place of earlier ones."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the bytes; that there are none is fine."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def name_of(key: str) -> str:
    """The name on the shelf."""
    return key.partition("#")[2]
