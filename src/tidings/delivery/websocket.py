"""The WebSocket: `GET /v1/ws`, subprotocol `tidings.v1` (RFC 6455)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from struct import Struct
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from tidings import wire
from tidings.chat.commands import Posted
from tidings.delivery import frames
from tidings.delivery.connections import CloseCode, Connection
from tidings.delivery.frames import FRAME_BYTES_MAX, FRAME_UPDATES_MAX, Told
from tidings.delivery.hub import Hub
from tidings.delivery.syncs import Syncs, parse_have, require_queue
from tidings.errors import (
    Conflict,
    Forbidden,
    RateLimited,
    TidingsError,
    Unauthorized,
    Unavailable,
    ValidationFailed,
)
from tidings.people.callers import Caller
from tidings.problems import problem_of

SUBPROTOCOL = "tidings.v1"
AUTH_DEADLINE_S = 10.0
"""How long a socket may stay without a credential."""
AUTH_ATTEMPTS_MAX = 10
"""Frames that a socket may send before a valid `auth`."""
INBOUND_BYTES_MAX = 128 * 1024
"""Bytes of one frame of a client; a larger one ends the connection with 1009."""
IN_FLIGHT_MAX = 256
"""Frames of one connection that wait for their answer; further ones are not read meanwhile."""
PING_AFTER_S = 20.0
"""How long a silent connection goes without a ping."""
IDLE_S = 45.0
"""How long a connection may stay silent, pongs included, before it is taken for dead."""
CLOSE_S = 5.0
"""How long the closing may take before the connection is cut."""

_TEXT = 0x81
"""A final text frame (RFC 6455, 5.2)."""
_PING = b"\x89\x00"
_PONG = 0x8A
_medium = Struct("!BBH").pack
_large = Struct("!BBQ").pack
_BATCH_OPENING = b'{"type":"batch","updates":['
_BATCH_CLOSING = b"]}"

_log = structlog.get_logger(__name__)


class Posts(Protocol):
    """What a socket needs of `chat.messages.Messages`."""

    async def submit(
        self, caller: Caller, room_id: str, body: wire.PostMessage
    ) -> asyncio.Future[Posted]:
        """Queue a message; the future is done when it is durable."""
        ...

    async def read(self, caller: Caller, room_id: str, seq: int) -> wire.ReadReply:
        """Move the caller's read mark."""
        ...


class Typings(Protocol):
    """What a socket needs of `chat.rooms.Rooms`."""

    async def typing(self, caller: Caller, room_id: str) -> None:
        """Tell the others in the room."""
        ...


class Credentials(Protocol):
    """What a socket needs of `people.credentials.Credentials`."""

    async def authenticate(self, token: str) -> Caller:
        """Who calls with this token. Raises Unauthorized."""
        ...


class Limits(Protocol):
    """What a socket needs of `people.limits.RateLimits`."""

    def count(self, caller: Caller) -> None:
        """Count a frame. Raises RateLimited."""
        ...


class Sockets:
    """Accepts WebSockets and serves each until it ends."""

    def __init__(
        self,
        hub: Hub,
        syncs: Syncs,
        posts: Posts,
        typings: Typings,
        credentials: Credentials,
        limits: Limits,
    ) -> None:
        self.hub = hub
        self.syncs = syncs
        self.posts = posts
        self.typings = typings
        self.credentials = credentials
        self.limits = limits

    async def handle(self, request: web.Request, caller: Caller | None) -> web.WebSocketResponse:
        """Serve one WebSocket; `caller` is who the Authorization header names, if it does.

        Raises Forbidden, before the upgrade, for a caller without a queue, and Unavailable
        while the node is being stopped.
        """
        self.hub.refuse_when_draining()
        if caller is not None:
            require_queue(caller)
        response = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            timeout=CLOSE_S,
            autoping=False,
            compress=False,
            max_msg_size=INBOUND_BYTES_MAX,
        )
        writer = await response.prepare(request)
        transport = request.transport
        if transport is not None:
            _, _, token = request.headers.get("Authorization", "").partition(" ")
            socket = _Socket(self, response, transport, writer)
            await socket.serve(caller, token)
        return response


