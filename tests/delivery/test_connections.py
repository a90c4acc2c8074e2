"""A connection's position and outbox, with a skin that keeps what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tests.delivery.conftest import Node
from tidings import wire
from tidings.chat.updates import PostedEntry, RoomUpdate, UserUpdate
from tidings.cursors import Cursors
from tidings.delivery import hub as hubs
from tidings.delivery.connections import (
    HELD_UPDATES_MAX,
    OUTBOX_BYTES_MAX,
    CloseCode,
    Connection,
    Outboxes,
)
from tidings.delivery.frames import Told
from tidings.delivery.hub import Hub
from tidings.errors import Unavailable
from tidings.metrics import Metrics
from tidings.people.callers import Caller

BOB = Caller("acme", "session", "ses_1", "bob", "customer", "ses_1")


class KeptFrames:
    """A skin whose network takes nothing until told so."""

    way = "websocket"

    def __init__(self) -> None:
        self.writes: list[list[dict[str, Any]]] = []
        self.closed: CloseCode | None = None
        self.is_stuck = False
        self._buffered = 0

    def pieces(self, told: Told) -> list[tuple[bytes, int]]:
        return told.joined

    def piece(self, name: str, frame: bytes, cursor: str | None) -> bytes:
        return frame

    def write(self, pieces: list[tuple[bytes, int]], size_bytes: int) -> None:
        self._buffered += size_bytes if self.is_stuck else 0
        text = b"[" + b",".join(piece for piece, _ in pieces) + b"]"
        self.writes.append(msgspec.json.decode(text))

    def buffered_bytes(self) -> int:
        return self._buffered

    def beat(self, now_s: float, heard_at_s: float) -> bool:
        return True

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed = code

    async def drain(self) -> None:
        return None

    @property
    def versions(self) -> list[int]:
        return [frame["version"] for write in self.writes for frame in write]


def told(version: int, text: str = "x") -> Told:
    return Told(commit(version, text), previous_cursor="p", cursor="c", room_items={})


def commit(version: int, text: str = "x", **fields: Any) -> UserUpdate:
    entry = PostedEntry(wire.Entry("r1", version, "e", "text", "ann", "now", text=text))
    room = RoomUpdate("r1", version, 0, version, 0, (entry,), **fields)
    return UserUpdate("bob", version, version, 0, (room,))


def connection(outboxes: Outboxes | None = None) -> tuple[Connection, KeptFrames]:
    skin = KeptFrames()
    return Connection(BOB, None, skin, outboxes or Outboxes(Metrics())), skin


async def turn() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_held_updates_follow_the_catch_up() -> None:
    one, skin = connection()
    for version in (4, 5, 6, 7):
        one.tell(told(version))
    await turn()
    assert skin.writes == []
    assert one.go_live(5)
    one.tell(told(8))
    await turn()
    assert skin.versions == [6, 7, 8]


async def test_what_was_read_already_is_left_out() -> None:
    one, skin = connection()
    assert one.go_live(5)
    for version in (4, 5, 6):
        one.tell(told(version))
    await turn()
    assert skin.versions == [6]
    assert skin.closed is None


async def test_more_than_can_be_held_is_read_again() -> None:
    one, skin = connection()
    for version in range(1, HELD_UPDATES_MAX + 3):
        one.tell(told(version))
    assert not one.go_live(1)
    one.tell(told(HELD_UPDATES_MAX + 3))
    assert one.go_live(HELD_UPDATES_MAX + 2)
    await turn()
    assert skin.versions == [HELD_UPDATES_MAX + 3]
    assert skin.closed is None


async def test_holding_again_keeps_the_position() -> None:
    one, skin = connection()
    one.go_live(1)
    one.hold()
    one.tell(told(2))
    one.tell(told(3))
    assert one.go_live(one.version)
    await turn()
    assert skin.versions == [2, 3]


async def test_jump_ends_a_connection_that_nobody_mends() -> None:
    one, skin = connection()
    one.go_live(1)
    one.tell(told(3))
    one.tell(told(4))
    await turn()
    assert skin.writes == []
    assert skin.closed is CloseCode.BEHIND


async def test_what_comes_too_early_waits_for_what_is_late() -> None:
    one, skin = connection()
    asked: list[Connection] = []
    one.on_gap = asked.append
    one.go_live(1)
    for version in (4, 3, 4, 1):
        one.tell(told(version))
    await turn()
    assert (skin.versions, one.is_complete, asked) == ([], False, [one])
    one.tell(told(2))
    one.tell(told(5))
    await turn()
    assert (skin.versions, one.is_complete, asked) == ([2, 3, 4, 5], True, [one])
    one.tell(told(7))
    assert asked == [one, one]
    assert skin.closed is None


async def test_version_that_nobody_told_of_is_a_gap() -> None:
    one, skin = connection()
    asked: list[Connection] = []
    one.on_gap = asked.append
    one.expect(3)
    assert not one.go_live(2), "the catch-up has to go on"
    assert asked == []
    assert one.go_live(3)
    one.expect(3)
    assert one.is_complete
    one.expect(4)
    assert asked == [one]
    one.tell(told(4))
    await turn()
    assert (skin.versions, one.is_complete) == ([4], True)


async def test_gap_that_a_reply_leaves_is_mended_later() -> None:
    one, skin = connection()
    asked: list[Connection] = []
    one.on_gap = asked.append
    one.go_live(1)
    one.hold()
    for version in (2, 4):
        one.tell(told(version))
    one.resume(1)
    await turn()
    assert (skin.versions, asked) == ([2], [one])
    one.hold()
    one.resume(3)
    await turn()
    assert (skin.versions, asked, one.is_complete) == ([2, 4], [one], True)


async def test_early_updates_are_bounded() -> None:
    one, skin = connection()
    one.on_gap = lambda _: None
    one.go_live(0)
    for version in range(2, 2 * HELD_UPDATES_MAX + 4):
        one.tell(told(version))
    one.tell(told(1))
    await turn()
    assert not one.is_complete
    assert len(skin.versions) < HELD_UPDATES_MAX
    one.hold()
    assert one.go_live(2 * HELD_UPDATES_MAX + 3)
    assert one.is_complete


async def test_everything_ready_at_one_moment_is_written_at_once() -> None:
    one, skin = connection()
    one.go_live(0)
    one.tell(told(1))
    one.put("ack", b'{"version":0}')
    asyncio.get_running_loop().call_soon(one.tell, told(2))
    await turn()
    assert [len(write) for write in skin.writes] == [3]


@pytest.mark.parametrize("is_stuck", [True, False])
async def test_outbox_is_bounded(is_stuck: bool) -> None:
    one, skin = connection()
    skin.is_stuck = is_stuck
    one.go_live(0)
    text = "x" * 10_000
    count = 0
    while skin.closed is None and count < 1_000:
        count += 1
        one.tell(told(count, text))
        if is_stuck:
            await turn()
    await turn()
    assert skin.closed is CloseCode.BEHIND
    assert OUTBOX_BYTES_MAX < count * 10_300 < OUTBOX_BYTES_MAX * 1.1
    written = len(skin.writes)
    one.tell(told(count + 1))
    one.put("pong", b"{}")
    one.close(CloseCode.GOING_AWAY, "")
    await turn()
    assert len(skin.writes) == written
    assert skin.closed is CloseCode.BEHIND


async def test_closing_says_first_what_is_due() -> None:
    one, skin = connection()
    one.go_live(0)
    one.tell(told(1))
    one.close(CloseCode.GOING_AWAY, "")
    assert skin.versions == [1]
    assert skin.closed is CloseCode.GOING_AWAY


async def started(hub: Hub, rows: asyncio.Queue[None], *, is_broken: bool = False) -> None:
    async def inbox_item(workspace: str, user_id: str, room_id: str) -> wire.InboxItem:
        await rows.get()
        if is_broken:
            raise Unavailable
        return wire.InboxItem(room_id, "group", None, [], 0, 0, 0, 0, "now", None)

    async def companions(workspace: str, user_id: str) -> list[str]:
        return []

    async def authenticate(token: str) -> Caller:
        return BOB

    async def mend(one: Connection) -> None:
        raise Unavailable

    async def versions(users: Sequence[tuple[str, str]], is_exact: bool) -> list[int]:
        return [0 for _ in users]

    hub.start(inbox_item, companions, authenticate, mend=mend, versions=versions)


async def test_updates_wait_for_the_row_that_an_earlier_one_needs() -> None:
    hub = Hub(Cursors(b"secret"), Metrics())
    rows: asyncio.Queue[None] = asyncio.Queue()
    await started(hub, rows)
    one, skin = connection(hub.outboxes)
    with hub.connected(one):
        one.go_live(0)
        for version in range(1, 6):
            hub.publish("acme", [commit(version, is_row_changed=version in (2, 4))])
        await turn()
        assert skin.versions == [1]
        rows.put_nowait(None)
        await turn()
        assert skin.versions == [1, 2, 2, 2, 3]
        rows.put_nowait(None)
        await turn()
        assert skin.versions == [1, 2, 2, 2, 3, 4, 4, 4, 5]
        hub.publish("acme", [commit(6)])
        await turn()
        assert skin.versions[-1] == 6
    await hub.stop()


async def test_device_catches_up_where_a_row_can_not_be_read() -> None:
    hub = Hub(Cursors(b"secret"), Metrics())
    rows: asyncio.Queue[None] = asyncio.Queue()
    await started(hub, rows, is_broken=True)
    one, skin = connection(hub.outboxes)
    with hub.connected(one):
        one.go_live(0)
        hub.publish("acme", [commit(1, is_row_changed=True)])
        rows.put_nowait(None)
        await turn()
        assert skin.closed is CloseCode.BEHIND
    await hub.stop()


async def test_waiting_updates_of_a_user_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "LANE_UPDATES_MAX", 10)
    hub = Hub(Cursors(b"secret"), Metrics())
    await started(hub, asyncio.Queue())
    one, skin = connection(hub.outboxes)
    with hub.connected(one):
        one.go_live(0)
        hub.publish("acme", [commit(1, is_row_changed=True)])
        for version in range(2, 12):
            hub.publish("acme", [commit(version)])
        assert skin.closed is CloseCode.BEHIND
    await hub.stop()


async def test_caller_is_checked_again_from_time_to_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "BEAT_S", 0.01)
    bob = await node.device("bob")
    manager = await node.device("meg", "manager")
    at_bob, at_meg = await bob.ready(), await manager.ready()
    node.hub.signal_role("acme", ["manager"], {"type": "queue", "open": 1})
    assert await at_meg.next() == {"type": "queue", "open": 1}
    key = Caller("acme", "api_key", "k", scopes=frozenset({"users"}))
    await node.people.users.patch(key, "bob", wire.PatchUser(role="manager"))
    async with asyncio.timeout(60):
        while any(one.caller.role != "manager" for one in node.hub.connections):
            await asyncio.sleep(0.01)
    node.hub.signal_role("acme", ["manager"], {"type": "queue", "open": 2})
    assert await at_bob.next() == {"type": "queue", "open": 2}
    await node.people.users.delete(key, "bob", False)
    assert await at_bob.closed() == 4401


async def test_silent_socket_is_pinged_and_a_dead_one_is_cut(node: Node) -> None:
    bob = await node.device("bob")
    socket = await bob.ready()
    (one,) = node.hub.connections
    assert one.beat(one.heard_at_s + 30)
    one.heard_at_s = 0.0
    await socket.rest()
    assert one.heard_at_s > 0.0
    assert not one.beat(one.heard_at_s + 60)
    with pytest.raises(EOFError):
        await socket.next()
    async with asyncio.timeout(60):
        while list(node.hub.connections):
            await asyncio.sleep(0.01)
