"""Old state + updates = fresh fetch, whatever happens to the devices in between."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest

from tests.delivery.conftest import Node
from tests.delivery.test_events import stream
from tests.delivery.visits import Visit, visiting
from tests.stores import EVERY_STORE, StoreKind, sized
from tidings.chat.rows import badge_from_item, participation_from_item
from tidings.storage.tables import BADGES, INBOXES, user_key

STORES = EVERY_STORE
USERS = [f"user{number}" for number in range(5)]
ROOMS = [f"room{number}" for number in range(4)]
STEPS = 250


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
    node: Node, monkeypatch: pytest.MonkeyPatch, seed: int, store_kind: StoreKind
) -> None:
    steps = sized(store_kind, STEPS)
    monkeypatch.setattr("tidings.delivery.syncs.REPLY_CHARACTERS_MAX", 400)
    monkeypatch.setattr("tidings.delivery.connections.HELD_UPDATES_MAX", 2)
    monkeypatch.setattr("tidings.delivery.marked.MARKED_ROOMS_MAX", 1)
    chance = random.Random(seed)
    visits = []
    for user in USERS:
        for n in range(2):
            device = await node.device(user)
            dice = random.Random(f"{seed}{user}{n}")
            visits.append(Visit(device, partial(stream, node, device), dice, is_lossy=n == 1))
    for visit in visits:
        visit.state.cursor = (await visit.device.sync()).cursor
    for room_id in ROOMS:
        await node.ledger.open_room(room_id, *chance.sample(USERS, 4))
    async with visiting(visits):
        for _ in range(steps):
            await act(node, chance)
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
    for visit in visits:
        await visit.settle()
        await check(node, visit)
    sockets = [
        await visit.device.connect(header=False, since=visit.state.cursor) for visit in visits
    ]
    for visit, socket in zip(visits, sockets, strict=True):
        visit.state.apply(await socket.next("ready"))
    for _ in range(steps // 2):
        await act(node, chance)
    for visit, socket in zip(visits, sockets, strict=True):
        for frame in await socket.rest():
            assert visit.state.apply(frame), "a live connection has no gap"
        await check(node, visit)