class _WebSocketSkin:
    """Frames as WebSocket texts.

    Frames of a server are a short header and the text (RFC 6455, 5.2); they go to the transport
    directly, since a flush may not wait as the library's own writer does.
    """

    way = "websocket"

    __slots__ = ("_response", "_tasks", "_transport", "_writer")

    def __init__(
        self,
        response: web.WebSocketResponse,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self._response = response
        self._transport = transport
        self._writer = writer
        self._tasks = tasks

    def pieces(self, told: Told) -> list[tuple[bytes, int]]:
        return told.joined

    def piece(self, name: str, frame: bytes, cursor: str | None) -> bytes:
        return frame

    def write(self, pieces: list[tuple[bytes, int]], size_bytes: int) -> None:
        if self._response.closed or self._transport.is_closing():
            return
        if len(pieces) == 1:
            self._write_part(pieces, pieces[0][1])
            return
        count = sum([piece[1] for piece in pieces])
        if count <= FRAME_UPDATES_MAX and size_bytes <= FRAME_BYTES_MAX:
            self._write_part(pieces, count)
            return
        part: list[tuple[bytes, int]] = []
        count = size = 0
        for piece in pieces:
            is_full = count + piece[1] > FRAME_UPDATES_MAX
            if part and (is_full or size + len(piece[0]) > FRAME_BYTES_MAX):
                self._write_part(part, count)
                part, count, size = [], 0, 0
            part.append(piece)
            count += piece[1]
            size += len(piece[0])
        self._write_part(part, count)

    def _write_part(self, pieces: list[tuple[bytes, int]], count: int) -> None:
        if count == 1:
            text = pieces[0][0]
        else:
            text = b"".join(
                (_BATCH_OPENING, b",".join([piece[0] for piece in pieces]), _BATCH_CLOSING)
            )
        self._write_frame(_TEXT, text)

    def _write_frame(self, first_byte: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            self._transport.write(bytes((first_byte, size)) + payload)
        elif size < 65_536:
            self._transport.write(_medium(first_byte, 126, size) + payload)
        else:
            self._transport.write(_large(first_byte, 127, size))
            self._transport.write(payload)

    def buffered_bytes(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def beat(self, now_s: float, heard_at_s: float) -> bool:
        silent_s = now_s - heard_at_s
        if silent_s > IDLE_S:
            self._transport.abort()
            return False
        if silent_s > PING_AFTER_S and not self._transport.is_closing():
            self._transport.write(_PING)
        return True

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        if not self._transport.is_closing() and self.buffered_bytes() <= FRAME_BYTES_MAX:
            self._write_frame(_PONG, payload)

    def close(self, code: CloseCode, reason: str) -> None:
        asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)
        task = asyncio.create_task(self._close(code, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close(self, code: CloseCode, reason: str) -> None:
        await self._response.close(code=code, message=reason.encode(), drain=False)

    async def drain(self) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the device is gone")
        await self._writer.drain()


class _Socket:
    """One WebSocket from its upgrade to its end."""

    __slots__ = (
        "_connection",
        "_response",
        "_skin",
        "_slot",
        "_sockets",
        "_tasks",
    )

    _connection: Connection

    def __init__(
        self,
        sockets: Sockets,
        response: web.WebSocketResponse,
        transport: asyncio.Transport,
        writer: AbstractStreamWriter,
    ) -> None:
        self._sockets = sockets
        self._response = response
        self._tasks: set[asyncio.Task[None]] = set()
        self._skin = _WebSocketSkin(response, transport, writer, self._tasks)
        self._slot: asyncio.Future[None] | None = None

    async def serve(self, caller: Caller | None, token: str) -> None:
        """Authenticate, catch up, and answer frames until the connection ends."""
        try:
            since: str | None = None
            have: dict[str, str] = {}
            if caller is None:
                caller, auth = await self._authenticate_in_time()
                token, since, have = auth.token, auth.since, auth.have
            await self._live(caller, token, since, have)
        except Unauthorized as error:
            await self._refuse(CloseCode.UNAUTHORIZED, error)
        except Forbidden as error:
            await self._refuse(CloseCode.FORBIDDEN, error)
        except Unavailable:
            self._write(frames.closing(self._sockets.hub.retry_after_ms()))
            await self._close(CloseCode.TRY_AGAIN_LATER)
        except (ConnectionError, _Gone):
            pass
        except Exception:  # noqa: BLE001 - the root of a task
            _log.exception("a connection failed")
            await self._close(CloseCode.INTERNAL_ERROR)
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _refuse(self, code: CloseCode, error: TidingsError) -> None:
        self._write(frames.error(None, problem_of(error)))
        await self._close(code)

    def _write(self, frame: bytes) -> None:
        self._skin.write([(frame, 1)], len(frame))

    async def _close(self, code: CloseCode) -> None:
        await self._response.close(code=code, drain=False)

    async def _authenticate_in_time(self) -> tuple[Caller, frames.Auth]:
        """Who is there. Lateness, the network's or our own, says nothing about a credential."""
        try:
            async with asyncio.timeout(AUTH_DEADLINE_S):
                return await self._authenticate()
        except TimeoutError as error:
            raise Unavailable("No credential came in time.") from error

    async def _authenticate(self) -> tuple[Caller, frames.Auth]:
        """Wait for a valid `auth` frame; what is merely malformed may be sent again."""
        for _ in range(AUTH_ATTEMPTS_MAX):
            message = await self._response.receive()
            if message.type in (WSMsgType.PING, WSMsgType.PONG):
                continue
            if message.type is not WSMsgType.TEXT:
                raise _Gone
            try:
                frame = frames.decode(message.data)
                if not isinstance(frame, frames.Auth):
                    raise Unauthorized("Send auth first.")
                parse_have(frame.have)
            except (msgspec.DecodeError, RecursionError) as error:
                self._write(frames.error(None, self._problem_of(error)))
                continue
            except ValidationFailed as error:
                self._write(frames.error(None, problem_of(error)))
                continue
            async with self._sockets.syncs.admission.pass_through():
                caller = await self._sockets.credentials.authenticate(frame.token)
            require_queue(caller)
            if frame.since is not None:
                try:
                    self._sockets.syncs.queues.open(caller, frame.since)
                except ValidationFailed as error:
                    self._write(frames.error(None, problem_of(error)))
                    continue
            return caller, frame
        raise Unauthorized("No credential came in so many frames.")

    def _problem_of(self, error: Exception) -> wire.Problem:
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "Nested too deeply."
        return problem_of(ValidationFailed(detail))

    async def _live(
        self, caller: Caller, token: str, since: str | None, have: dict[str, str]
    ) -> None:
        hub = self._sockets.hub
        self._connection = Connection(caller, token or None, self._skin, hub.outboxes)
        with hub.connected(self._connection) as is_accepted:
            if not is_accepted:
                await self._refuse(
                    CloseCode.TOO_MANY, RateLimited("This user has too many connections.")
                )
                return
            await self._begin(caller, since, have)
            await self._read()

    async def _begin(self, caller: Caller, since: str | None, have: dict[str, str]) -> None:
        """Say `ready`, then what was missed, and go live."""
        connection, syncs = self._connection, self._sockets.syncs
        if since is None and not have:
            await syncs.start_live(caller, connection)
            return
        start = await syncs.start(caller, since)
        await syncs.catch_up(caller, start, parse_have(have), connection)

    async def _read(self) -> None:
        connection = self._connection
        receive = self._response.receive
        now_s = asyncio.get_running_loop().time
        while True:
            message = await receive()
            kind = message.type
            connection.heard_at_s = now_s()
            if kind is WSMsgType.TEXT:
                await self._take(message.data)
            elif kind is WSMsgType.PING:
                self._skin.pong(message.data)
            elif kind is WSMsgType.BINARY:
                self._fail(None, ValidationFailed("Frames are texts."))
            elif kind is not WSMsgType.PONG:
                return

    async def _take(self, text: str) -> None:
        """Act on one frame of the client; what is wrong with it is answered by `error`."""
        caller = self._connection.caller
        try:
            self._sockets.limits.count(caller)
            frame = frames.decode(text)
        except RateLimited as error:
            self._fail(frames.ref_of(text), error)
            return
        except (msgspec.DecodeError, RecursionError) as error:
            frame_error = frames.error(frames.ref_of(text), self._problem_of(error))
            self._connection.put("error", frame_error)
            return
        try:
            match frame:
                case frames.Send():
                    await self._send(caller, frame)
                case frames.Read():
                    await self._start(self._mark_read(caller, frame))
                case frames.Typing():
                    await self._sockets.typings.typing(caller, frame.room_id)
                case frames.Sync():
                    await self._sync(caller, frame)
                case frames.Seen():
                    await self._sockets.syncs.queues.see(caller, frame.cursor)
                case frames.Ping():
                    self._connection.put("pong", frames.pong(frame.ref))
                case frames.Auth():
                    raise Conflict("This connection is authenticated already.")
        except TidingsError as error:
            self._fail(getattr(frame, "ref", None), error)

    def _fail(self, ref: frames.Ref, error: TidingsError) -> None:
        self._connection.put("error", frames.error(ref, problem_of(error)))

    async def _send(self, caller: Caller, frame: frames.Send) -> None:
        self._sockets.hub.refuse_when_draining()
        body = wire.PostMessage(
            frame.client_id,
            frame.text,
            frame.blobs,
            frame.reply_to,
            frame.mentions,
            frame.as_user,
        )
        future = await self._sockets.posts.submit(caller, frame.room_id, body)
        self._connection.in_flight += 1
        future.add_done_callback(partial(self._posted, frame.ref))
        await self._have_slot()

    def _posted(self, ref: frames.Ref, future: asyncio.Future[Posted]) -> None:
        self._free_slot()
        if future.cancelled():
            self._fail(ref, Unavailable())
            return
        error = future.exception()
        if error is None:
            entry_json = future.result().entry.json
            self._connection.put("ack", frames.acknowledged_entry(ref, entry_json))
        elif isinstance(error, TidingsError):
            self._fail(ref, error)
        else:
            _log.error("a message was not posted", exc_info=error)
            self._fail(ref, TidingsError("Something went wrong."))

    async def _have_slot(self) -> None:
        """Wait while too many frames have no answer yet: the device then stops sending, too."""
        while self._connection.in_flight >= IN_FLIGHT_MAX:
            self._slot = asyncio.get_running_loop().create_future()
            await self._slot

    def _free_slot(self) -> None:
        self._connection.in_flight -= 1
        if self._slot is not None:
            if not self._slot.done():
                self._slot.set_result(None)
            self._slot = None

    async def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with other frames while this one waits for its commit."""
        self._connection.in_flight += 1
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._have_slot()

    async def _mark_read(self, caller: Caller, frame: frames.Read) -> None:
        try:
            reply = await self._sockets.posts.read(caller, frame.room_id, frame.seq)
            self._connection.put("ack", frames.acknowledged_read(frame.ref, reply))
        except TidingsError as error:
            self._fail(frame.ref, error)
        except Exception:  # noqa: BLE001 - the root of a task
            _log.exception("a read mark was not moved")
            self._fail(frame.ref, TidingsError("Something went wrong."))
        finally:
            self._free_slot()

    async def _sync(self, caller: Caller, frame: frames.Sync) -> None:
        """Answer with one window; live updates go on after what it told, nothing in between."""
        syncs, connection = self._sockets.syncs, self._connection
        have = parse_have(frame.have)
        start = await syncs.start(caller, frame.since)
        async with connection.reading:
            connection.hold()
            version = connection.version
            try:
                reply = await syncs.read(caller, start, have, frame.limit)
                connection.put("sync", frames.synced(frame.ref, reply))
                if not reply.more:
                    version = reply.version
            finally:
                connection.resume(version)


class _Gone(Exception):
    """The device went away before it was known."""
