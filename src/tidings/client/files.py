"""Files: sending one so that messages can link to it, and getting one that a message links to."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import IO

import aiohttp
from yarl import URL

from tidings import wire
from tidings.client.backoff import Backoff
from tidings.client.calls import ATTEMPTS_MAX, RETRY_FIRST_S, RETRY_MOST_S, Client
from tidings.client.problems import Conflict, Problem, Unreachable, problem_of_reply

TRANSFER_TIMEOUT_S = 300.0
"""For the bytes of one file, all attempts and waits included."""


async def upload(
    client: Client,
    content: bytes | Path,
    media_type: str,
    *,
    name: str | None = None,
    timeout_s: float = TRANSFER_TIMEOUT_S,
) -> str:
    """Send a file; the id to post messages with (`Client.post_message(…, blobs=[…])`).

    A file of that path is read as it is sent. Bytes whose answer was lost are sent again: they are
    kept once. Raises as `Client` does.
    """
    if isinstance(content, Path):
        name, size = name or content.name, content.stat().st_size  # noqa: ASYNC240
    else:
        size = len(content)
    blob = await client.create_blob(name or "file", media_type, size)
    try:
        async with asyncio.timeout(timeout_s):
            await _send(client, blob.upload, content, size)
    except TimeoutError as error:
        raise Unreachable("upload: no answer in time") from error
    return blob.blob_id


async def download(
    client: Client,
    blob_id: str,
    *,
    room_id: str | None = None,
    thumbnail: bool = False,
    timeout_s: float = TRANSFER_TIMEOUT_S,
) -> bytes:
    """The bytes of a file, or the thumbnail of a picture. Raises as `Client` does."""
    link = await client.blob_link(blob_id, room_id=room_id, thumbnail=thumbnail)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with client.connections().get(URL(link.url, encoded=True), timeout=timeout) as reply:
            raw = await reply.read()
            if reply.status != 200:
                raise problem_of_reply(reply.status, raw, reply.headers.get("Retry-After"))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unreachable(f"{blob_id}: {error}") from error
    return raw


async def _send(client: Client, to: wire.Upload, content: bytes | Path, size: int) -> None:
    backoff = Backoff(first_s=RETRY_FIRST_S, most_s=RETRY_MOST_S, random_0_1=random.random)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            with suppress(Conflict):  # an earlier attempt was good, and its answer was lost
                await _attempt(client, to, content, size)
            return
        except Problem as problem:
            if not problem.is_passing or attempt == ATTEMPTS_MAX:
                raise
            wait_s = backoff.next_s(at_least_s=problem.retry_after_s or 0)
        except aiohttp.ClientError as error:
            if attempt == ATTEMPTS_MAX:
                raise Unreachable(f"upload: {error}") from error
            wait_s = backoff.next_s()
        await asyncio.sleep(wait_s)


async def _attempt(client: Client, to: wire.Upload, content: bytes | Path, size: int) -> None:
    body: bytes | IO[bytes] = content if isinstance(content, bytes) else content.open("rb")
    try:
        async with client.connections().request(
            to.method,
            URL(to.url, encoded=True),
            data=body,
            headers={**to.headers, "Content-Length": str(size)},
            allow_redirects=False,
        ) as reply:
            raw = await reply.read()
            if reply.status >= 300:
                raise problem_of_reply(reply.status, raw, reply.headers.get("Retry-After"))
    finally:
        if not isinstance(body, bytes):
            body.close()
