"""One live connection, whatever its skin: its position, its bounded outbox, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from tidings.delivery.frames import Told
from tidings.metrics import Metrics
from tidings.people.callers import Caller

OUTBOX_BYTES_MAX = 1024 * 1024
"""Bytes that may wait for a device; one that reads slower than that is told to catch up."""
HELD_UPDATES_MAX = 256
"""Updates kept back during one catch-up or gap; past it what is missing is read instead."""
DRAIN_S = 20.0
"""How long a device may take to read one window of a catch-up."""


class CloseCode(IntEnum):
    """Why the service ends a connection, and by that whether to come back, and how.

    1007 (bad UTF-8), 1009 (frame too large) and 1002 are the protocol's own (RFC 6455, 7.4.1).
    """

    GOING_AWAY = 1001
    """A planned stop: come back after the `retry_after_ms` of the `closing` frame."""
    INTERNAL_ERROR = 1011
    """A fault of the service: come back and catch up."""
    TRY_AGAIN_LATER = 1013
    """Too many arrive at once, or no credential came in time: come back after the `retry_after_ms`
    of the `closing` frame."""
    UNAUTHORIZED = 4401
    """No valid credential, or it was revoked: come back with another one."""
    FORBIDDEN = 4403
    """This credential has no queue: do not come back."""
    BEHIND = 4408
    """The device read too slowly, or missed something: come back and catch up."""
    TOO_MANY = 4429
    """The user has too many connections: close one first."""


class Outboxes:
    """Flushes every connection that has something to say, once per turn of the event loop.

    The flush comes a turn after the first mark, so that what belongs together (updates and the
    acknowledgements of the same commit) leaves in one frame and one system call.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._marked: list[Connection] = []
        self._delivered: dict[str, int] = {}

    def mark(self, connection: Connection) -> None:
        """Flush this connection soon."""
        if not self._marked:
            asyncio.get_running_loop().call_soon(self._wait_a_turn)
        self._marked.append(connection)

    def count(self, way: str, updates: int) -> None:
        """Updates were put for a connection."""
        self._delivered[way] = self._delivered.get(way, 0) + updates

    def _wait_a_turn(self) -> None:
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        marked, self._marked = self._marked, []
        for connection in marked:
            connection.flush()
        for way, updates in self._delivered.items():
            self.metrics.delivered(way, updates)
        self._delivered.clear()


class Skin(Protocol):
    """How frames look on one kind of connection; nothing here waits or raises."""

    way: str

    def pieces(self, told: Told) -> list[tuple[bytes, int]]:
        """The frames of an update as (bytes, number of updates)."""
        ...

    def piece(self, name: str, frame: bytes, cursor: str | None) -> bytes:
        """A single frame of the given type; `cursor` is the position after it, if it has one."""
        ...

    def write(self, pieces: list[tuple[bytes, int]], size_bytes: int) -> None:
        """Hand pieces to the transport."""
        ...

    def buffered_bytes(self) -> int:
        """What was handed to the transport, but the network has not taken."""
        ...

    def beat(self, now_s: float, heard_at_s: float) -> bool:
        """Keep an idle connection alive; False if it is dead. Called every few seconds."""
        ...

    def close(self, code: CloseCode, reason: str) -> None:
        """Start the closing, which ends within a deadline whatever the device does."""
        ...

    async def drain(self) -> None:
        """Wait until the device has read most of what was written. Raises ConnectionError."""
        ...


