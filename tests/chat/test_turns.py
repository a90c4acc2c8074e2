"""Commits take turns without starving anybody, wait for no more than they must, and remember."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tests.chat.test_commits import WORKSPACE, Now, World
from tests.storage.suspending import KEYS_TOGETHER, HeldStore
from tidings.chat import commands, commits, memory
from tidings.chat.appended import ENTRIES_OF_ROOM_MAX, Appended
from tidings.chat.audit import audit
from tidings.chat.memory import KnownUsers
from tidings.chat.rows import INLINE_MEMBERS_MAX, BadgeRow, Participation, RoomRow
from tidings.errors import Unavailable
from tidings.storage.interface import SET_ITEMS_MAX, Put, Update
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, FANOUTS, INBOXES, user_key

DEADLINE_S = 60.0
ROOMS = 100
"""More than one transaction holds, and more than a user's rows that used to be remembered."""


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[HeldStore]:
    async with SqliteStore.open(tmp_path / "tidings.db", clock=Now()) as engine:
        yield HeldStore(engine)


@pytest_asyncio.fixture
async def world(store: HeldStore) -> AsyncIterator[World]:
    made = World(store, Now())
    await made.commits.start()
    yield made
    await made.commits.stop()


async def _desks(world: World) -> list[tuple[str, str]]:
    """Rooms of two that all have one member in common, as (room, the other member)."""
    boss, *others = await world.people(ROOMS + 1)
    desks = [(f"desk-{other}", other) for other in others]
    await asyncio.gather(*(world.room(room, [boss, other]) for room, other in desks))
    return desks


async def test_rooms_that_share_somebody_are_served_alike(world: World) -> None:
    desks = await _desks(world)
    served: Counter[str] = Counter()
    spread = 0

    async def keep_posting(room: str, sender: str) -> None:
        nonlocal spread
        for number in range(4):
            await world.post(room, sender, f"c{number}")
            served[room] += 1
            if number < 3:  # who is done asks for no turn
                spread = max(spread, served[room] - min(served[each] for each, _ in desks))

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(keep_posting(*desk) for desk in desks))
    assert spread == 1
    await world.assert_clean()


async def test_the_log_of_a_large_room_goes_on_while_its_members_are_counted(
    world: World, store: HeldStore
) -> None:
    people = await world.people(INLINE_MEMBERS_MAX + 1)
    await world.room("hall", people)
    await world.settle()
    with store.holding("request", "get", FANOUTS) as looking:
        await world.post("hall", people[0], "1")
        await looking.is_there.wait()
        with store.holding("answer", "write") as counting:
            looking.goes_on.set()
            await counting.is_there.wait()
            async with asyncio.timeout(DEADLINE_S):
                for number, sender in enumerate(people):
                    await world.post("hall", sender, f"again-{number}")
    await world.settle()
    await world.assert_clean()


async def test_a_fan_out_reads_no_entries_that_this_node_has_just_appended(
    world: World, store: HeldStore
) -> None:
    people = await world.people(INLINE_MEMBERS_MAX + 1)
    await world.room("hall", people)
    await world.settle()
    store.calls.clear()
    for number in range(5):
        await asyncio.gather(*(world.post("hall", each, f"c{number}") for each in people))
    await world.settle()
    assert ("query", ENTRIES) not in store.calls
    await world.assert_clean()


async def test_a_fan_out_reads_what_another_node_appended_or_changed(world: World) -> None:
    people = await world.people(INLINE_MEMBERS_MAX + 1)
    await world.room("hall", people)
    other = World(world.store, world.clock)
    await other.commits.start()
    for number in range(8):
        first, second = (world, other) if number % 2 else (other, world)
        posted = await first.post("hall", people[number], f"c{number}", text="seen")
        edit = commands.Edit(
            people[number], posted.entry.entry.seq, f"edited {number}", f"ent_{number}", 1
        )
        await second.commits.submit(WORKSPACE, "hall", edit)
        await first.post("hall", people[number], f"d{number}", mentions=people[:1])
    await world.settle()
    await other.commits.stop()
    rows = await world.store.get_many(
        INBOXES, [(user_key(WORKSPACE, user_id), "hall") for user_id in people]
    )
    assert [row["unread"] for row in rows if row is not None] == [14] * 8 + [16] * 17
    assert (await audit(world.store, clock=world.clock)).ok


def test_a_run_of_entries_is_of_one_node_in_one_epoch() -> None:
    appended = Appended()
    room = RoomRow(WORKSPACE, "hall", "group", 0)

    def commit(seqs: Sequence[int], *, start: RoomRow, epoch: int = 0) -> RoomRow:
        after = msgspec.structs.replace(start, head=start.head + len(seqs), epoch=epoch)
        items = [{"room": room.key, "seq": seq, "type": "text"} for seq in seqs]
        appended.note(start, after, [Put(ENTRIES, item) for item in items])
        return after

    def held(at: RoomRow) -> list[int]:
        return list(appended.entries(at))

    first = commit([1, 2], start=room)
    second = commit([3], start=first)
    assert held(room) == held(first) == held(second) == [1, 2, 3]
    elsewhere = msgspec.structs.replace(second, head=5)
    assert held(elsewhere) == [], "somebody else had a part in it"
    third = commit([6], start=elsewhere)
    assert (held(second), held(elsewhere), held(third)) == ([], [6], [6])
    joined = commit([7], start=third, epoch=1)
    assert (held(third), held(joined)) == ([], [])
    fourth = commit([8], start=joined, epoch=1)
    assert held(fourth) == [8]
    changed = Update(ENTRIES, (room.key, 8), set={"text": "other"})
    appended.note(fourth, msgspec.structs.replace(fourth, head=9), [changed])
    assert held(fourth) == []
    many = commit(range(10, 10 + ENTRIES_OF_ROOM_MAX + 5), start=elsewhere)
    assert held(elsewhere) == [], "the oldest of too many are gone"
    assert len(held(many)) == ENTRIES_OF_ROOM_MAX
    appended.forget(room.key)
    assert held(many) == []


