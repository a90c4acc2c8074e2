"""The ways that updates reach a device: a socket, a stream, or polls. Each yields frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import msgspec

from tidings import wire
from tidings.client.calls import Client
from tidings.client.frames import Received, Synced, decode
from tidings.client.problems import Conflict, Problem, Unreachable, problem_of_reply

SUBPROTOCOL = "tidings.v1"
OPEN_DEADLINE_S = 10.0
PING_EVERY_S = 20.0
"""A socket that does not answer a ping within half of that is given up."""
SILENCE_MAX_S = 45.0
"""A stream has a heartbeat every 15 s; one that is silent for three of them is given up."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
POLL_WAIT_S = 20.0

_STATUSES = {4401: 401, 4403: 403, 4429: 429}
"""Close codes that say the same as an HTTP status."""

_encode = msgspec.json.Encoder().encode


class Line(Protocol):
    """An open connection for updates."""

    can_send: bool
    """Whether frames can be sent over it; if not, messages are posted."""

    def frames(self) -> AsyncIterator[list[Received]]:
        """The frames as they come; ends when the connection does."""
        ...

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Hand over one frame."""
        ...


class _Socket:
    can_send = True

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, frame: Mapping[str, Any]) -> None:
        try:
            await self._socket.send_str(_encode(frame).decode())
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Unreachable(f"the socket broke: {error}") from error

    async def frames(self) -> AsyncIterator[list[Received]]:
        async for message in self._socket:
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                yield decode(message.data)
        status = _STATUSES.get(self._socket.close_code or 0)
        if status is not None:
            raise problem_of_reply(status, b"", None)


@asynccontextmanager
async def open_socket(
    client: Client, since: str | None, have: Mapping[str, str]
) -> AsyncIterator[Line]:
    """A WebSocket, authenticated; the catch-up since the cursor comes before live updates."""
    try:
        async with asyncio.timeout(OPEN_DEADLINE_S):
            socket = await client.connections().ws_connect(
                f"{client.url}/v1/ws",
                protocols=(SUBPROTOCOL,),
                heartbeat=PING_EVERY_S,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
            )
    except aiohttp.WSServerHandshakeError as error:
        retry_after = None if error.headers is None else error.headers.get("Retry-After")
        raise problem_of_reply(error.status, b"", retry_after) from error
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise Unreachable(f"the socket did not open: {error}") from error
    async with socket:
        line = _Socket(socket)
        first: dict[str, Any] = {"type": "auth", "token": client.token}
        if since is not None:
            first["since"] = since
        if have:
            first["have"] = dict(have)
        await line.send(first)
        yield line


class _Stream:
    can_send = False

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def send(self, frame: Mapping[str, Any]) -> None:
        raise NotImplementedError("a stream carries nothing to the service")

    async def frames(self) -> AsyncIterator[list[Received]]:
        data: list[bytes] = []
        try:
            while True:
                async with asyncio.timeout(SILENCE_MAX_S):
                    line = await self._response.content.readline()
                if not line:
                    return
                line = line.rstrip(b"\r\n")
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                elif not line and data:
                    frame = b"\n".join(data)
                    data.clear()
                    yield decode(frame)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise Unreachable(f"the stream broke: {error}") from error


@asynccontextmanager
async def open_stream(
    client: Client, since: str | None, have: Mapping[str, str]
) -> AsyncIterator[Line]:
    """Server-Sent Events (WHATWG HTML, 9.2), with the cursor as `Last-Event-ID`."""
    headers = client.headers() | {"Accept": "text/event-stream"}
    if since is not None:
        headers["Last-Event-ID"] = since
    try:
        async with asyncio.timeout(OPEN_DEADLINE_S):
            response = await client.connections().get(
                f"{client.url}/v1/events",
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=FRAME_BYTES_MAX,
            )
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise Unreachable(f"the stream did not open: {error}") from error
    async with response:
        if response.status != 200:
            retry_after = response.headers.get("Retry-After")
            raise problem_of_reply(response.status, await response.read(), retry_after)
        yield _Stream(response)


class _Polls:
    can_send = False

    def __init__(self, client: Client, since: str | None, have: Mapping[str, str]) -> None:
        self._client = client
        self._since = since
        self._have = have

    async def send(self, frame: Mapping[str, Any]) -> None:
        raise NotImplementedError("a poll carries nothing but its cursor")

    async def frames(self) -> AsyncIterator[list[Received]]:
        while True:
            try:
                reply = await self._client.sync(
                    self._since, have=self._have, wait_s=POLL_WAIT_S, limit=wire.LIST_LIMIT_MAX
                )
            except Conflict as error:
                raise Unreachable("another poll took this queue over") from error
            self._since, self._have = reply.cursor, {}
            yield [
                Synced(
                    reply.cursor,
                    reply.version,
                    reply.total,
                    reply.rooms,
                    reply.more,
                    reply.unread_rooms,
                )
            ]


@asynccontextmanager
async def open_polls(
    client: Client, since: str | None, have: Mapping[str, str]
) -> AsyncIterator[Line]:
    """Long polls, one after the other; each acknowledges what the last one brought."""
    yield _Polls(client, since, have)


def is_final(error: Exception) -> bool:
    """Whether coming back is of no use."""
    return isinstance(error, Problem) and not error.is_passing and 400 <= error.status < 500
