"""Chat on a DynamoDB whose calls fail in every way that they can: nothing lost, nothing twice.

What is posted again goes with the same client_id, as every client does it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest

from tests.chat.company import Company
from tests.engines import dynamo_tables
from tests.faults import FaultProxy
from tests.people.clocks import FakeClock
from tidings import wire
from tidings.chat.audit import audit
from tidings.chat.commits import WAIT_S_MAX
from tidings.config import DynamoAddress
from tidings.errors import Unavailable
from tidings.people.callers import Caller
from tidings.storage.calls import Calls, Refused
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.faults import Fault, Profile, Rates
from tidings.storage.interface import (
    Absent,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    LessThan,
    Put,
    Update,
)
from tidings.storage.retries import CALL_DEADLINE_S, RetryPolicy
from tidings.storage.tables import BADGES, ENTRIES, ROOMS, room_key

SENDERS = [f"u{number:02}" for number in range(40)]
ROOM_SIZES = [2] * 8 + [3] * 8 + [5] * 8 + [8] * 4 + [26, 30]
"""Members of each room; the last two are too large for one transaction."""
MESSAGES = 5_000
MESSAGES_ALONE = 800
"""With one kind of fault, for the suite's sake; all kinds were seen to hold with MESSAGES."""
MESSAGES_HANGING = 160
"""With hangs, each of which takes a second or more."""
AT_ONCE = 4
"""Messages that each sender has under way."""
READS = 0.1
"""Of what is posted, how often it is read."""
POST_S_MAX = WAIT_S_MAX + CALL_DEADLINE_S
"""A post is answered when it has waited for as long as it may; this machine may be late."""
REPEATS_MAX = 20
RATE = 0.2
SINGLE = [fault for fault in Fault if fault not in (Fault.UNREACHABLE, Fault.SLOW)]
MIXED = Rates(**{fault.value: RATE / len(SINGLE) for fault in SINGLE})


@asynccontextmanager
async def behind_a_proxy(seed: int = 1) -> AsyncIterator[tuple[FaultProxy, DynamoStore]]:
    """A store whose calls go through a proxy, which lets everything through at first."""
    async with (
        dynamo_tables() as tables,
        FaultProxy(tables, seed=seed).serving() as proxy,
        DynamoStore.open(proxy.address, clock=FakeClock()) as store,
    ):
        yield proxy, store


class Load:
    """Senders who post into their rooms until all of it is accepted, and what they were told."""

    def __init__(self, acme: Company, rooms: dict[str, list[str]], seed: int) -> None:
        self.acme = acme
        self.rooms = rooms
        self.accepted: dict[tuple[str, str, str], wire.Entry] = {}
        """By room, sender and client_id."""
        self.refused = 0
        self.longest_s = 0.0
        self._random = random.Random(seed)
        self._rooms_of = {
            user_id: [room_id for room_id, members in rooms.items() if user_id in members]
            for user_id in SENDERS
        }

    async def send(self, messages: int) -> None:
        """Post that many messages, divided among the senders."""
        share = messages // len(SENDERS) // AT_ONCE
        async with asyncio.TaskGroup() as group:
            for user_id in SENDERS:
                for lane in range(AT_ONCE):
                    group.create_task(self._send(user_id, lane, share))

    async def _send(self, user_id: str, lane: int, share: int) -> None:
        caller = _caller(user_id)
        for number in range(share):
            room_id = self._random.choice(self._rooms_of[user_id])
            client_id = f"{lane}-{number}"
            body = wire.PostMessage(client_id=client_id, text=f"{number} by {user_id}")
            entry = await self._until_accepted(caller, room_id, body)
            self.accepted[room_id, user_id, client_id] = entry
            if self._random.random() < READS:
                await self._read(caller, room_id, entry.seq)

    async def _until_accepted(
        self, caller: Caller, room_id: str, body: wire.PostMessage
    ) -> wire.Entry:
        for _ in range(REPEATS_MAX):
            began_s = time.monotonic()
            try:
                entry, _ = await self.acme.messages.post(caller, room_id, body)
            except Unavailable:
                self.refused += 1
            else:
                return entry
            finally:
                self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        raise AssertionError("a message that nobody takes")

    async def _read(self, caller: Caller, room_id: str, seq: int) -> None:
        try:
            await self.acme.messages.read(caller, room_id, seq)
        except Unavailable:
            self.refused += 1


def _caller(user_id: str) -> Caller:
    return Caller("acme", "session", f"ses_{user_id}", user_id, "manager", f"ses_{user_id}")


