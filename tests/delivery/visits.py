"""Devices that come and go, by any way, and sometimes lose what they were told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeAlias

import aiohttp
import msgspec

from tests.delivery.conftest import Socket
from tests.delivery.test_events import Stream
from tidings import wire
from tidings.chat import ranges
from tidings.client import ClientError
from tidings.errors import Conflict

GLANCE_S = 0.05
"""How long a visit looks for a frame before it looks whether it is to end."""
AWAY_S = 0.05
"""How long a visit waits where the service is not there."""
SETTLE_REPLIES_MAX = 1_000

OpenStream: TypeAlias = Callable[[str | None], AbstractAsyncContextManager[Stream]]
"""An event stream since a cursor."""

_NAMING_TYPES = ("edited", "deleted", "reaction")


class Doors(Protocol):
    """How one session reaches the service."""

    user_id: str

    async def connect(self, *, header: bool = True, **auth: Any) -> Socket:
        """A WebSocket, authenticated by header, or by an auth frame with the given fields."""
        ...

    async def sync(self, **request: Any) -> wire.SyncReply:
        """A catch-up or long poll. Raises tidings.errors.Conflict where another took over."""
        ...


class State:
    """What a device shows: it applies what it is told and never counts."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.version = 0
        self.total = (0, 0)
        self.entries: dict[str, dict[int, str | None]] = {}
        self.rooms: dict[str, dict[str, Any]] = {}
        self.changed: dict[str, set[int]] = {}
        """Entries that were edited, deleted or reacted to: they have to be fetched again."""

    def apply(self, frame: dict[str, Any]) -> bool:
        """Take a frame in; False if it shows that something was missed before it."""
        kind = frame["type"]
        if frame.get("since_version", 0) > self.version:
            return False
        if kind in ("sync", "ready"):
            if kind == "sync":
                self._apply_sync(frame)
            else:
                self.version = max(self.version, frame["version"])
            self.cursor = frame["cursor"]
            return True
        if "version" not in frame:
            return True
        if frame["version"] > self.version + 1:
            return False
        if kind == "entry":
            self.keep(frame["entry"])
        if frame["version"] >= self.version:
            self.version = frame["version"]
            total = frame.get("total", frame)
            self.total = (total["unread"], total["mentions"])
            if kind != "badge":
                room_id = frame["entry"]["room_id"] if kind == "entry" else frame["room_id"]
                self._show(room_id, frame.get("room", {}) | frame, is_present=kind != "room")
            self.cursor = frame["cursor"]
        return True

    def _apply_sync(self, reply: dict[str, Any]) -> None:
        is_new = reply["version"] >= self.version
        for room in reply["rooms"]:
            for entry in room.get("entries", ()):
                self.keep(entry)
            if is_new:
                self._show(room["room_id"], room, is_present=True)
        if is_new:
            self.version = reply["version"]
            self.total = (reply["total"]["unread"], reply["total"]["mentions"])
            if "unread_rooms" in reply:
                unread = {room["room_id"]: room for room in reply["unread_rooms"]}
                for room_id, shown in self.rooms.items():
                    shown["unread"] = unread.get(room_id, {"unread": 0})["unread"]

    def keep(self, entry: dict[str, Any]) -> None:
        """Show an entry as it was when it was read."""
        self.entries.setdefault(entry["room_id"], {})[entry["seq"]] = entry["text"]
        if entry["type"] in _NAMING_TYPES:
            self.changed.setdefault(entry["room_id"], set()).add(entry["data"]["seq"])

    def _show(self, room_id: str, told: dict[str, Any], *, is_present: bool) -> None:
        shown = self.rooms.setdefault(room_id, {})
        shown["unread"] = told["unread"]
        shown["is_left"] = bool(told["room"]["left"]) if not is_present else told.get("left", False)

    def have(self) -> dict[str, str]:
        """What need not be sent."""
        return {
            room_id: ranges.encode(ranges.merge((seq, seq) for seq in entries))
            for room_id, entries in self.entries.items()
        }


