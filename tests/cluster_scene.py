"""An office at work on several nodes, who note what was promised to them, and check it in the end.

Everybody's devices are the project's own client and know one address. They send, read and are
told; others join and leave a large room, and conversations are snoozed. Nobody gives up: a call
that failed is made again with the same `client_id`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TypeVar

import msgspec

from tests.command_line import run_tidings
from tidings import wire
from tidings.client import (
    Client,
    ClientError,
    Conflict,
    Device,
    NotFound,
    Problem,
    Unreachable,
    ValidationFailed,
    Way,
)
from tidings.config import Settings
from tidings.engines import open_engine
from tidings.storage.interface import Store
from tidings.storage.tables import FANOUTS

T = TypeVar("T")

PEOPLE = [f"user{number}" for number in range(9)]
"""Everybody with a device: three ways, three people each."""
GUESTS = [f"guest{number}" for number in range(40)]
"""Members of the hall without a device."""
VISITORS = GUESTS[:4]
"""Those who join it and leave it."""
TEAM, HALL = "team", "hall"
"""The room of all people, and the one that is large enough to fan out."""
TRIOS = {f"trio{number}": PEOPLE[3 * number : 3 * number + 3] for number in range(3)}
CUSTOMERS = [f"customer{number}" for number in range(3)]
DESKS = {f"desk{number}": [CUSTOMERS[number], *PEOPLE[number : number + 2]] for number in range(3)}
"""Conversations that are snoozed and wake."""
WAYS: tuple[Way, ...] = ("websocket", "events", "poll")
ROOM_WEIGHTS = {TEAM: 2, HALL: 1}
PAUSE_S = (0.1, 0.8)
RECENT = 20
"""Entries of a room of which one is changed."""
SNOOZE_S = (1.0, 3.0)
RETRY_S = 0.1
TOGETHER = 50
"""Calls that are made at once while everything is set up."""
ANSWER_S = 60.0
"""By then everything that was sent has its answer, once all nodes are back."""
CALL_S = 30.0
"""By then a call has an answer, with whatever retries the client makes by itself."""
REST_S = 45.0
"""By then everything that was left behind is finished, and everybody was told."""


class Watch:
    """A person's device, and all entries that it told, in the order in which it told them."""

    def __init__(self, user_id: str, client: Client, device: Device) -> None:
        self.user_id = user_id
        self.client = client
        self.device = device
        self.told: defaultdict[str, list[wire.Entry]] = defaultdict(list)
        self._updates = device.entries()

    async def run(self) -> None:
        """Note what is told, until the device is closed."""
        with suppress(Unreachable):
            async for entry in self._updates:
                self.told[entry.room_id].append(entry)

    async def catch_up(self) -> None:
        """Wait until the device was told what everybody who asks now would hear."""
        badge = await self.client.badge()
        await self.device.until(lambda state: state.version >= badge.version, deadline_s=REST_S)
        await self.device.settled(deadline_s=REST_S)
        total = self.device.total
        shown = wire.Badge(total.unread, total.mentions, total.version)
        assert shown == await self.client.badge(), self.user_id