class Connection:
    """What one device is told, in order and without a gap, or else the connection ends.

    It starts out holding: updates are kept back until `go_live` names the version that the
    device's catch-up reached. From then on each update's version is one above the last. One that
    comes too early is kept until those before it came; `on_gap` sees to it that they do.
    """

    __slots__ = (
        "_early",
        "_is_holding",
        "_known_version",
        "_outboxes",
        "_pending",
        "_pending_bytes",
        "_skin",
        "caller",
        "close_code",
        "heard_at_s",
        "in_flight",
        "on_gap",
        "reading",
        "token",
        "version",
    )

    def __init__(self, caller: Caller, token: str | None, skin: Skin, outboxes: Outboxes) -> None:
        """`token` is what the caller is checked by again from time to time."""
        self.caller = caller
        self.token = token
        self.version = 0
        """The last version that the device was told of."""
        self.heard_at_s = asyncio.get_running_loop().time()
        self.in_flight = 0
        """Frames of the device that have no answer yet."""
        self.close_code: CloseCode | None = None
        """Why the connection is ending, once it is."""
        self.on_gap: Callable[[Connection], None] = Connection.fall_behind
        """Called when the device is found to have missed something: to `mend` it soon."""
        self.reading = asyncio.Lock()
        """Held by whoever holds updates back while reading from the store."""
        self._skin = skin
        self._outboxes = outboxes
        self._pending: list[tuple[bytes, int]] = []
        self._pending_bytes = 0
        self._is_holding = True
        self._early: dict[int, Told] | None = {}
        """Updates kept back, by version; None while there is nothing to wait for."""
        self._known_version = 0
        """The last version that there is known to be, once it is past what was told."""

    @property
    def way(self) -> str:
        """`websocket` or `events`."""
        return self._skin.way

    @property
    def is_settled(self) -> bool:
        """Whether everything is answered and was taken by the network."""
        return not (self.in_flight or self._pending or self._skin.buffered_bytes())

    @property
    def is_complete(self) -> bool:
        """Whether the device was told everything that is known to be."""
        return self._early is None

    def hold(self) -> None:
        """Keep updates back until the next `go_live` or `resume`."""
        self._is_holding = True
        if self._early is None:
            self._early = {}

    def go_live(self, version: int) -> bool:
        """Tell what was held beyond `version`, and from now on everything at once.

        False, and still holding, if something between is missing: read again first.
        """
        self.version = reached = max(self.version, version)
        early = {v: told for v, told in (self._early or {}).items() if v > reached}
        self._early = early
        while reached + 1 in early:
            reached += 1
        if reached < self._known_version:
            return False
        self._is_holding = False
        self._go_on()
        return True

    def resume(self, version: int) -> None:
        """Like `go_live`, but what is missing is told later, in its turn."""
        if not self.go_live(version):
            self._is_holding = False
            self._go_on()
            self.on_gap(self)

    def tell(self, told: Told) -> None:
        """Tell of one commit; what the device knows already is left out."""
        if told.version == self.version + 1 and not self._is_holding:
            self._say(told)
            if self._early is not None:
                self._go_on()
        elif told.version > self.version:
            self.expect(told.version)
            early = self._early
            if early is not None and len(early) >= HELD_UPDATES_MAX:
                early.clear()
            if early is not None:
                early[told.version] = told

    def expect(self, version: int) -> None:
        """There is this version: what the device was not told of by now was missed, or is late."""
        if version > self.version:
            self._known_version = max(self._known_version, version)
            if self._early is None:
                self._early = {}
                self.on_gap(self)

    def _go_on(self) -> None:
        """Tell what was early and is not any more."""
        early = self._early
        while early and (told := early.pop(self.version + 1, None)) is not None:
            self._say(told)
        if self.version >= self._known_version:
            self._early = None

    def _say(self, told: Told) -> None:
        self.version = told.version
        self._outboxes.count(self._skin.way, told.count)
        for piece in self._skin.pieces(told):
            self._put(piece)

    def put(self, name: str, frame: bytes, cursor: str | None = None) -> None:
        """Send one frame after what was put before it."""
        self._put((self._skin.piece(name, frame, cursor), 1))

    def _put(self, piece: tuple[bytes, int]) -> None:
        if self.close_code is not None:
            return
        if self._pending_bytes > OUTBOX_BYTES_MAX:
            self.fall_behind()
            return
        if not self._pending:
            self._outboxes.mark(self)
        self._pending.append(piece)
        self._pending_bytes += len(piece[0])

    def flush(self) -> None:
        """Hand what is pending to the transport, or end the connection if it piles up there."""
        if not self._pending:
            return
        if self._skin.buffered_bytes() > OUTBOX_BYTES_MAX:
            self.fall_behind()
            return
        pending, size = self._pending, self._pending_bytes
        self._pending = []
        self._pending_bytes = 0
        self._skin.write(pending, size)

    async def drain(self) -> None:
        """Flush, and wait until the device has read most of it; ends it past the deadline.

        Raises ConnectionError if the device is gone.
        """
        self.flush()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._skin.drain()
        except TimeoutError:
            self.fall_behind()

    def beat(self, now_s: float) -> bool:
        """Keep the connection alive; False if it is dead and was ended."""
        return self._skin.beat(now_s, self.heard_at_s)

    def fall_behind(self) -> None:
        """End the connection because the device has to catch up."""
        if self.close_code is None:
            self._outboxes.metrics.overflowed()
            self._pending = []
            self.close(CloseCode.BEHIND, "come back and catch up")

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection after what is pending. Nothing is put after that."""
        if self.close_code is None:
            self.flush()
            if self.close_code is None:
                self.close_code = code
                self._pending = []
                self._skin.close(code, reason)