class Visit:
    """A device that stays a while, by one way after the other, until it is to end."""

    def __init__(
        self,
        device: Doors,
        open_stream: OpenStream,
        chance: random.Random,
        *,
        is_lossy: bool,
    ) -> None:
        self.device = device
        self.state = State()
        self.is_ending = False
        self.stays = 0
        """How often the device was connected, by whatever way."""
        self._open_stream = open_stream
        self._chance = chance
        self._is_lossy = is_lossy
        self._losing: int | None = None

    async def run(self) -> None:
        """Come and go until `is_ending`."""
        ways = [self._by_socket, self._by_stream, self._by_poll]
        while not self.is_ending:
            try:
                await self._chance.choice(ways)()
            except (aiohttp.ClientError, ClientError, OSError):
                await asyncio.sleep(AWAY_S)

    def _take(self, frame: dict[str, Any]) -> bool:
        """Whether to stay after this frame."""
        if self._is_lossy and self._loses(frame):
            return "cursor" in frame and frame["type"] not in ("sync", "ready")
        return self.state.apply(frame) and self._chance.random() > 0.04

    def _loses(self, frame: dict[str, Any]) -> bool:
        """A commit is lost as a whole (versions show it), or an entry of it (sequences do).

        Of the windows of a catch-up none is lost alone: the connection goes with it.
        """
        version = frame.get("version")
        if version != self._losing:
            self._losing = version if self._chance.random() < 0.05 else None
        return self._losing is not None or (
            frame["type"] == "entry" and self._chance.random() < 0.02
        )

    async def _by_socket(self) -> None:
        auth = {"since": self.state.cursor} if self.state.cursor else {}
        socket = await self.device.connect(header=False, **auth)
        self.stays += 1
        try:
            await self._follow(socket)
        finally:
            if self._chance.random() < 0.5:
                await socket.close()
            else:
                transport = socket.raw._response.connection
                if transport is not None and transport.transport is not None:
                    transport.transport.abort()
                await socket.close()

    async def _follow(self, socket: Socket) -> None:
        while not self.is_ending:
            try:
                async with asyncio.timeout(GLANCE_S):
                    frame = await socket.next()
            except TimeoutError:
                continue
            except EOFError:
                return
            if not self._take(frame):
                return
            if self._chance.random() < 0.05:
                await socket.send({"type": "seen", "cursor": self.state.cursor})
            if self._chance.random() < 0.05:
                await asyncio.sleep(0.01)

    async def _by_stream(self) -> None:
        async with self._open_stream(self.state.cursor) as opened:
            self.stays += 1
            while not self.is_ending:
                try:
                    async with asyncio.timeout(GLANCE_S):
                        _, frame = await opened.next()
                except (TimeoutError, EOFError):
                    return  # a stream can't go on after a read that was cut off
                if not self._take(frame):
                    return

    async def _by_poll(self) -> None:
        limit = self._chance.choice([1, 3, 100])
        for _ in range(5):
            polls = [
                asyncio.create_task(
                    self.device.sync(since=self.state.cursor, wait=0.05, limit=limit)
                )
                for _ in range(self._chance.choice([1, 1, 2]))
            ]
            try:
                for poll in polls:
                    try:
                        reply = msgspec.to_builtins(await poll)
                    except Conflict:
                        continue
                    self.stays += 1
                    if not self._take({"type": "sync"} | reply):
                        return
            finally:
                await asyncio.gather(*polls, return_exceptions=True)

    async def settle(self) -> None:
        """Catch up; a device that knows it lost something asks for all that is missing."""
        for _ in range(SETTLE_REPLIES_MAX):
            have = self.state.have() if self._is_lossy else {}
            reply = await self.device.sync(since=self.state.cursor, have=have)
            self.state.apply({"type": "sync"} | msgspec.to_builtins(reply))
            if not reply.more:
                return
        raise AssertionError("a catch-up has no end")


@asynccontextmanager
async def visiting(visits: list[Visit]) -> AsyncIterator[None]:
    """Let the devices come and go within."""
    async with asyncio.TaskGroup() as running:
        for visit in visits:
            running.create_task(visit.run())
        try:
            yield
        finally:
            for visit in visits:
                visit.is_ending = True
