"""Connections that cost the load generator next to nothing, so that it measures the service.

They speak just enough of RFC 6455 and RFC 9112 to talk to a service that keeps to them.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import time
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit

import msgspec

CONNECT_DEADLINE_S = 20.0
CALL_DEADLINE_S = 30.0
_HEADER_END = b"\r\n\r\n"
_TEXT, _CLOSE, _PING = 0x1, 0x8, 0x9
_NO_MASK = b"\0\0\0\0"

encode = msgspec.json.Encoder().encode


class Broken(Exception):
    """The connection ended, or the service said something unexpected."""


def _address(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"{url} has no host and port")
    return parts.hostname, parts.port, parts.netloc


class FastSocket(asyncio.Protocol):
    """A client WebSocket that hands every text frame to `receive` as it came.

    Frames are masked with zeros: masks protect proxies on the way, and there is none.
    """

    def __init__(self, request: bytes, receive: Callable[[bytes], None]) -> None:
        self.receive = receive
        self.close_code: int | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._is_open = False

    @classmethod
    async def open(cls, url: str, token: str, receive: Callable[[bytes], None]) -> FastSocket:
        """Connect as the session and wait for the handshake."""
        host, port, netloc = _address(url)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /v1/ws HTTP/1.1\r\nHost: {netloc}\r\nAuthorization: Bearer {token}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: tidings.v1\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            _, socket = await loop.create_connection(
                lambda: cls(request.encode(), receive), host, port
            )
            await socket.ready
        return socket

    def send(self, *texts: bytes) -> None:
        """Send text frames with one system call."""
        if self._transport is None:
            raise Broken("the connection is not open")
        parts: list[bytes] = []
        for text in texts:
            size = len(text)
            if size < 126:
                parts.append(bytes((0x81, 0x80 | size)))
            elif size < 65_536:
                parts.append(struct.pack("!BBH", 0x81, 0x80 | 126, size))
            else:
                parts.append(struct.pack("!BBQ", 0x81, 0x80 | 127, size))
            parts += (_NO_MASK, text)
        self._transport.write(b"".join(parts))

    def close(self) -> None:
        """End the connection without ceremony."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The network is there: ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, expected or not."""
        self._transport = None
        if not self.ready.done():
            self.ready.set_exception(Broken(f"no WebSocket: {exc}"))
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Cut what came into frames."""
        if self._rest:
            data = self._rest + data
        if not self._is_open:
            head, found, data = data.partition(_HEADER_END)
            if not found:
                self._rest = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.ready.set_exception(Broken(head.split(b"\r\n")[0].decode("latin-1")))
                self.close()
                return
            self._is_open = True
            self.ready.set_result(None)
        start, end = 0, len(data)
        while end - start >= 2:
            size, at = data[start + 1], start + 2
            if size == 126:
                if end - at < 2:
                    break
                size, at = int.from_bytes(data[at : at + 2]), at + 2
            elif size == 127:
                if end - at < 8:
                    break
                size, at = int.from_bytes(data[at : at + 8]), at + 8
            if end - at < size:
                break
            self._take(data[start] & 0xF, data[at : at + size])
            start = at + size
        self._rest = data[start:]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == _TEXT:
            self.receive(payload)
        elif kind == _PING and self._transport is not None:
            self._transport.write(bytes((0x8A, 0x80 | len(payload))) + _NO_MASK + payload)
        elif kind == _CLOSE:
            self.close_code = int.from_bytes(payload[:2]) if payload else 1005
            self.close()


class FastHttp(asyncio.Protocol):
    """One kept-alive HTTP connection, one request at a time, timed to the last byte."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[float] | None = None
        self._parts: list[bytes] = []
        self._missing: int | None = None
        self.status = 0
        self.body = b""

    @classmethod
    async def open(cls, url: str) -> FastHttp:
        """Connect."""
        host, port, netloc = _address(url)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            _, connection = await loop.create_connection(lambda: cls(netloc), host, port)
        return connection

    async def call(
        self, method: str, path: str, token: str | None, body: bytes | None = None
    ) -> float:
        """Make one call; seconds from the first byte sent to the last received.

        The reply is in `status` and `body`. Raises `Broken` for anything but success.
        """
        if self._transport is None:
            raise Broken("the connection is closed")
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if token is not None:
            head += f"Authorization: Bearer {token}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        request = head.encode() + b"\r\n" + (body or b"")
        self._answer = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(CALL_DEADLINE_S):
            started = time.perf_counter()
            self._transport.write(request)
            ended = await self._answer
        if not 200 <= self.status < 300:
            raise Broken(f"{method} {path.partition('?')[0]}: {self.status} {self.body[:300]!r}")
        return ended - started

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The network is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, expected or not."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(f"the connection ended: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Collect one reply with a Content-Length."""
        self._parts.append(data)
        if self._missing is None:
            whole = b"".join(self._parts)
            head, found, body = whole.partition(_HEADER_END)
            if not found:
                return
            lines = head.split(b"\r\n")
            self.status = int(lines[0].split(b" ", 2)[1])
            fields = (line.partition(b":") for line in lines[1:])
            sizes = [int(value) for name, _, value in fields if name.lower() == b"content-length"]
            self._missing = (sizes[0] if sizes else 0) - len(body)
            self._parts = [body]
        else:
            self._missing -= len(data)
        if self._missing <= 0 and self._answer is not None:
            ended = time.perf_counter()
            self.body = b"".join(self._parts)
            self._parts, self._missing = [], None
            self._answer.set_result(ended)

    async def json(
        self, method: str, path: str, token: str | None, body: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        """Make one call and read the reply."""
        await self.call(method, path, token, None if body is None else encode(body))
        reply: dict[str, object] = msgspec.json.decode(self.body)
        return reply