class Office:
    """The people of one workspace at work."""

    def __init__(self, store: str, key: Client, dice: random.Random) -> None:
        self.key = key
        self.dice = dice
        self.pause_s = PAUSE_S
        """How long everybody rests between two things they do."""
        self.watches: list[Watch] = []
        self.rooms = {TEAM: PEOPLE, HALL: PEOPLE + GUESTS} | TRIOS | DESKS
        self.acknowledged: dict[tuple[str, int], str | None] = {}
        """(room, sequence) to the `client_id` that the service confirmed there."""
        self.done: Counter[str] = Counter()
        self.failures: defaultdict[str, list[ClientError]] = defaultdict(list)
        """What the calls met that the client gave up after its own retries, by what they did."""
        self._store = store
        self._is_over = False

    async def found(self) -> None:
        """Make the people and their rooms."""
        await make_users(self.key, PEOPLE + GUESTS)
        await make_users(self.key, CUSTOMERS, "customer")
        for room_id, members in self.rooms.items():
            kind: wire.RoomKind = "support" if room_id in DESKS else "group"
            await self.key.create_room(kind, room_id=room_id, members=members)

    @asynccontextmanager
    async def watched(self, url: str) -> AsyncIterator[None]:
        """Everybody's device is there, at that address."""
        async with AsyncExitStack() as stack:
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for number, user_id in enumerate(PEOPLE):
                token = (await self.key.create_session(user_id)).token
                client = await stack.enter_async_context(Client(url, token, deadline_s=CALL_S))
                device = Device(
                    client,
                    way=WAYS[number % len(WAYS)],
                    random_0_1=lambda: self.dice.random() / 10,
                )
                watch = Watch(user_id, client, await stack.enter_async_context(device))
                self.watches.append(watch)
                group.create_task(watch.run())
            yield

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Everybody works within, and has finished what they began on leaving."""
        self._is_over = False
        async with asyncio.TaskGroup() as group:
            for watch in self.watches:
                group.create_task(self._again_and_again(partial(self._send, watch)))
            for watch in self.watches[: len(WAYS)]:
                group.create_task(self._again_and_again(partial(self._read, watch)))
            group.create_task(self._again_and_again(self._post))
            group.create_task(self._again_and_again(self._change))
            group.create_task(self._again_and_again(self._come_and_go))
            for room_id in DESKS:
                group.create_task(self._again_and_again(partial(self._snooze, room_id)))
            yield
            self._is_over = True

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        while not self._is_over:
            async with asyncio.timeout(ANSWER_S):
                await work()
            await asyncio.sleep(self.dice.uniform(*self.pause_s))

    async def _insist(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it succeeds. Raises `Problem` where it never will."""
        while True:
            try:
                reply = await call()
            except ClientError as error:
                if isinstance(error, Problem) and not error.is_passing:
                    raise
                self.failures[name].append(error)
                await asyncio.sleep(RETRY_S)
            else:
                self.done[name] += 1
                return reply

    def _any_room(self, user_id: str) -> str:
        own = [room_id for room_id, members in self.rooms.items() if user_id in members]
        (room_id,) = self.dice.choices(own, [ROOM_WEIGHTS.get(room_id, 4) for room_id in own])
        return room_id

    def note(self, entry: wire.Entry) -> None:
        """The service said that this is durable."""
        place = entry.room_id, entry.seq
        assert self.acknowledged.setdefault(place, entry.client_id) == entry.client_id

    async def _send(self, watch: Watch) -> None:
        """By a device, whose own business it is to try again."""
        text = f"{watch.user_id} says {self.done['send']}"
        self.note(await watch.device.send(self._any_room(watch.user_id), text))
        self.done["send"] += 1

    async def _post(self) -> None:
        """By a server."""
        author = self.dice.choice(PEOPLE)
        room_id = self._any_room(author)
        body = wire.PostMessage(f"post{self.dice.getrandbits(64)}", "posted", as_user=author)
        self.note(await self._insist("post", lambda: self.key.post(room_id, body)))

    async def _read(self, watch: Watch) -> None:
        room = watch.device.rooms.get(self._any_room(watch.user_id))
        if room is not None and room.position:
            seq = self.dice.randint(max(1, room.position - 5), room.position)
            await watch.device.read(room.room_id, seq)
            self.done["read"] += 1

    async def _change(self) -> None:
        """Delete a message, or like it, as a member who just saw it."""
        watch = self.dice.choice(self.watches)
        room_id = self._any_room(watch.user_id)
        own = [e for e in watch.told[room_id][-RECENT:] if e.sender_id == watch.user_id]
        messages = [entry.seq for entry in own if entry.type == "text"]
        if not messages:
            return
        seq = self.dice.choice(messages)
        if self.dice.random() < 0.5:
            call = partial(watch.client.delete_message, room_id, seq)
        else:
            call = partial(watch.client.react, room_id, seq, "👍")
        with suppress(Conflict):  # it was deleted meanwhile
            await self._insist("change", call)

    async def _come_and_go(self) -> None:
        visitor = self.dice.choice(VISITORS)
        with suppress(NotFound):  # they left already, by an earlier attempt or earlier on
            await self._insist("leave", lambda: self.key.remove_member(HALL, visitor))
        await self._insist("join", lambda: self.key.add_members(HALL, visitor))

    async def _snooze(self, room_id: str) -> None:
        """Put a conversation to sleep once it is awake."""
        room = await self._insist("look", lambda: self.key.room(room_id))
        if room.status == "snoozed":
            return
        wakes_at = datetime.now(UTC) + timedelta(seconds=self.dice.uniform(*SNOOZE_S))
        changes = wire.PatchRoom(snoozed_until=wakes_at.isoformat(timespec="milliseconds"))
        with suppress(ValidationFailed):  # the calls took so long that it is over
            await self._insist("snooze", lambda: self.key.patch_room(room_id, changes))

    # The reckoning

    async def rest(self) -> None:
        """Wait until nothing is left to do: fan-outs are finished, and everybody is awake."""
        async with asyncio.timeout(REST_S):
            async with open_store(self._store) as store:
                await fanned_out(store)
            for room_id in DESKS:
                while (await self.key.room(room_id)).status != "open":
                    await asyncio.sleep(0.1)

    async def log(self, room_id: str) -> list[wire.Entry]:
        """All entries of a room."""
        entries: list[wire.Entry] = []
        while page := (
            await self.key.messages(room_id, after=len(entries), limit=wire.LIST_LIMIT_MAX)
        ).items:
            entries += page
        return entries

    async def check(self) -> None:
        """At rest: every promise was kept, and every invariant holds."""
        await self.check_promises()
        await check_audit(self._store)

    async def check_promises(self) -> None:
        """At rest: what was acknowledged is there, everybody was told, and nothing twice."""
        await self.rest()
        for watch in self.watches:
            await watch.catch_up()
        logs = {room_id: await self.log(room_id) for room_id in self.rooms}
        for room_id, log in logs.items():
            assert [entry.seq for entry in log] == list(range(1, len(log) + 1)), room_id
            check_changes(room_id, log)
        places = {(e.room_id, e.seq): e.client_id for log in logs.values() for e in log}
        lost = {p: c for p, c in self.acknowledged.items() if places.get(p) != c}
        assert not lost, f"acknowledged and not there: {lost}"
        sent = [client_id for client_id in places.values() if client_id is not None]
        assert len(set(sent)) == len(sent) == len(self.acknowledged)
        await self._check_told(logs)

    async def _check_told(self, logs: dict[str, list[wire.Entry]]) -> None:
        for watch in self.watches:
            for room_id, log in logs.items():
                if watch.user_id not in self.rooms[room_id]:
                    continue
                told = [entry.id for entry in watch.told[room_id]]
                assert told == [entry.id for entry in log], (watch.user_id, room_id)
                shown = watch.device.rooms[room_id].log()
                assert shown == log[-len(shown) :], (watch.user_id, room_id)


