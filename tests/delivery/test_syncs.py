"""Catch-up and long poll, on rows written as commits write them."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import UNSET

from tests.delivery.conftest import Node
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.delivery.queues import POSITIONS_MAX, unseal
from tidings.errors import Conflict, Forbidden, Unauthorized, ValidationFailed
from tidings.people.callers import Caller

STORES = EVERY_STORE


def seqs(reply: wire.SyncReply) -> dict[str, list[int]]:
    return {room.room_id: [entry.seq for entry in room.entries] for room in reply.rooms}


async def test_queue_starts_with_the_session_and_is_delivered_until_acknowledged(
    node: Node,
) -> None:
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "before")
    bob = await node.device("bob")
    assert seqs(await bob.sync()) == {}
    await node.ledger.post("r1", "ann", "one", "two")
    first, again = await bob.sync(), await bob.sync()
    assert seqs(first) == seqs(again) == {"r1": [2, 3]}
    room = first.rooms[0]
    assert (room.head, room.read_seq, room.unread, room.mentions) == (3, 0, 3, 0)
    assert first.total == wire.Total(3, 0, first.version)
    assert not first.more
    acknowledged = await bob.sync(since=first.cursor)
    assert seqs(acknowledged) == seqs(await bob.sync()) == {}
    await node.ledger.post("r1", "ann", "three")
    assert seqs(await bob.sync()) == {"r1": [4]}


async def test_queue_survives_a_restart(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "one")
    reply = await bob.sync()
    await bob.sync(since=reply.cursor)
    await node.ledger.post("r1", "ann", "two")
    restarted = Node(node.store)
    opened = await restarted.syncs.sync(bob.caller, wire.SyncRequest())
    assert seqs(opened) == {"r1": [2]}


async def test_each_session_has_its_own_queue(node: Node) -> None:
    one, two = await node.device("bob"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "hello")
    reply = await one.sync()
    await one.sync(since=reply.cursor)
    assert seqs(await two.sync()) == {"r1": [1]}


async def test_windows_together_are_everything_in_order(node: Node) -> None:
    bob = await node.device("bob")
    for number in range(8):
        await node.ledger.open_room(f"r{number}", "ann", "bob")
    for number in range(40):
        await node.ledger.post(f"r{number % 8}", "ann", "a", "b", "c")
    got: dict[str, list[int]] = {}
    since = None
    while True:
        reply = await bob.sync(since=since, limit=7)
        assert sum(len(room.entries) for room in reply.rooms) <= 7
        for room_id, found in seqs(reply).items():
            got.setdefault(room_id, []).extend(found)
        since = reply.cursor
        if not reply.more:
            break
    assert got == {f"r{number}": list(range(1, 16)) for number in range(8)}
    assert seqs(await bob.sync(since=since)) == {}


async def test_room_that_moves_on_between_windows_loses_nothing(node: Node) -> None:
    bob = await node.device("bob")
    rooms = [f"r{number}" for number in range(POSITIONS_MAX + 20)]
    for room_id in rooms:
        await node.ledger.open_room(room_id, "ann", "bob")
    start = (await bob.sync()).cursor
    await node.ledger.post("r0", "ann", "early")
    for room_id in rooms[1:]:
        await node.ledger.post(room_id, "ann", "a", "b")
    await node.ledger.post("r1", "ann", "c")
    got: dict[str, set[int]] = {}
    since = start
    for turn in range(1_000):
        reply = await bob.sync(since=since, limit=5)
        for room_id, found in seqs(reply).items():
            got.setdefault(room_id, set()).update(found)
        since = reply.cursor
        if not reply.more:
            break
        if turn in (1, 4, 9):  # rooms delivered already, in part or not yet, move to the end
            await node.ledger.post(f"r{turn}", "ann", "d")
            await node.ledger.post("r60", "ann", "d")
    assert got == {room_id: set(range(1, node.ledger.rooms[room_id].head + 1)) for room_id in rooms}


async def test_have_names_what_is_missing(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.open_room("r2", "ann", "bob")
    await node.ledger.post("r1", "ann", *["x"] * 12)
    await node.ledger.post("r2", "ann", "x")
    since = (await bob.sync()).cursor
    reply = await bob.sync(since=since, have={"r1": "1-3,7", "r2": "1", "nowhere": ""})
    assert seqs(reply) == {"r1": [4, 5, 6, 8, 9, 10, 11, 12]}
    window = await bob.sync(since=reply.cursor, have={"r1": "1-3,7"}, limit=4)
    assert seqs(window) == {"r1": [4, 5, 6, 8]}
    assert window.more
    nothing = await bob.sync(since=reply.cursor, have={"r1": "1-12"})
    assert seqs(nothing) == {}
    assert seqs(await bob.sync(since=reply.cursor, have={"r2": ""})) == {"r2": [1]}


async def test_have_shows_no_room_that_is_not_theirs(node: Node) -> None:
    customer = await node.device("customer")
    manager = await node.device("manager", "manager")
    await node.ledger.open_room("closed", "ann", scope="private")
    await node.ledger.open_room("open", "ann", scope="public")
    await node.ledger.open_room("help", "ann", kind="support", status="open")
    for room_id in ("closed", "open", "help"):
        await node.ledger.post(room_id, "ann", "secret")
    have = {"closed": "", "open": "", "help": ""}
    assert seqs(await customer.sync(have=have)) == {}
    assert seqs(await manager.sync(have=have)) == {"open": [1], "help": [1]}


async def test_history_since_join_is_kept_from_who_joined_later(node: Node) -> None:
    bob, carol = await node.device("bob"), await node.device("carol")
    await node.ledger.open_room("r1", "ann", history="since_join")
    await node.ledger.open_room("r2", "ann")
    for room_id in ("r1", "r2"):
        await node.ledger.post(room_id, "ann", "old", "older")
        await node.ledger.join(room_id, "bob")
        await node.ledger.post(room_id, "ann", "new")
    # what was before the join comes on demand, where it may be seen at all
    assert seqs(await bob.sync()) == {"r1": [3, 4], "r2": [3, 4]}
    assert seqs(await bob.sync(have={"r1": "", "r2": ""})) == {"r1": [3, 4], "r2": [1, 2, 3, 4]}
    assert seqs(await carol.sync(have={"r1": "", "r2": ""})) == {}


async def test_left_room_comes_once_and_without_entries(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "one")
    await node.ledger.leave("r1", "bob")
    await node.ledger.post("r1", "ann", "not for bob")
    reply = await bob.sync(have={"r1": ""})
    (room,) = reply.rooms
    assert (room.left, room.unread, room.mentions, room.entries) == (True, 0, 0, [])
    assert reply.total.unread == 0
    again = await bob.sync(since=reply.cursor, have={"r1": ""})
    assert again.rooms == []
    await node.ledger.join("r1", "bob")
    back = await bob.sync()
    assert seqs(back) == {"r1": [4]}
    assert not back.rooms[0].left


async def test_unread_rooms_are_the_whole_truth_when_marks_moved(node: Node) -> None:
    bob, elsewhere = await node.device("bob"), await node.device("bob")
    for room_id in ("r1", "r2", "r3"):
        await node.ledger.open_room(room_id, "ann", "bob")
        await node.ledger.post(room_id, "ann", "x", "y")
    start = (await bob.sync()).cursor
    assert (await bob.sync(since=start)).unread_rooms is UNSET
    await node.ledger.read(elsewhere.caller, "r1", 2)
    await node.ledger.read(elsewhere.caller, "r2", 1)
    reply = await bob.sync(since=start)
    assert reply.unread_rooms == [
        wire.UnreadRoom("r2", 1, 1, 0),
        wire.UnreadRoom("r3", 0, 2, 0),
    ]
    assert seqs(reply) == {"r1": [], "r2": []}
    assert (await bob.sync(since=reply.cursor)).unread_rooms is UNSET
    # a node that knows nothing of the marks tells the same by the list alone
    restarted = await Node(node.store).syncs.sync(bob.caller, wire.SyncRequest(since=start))
    assert restarted.unread_rooms == reply.unread_rooms


async def test_poll_ends_when_a_message_arrives(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    since = (await bob.sync()).cursor
    poll = asyncio.create_task(bob.sync(since=since, wait=30))
    await waiting(node, bob.caller)
    assert node.hub.presence.is_here("acme", "bob")
    await node.ledger.post("r1", "ann", "now")
    assert seqs(await poll) == {"r1": [1]}


async def test_poll_ends_when_a_mark_moves_elsewhere(node: Node) -> None:
    bob, elsewhere = await node.device("bob"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "now")
    since = (await bob.sync()).cursor
    poll = asyncio.create_task(bob.sync(since=since, wait=30))
    await waiting(node, bob.caller)
    await node.ledger.read(elsewhere.caller, "r1", 1)
    reply = await poll
    assert seqs(reply) == {"r1": []}
    assert (reply.rooms[0].unread, reply.unread_rooms) == (0, [])


async def test_poll_is_empty_in_the_end(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    since = (await bob.sync()).cursor
    reply = await bob.sync(since=since, wait=0.05)
    assert reply.rooms == []
    assert not reply.more


async def test_newer_poll_ends_the_older_one(node: Node) -> None:
    bob, other = await node.device("bob"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    since = (await bob.sync()).cursor
    older = asyncio.create_task(bob.sync(since=since, wait=30))
    beside = asyncio.create_task(other.sync(since=since, wait=30))
    await waiting(node, bob.caller)
    await waiting(node, other.caller)
    newer = asyncio.create_task(bob.sync(since=since, wait=30))
    with pytest.raises(Conflict):
        await older
    await node.ledger.post("r1", "ann", "now")
    assert seqs(await newer) == seqs(await beside) == {"r1": [1]}


async def test_cancelled_and_revoked_polls_are_gone(node: Node) -> None:
    bob, other = await node.device("bob"), await node.device("bob")
    await bob.sync()
    await other.sync()
    polls = [asyncio.create_task(device.sync(wait=30)) for device in (bob, other)]
    await waiting(node, bob.caller)
    await waiting(node, other.caller)
    polls[0].cancel()
    await asyncio.wait([polls[0]])
    assert bob.caller.session_id not in await node.hub.presence.online_sessions("acme", "bob")
    await node.people.credentials.revoke_session(bob.caller, other.caller.session_id or "")
    with pytest.raises(Unauthorized):
        await polls[1]


async def waiting(node: Node, caller: Caller) -> None:
    async with asyncio.timeout(60):
        presence, user_id = node.hub.presence, caller.user_id or ""
        while caller.session_id not in await presence.online_sessions("acme", user_id):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)


async def test_older_cursor_does_not_move_the_queue_back(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    old = (await bob.sync()).cursor
    await node.ledger.post("r1", "ann", "one")
    new = (await bob.sync(since=old)).cursor
    await bob.sync(since=new)
    assert seqs(await bob.sync(since=old)) == {"r1": [1]}
    assert seqs(await bob.sync()) == {}


async def test_cursor_of_another_user_is_refused(node: Node) -> None:
    bob, ann = await node.device("bob"), await node.device("ann")
    theirs = (await ann.sync()).cursor
    for wrong in (theirs, "", "AAAA", theirs[:-2], "x" * 9_000):
        with pytest.raises(ValidationFailed):
            await node.syncs.start(bob.caller, wrong)


async def test_only_sessions_have_a_queue(node: Node) -> None:
    key = Caller(workspace="acme", kind="api_key", credential_id="k")
    with pytest.raises(Forbidden):
        await node.syncs.sync(key, wire.SyncRequest())


async def test_cursors_stay_small(node: Node) -> None:
    bob = await node.device("bob")
    names = [f"room_{number:059d}" for number in range(POSITIONS_MAX + 50)]
    for name in names:
        await node.ledger.open_room(name, "ann", "bob")
        await node.ledger.post(name, "ann", "x")
    reply = await bob.sync(limit=500)
    assert not reply.more
    assert len(reply.cursor) < 8_192
    position = unseal(node.cursors, "acme", "bob", reply.cursor)
    assert list(position.rooms) == names[-POSITIONS_MAX:]
