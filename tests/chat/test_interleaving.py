"""Whatever interleaves with what, on one node and on several: nothing is lost, doubled or wrong.

The store here answers late, so that tasks meet at every point where they wait for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.chat.company import CLEO, MAX, Company
from tests.chat.test_commits import WORKSPACE, Now, World
from tests.storage.suspending import HeldStore, SuspendingStore
from tidings import wire
from tidings.chat import commands
from tidings.chat.rows import RoomRow
from tidings.errors import Forbidden, NotFound, TidingsError, Unavailable
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, INBOXES, MEMBERS, ROOMS, room_key

SIZES = {"pair": 2, "small": 4, "edge": 24, "large": 34}


@pytest.fixture(autouse=True)
def nothing_unexpected() -> Iterator[None]:
    """No task met an error that nobody thought of."""
    with structlog.testing.capture_logs() as logs:
        yield
    assert [each for each in logs if each["event"] == "unexpected"] == []


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "store.db", clock=Now()) as opened:
        yield opened


async def log_of(store: SqliteStore, room: str) -> list[dict[str, Any]]:
    page = await store.query(ENTRIES, room_key(WORKSPACE, room))
    items = page.items
    while page.after is not None:
        page = await store.query(ENTRIES, room_key(WORKSPACE, room), after=page.after)
        items = items + page.items
    return items


def assert_lawful(log: list[dict[str, Any]], founders: set[str]) -> None:
    """Only members wrote, and nobody joined or left twice."""
    members = set(founders)
    for entry in log:
        who = (entry.get("data") or {}).get("user_id")
        match entry["type"]:
            case "joined":
                assert who not in members, entry
                members.add(str(who))
            case "left":
                assert who in members, entry
                members.remove(str(who))
            case "deleted":
                pass  # by a moderator
            case _:
                assert entry["sender_id"] in members, entry


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("seed", range(3))
async def test_random_commands_on_nodes(engine: SqliteStore, nodes: int, seed: int) -> None:
    chance = random.Random(seed)
    clock = Now()
    worlds = [World(SuspendingStore(engine, seed * 10 + n), clock) for n in range(nodes)]
    people = await worlds[0].people(36)
    async with AsyncExitStack() as stack:
        for world in worlds:
            await world.commits.start()
            stack.push_async_callback(world.commits.stop)
        for room, count in SIZES.items():
            await worlds[0].room(room, people[:count])
        refused: list[TidingsError] = []

        async def act(number: int) -> None:
            world = chance.choice(worlds)
            room, who = chance.choice(list(SIZES)), chance.choice(people[:12])
            entry_id = world.ids.new("ent")
            view = await world.commits.look(WORKSPACE, room)
            assert view is not None
            assert view.room is not None
            seq = chance.randint(1, max(1, view.room.head))
            kind = chance.choices(
                ["post", "again", "read", "join", "leave", "edit", "remove", "react", "mute"],
                [40, 8, 15, 9, 7, 4, 8, 4, 5],
            )[0]
            command: commands.Command
            try:
                match kind:
                    case "post":
                        mentions = chance.sample(people, 2) if chance.random() < 0.2 else []
                        await world.post(room, who, f"c{number}", mentions=mentions)
                        return
                    case "again":
                        await world.post(room, who, f"c{chance.randint(0, number)}")
                        return
                    case "read":
                        command = commands.Read(who, seq)
                    case "join":
                        command = commands.Join(who, who, entry_id, clock())
                    case "leave":
                        command = commands.Leave(who, who, entry_id, clock())
                    case "edit":
                        command = commands.Edit(who, seq, f"other {number}", entry_id, clock())
                    case "remove":
                        command = commands.Remove(who, seq, entry_id, clock(), is_moderator=True)
                    case "react":
                        command = commands.React(who, seq, "+1", True, entry_id, clock())
                    case _:
                        command = commands.Mute(who, chance.random() < 0.5)
                await world.commits.submit(WORKSPACE, room, command)
            except TidingsError as error:
                refused.append(error)

        for start in range(0, 600, 30):
            await asyncio.gather(*(act(number) for number in range(start, start + 30)))
        assert not [error for error in refused if isinstance(error, Unavailable)]
        await worlds[0].settle()
    told: dict[str, list[int]] = {}
    for world in worlds:
        for user_id, versions in world.versions.items():
            told.setdefault(user_id, []).extend(versions)
    for user_id, versions in told.items():
        assert sorted(versions) == list(range(1, len(versions) + 1)), user_id
    for room, count in SIZES.items():
        assert_lawful(await log_of(engine, room), set(people[:count]))
    worlds[0].versions.clear()
    await worlds[0].assert_clean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("members", [2, 24, 70])
async def test_a_room_is_made_once_whoever_asks(
    engine: SqliteStore, members: int, seed: int
) -> None:
    clock = Now()
    worlds = [World(SuspendingStore(engine, seed * 10 + n), clock) for n in range(3)]
    people = await worlds[0].people(members)
    first = commands.FOUNDERS_INLINE_MAX
    row = RoomRow(workspace=WORKSPACE, room_id="r", kind="group", created_at=0)

    async def make(world: World, number: int) -> bool:
        own = [people[number % members], *people]  # each asks with themselves in front
        named = list(dict.fromkeys(own))
        founders = tuple((each, "member") for each in named[:first])
        create = commands.Create(row, founders, tuple(named[first:]), 0)
        _, is_new = await world.commits.submit(WORKSPACE, "r", create)
        await world.commits.founded(WORKSPACE, "r")
        posted = await world.post("r", own[0], f"c{number}")
        assert posted.is_new
        return bool(is_new)

    async with AsyncExitStack() as stack:
        for world in worlds:
            await world.commits.start()
            stack.push_async_callback(world.commits.stop)
        made = await asyncio.gather(*(make(worlds[n % 3], n) for n in range(9)))
        assert sum(made) == 1
        await worlds[0].settle()
    log = await log_of(engine, "r")
    assert [entry["seq"] for entry in log] == list(range(1, 10))
    view = await worlds[0].commits.look(WORKSPACE, "r", people)
    assert view is not None
    assert view.room is not None
    assert view.room.member_count == members
    worlds[0].versions.clear()
    await worlds[0].assert_clean()


# One after the other: what was remembered, or read at different moments, misleads nobody.


class Pair:
    """Two nodes on one store: what one of them reads or writes can be held up."""

    def __init__(self, engine: SqliteStore) -> None:
        clock = Now()
        self.here = World(HeldStore(engine), clock)
        self.there = World(HeldStore(engine), clock)
        assert isinstance(self.here.store, HeldStore)
        self.held = self.here.store

    async def ask(self, world: World, room: str, command: commands.Command) -> Any:
        return await world.commits.submit(WORKSPACE, room, command)

    async def join(self, world: World, room: str, user: str) -> bool:
        command = commands.Join(user, user, world.ids.new("ent"), world.clock())
        joined: bool = await self.ask(world, room, command)
        return joined

    async def leave(self, world: World, room: str, user: str) -> bool:
        command = commands.Leave(user, user, world.ids.new("ent"), world.clock())
        left: bool = await self.ask(world, room, command)
        return left


@pytest.fixture
async def pair(engine: SqliteStore) -> AsyncIterator[Pair]:
    pair = Pair(engine)
    await pair.here.commits.start()
    await pair.there.commits.start()
    yield pair
    await pair.here.settle()
    await pair.here.commits.stop()
    await pair.there.commits.stop()
    pair.here.versions.clear()
    await pair.here.assert_clean()


async def test_a_room_is_made_while_it_is_being_looked_for(pair: Pair) -> None:
    ann, bob = await pair.here.people(2)
    row = RoomRow(workspace=WORKSPACE, room_id="r", kind="group", created_at=0)
    create = commands.Create(row, ((ann, "member"), (bob, "member")), (), 0)
    with pair.held.holding("answer", "get", ROOMS) as looking:
        early = asyncio.create_task(pair.here.post("r", ann, "1"))
        await looking.is_there.wait()
        made = asyncio.create_task(pair.ask(pair.here, "r", create))
        late = asyncio.create_task(pair.here.post("r", ann, "2"))
        await asyncio.sleep(0)
        looking.goes_on.set()
        with pytest.raises(NotFound):
            await early
        assert (await made)[1]
        assert (await late).entry.entry.seq == 1


async def test_who_joined_elsewhere_is_a_member_here(pair: Pair) -> None:
    ann, bob, cem = await pair.here.people(3)
    await pair.here.room("r", [ann, bob])
    await pair.leave(pair.here, "r", bob)
    with pytest.raises(Forbidden):
        await pair.here.post("r", cem, "1")
    assert await pair.join(pair.there, "r", bob)
    assert await pair.join(pair.there, "r", cem)
    for user in (bob, cem):
        await pair.here.post("r", user, "2")
    assert not await pair.join(pair.here, "r", bob)


@pytest.mark.parametrize("members", [4, 40])
async def test_who_was_removed_elsewhere_is_no_member_here(pair: Pair, members: int) -> None:
    people = await pair.here.people(members)
    ann, bob = people[:2]
    await pair.here.room("r", people)
    await pair.here.settle()
    await pair.here.post("r", bob, "1")
    await pair.here.settle()
    assert await pair.leave(pair.there, "r", bob)
    await pair.here.settle()
    await pair.here.post("r", ann, "2")
    with pytest.raises(Forbidden):
        await pair.here.post("r", bob, "3")
    assert not await pair.leave(pair.here, "r", bob)


async def test_what_nobody_wrote_is_answered_with_what_is_stored(pair: Pair) -> None:
    ann, bob = await pair.here.people(2)
    await pair.here.room("r", [ann, bob])
    await pair.here.post("r", ann, "1")
    await pair.ask(pair.here, "r", commands.Read(bob, 1))
    await pair.there.post("r", ann, "2")
    again = await pair.ask(pair.here, "r", commands.Read(bob, 1))
    assert (again.read_seq, again.unread, again.total_unread) == (1, 1, 1)
    await pair.there.post("r", ann, "3")
    further = await pair.ask(pair.here, "r", commands.Read(bob, 3))
    assert (further.read_seq, further.unread, further.total_unread) == (3, 0, 0)


async def test_an_unchanged_room_is_not_read_again_member_by_member(pair: Pair) -> None:
    people = await pair.here.people(20)
    await pair.here.room("r", people)
    await pair.here.post("r", people[0], "1")
    await pair.ask(pair.here, "r", commands.Read(people[1], 1))
    before = len(pair.held.calls)
    await pair.ask(pair.here, "r", commands.Read(people[1], 1))
    assert len(pair.held.calls) - before <= 3


@pytest.mark.parametrize("table", [ROOMS, MEMBERS])
async def test_a_commit_elsewhere_between_two_reads_of_one(pair: Pair, table: Any) -> None:
    ann, bob, cem = await pair.here.people(3)
    await pair.there.room("r", [ann, bob, cem])
    await pair.there.post("r", ann, "1")
    with pair.held.holding("answer", "get" if table is ROOMS else "query", table) as reading:
        mark = asyncio.create_task(pair.ask(pair.here, "r", commands.Read(bob, 1)))
        await reading.is_there.wait()
        await pair.there.post("r", ann, "2")
        await pair.leave(pair.there, "r", cem)
        reading.goes_on.set()
        assert (await mark).unread == 1


async def test_a_room_unmuted_elsewhere_between_the_reads_of_total_and_row(pair: Pair) -> None:
    ann, bob = await pair.here.people(2)
    await pair.there.room("r", [ann, bob])
    await pair.ask(pair.there, "r", commands.Mute(bob, True))
    await pair.there.post("r", ann, "1")
    with pair.held.holding("request", "get_many", INBOXES) as reading:
        mark = asyncio.create_task(pair.ask(pair.here, "r", commands.Read(bob, 1)))
        await reading.is_there.wait()
        await pair.ask(pair.there, "r", commands.Mute(bob, False))
        reading.goes_on.set()
        assert (await mark).total_unread == 0


async def test_a_look_never_brings_back_what_was(pair: Pair) -> None:
    ann, bob = await pair.here.people(2)
    await pair.there.room("r", [ann, bob])
    with pair.held.holding("answer", "query", MEMBERS) as looking:
        look = asyncio.create_task(pair.here.commits.look(WORKSPACE, "r"))
        await looking.is_there.wait()
        await pair.here.post("r", ann, "1")
        looking.goes_on.set()
        view = await look
    assert view is not None
    assert view.room is not None
    assert view.room.head == 1
    writes = pair.held.calls.count(("write", None))
    await pair.here.post("r", ann, "2")
    assert pair.held.calls.count(("write", None)) == writes + 1, "planned on the present state"


async def test_who_came_back_elsewhere_posts_reads_and_types_here(acme: Company) -> None:
    there = Company(acme.store, acme.clock)
    team = await acme.open("group", "max", "cleo", "mia")
    await acme.say(CLEO, team.id, "Hello")
    await acme.rooms.remove_member(MAX, team.id, "cleo")
    for ask in (acme.rooms.typing(CLEO, team.id), acme.messages.read(CLEO, team.id, 1)):
        with pytest.raises(NotFound):
            await ask
    await there.rooms.add_members(MAX, team.id, wire.AddMember(user_id="cleo"))
    await acme.rooms.typing(CLEO, team.id)
    assert acme.signals.pop()[0] == {"max", "mia"}
    assert (await acme.say(CLEO, team.id, "Back")).seq == 4
    await there.say(MAX, team.id, "Welcome")
    assert (await acme.messages.read(CLEO, team.id, 5)).unread == 0
    await there.chat.stop()