async def _log(store: DynamoStore, room_id: str) -> list[Item]:
    items: list[Item] = []
    after = None
    while True:
        page = await store.query(ENTRIES, room_key("acme", room_id), after=after)
        items += page.items
        if (after := page.after) is None:
            return items


async def _is_at_rest(store: DynamoStore) -> bool:
    page = await store.scan(ROOMS)
    return not any(room.get("is_fanning") for room in page.items)


async def _attack(
    profile: Profile, messages: int, *, seed: int, forgets_tokens: bool = False
) -> None:
    chance = random.Random(seed)
    rooms = {
        f"r{number:02}": chance.sample(SENDERS, size) for number, size in enumerate(ROOM_SIZES)
    }
    async with behind_a_proxy(seed) as (proxy, store):
        acme = Company(store, FakeClock())
        await acme.people.workspaces.create("Acme", "acme")
        await acme.add_users(dict.fromkeys(SENDERS, "manager"))
        for room_id, members in rooms.items():
            await acme.open("group", *members, id=room_id, scope="private")
        load = Load(acme, rooms, seed)
        await acme.chat.start()
        try:
            proxy.requests.clear()
            proxy.profile = profile
            proxy.forgets_tokens = forgets_tokens
            began_s = time.monotonic()
            await load.send(messages)
            took_s = time.monotonic() - began_s
            proxy.profile = None
            attempts, writes = proxy.requests.total(), proxy.writes
            async with asyncio.timeout(60):
                while not await _is_at_rest(store):
                    await asyncio.sleep(0.1)
        finally:
            await acme.chat.stop()
        report = await audit(store, clock=acme.clock)
        assert report.ok, report.broken[:5]
        await _assert_told_the_truth(store, load)
        faults = proxy.injected.total()
        print(
            f"{messages} messages in {took_s:.1f} s: {attempts} attempts ({writes} writes), "
            f"{faults} faults, {load.refused} calls given up, the longest {load.longest_s:.1f} s"
        )
        assert faults > writes * RATE / 4
        assert load.longest_s < POST_S_MAX


async def _assert_told_the_truth(store: DynamoStore, load: Load) -> None:
    """Each message is one entry, where its sender was told that it is, and nothing else is."""
    texts = 0
    for room_id in load.rooms:
        log = await _log(store, room_id)
        assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
        texts += sum(entry["type"] == "text" for entry in log)
        for (told_room_id, sender_id, client_id), told in load.accepted.items():
            if told_room_id == room_id:
                entry = log[told.seq - 1]
                assert (entry["sender_id"], entry["client_id"], entry["id"]) == (
                    sender_id,
                    client_id,
                    told.id,
                )
    assert texts == len(load.accepted)


@pytest.mark.slow
@pytest.mark.parametrize("fault", SINGLE)
async def test_each_fault_alone_leaves_everything_exact(fault: Fault) -> None:
    messages = MESSAGES_HANGING if fault is Fault.HANG else MESSAGES_ALONE
    await _attack(Profile(Rates(**{fault.value: RATE})), messages, seed=1)


@pytest.mark.slow
async def test_all_faults_at_once_leave_everything_exact() -> None:
    await _attack(Profile(MIXED), MESSAGES, seed=2)


@pytest.mark.slow
async def test_messages_are_exact_though_no_token_is_remembered() -> None:
    rates = Rates(server_error=RATE / 2, lost_answer=RATE / 2)
    await _attack(Profile(rates), MESSAGES_ALONE, seed=3, forgets_tokens=True)


# --- the store alone -----------------------------------------------------------------------------


async def test_an_answer_lost_after_a_commit_is_applied_once() -> None:
    async with behind_a_proxy() as (proxy, store):
        proxy.profile = Profile(Rates(lost_answer=0.4))
        writes = 60
        for _ in range(writes):
            await store.write(Update(BADGES, ("acme#ann",), add={"unread": 1}))
        assert await store.get(BADGES, ("acme#ann",)) == {"user": "acme#ann", "unread": writes}
        assert proxy.injected[Fault.LOST_ANSWER] > writes / 5


