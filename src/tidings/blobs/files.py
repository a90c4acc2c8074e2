"""Bytes in a folder of files, taken and given by this service itself.

Links are sealed with the store's own secret: whoever has one may do that one thing until it ends.
Several nodes need one folder that all of them reach. A file is there whole or not at all: it is
written under another name, synced, and then given its own, which the first one gets.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from tidings import wire
from tidings.blobs.kinds import HEAD_BYTES, Served, is_as_said
from tidings.blobs.shelves import name_of
from tidings.clock import Clock
from tidings.cursors import Cursors
from tidings.errors import (
    Conflict,
    FieldError,
    NotFound,
    TooLarge,
    Unavailable,
    ValidationFailed,
)

UPLOADS_MAX = 200
"""Uploads that this process takes at once; further ones are told to come again."""
WRITE_BYTES = 256 * 1024
"""Bytes of one upload that are held in memory, at most about so many."""
SILENCE_TIMEOUT_S = 30.0
"""How long nothing may come from an uploader."""
UPLOAD_TIMEOUT_S = 900.0
"""How long one upload may take."""
DISK_TIMEOUT_S = 30.0
"""How long one step on the disk may take."""
UPLOADS = "/v1/uploads/"
DOWNLOADS = "/v1/downloads/"
_UPLOAD, _DOWNLOAD = "upload", "download"
_PARTIAL = ".part"

T = TypeVar("T")


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What an upload link allows."""

    key: str
    type: str
    size_bytes: int
    expires_at_ms: int


class FileShelf:
    """A folder of files, which is made with the first upload."""

    def __init__(self, folder: Path, cursors: Cursors, clock: Clock) -> None:
        self._folder = folder
        self._cursors = cursors
        self._clock = clock
        self._uploads = 0

    async def upload_link(
        self, key: str, type_: str, size_bytes: int, expires_at_ms: int
    ) -> wire.Upload:
        """See Shelf."""
        ticket = self._cursors.seal(_UPLOAD, [key, type_, size_bytes, expires_at_ms])
        return wire.Upload("PUT", f"{UPLOADS}{ticket}", {"Content-Type": type_})

    async def download_link(self, key: str, served: Served, expires_at_ms: int) -> str:
        """See Shelf."""
        value = [key, served.type, served.disposition, expires_at_ms]
        return f"{DOWNLOADS}{self._cursors.seal(_DOWNLOAD, value)}"

    def open_upload(self, ticket: str) -> Ticket:
        """What the link allows. Raises NotFound."""
        key, type_, size_bytes, expires_at_ms = self._open(_UPLOAD, ticket)
        return Ticket(key, type_, size_bytes, self._still(expires_at_ms))

    def open_download(self, ticket: str) -> tuple[str, Served, int]:
        """The key, how its bytes are sent, and when the link ends. Raises NotFound."""
        key, type_, disposition, expires_at_ms = self._open(_DOWNLOAD, ticket)
        return key, Served(type_, disposition), self._still(expires_at_ms)

    def path(self, key: str) -> Path:
        """Where the bytes are; spread over folders by the end of the id, which is random."""
        name = name_of(key)
        return self._folder / name.partition(".")[0][-2:] / name

    async def receive(self, ticket: Ticket, chunks: AsyncIterator[bytes]) -> None:
        """Keep what comes, durable on return: all of it, or nothing.

        Raises ValidationFailed for bytes that are not of the type or too few; TooLarge; Conflict
        where they are there already; Unavailable.
        """
        if self._uploads >= UPLOADS_MAX:
            raise Unavailable("Too many uploads are under way.")
        self._uploads += 1
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                await self._receive(ticket, chunks)
        except TimeoutError:
            raise _refused("The bytes did not arrive in time.") from None
        finally:
            self._uploads -= 1

    async def _receive(self, ticket: Ticket, chunks: AsyncIterator[bytes]) -> None:
        path = self.path(ticket.key)
        partial: IO[bytes] = await _on_disk(_begin, path)
        try:
            await _take(ticket, chunks, partial)
            await _on_disk(_finish, partial, path)
        finally:
            # Also where this task is cancelled: nothing may be left, and it is quickly done.
            partial.close()
            Path(partial.name).unlink(missing_ok=True)  # noqa: ASYNC240

    async def size_bytes(self, key: str) -> int | None:
        """See Shelf."""

        def look() -> int | None:
            try:
                return self.path(key).stat().st_size
            except FileNotFoundError:
                return None

        return await _on_disk(look)

    async def head(self, key: str) -> bytes:
        """See Shelf."""

        def read() -> bytes:
            with self.path(key).open("rb") as file:
                return file.read(HEAD_BYTES)

        try:
            return await _on_disk(read)
        except FileNotFoundError:
            raise NotFound("There are no such bytes.") from None

    @asynccontextmanager
    async def as_file(self, key: str) -> AsyncIterator[Path]:
        """See Shelf: the file itself."""
        if await self.size_bytes(key) is None:
            raise NotFound("There are no such bytes.")
        yield self.path(key)

    async def put(self, key: str, body: bytes, type_: str) -> None:
        """See Shelf."""

        def write() -> None:
            path = self.path(key)
            partial = _begin(path)
            with partial:
                partial.write(body)
                _sync(partial)
            Path(partial.name).replace(path)
            _sync_folder(path.parent)

        await _on_disk(write)

    async def delete(self, key: str) -> None:
        """See Shelf."""
        await _on_disk(self.path(key).unlink, True)

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _open(self, purpose: str, ticket: str) -> list[Any]:
        try:
            value: list[Any] = self._cursors.open(purpose, ticket)
        except ValidationFailed:
            raise NotFound("There is no such link.") from None
        return value

    def _still(self, expires_at_ms: int) -> int:
        if self._clock() >= expires_at_ms:
            raise NotFound("This link has expired.")
        return expires_at_ms


