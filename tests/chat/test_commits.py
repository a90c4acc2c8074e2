"""Random commands from many senders in rooms of every size leave nothing that is not exact."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chat.moments import watching
from tests.people.clocks import START_MS
from tests.stores import EVERY_STORE, StoreKind, open_store, sized
from tidings.chat import commands, fanouts
from tidings.chat.audit import audit
from tidings.chat.commits import Commits
from tidings.chat.rows import RoomRow
from tidings.chat.updates import UserUpdate
from tidings.clock import Clock
from tidings.errors import TidingsError
from tidings.ids import IdMaker
from tidings.people.rows import UserRow, user_to_item
from tidings.storage.interface import Store
from tidings.storage.tables import FANOUTS, USERS

STORES = EVERY_STORE
WORKSPACE = "acme"
DRAIN_TURNS_MAX = 2_000


class World:
    """A store with commits over it, and everything that was published."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.ids = IdMaker(clock)
        self.versions: dict[str, list[int]] = {}
        self.seqs: dict[tuple[str, str], list[int]] = {}
        self.commits = Commits(store, clock, self.publish)

    def publish(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        assert workspace == WORKSPACE
        for update in updates:
            self.versions.setdefault(update.user_id, []).append(update.version)
            for room in update.rooms:
                seqs = self.seqs.setdefault((update.user_id, room.room_id), [])
                seqs.extend(posted.entry.seq for posted in room.entries)

    async def people(self, count: int) -> list[str]:
        names = [f"u{number}" for number in range(count)]
        await self.store.put_many(
            USERS,
            [
                user_to_item(
                    UserRow(
                        workspace=WORKSPACE,
                        user_id=name,
                        role="manager",
                        name=name,
                        created_at=self.clock(),
                        updated_at=self.clock(),
                    )
                )
                for name in names
            ],
        )
        return names

    async def room(self, room_id: str, members: Sequence[str]) -> None:
        now = self.clock()
        row = RoomRow(
            workspace=WORKSPACE, room_id=room_id, kind="group", scope="public", created_at=now
        )
        first = commands.FOUNDERS_INLINE_MAX - 5
        await self.commits.submit(
            WORKSPACE,
            room_id,
            commands.Create(
                row,
                tuple((member, "member") for member in members[:first]),
                tuple(members[first:]),
                now,
            ),
        )
        await self.commits.founded(WORKSPACE, room_id)

    async def post(
        self, room_id: str, sender: str, client_id: str, text: str = "hello", **named: object
    ) -> commands.Posted:
        command = commands.Post(
            sender_id=sender,
            client_id=client_id,
            body_hash=text,
            entry_id=self.ids.new("ent"),
            at=self.clock(),
            text=text,
            receipt_expires_at=self.clock() // 1000 + 2_592_000,
            **named,  # type: ignore[arg-type]
        )
        posted: commands.Posted = await self.commits.submit(WORKSPACE, room_id, command)
        return posted

    async def settle(self) -> None:
        """Wait until no fan-out is open."""
        for _ in range(DRAIN_TURNS_MAX):
            if not (await self.store.scan(FANOUTS)).items:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a fan-out never ended")

    async def assert_clean(self) -> None:
        report = await audit(self.store, clock=self.clock)
        assert report.ok, report.broken[:5]
        for user_id, versions in self.versions.items():
            assert versions == list(range(1, len(versions) + 1)), user_id


class Now:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


@pytest_asyncio.fixture
async def world(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[World]:
    clock = Now()
    async with open_store(store_kind, tmp_path, clock) as store:
        world = World(store, clock)
        await world.commits.start()
        yield world
        await world.commits.stop()


async def test_a_message_counts_for_everybody_else(world: World) -> None:
    ann, bob, cem = await world.people(3)
    await world.room("r", [ann, bob, cem])
    posted = await world.post("r", ann, "1", mentions=[bob])
    assert posted.is_new
    assert posted.entry.entry.seq == 1
    again = await world.post("r", ann, "1", mentions=[bob])
    assert not again.is_new
    assert again.entry.entry == posted.entry.entry
    view = await world.commits.look(WORKSPACE, "r", [ann, bob, cem])
    assert view is not None
    counts = {user: (row.unread, row.mentions) for user, row in view.participations.items()}
    assert counts == {ann: (0, 0), bob: (1, 1), cem: (1, 0)}
    mark = await world.commits.submit(WORKSPACE, "r", commands.Read(bob, 1))
    assert (mark.unread, mark.total_unread, mark.version) == (0, 0, 3)
    await world.assert_clean()


async def test_a_large_room_reaches_its_head(world: World) -> None:
    people = await world.people(130)
    await world.room("big", people)
    await asyncio.gather(*(world.post("big", people[n % 7], f"c{n}") for n in range(40)))
    await world.settle()
    view = await world.commits.look(WORKSPACE, "big", people)
    assert view is not None
    assert view.room is not None
    assert (view.room.head, view.room.member_count) == (40, 130)
    assert {view.participations[user].unread for user in people[7:]} == {40}
    for user in people:
        assert world.seqs[user, "big"] == list(range(1, 41))
    await world.assert_clean()


async def test_what_another_process_left_open_is_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = await world.people(60)
    await world.room("big", people)
    await world.settle()
    await world.commits.stop()
    left_open = World(world.store, world.clock)
    await left_open.post("big", people[0], "1")
    await left_open.commits.stop()  # its fan-out has not ended
    assert (await world.store.scan(FANOUTS)).items
    monkeypatch.setattr(fanouts, "WATCH_INTERVAL_S", 0.01)
    other = World(world.store, world.clock)
    await other.commits.start()
    try:
        await other.settle()
        killed = World(world.store, world.clock)
        await killed.post("big", people[1], "2")
        await killed.commits.stop()
        await other.settle()
    finally:
        await other.commits.stop()
    assert (await audit(world.store, clock=world.clock)).ok


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_inexact_under_random_commands(
    world: World, seed: int, store_kind: StoreKind
) -> None:
    count = sized(store_kind, 1_500)
    chance = random.Random(seed)
    people = await world.people(40)
    await world.room("small", people[:3])
    await world.room("edge", people[:24])
    await world.room("large", people)
    rooms = ["small", "edge", "large"]
    refused = 0

    async def act(number: int) -> None:
        nonlocal refused
        room, who = chance.choice(rooms), chance.choice(people)
        at = world.clock()
        entry_id = world.ids.new("ent")
        view = await world.commits.look(WORKSPACE, room)
        assert view is not None
        assert view.room is not None
        seq = chance.randint(1, max(1, view.room.head))
        kind = chance.choices(
            ["post", "again", "read", "join", "leave", "edit", "remove", "react", "mute"],
            [40, 8, 15, 9, 7, 4, 8, 4, 5],
        )[0]
        try:
            match kind:
                case "post":
                    mentions = chance.sample(people, 2) if chance.random() < 0.2 else []
                    await world.post(room, who, f"c{number}", mentions=mentions)
                case "again":
                    await world.post(room, who, f"c{chance.randint(0, number)}")
                case _:
                    command: commands.Command
                    match kind:
                        case "read":
                            command = commands.Read(who, seq)
                        case "join":
                            command = commands.Join(who, who, entry_id, at)
                        case "leave":
                            command = commands.Leave(who, who, entry_id, at)
                        case "edit":
                            command = commands.Edit(who, seq, f"other {number}", entry_id, at)
                        case "remove":
                            command = commands.Remove(who, seq, entry_id, at, is_moderator=True)
                        case "react":
                            command = commands.React(who, seq, "+1", True, entry_id, at)
                        case _:
                            command = commands.Mute(who, chance.random() < 0.5)
                    await world.commits.submit(WORKSPACE, room, command)
        except TidingsError:
            refused += 1

    async with watching(world.store):
        for start in range(0, count, 50):
            await asyncio.gather(*(act(number) for number in range(start, start + 50)))
    assert refused < count * 0.8
    await world.settle()
    await world.assert_clean()
