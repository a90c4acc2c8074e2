"""Bytes in a bucket of S3, or of what speaks its API.

Clients send and get bytes by signed links, past this service; it signs its own requests in the same
way. An upload link is for exactly that size and type, and for bytes that are not there yet.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import structlog
from yarl import URL

from tidings import wire
from tidings.blobs.kinds import HEAD_BYTES, Served
from tidings.blobs.shelves import name_of
from tidings.clock import Clock
from tidings.config import S3Address
from tidings.errors import NotFound, Unavailable
from tidings.storage.credentials import Credentials
from tidings.storage.signatures import signed_link

ATTEMPTS_MAX = 3
ATTEMPT_TIMEOUT_S = 10.0
"""For one request without much to send or get."""
TRANSFER_TIMEOUT_S = 60.0
"""For one request that moves a whole file."""
RETRY_PAUSE_S_MAX = 0.5
CONNECTIONS_MAX = 32
READ_BYTES = 256 * 1024
OWN_LINK_LIFE_S = 300
"""How long what this service signs for itself is good."""

_log = structlog.get_logger(__name__)


class BucketShelf:
    """A bucket. Needs the running loop only from the first request on."""

    def __init__(self, address: S3Address, clock: Clock) -> None:
        self._region = address.region
        self._clock = clock
        self._credentials = Credentials(is_local=not address.is_aws)
        self._session: aiohttp.ClientSession | None = None
        if address.endpoint is not None:
            self._base = f"{address.endpoint.rstrip('/')}/{address.bucket}"
        elif "." in address.bucket:  # no certificate is good for such a host
            self._base = f"https://s3.{address.region}.amazonaws.com/{address.bucket}"
        else:
            self._base = f"https://{address.bucket}.s3.{address.region}.amazonaws.com"

    async def upload_link(
        self, key: str, type_: str, size_bytes: int, expires_at_ms: int
    ) -> wire.Upload:
        """See Shelf."""
        now_ms = self._clock()
        headers = {
            "Content-Type": type_,
            "Content-Length": str(size_bytes),
            "If-None-Match": "*",
        }
        life_s = max(1, (expires_at_ms - now_ms) // 1000)
        url = await self._link("PUT", key, now_ms, life_s, headers)
        del headers["Content-Length"]  # which browsers send by themselves, and let nobody set
        return wire.Upload("PUT", url, headers)

    async def download_link(self, key: str, served: Served, expires_at_ms: int) -> str:
        """See Shelf."""
        life_s = OWN_LINK_LIFE_S * 2
        query = {
            "response-content-type": served.type,
            "response-content-disposition": served.disposition,
            "response-cache-control": f"private, max-age={OWN_LINK_LIFE_S}, immutable",
        }
        return await self._link("GET", key, expires_at_ms - life_s * 1000, life_s, query=query)

    async def size_bytes(self, key: str) -> int | None:
        """See Shelf."""
        async with self._request("HEAD", key) as response:
            return None if response.status == 404 else int(response.headers["Content-Length"])

    async def head(self, key: str) -> bytes:
        """See Shelf."""
        headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}"}
        async with self._request("GET", key, headers=headers) as response:
            if response.status == 404:
                raise NotFound("There are no such bytes.")
            return (await response.content.read(HEAD_BYTES))[:HEAD_BYTES]

    @asynccontextmanager
    async def as_file(self, key: str) -> AsyncIterator[Path]:
        """See Shelf: a copy that lasts as long as it is read."""
        with tempfile.TemporaryDirectory(prefix="tidings-") as folder:
            path = Path(folder) / "blob"
            async with self._request("GET", key, timeout_s=TRANSFER_TIMEOUT_S) as response:
                if response.status == 404:
                    raise NotFound("There are no such bytes.")
                with path.open("wb") as file:
                    async for chunk in response.content.iter_chunked(READ_BYTES):
                        await asyncio.to_thread(file.write, chunk)
            yield path

    async def put(self, key: str, body: bytes, type_: str) -> None:
        """See Shelf."""
        headers = {"Content-Type": type_}
        async with self._request("PUT", key, body, headers, timeout_s=TRANSFER_TIMEOUT_S):
            pass

    async def delete(self, key: str) -> None:
        """See Shelf."""
        async with self._request("DELETE", key):
            pass

    async def close(self) -> None:
        """See Shelf."""
        if self._session is not None:
            await self._session.close()
        self._credentials.close()

    async def _link(
        self,
        method: str,
        key: str,
        from_ms: int,
        life_s: int,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> str:
        return signed_link(
            await self._credentials.keys(),
            method,
            f"{self._base}/{name_of(key)}",
            region=self._region,
            moment=datetime.fromtimestamp(from_ms / 1000, UTC),
            life_s=life_s,
            headers=headers,
            query=query,
        )

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        key: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = ATTEMPT_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, good or 404; every request may be made again. Raises Unavailable."""
        try:
            async with asyncio.timeout(timeout_s * ATTEMPTS_MAX):
                response = await self._answer(method, key, body, headers, timeout_s)
                async with response:
                    yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable("The bucket can't be reached.") from error

    async def _answer(
        self,
        method: str,
        key: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> aiohttp.ClientResponse:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            url = await self._link(method, key, self._clock(), OWN_LINK_LIFE_S, headers)
            try:
                response = await self._connections().request(
                    method,
                    URL(url, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=timeout_s),
                )
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = type(error).__name__
            else:
                if response.status < 300 or response.status == 404:
                    return response
                problem = str(response.status)
                response.release()
                if response.status < 500 and response.status != 429:
                    break
            _log.warning("bucket_retried", method=method, attempt=attempt, problem=problem)
            await asyncio.sleep(random.uniform(0, RETRY_PAUSE_S_MAX))  # noqa: S311
        raise Unavailable("The bucket refuses this, or can't be reached.")

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session