def open_store(url: str) -> AbstractAsyncContextManager[Store]:
    """A look at the store behind the nodes."""
    return open_engine(Settings(store=url).store_address)


async def fanned_out(store: Store) -> None:
    """Wait until every fan-out is finished."""
    while (await store.scan(FANOUTS)).items:
        await asyncio.sleep(0.1)


async def make_users(key: Client, user_ids: Sequence[str], role: wire.Role = "manager") -> None:
    """People of these ids, some at a time."""
    for start in range(0, len(user_ids), TOGETHER):
        together = user_ids[start : start + TOGETHER]
        await asyncio.gather(*[key.create_user(one, role, user_id=one) for one in together])


async def make_key(store: str) -> str:
    """An API key, as a script gets one."""
    command = ("keys", "create", "--store", store)
    outcome = await asyncio.to_thread(run_tidings, *command)
    assert outcome.code == 0, outcome.errors[-2_000:]
    return outcome.last_line


async def check_audit(store: str) -> None:
    """Every invariant holds."""
    outcome = await asyncio.to_thread(run_tidings, "audit", "--store", store, "--json")
    assert outcome.code == 0, outcome.output[-2_000:] + outcome.errors[-2_000:]
    report = msgspec.json.decode(outcome.output)
    assert (report["ok"], report["broken"]) == (True, [])


def check_changes(room_id: str, log: list[wire.Entry]) -> None:
    """Who joined is in the log once until they leave, and each snooze ended once."""
    comings: defaultdict[str, list[str]] = defaultdict(list)
    for entry in log:
        if entry.type in ("joined", "left"):
            comings[entry.data["user_id"]].append(entry.type)
        elif entry.type == "status" and "status" in entry.data:
            comings["status"].append(entry.data["status"])
    for subject, kinds in comings.items():
        assert all(one != other for one, other in pairwise(kinds)), (room_id, subject, kinds)
