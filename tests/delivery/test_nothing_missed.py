"""Old state + updates = fresh fetch, whatever happens to the devices in between."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from tests.delivery.conftest import Device, Node, Socket
from tests.delivery.test_events import stream
from tidings.chat import ranges
from tidings.chat.rows import badge_from_item, participation_from_item
from tidings.errors import Conflict
from tidings.storage.tables import BADGES, INBOXES, user_key

USERS = [f"user{number}" for number in range(5)]
ROOMS = [f"room{number}" for number in range(4)]
STEPS = 250


class State:
    """What a device shows: it applies what it is told and never counts."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.version = 0
        self.total = (0, 0)
        self.entries: dict[str, dict[int, str | None]] = {}
        self.rooms: dict[str, dict[str, Any]] = {}

    def apply(self, frame: dict[str, Any]) -> bool:
        """Take a frame in; False if it shows that something was missed before it."""
        kind = frame["type"]
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
            self._keep(frame["entry"])
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
                self._keep(entry)
            if is_new:
                self._show(room["room_id"], room, is_present=True)
        if is_new:
            self.version = reply["version"]
            self.total = (reply["total"]["unread"], reply["total"]["mentions"])
            if "unread_rooms" in reply:
                unread = {room["room_id"]: room for room in reply["unread_rooms"]}
                for room_id, shown in self.rooms.items():
                    shown["unread"] = unread.get(room_id, {"unread": 0})["unread"]

    def _keep(self, entry: dict[str, Any]) -> None:
        self.entries.setdefault(entry["room_id"], {})[entry["seq"]] = entry["text"]

    def _show(self, room_id: str, told: dict[str, Any], *, is_present: bool) -> None:
        shown = self.rooms.setdefault(room_id, {})
        shown["unread"] = told["unread"]
        shown["is_left"] = bool(told.get("left")) if not is_present else told.get("left", False)

    def have(self) -> dict[str, str]:
        return {
            room_id: ranges.encode(ranges.merge((seq, seq) for seq in entries))
            for room_id, entries in self.entries.items()
        }


class Visit:
    """A device that comes and goes, by any way, and sometimes loses what it was told."""

    def __init__(self, device: Device, node: Node, chance: random.Random, *, is_lossy: bool):
        self.device = device
        self.state = State()
        self.is_ending = False
        self._node = node
        self._chance = chance
        self._is_lossy = is_lossy
        self._losing: int | None = None

    async def run(self) -> None:
        ways = [self._by_socket, self._by_stream, self._by_poll]
        while not self.is_ending:
            await self._chance.choice(ways)()

    def _take(self, frame: dict[str, Any]) -> bool:
        """Whether to stay after this frame."""
        if self._is_lossy and self._loses(frame):
            return True
        return self.state.apply(frame) and self._chance.random() > 0.04

    def _loses(self, frame: dict[str, Any]) -> bool:
        """A commit is lost as a whole (versions show it), or an entry of it (sequences do)."""
        version = frame.get("version")
        if version != self._losing:
            self._losing = version if self._chance.random() < 0.05 else None
        return self._losing is not None or (
            frame["type"] == "entry" and self._chance.random() < 0.02
        )

    async def _by_socket(self) -> None:
        auth = {"since": self.state.cursor} if self.state.cursor else {}
        socket = await self.device.connect(header=False, **auth)
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
                async with asyncio.timeout(0.05):
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
        async with stream(self._node, self.device, self.state.cursor) as opened:
            while not self.is_ending:
                try:
                    async with asyncio.timeout(0.05):
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
            for poll in polls:
                try:
                    reply = msgspec.to_builtins(await poll)
                except Conflict:
                    continue
                if not self._take({"type": "sync"} | reply):
                    await asyncio.wait(polls)
                    return

    async def settle(self) -> None:
        """What a device does that knows it lost something: asks for all that is missing."""
        for _ in range(1_000):
            reply = await self.device.sync(since=self.state.cursor, have=self.state.have())
            self.state.apply({"type": "sync"} | msgspec.to_builtins(reply))
            if not reply.more:
                break


async def act(node: Node, chance: random.Random) -> None:
    """One thing that happens in a room."""
    ledger = node.ledger
    room_id = chance.choice(ROOMS)
    members = ledger.members(room_id)
    action = chance.choice(["post"] * 6 + ["burst", "read", "read", "leave", "join"])
    if action in ("post", "burst") and members:
        texts = [f"text {chance.random()}"] * (1 if action == "post" else 30)
        await ledger.post(room_id, chance.choice(members), *texts)
    elif action == "read" and members:
        head = ledger.rooms[room_id].head
        await ledger.mark_read(room_id, chance.choice(members), chance.randint(0, head))
    elif action == "leave" and len(members) > 2:
        await ledger.leave(room_id, chance.choice(members))
    elif action == "join" and len(members) < len(USERS):
        await ledger.join(room_id, chance.choice([u for u in USERS if u not in members]))


async def check(node: Node, visit: Visit) -> None:
    """The device shows what a fresh read shows."""
    user = user_key("acme", visit.device.user_id)
    badge = badge_from_item(await node.store.get(BADGES, (user,)))
    state = visit.state
    assert state.version == badge.version
    assert state.total == (badge.unread, badge.mentions)
    page = await node.store.query(INBOXES, user)
    for row in map(participation_from_item, page.items):
        shown = state.rooms[row.room_id]
        assert shown["is_left"] == row.is_left, row.room_id
        assert shown["unread"] == row.unread, row.room_id
        if not row.is_left:
            fresh = {
                entry.seq: entry.text
                for entry in node.ledger.entries[row.room_id]
                if row.joined_seq <= entry.seq <= row.counted_seq
            }
            kept = state.entries.get(row.room_id, {})
            assert {seq: kept.get(seq, "missing") for seq in fresh} == fresh, row.room_id


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_devices_end_where_a_fresh_read_is(
    node: Node, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("tidings.delivery.syncs.REPLY_CHARACTERS_MAX", 400)
    monkeypatch.setattr("tidings.delivery.connections.HELD_UPDATES_MAX", 2)
    monkeypatch.setattr("tidings.delivery.hub.MARKED_ROOMS_MAX", 1)
    chance = random.Random(seed)
    visits = [
        Visit(await node.device(user), node, random.Random(f"{seed}{user}{n}"), is_lossy=n == 1)
        for user in USERS
        for n in range(2)
    ]
    for visit in visits:
        visit.state.cursor = (await visit.device.sync()).cursor
    for room_id in ROOMS:
        await node.ledger.open_room(room_id, *chance.sample(USERS, 4))
    async with asyncio.TaskGroup() as running:
        for visit in visits:
            running.create_task(visit.run())
        for _ in range(STEPS):
            await act(node, chance)
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
        for visit in visits:
            visit.is_ending = True
    for visit in visits:
        await visit.settle()
        await check(node, visit)
    sockets = [await visit.device.ready(since=visit.state.cursor) for visit in visits]
    for visit, socket in zip(visits, sockets, strict=True):
        visit.state.apply(socket.ready)
    for _ in range(STEPS // 2):
        await act(node, chance)
    for visit, socket in zip(visits, sockets, strict=True):
        for frame in await socket.rest():
            assert visit.state.apply(frame), "a live connection has no gap"
        await check(node, visit)