async def _take(ticket: Ticket, chunks: AsyncIterator[bytes], partial: IO[bytes]) -> None:
    """Write what comes, as long as it is what the ticket says."""
    buffer = bytearray()
    left = ticket.size_bytes
    is_checked = False
    while True:
        try:
            async with asyncio.timeout(SILENCE_TIMEOUT_S):
                chunk = await anext(chunks, b"")
        except TimeoutError:
            raise _refused("Nothing came for too long.") from None
        left -= len(chunk)
        if left < 0:
            raise TooLarge(f"The file was to have {ticket.size_bytes} bytes.")
        buffer += chunk
        if not is_checked and (len(buffer) >= HEAD_BYTES or not chunk):
            is_checked = True
            if not is_as_said(ticket.type, bytes(buffer[:HEAD_BYTES])):
                raise _refused(f"These bytes are not {ticket.type}.")
        if len(buffer) >= WRITE_BYTES or not chunk:
            await _on_disk(partial.write, bytes(buffer))
            buffer.clear()
        if not chunk:
            break
    if left:
        raise _refused(f"{left} bytes of {ticket.size_bytes} are missing.")


def _begin(path: Path) -> IO[bytes]:
    """A new file beside the one that it is to become."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=path.parent, suffix=_PARTIAL, delete=False)


def _finish(partial: IO[bytes], path: Path) -> None:
    """Give the file its name, for which it must be the first."""
    _sync(partial)
    try:
        os.link(partial.name, path)
    except FileExistsError:
        raise Conflict("The bytes are there already.") from None
    _sync_folder(path.parent)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _on_disk(work: Callable[..., T], *given: object) -> T:
    """The result of blocking work, done on a thread. Raises Unavailable for a disk that fails."""
    try:
        async with asyncio.timeout(DISK_TIMEOUT_S):
            return await asyncio.to_thread(work, *given)
    except FileNotFoundError:
        raise
    except (OSError, TimeoutError) as error:
        raise Unavailable("The files can't be reached.") from error


def _refused(detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError("body", detail),))
