"""Server-Sent Events: `GET /v1/events` (WHATWG HTML, 9.2), the same updates as over a socket."""

from __future__ import annotations

import asyncio

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from tidings.delivery import frames
from tidings.delivery.connections import CloseCode, Connection
from tidings.delivery.frames import Told
from tidings.delivery.hub import Hub
from tidings.delivery.syncs import Syncs, require_queue
from tidings.errors import RateLimited, TidingsError
from tidings.people.callers import Caller

HEARTBEAT_S = 15.0
"""How often a comment keeps the stream alive."""
CLOSE_S = 5.0
"""How long the end of a stream may take to be read before the connection is cut."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = b": still here\n\n"

_log = structlog.get_logger(__name__)


class Events:
    """Opens event streams and serves each until it ends."""

    def __init__(self, hub: Hub, syncs: Syncs) -> None:
        self._hub = hub
        self._syncs = syncs

    async def handle(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        """Serve one stream; `Last-Event-ID` says where it goes on, and acknowledges the queue.

        Without it the stream is live from `ready` on. Raises, before it begins, Forbidden for a
        caller without a queue, ValidationFailed for a wrong cursor, RateLimited if the user has
        too many connections, Unavailable while the node is being stopped or too many arrive.
        """
        self._hub.refuse_when_draining()
        require_queue(caller)
        since = request.headers.get("Last-Event-ID") or None
        start = None if since is None else await self._syncs.start(caller, since)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the device is gone")
        skin = _EventSkin(transport)
        _, _, token = request.headers.get("Authorization", "").partition(" ")
        connection = Connection(caller, token or None, skin, self._hub.outboxes)
        with self._hub.connected(connection) as is_accepted:
            if not is_accepted:
                raise RateLimited("This user has too many connections.")
            response = web.StreamResponse(headers=_HEADERS)
            response.force_close()
            response.enable_chunked_encoding()
            skin.writer = await response.prepare(request)
            try:
                if start is None:
                    await self._syncs.start_live(caller, connection)
                else:
                    await self._syncs.catch_up(caller, start, {}, connection)
                await skin.ended.wait()
            except ConnectionError:
                return response
            except TidingsError:
                connection.put("closing", frames.closing(self._hub.retry_after_ms()))
                connection.close(CloseCode.TRY_AGAIN_LATER, "")
            except Exception:  # noqa: BLE001 - the root of a task
                _log.exception("an event stream failed")
                connection.close(CloseCode.INTERNAL_ERROR, "")
        asyncio.get_running_loop().call_later(CLOSE_S, transport.abort)
        return response


class _EventSkin:
    """Frames as events, each a chunk of the response's body (RFC 9112, 7.1)."""

    way = "events"

    __slots__ = ("_beaten_at_s", "_transport", "ended", "writer")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._beaten_at_s = asyncio.get_running_loop().time()
        self.ended = asyncio.Event()
        self.writer: AbstractStreamWriter | None = None

    def pieces(self, told: Told) -> list[tuple[bytes, int]]:
        return [(self.piece(name, frame, cursor), 1) for name, cursor, frame in told.each()]

    def piece(self, name: str, frame: bytes, cursor: str | None) -> bytes:
        event = b"event: %b\ndata: %b\n\n" % (name.encode(), frame)
        return event if cursor is None else b"id: %b\n%b" % (cursor.encode(), event)

    def write(self, pieces: list[tuple[bytes, int]], size_bytes: int) -> None:
        self._write_chunk(b"".join([piece[0] for piece in pieces]))

    def _write_chunk(self, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def buffered_bytes(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def beat(self, now_s: float, heard_at_s: float) -> bool:
        if self._transport.is_closing():
            self.ended.set()
            return False
        if now_s - self._beaten_at_s > HEARTBEAT_S - 1:
            self._beaten_at_s = now_s
            self._write_chunk(_HEARTBEAT)
        return True

    def close(self, code: CloseCode, reason: str) -> None:
        self.ended.set()

    async def drain(self) -> None:
        if self._transport.is_closing() or self.writer is None:
            raise ConnectionResetError("the device is gone")
        await self.writer.drain()
