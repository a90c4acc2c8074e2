"""Exact under attack: whatever fifty people do at once and however often they repeat it, every log
is whole, every count is right and every message is there once.

One test drives a whole service over HTTP, with lost answers and a clock that jumps; the others
drive the commits into the corners that chance seldom finds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
import uvloop

from tests.chat.moments import watching
from tests.chat.test_commits import WORKSPACE, Now, World
from tests.stores import EVERY_STORE, StoreKind, open_store, sized, store_address
from tidings import wire
from tidings.app import Service, listening, open_app
from tidings.chat import commands, counts, fanouts
from tidings.chat.audit import RECEIPT_LIFE_S, audit
from tidings.chat.rows import INLINE_MEMBERS_MAX
from tidings.client import (
    Client,
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    NotFound,
    Unavailable,
    ValidationFailed,
)
from tidings.config import Settings
from tidings.errors import TidingsError
from tidings.people.callers import ALL_SCOPES
from tidings.storage.interface import Item
from tidings.storage.tables import BADGES, ENTRIES, FANOUTS, RECEIPTS, ROOMS, room_key, user_key

STORES = EVERY_STORE
DEADLINE_S = 60.0
MINUTE_MS = 60_000
PEOPLE = [f"u{number}" for number in range(50)]
ROOMS_ATTACKED = {"small": 4, "edge": INLINE_MEMBERS_MAX, "large": len(PEOPLE)}
"""Room ids, and how many are in them at first."""


# A whole service, over HTTP.


class Attacker:
    """One person on one device: sends, repeats, gives up on answers, and changes their mind."""

    def __init__(self, attack: Attack, user_id: str, client: Client, seed: int) -> None:
        self.attack = attack
        self.user_id = user_id
        self.client = client
        self.chance = random.Random(seed)
        self.sent: list[tuple[str, wire.PostMessage]] = []
        self.accepted: dict[tuple[str, str], tuple[int, str]] = {}
        """(room, client_id) to the sequence and id of the entry that it became."""
        number = PEOPLE.index(user_id)
        self.rooms = {room_id for room_id, count in ROOMS_ATTACKED.items() if number < count}
        self.lost = 0
        self.repeated = 0

    async def act(self) -> None:
        """One thing at random; a refusal is one too."""
        rooms = sorted(self.rooms) if self.rooms and self.chance.random() < 0.9 else ROOMS_ATTACKED
        room_id = self.chance.choice(list(rooms))
        seq = self.chance.randint(1, max(1, self.attack.heads[room_id]))
        own = [seq for (room, _), (seq, _) in self.accepted.items() if room == room_id]
        client, chance = self.client, self.chance
        actions: list[tuple[int, Callable[[], Awaitable[Any]]]] = [
            (8, lambda: self.send(room_id)),
            (3, lambda: self.send_twice(room_id)),
            (3, lambda: self.lose(room_id)),
            (3, self.repeat),
            (1, self.change_body),
            (5, lambda: client.read(room_id, seq)),
            (2, lambda: client.delete_message(room_id, chance.choice(own or [seq]))),
            (1, lambda: client.edit_message(room_id, chance.choice(own or [seq]), "other")),
            (1, lambda: client.react(room_id, seq, "+1")),
            (2, lambda: self.join(chance.choice(list(ROOMS_ATTACKED)))),
            (2, lambda: self.leave(room_id)),
            (1, lambda: client.mute(room_id, muted=chance.random() < 0.5)),
        ]
        weights = [weight for weight, _ in actions]
        _, action = chance.choices(actions, weights)[0]
        with suppress(Conflict, Forbidden, NotFound, ValidationFailed):
            await action()

    def _message(self, room_id: str) -> wire.PostMessage:
        mentions = self.chance.sample(PEOPLE[:4], 1) if self.chance.random() < 0.2 else []
        body = wire.PostMessage(
            client_id=f"c{len(self.sent)}",
            text=f"{self.user_id} {len(self.sent)}",
            mentions=mentions,
        )
        self.sent.append((room_id, body))
        return body

    async def _post(self, room_id: str, body: wire.PostMessage) -> None:
        entry = await self.client.post(room_id, body)
        assert (entry.sender_id, entry.client_id) == (self.user_id, body.client_id)
        place = (entry.seq, entry.id)
        assert self.accepted.setdefault((room_id, body.client_id or ""), place) == place
        self.attack.heads[room_id] = max(self.attack.heads[room_id], entry.seq)

    async def send(self, room_id: str) -> None:
        """A message, once."""
        await self._post(room_id, self._message(room_id))

    async def send_twice(self, room_id: str) -> None:
        """The same message on two connections at the same time."""
        body = self._message(room_id)
        answers = await asyncio.gather(
            self._post(room_id, body), self._post(room_id, body), return_exceptions=True
        )
        for answer in answers:
            if answer is not None:
                raise answer

    async def lose(self, room_id: str) -> None:
        """Go away before the answer, and do not know; minutes later it is sent again."""
        body = self._message(room_id)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._post(room_id, body), self.chance.uniform(0, 0.01))
            return
        self.lost += 1
        self.attack.clock.ms += self.chance.randint(1, 20) * MINUTE_MS
        await self._post(room_id, body)

    async def join(self, room_id: str) -> None:
        """Become a member, or stay one."""
        await self.client.add_members(room_id, self.user_id)
        self.rooms.add(room_id)

    async def leave(self, room_id: str) -> None:
        """End the membership, perhaps: the client never makes this call again."""
        with suppress(Unavailable):
            await self.client.remove_member(room_id, self.user_id)
        self.rooms.discard(room_id)

    async def repeat(self) -> None:
        """Something that was sent before, accepted or not."""
        if self.sent:
            await self._post(*self.chance.choice(self.sent))

    async def repeat_all(self) -> None:
        """Everything that was accepted, all at once; refused only for who left meanwhile."""
        accepted = [sent for sent in self.sent if (sent[0], sent[1].client_id) in self.accepted]
        sending = [self._post(room_id, body) for room_id, body in accepted]
        for answer in await asyncio.gather(*sending, return_exceptions=True):
            assert answer is None or isinstance(answer, Forbidden | ValidationFailed), answer
            self.repeated += answer is None

    async def change_body(self) -> None:
        """A client_id that was accepted with another text: refused, whatever became of it."""
        if self.accepted:
            room_id, client_id = self.chance.choice(list(self.accepted))
            with pytest.raises(IdempotencyMismatch):
                await self.client.post_message(room_id, "something else", client_id=client_id)


class Attack:
    """Everybody's devices at one service."""

    def __init__(self, service: Service, clock: Now) -> None:
        self.service = service
        self.clock = clock
        self.heads = dict.fromkeys(ROOMS_ATTACKED, 0)
        self.attackers: list[Attacker] = []

    async def settle(self) -> None:
        """Wait until no fan-out is open."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self.service.engine.scan(FANOUTS)).items:
                await asyncio.sleep(0.01)

    async def log(self, workspace: str, room_id: str) -> list[Item]:
        """All entries of a room."""
        items: list[Item] = []
        while True:
            page = await self.service.engine.query(
                ENTRIES, room_key(workspace, room_id), low=len(items) + 1
            )
            items += page.items
            if page.after is None:
                return items


class Frames:
    """What one socket was told: its versions go up by one from each commit to the next."""

    def __init__(self) -> None:
        self.version = 0
        self.commits = 0

    async def follow(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            frame = msgspec.json.decode(message.data)
            for update in frame["updates"] if frame["type"] == "batch" else [frame]:
                if update["type"] == "ready":
                    self.version = update["version"]
                elif "version" in update:
                    step = update["version"] - self.version
                    assert step in (0, 1), f"from {self.version} to {update['version']}"
                    self.version += step
                    self.commits += step


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


async def _attack(store_url: str, *, rounds: int, seed: int) -> None:
    clock = Now()
    settings = Settings(store=store_url, rate_limit="off")
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_app(settings, clock=clock))
        url = await stack.enter_async_context(listening(service, "127.0.0.1", 0))
        workspace = (await service.people.workspaces.default(WORKSPACE)).id
        _, key = await service.people.credentials.create_key(workspace, "attack", ALL_SCOPES)
        owner = await stack.enter_async_context(Client(url, key, deadline_s=DEADLINE_S))
        attack = Attack(service, clock)
        tokens = {}
        for user_id in PEOPLE:
            await owner.create_user(user_id, "manager", user_id=user_id)
            tokens[user_id] = (await owner.create_session(user_id)).token
        for room_id, count in ROOMS_ATTACKED.items():
            await owner.create_room(
                "group", members=PEOPLE[:count], room_id=room_id, scope="public"
            )
        await attack.settle()
        followers: dict[str, Frames] = {}
        following = await stack.enter_async_context(asyncio.TaskGroup())
        sockets = []
        for number, user_id in enumerate(PEOPLE):
            client = owner.as_session(tokens[user_id])
            attack.attackers.append(Attacker(attack, user_id, client, seed * 1_000 + number))
            socket = await owner.connections().ws_connect(
                f"{url}/v1/ws", headers=client.headers(), protocols=("tidings.v1",)
            )
            frames = followers[user_id] = Frames()
            following.create_task(frames.follow(socket))
            sockets.append(socket)

        async def act(attacker: Attacker) -> None:
            for _ in range(rounds):
                await attacker.act()

        async with watching(service.engine):
            await asyncio.gather(*(act(attacker) for attacker in attack.attackers))
            # Every receipt is expired now and none was deleted: all of them still count.
            clock.ms += (RECEIPT_LIFE_S + 60) * 1_000
            await asyncio.gather(*(attacker.repeat_all() for attacker in attack.attackers))
            await asyncio.gather(*(act(attacker) for attacker in attack.attackers))
        await attack.settle()
        await _assert_intact(attack, workspace)
        for user_id, frames in followers.items():
            badge = await service.engine.get(BADGES, (user_key(workspace, user_id),))
            assert badge is not None
            async with asyncio.timeout(DEADLINE_S):
                while frames.version < badge["version"]:
                    await asyncio.sleep(0.01)
            assert frames.version == badge["version"]
            assert frames.commits
        for socket in sockets:
            await socket.close()


async def _assert_intact(attack: Attack, workspace: str) -> None:
    """The audit is clean, and so is what the attackers know: each acceptance is one entry."""
    report = await audit(attack.service.engine, clock=attack.clock)
    assert report.ok, report.broken[:5]
    logs = {room_id: await attack.log(workspace, room_id) for room_id in ROOMS_ATTACKED}
    for room_id, log in logs.items():
        assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
        sent = [(e["sender_id"], e["client_id"]) for e in log if e["type"] == "text"]
        assert len(set(sent)) == len(sent), f"a client_id with two entries in {room_id}"
    for attacker in attack.attackers:
        for (room_id, client_id), (seq, entry_id) in attacker.accepted.items():
            entry = logs[room_id][seq - 1]
            assert (entry["sender_id"], entry["client_id"], entry["id"]) == (
                attacker.user_id,
                client_id,
                entry_id,
            )
    assert sum(attacker.lost for attacker in attack.attackers)
    assert sum(attacker.repeated for attacker in attack.attackers) > len(PEOPLE) // 5
    assert sum(len(attacker.accepted) for attacker in attack.attackers) > len(PEOPLE)


@pytest.fixture
async def store_url(
    store_kind: StoreKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    async with store_address(store_kind, tmp_path, monkeypatch) as url:
        yield url


async def test_fifty_senders_leave_everything_exact(store_url: str, store_kind: StoreKind) -> None:
    await _attack(store_url, rounds=max(2, sized(store_kind, 5)), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 5))
async def test_fifty_senders_leave_everything_exact_for_long(tmp_path: Path, seed: int) -> None:
    await _attack(f"sqlite:///{tmp_path}/attacked.db", rounds=25, seed=seed)


# Corners.


@pytest_asyncio.fixture
async def world(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[World]:
    clock = Now()
    async with open_store(store_kind, tmp_path, clock) as store:
        world = World(store, clock)
        await world.commits.start()
        yield world
        await world.commits.stop()


async def _ask(world: World, room_id: str, command: commands.Command) -> Any:
    """The answer to a command, or None where it was refused."""
    try:
        return await world.commits.submit(WORKSPACE, room_id, command)
    except TidingsError:
        return None


def _join(world: World, user_id: str) -> commands.Join:
    return commands.Join(user_id, user_id, world.ids.new("ent"), world.clock())


def _leave(world: World, user_id: str) -> commands.Leave:
    return commands.Leave(user_id, user_id, world.ids.new("ent"), world.clock())


def _remove(world: World, user_id: str, seq: int) -> commands.Remove:
    return commands.Remove(user_id, seq, world.ids.new("ent"), world.clock(), is_moderator=True)


async def _head(world: World, room_id: str) -> tuple[int, bool]:
    """The room's head, and whether a fan-out is open."""
    item = await world.store.get(ROOMS, (room_key(WORKSPACE, room_id),))
    assert item is not None
    return item["head"], bool(item.get("is_fanning"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_fan_out_races_with_reads_leaves_rejoins_and_deletes(
    world: World, seed: int, store_kind: StoreKind
) -> None:
    count = sized(store_kind, 600)
    chance = random.Random(seed)
    people = await world.people(180)
    await world.room("hall", people)
    open_seen = 0

    async def disturb(number: int) -> None:
        nonlocal open_seen
        head, is_open = await _head(world, "hall")
        open_seen += is_open
        who = chance.choice(people)
        seq = chance.randint(max(1, head - 20), max(1, head))
        match number % 6:
            case 0:
                await _ask(world, "hall", _remove(world, who, seq))
            case 1:
                await _ask(world, "hall", commands.Read(who, head if number % 4 else seq))
            case 2:
                await _ask(world, "hall", _leave(world, who))
                await _ask(world, "hall", _join(world, who))
            case 3:
                await _ask(world, "hall", _leave(world, who))
            case 4:
                await _ask(world, "hall", _join(world, who))
            case _:
                with suppress(TidingsError):
                    await world.post("hall", who, f"c{number}", mentions=[chance.choice(people)])

    async with watching(world.store):
        for start in range(0, count, 12):
            await asyncio.gather(*(disturb(number) for number in range(start, start + 12)))
    assert open_seen > count // 6
    await world.settle()
    await world.assert_clean()


@pytest.mark.slow
async def test_a_room_shrinks_and_grows_past_one_transaction_with_a_fan_out_open(
    world: World, store_kind: StoreKind
) -> None:
    people = await world.people(INLINE_MEMBERS_MAX + 6)
    core, edge = people[: INLINE_MEMBERS_MAX - 3], people[INLINE_MEMBERS_MAX - 3 :]
    await world.room("edge", people)
    sizes_open: set[bool] = set()
    number = 0

    async def post() -> None:
        nonlocal number
        number += 1
        await world.post("edge", core[number % len(core)], f"c{number}", mentions=[core[0]])

    async def look() -> None:
        view = await world.commits.look(WORKSPACE, "edge")
        assert view is not None
        assert view.room is not None
        if view.room.is_fanning:
            sizes_open.add(view.room.member_count > INLINE_MEMBERS_MAX)

    async with watching(world.store):
        for turn in range(sized(store_kind, 24)):
            for user_id in edge:
                move = _join(world, user_id) if turn % 2 else _leave(world, user_id)
                moving = _ask(world, "edge", move)
                reading = _ask(world, "edge", commands.Read(user_id, max(1, number - turn)))
                await asyncio.gather(post(), moving, post(), reading, look())
            await asyncio.gather(*(_ask(world, "edge", _join(world, each)) for each in edge[:2]))
            if turn % 3 == 0:
                await world.settle()
    assert sizes_open == {False, True}
    await world.settle()
    await world.assert_clean()
    view = await world.commits.look(WORKSPACE, "edge", core)
    assert view is not None
    assert view.participations[core[1]].unread > view.participations[core[1]].mentions == 0


@pytest.mark.parametrize("members", [3, INLINE_MEMBERS_MAX + 1])
async def test_two_expired_receipts_in_one_commit_still_count(world: World, members: int) -> None:
    people = await world.people(members)
    await world.room("r", people)
    ann, bob = people[:2]
    first = await world.post("r", ann, "1")
    second = await world.post("r", bob, "1")
    world.clock.ms += (RECEIPT_LIFE_S + 1) * 1_000  # type: ignore[attr-defined]
    keys = [(room_key(WORKSPACE, "r"), f"{sender}#1") for sender in (ann, bob)]
    assert await world.store.get_many(RECEIPTS, keys) == [None, None], "they are expired"
    answers = await asyncio.gather(
        world.post("r", ann, "1"),
        world.post("r", bob, "2"),
        world.post("r", bob, "1"),
        world.post("r", ann, "1"),
        world.post("r", bob, "1", text="other"),
        return_exceptions=True,
    )
    posted = [answer for answer in answers if isinstance(answer, commands.Posted)]
    assert [answer.is_new for answer in posted] == [False, True, False, False]
    assert [answer.entry.entry.seq for answer in posted] == [
        first.entry.entry.seq,
        3,
        second.entry.entry.seq,
        first.entry.entry.seq,
    ]
    assert getattr(answers[4], "code", None) == "idempotency_mismatch"
    await world.settle()
    await world.assert_clean()


async def test_a_repeat_is_the_first_entry_though_it_could_not_be_sent_now(world: World) -> None:
    ann, bob, cem = await world.people(3)
    await world.room("r", [ann, bob, cem])
    first = await world.post("r", ann, "1", mentions=[bob])
    await _ask(world, "r", _leave(world, bob))
    answers = await asyncio.gather(
        world.post("r", ann, "1", mentions=[bob]),
        world.post("r", ann, "2", mentions=[bob]),
        world.post("r", ann, "3", mentions=[cem]),
        world.post("r", ann, "1", text="other", mentions=[bob]),
        return_exceptions=True,
    )
    codes = [getattr(answer, "code", None) for answer in answers]
    assert codes == [None, "validation_failed", None, "idempotency_mismatch"]
    again, third = answers[0], answers[2]
    assert isinstance(again, commands.Posted)
    assert isinstance(third, commands.Posted)
    assert (again.is_new, again.entry.entry) == (False, first.entry.entry)
    assert (third.is_new, third.entry.entry.seq) == (True, 3)
    await world.assert_clean()


@pytest.mark.slow
async def test_a_read_mark_arrives_in_a_room_that_never_rests(
    world: World, store_kind: StoreKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads go in steps of a few entries here, while messages and their fan-out go on."""
    monkeypatch.setattr(counts, "COUNT_ENTRIES_MAX", 10)
    monkeypatch.setattr(fanouts, "COUNT_ENTRIES_MAX", 10)
    people = await world.people(60)
    await world.room("busy", people)
    readers, writers = people[:6], people[6:]
    is_over = asyncio.Event()

    async def write(sender: str) -> None:
        for number in range(sized(store_kind, 12)):
            posted = await world.post("busy", sender, f"c{number}", mentions=readers[:1])
            if number % 4 == 3:
                await _ask(world, "busy", _remove(world, sender, posted.entry.entry.seq - 2))

    async def read(reader: str) -> int:
        steps = 0
        while not is_over.is_set():
            head, _ = await _head(world, "busy")
            if head == 0:
                await asyncio.sleep(0.001)
                continue
            is_complete = False
            for _ in range(head):
                mark = await world.commits.submit(WORKSPACE, "busy", commands.Read(reader, head))
                steps += 1
                assert mark.total_unread == mark.unread >= mark.mentions >= 0
                is_complete = mark.is_complete
                if is_complete:
                    break
            assert is_complete
            assert mark.read_seq >= head
        return steps

    async with watching(world.store):
        reading = asyncio.gather(*(read(reader) for reader in readers))
        await asyncio.gather(*(write(sender) for sender in writers))
        is_over.set()
        steps = await reading
    assert min(steps) > 1
    await world.settle()
    head, _ = await _head(world, "busy")
    for reader in readers:
        mark = await world.commits.submit(WORKSPACE, "busy", commands.Read(reader, head))
        assert (mark.unread, mark.mentions, mark.total_unread, mark.is_complete) == (0, 0, 0, True)
    await world.assert_clean()


async def test_messages_while_founders_still_join_count_for_all_of_them(world: World) -> None:
    people = await world.people(150)
    founding = asyncio.create_task(world.room("new", people))
    while await world.commits.look(WORKSPACE, "new") is None:
        await asyncio.sleep(0)
    gone = people[-1]
    await asyncio.gather(
        *(world.post("new", people[0], f"c{number}") for number in range(5)),
        _ask(world, "new", _join(world, gone)),
    )
    await _ask(world, "new", _leave(world, gone))
    await founding
    await world.settle()
    view = await world.commits.look(WORKSPACE, "new", people)
    assert view is not None
    assert view.room is not None
    assert view.room.member_count == 149
    assert {view.participations[user].unread for user in people[1:-1]} == {5}
    assert view.participations[gone].is_left
    await world.assert_clean()


async def test_a_stop_leaves_nothing_running(world: World) -> None:
    people: Sequence[str] = await world.people(60)
    await world.room("hall", people)
    before = asyncio.all_tasks()
    posting = [asyncio.create_task(world.post("hall", each, "1")) for each in people[:5]]
    await asyncio.sleep(0)
    await world.commits.stop()
    await asyncio.gather(*posting)
    assert asyncio.all_tasks() <= before