async def test_what_a_commit_starts_from_is_read_at_once_and_then_remembered(
    world: World, store: HeldStore
) -> None:
    desks = await _desks(world)
    everybody = [f"u{number}" for number in range(ROOMS + 1)]
    world.commits.known.forget(user_key(WORKSPACE, user_id) for user_id in everybody)
    store.calls.clear()
    await asyncio.gather(*(world.post(room, sender, "1") for room, sender in desks[:8]))
    assert store.calls.count(("get_many", INBOXES)) == -(-2 * 8 // KEYS_TOGETHER), "all in one"
    assert store.calls.count(("write", None)) == 1
    await asyncio.gather(*(world.post(room, sender, "2") for room, sender in desks))
    store.calls.clear()
    await asyncio.gather(*(world.post(room, sender, "3") for room, sender in desks))
    assert {action for action, _ in store.calls} == {"write"}


async def test_a_batch_that_turns_out_too_large_is_taken_anew(world: World) -> None:
    """Another node snoozed the room, so that the first message does more than it was counted as."""
    ann, bob = await world.people(2)
    now = world.clock()
    room = RoomRow(WORKSPACE, "desk", "support", now, status="open", customer_id=bob)
    founders = ((ann, "member"), (bob, "member"))
    await world.commits.submit(WORKSPACE, "desk", commands.Create(room, founders, (), now))
    other = World(world.store, Now())
    changes = {"status": "snoozed", "snoozed_until": now + 3_600_000}
    snooze = commands.Change(ann, changes, "ent_snooze", "ent_join", now)
    await other.commits.submit(WORKSPACE, "desk", snooze)
    await other.commits.stop()
    messages = SET_ITEMS_MAX // 2
    answers = await asyncio.gather(
        *(world.post("desk", bob, f"c{number}", is_reopening=True) for number in range(messages))
    )
    assert [answer.is_new for answer in answers] == [True] * messages
    view = await world.commits.look(WORKSPACE, "desk")
    assert view is not None
    assert view.room is not None
    assert (view.room.status, view.room.head) == ("open", messages + 2)
    assert (await audit(world.store, clock=world.clock)).ok


def test_who_was_kept_longest_ago_is_forgotten_rows_and_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "USERS_REMEMBERED_MAX", 3)
    monkeypatch.setattr(memory, "ROWS_REMEMBERED_MAX", 4)
    monkeypatch.setattr(memory, "ROWS_OF_USER_MAX", 3)
    users = KnownUsers()

    def keep(key: str, *rooms: str) -> None:
        users.keep_badge(key, BadgeRow())
        for room in rooms:
            users.keep_row(key, room, Participation(room_id=room, kind="group"), 1)

    def rows(key: str) -> list[str]:
        return [room for room in "pqrst" if users.row(key, room, 1) is not None]

    keep("ann", "p", "q")
    keep("bob", "p", "q", "r", "s")
    assert rows("bob") == ["q", "r", "s"], "of one user so many"
    assert "ann" not in users, "of all together so many"
    keep("cem", "p")
    keep("bob")
    keep("dan")
    keep("eve")
    assert [key for key in ("bob", "cem", "dan", "eve") if key in users] == ["bob", "dan", "eve"]
    users.forget("bob")
    keep("dan", "p", "q")
    keep("eve", "p", "q")
    assert (rows("dan"), rows("eve")) == (["p", "q"], ["p", "q"])
    users.keep_row("bob", "p", Participation(room_id="p", kind="group"), 1)
    assert "bob" not in users, "a row without its badge is nothing to start from"
    assert users.row("dan", "p", 2) is None
    users.keep_row("dan", "p", Participation(room_id="p", kind="group", unread=7), None)
    kept = users.row("dan", "p", 1)
    assert kept is not None
    assert kept.unread == 7


async def test_nobody_waits_longer_than_they_were_told(
    world: World, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "WAIT_S_MAX", 0.05)
    monkeypatch.setattr(commits, "EXPIRY_PAUSE_S", 0.01)
    await world.people(2)
    await world.room("r", ["u0", "u1"])
    with store.holding("answer", "write") as held:
        first = asyncio.create_task(world.post("r", "u0", "one"))
        await held.is_there.wait()
        behind = asyncio.create_task(world.post("r", "u0", "two"))
        for post in (first, behind):
            with pytest.raises(Unavailable, match="too long"):
                await post
        held.goes_on.set()
    monkeypatch.setattr(commits, "WAIT_S_MAX", 10.0)
    again = await world.post("r", "u0", "one")
    assert (again.is_new, again.entry.entry.seq) == (False, 1), "it was durable all the same"
    behind_again = await world.post("r", "u0", "two")
    assert (behind_again.is_new, behind_again.entry.entry.seq) == (True, 2), "it was left out"