async def test_a_write_repeated_after_its_token_was_forgotten_is_applied_once() -> None:
    async with behind_a_proxy() as (proxy, store):
        proxy.profile = Profile(Rates(lost_answer=0.4))
        proxy.forgets_tokens = True
        refused = 0
        for version in range(60):
            try:
                await store.write(
                    Update(
                        BADGES,
                        ("acme#ann",),
                        add={"unread": 1, "version": 1},
                        when=(Equals("version", version),) if version else (Absent(),),
                    )
                )
            except ConditionFailed as failed:
                # It looks as if another was faster, and it was ourselves: the item tells.
                (failure,) = failed.failures
                assert failure.item == {
                    "user": "acme#ann",
                    "unread": version + 1,
                    "version": version + 1,
                }
                refused += 1
        assert await store.get(BADGES, ("acme#ann",)) == {
            "user": "acme#ann",
            "unread": 60,
            "version": 60,
        }
        assert refused > 60 / 5


async def test_a_token_that_comes_with_another_write_is_refused() -> None:
    def adding(number: int, address: DynamoAddress) -> dict[str, Any]:
        update = {
            "TableName": f"{address.prefix}.badges",
            "Key": {"user": {"S": "acme#ann"}},
            "UpdateExpression": "ADD unread :n",
            "ExpressionAttributeValues": {":n": {"N": str(number)}},
        }
        return {"ClientRequestToken": "one-token", "TransactItems": [{"Update": update}]}

    async with dynamo_tables() as address, Calls.open(address) as calls:
        for _ in range(3):
            await calls.call("TransactWriteItems", adding(1, address))
        with pytest.raises(Refused) as refused:
            await calls.call("TransactWriteItems", adding(2, address))
        assert refused.value.code == "IdempotentParameterMismatchException"
        async with DynamoStore.open(address) as store:
            assert await store.get(BADGES, ("acme#ann",)) == {"user": "acme#ann", "unread": 1}


async def test_who_is_told_that_a_condition_failed_is_told_the_truth() -> None:
    """No single write fails by what an earlier attempt of its own did."""
    key = ("acme#r",)

    def room(head: int) -> Item:
        return {"room": "acme#r", "kind": "group", "created_at": 1, "head": head}

    async with behind_a_proxy() as (proxy, store):
        proxy.profile = Profile(Rates(lost_answer=0.4))
        for _ in range(10):
            await store.write(Put(ROOMS, room(0), when=(Absent(),)))
            await store.write(Put(ROOMS, room(1), when=(Equals("head", 0),)))
            await store.write(Update(ROOMS, key, set={"head": 2}, when=(Equals("head", 1),)))
            await store.write(Update(ROOMS, key, set={"head": 3}, when=(LessThan("head", 3),)))
            await store.write(Update(ROOMS, key, remove=("head",), when=(Equals("head", 3),)))
            await store.write(Delete(ROOMS, key, when=(Exists(),)))
        assert proxy.injected[Fault.LOST_ANSWER] > 60 / 5


# --- the proxy is honest -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "is_applied"),
    [
        (Fault.THROTTLE, False),
        (Fault.CONFLICT, False),
        (Fault.RESET, False),
        (Fault.LOST_ANSWER, True),
    ],
)
@pytest.mark.parametrize("is_bulk", [False, True])
async def test_what_the_proxy_refuses_is_not_done_and_what_it_loses_is(
    fault: Fault, is_applied: bool, is_bulk: bool
) -> None:
    room = {"room": "acme#r", "kind": "group", "created_at": 1}
    async with dynamo_tables() as tables, FaultProxy(tables).serving() as proxy:
        proxy.profile = Profile(Rates(**{fault.value: 1.0}))
        hurried = RetryPolicy(deadline_s=1.0)
        async with DynamoStore.open(proxy.address, policy=hurried) as store:
            is_through = is_bulk and fault is Fault.CONFLICT
            with nullcontext() if is_through else pytest.raises(Unavailable):
                await (store.put_many(ROOMS, [room]) if is_bulk else store.write(Put(ROOMS, room)))
        async with DynamoStore.open(tables) as store:
            stored = await store.get(ROOMS, ("acme#r",))
        assert stored == (room if is_applied or is_through else None)
        assert (proxy.injected[fault] > 0) is not is_through


async def test_what_hung_may_arrive_after_all_and_is_applied_once() -> None:
    async with behind_a_proxy(seed=5) as (proxy, store):
        proxy.profile = Profile(Rates(hang=0.5))
        await asyncio.gather(
            *(
                store.write(Update(BADGES, (f"acme#u{number}",), add={"unread": 1}))
                for number in range(20)
            ),
            return_exceptions=True,
        )
        proxy.profile = None
        await proxy.settled()
        items = (await store.scan(BADGES)).items
        assert {item["unread"] for item in items} == {1}
        assert proxy.injected[Fault.HANG] > 5
