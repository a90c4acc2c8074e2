"""The DynamoDB engine keeps the contract, and what it promises beyond."""

from __future__ import annotations

import asyncio
import string
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import msgspec
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engines import dynamo_store, dynamo_tables, make_tables, new_address, remove_tables
from tests.storage.contract import (
    SetClock,
    StoreContract,
    entry,
    inbox,
    query_all,
    room,
    scan_all,
)
from tests.storage.machine import TABLES, StoreMachine
from tidings.clock import Clock
from tidings.config import DynamoAddress
from tidings.errors import Unavailable
from tidings.storage.attributes import PARTITION_BYTES_MAX, SORT_BYTES_MAX
from tidings.storage.calls import Calls
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.expressions import is_transaction
from tidings.storage.interface import (
    Absent,
    Check,
    Delete,
    Equals,
    Exists,
    LessThan,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.metered import Place, metering
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    RECEIPTS,
    ROOMS,
    SECRETS,
    SESSIONS,
    USERS,
)

CONTRACT_TABLES = (BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS, SECRETS, SESSIONS, USERS)


@pytest.fixture
async def store(clock: SetClock) -> AsyncIterator[DynamoStore]:
    async with dynamo_store(clock, CONTRACT_TABLES) as store:
        yield store


class TestDynamo(StoreContract):
    pass


class DynamoEngine:
    """Tables of its own; after a crash, what was asked of the engine before."""

    def __init__(self) -> None:
        self.address = new_address()
        self.is_made = False

    async def open(self, clock: Clock) -> Store:
        if not self.is_made:
            await make_tables(self.address, TABLES)
            self.is_made = True
        return DynamoStore.open(self.address, clock=clock, tables=TABLES)

    async def crash(self, store: Store) -> None:
        assert isinstance(store, DynamoStore)
        await store.calls.close()

    def remove(self) -> None:
        asyncio.run(remove_tables(self.address, TABLES))


class DynamoMachine(StoreMachine):
    new_engine = DynamoEngine


TestDynamoMachine = DynamoMachine.TestCase
TestDynamoMachine.settings = settings(max_examples=5, stateful_step_count=25, deadline=None)


class LongDynamoMachine(DynamoMachine):
    pass


TestLongDynamoMachine = pytest.mark.slow(LongDynamoMachine.TestCase)
TestLongDynamoMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


# -- values

NUMBERS = st.integers(-(10**38) + 1, 10**38 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(string.printable + "éß\U0001f600\x00"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab#é", min_size=1), inner),
    max_leaves=12,
)


def test_what_is_within_a_map_comes_back_to_the_letter() -> None:
    """1 and 1.0 are told apart, -0.0 and 0.0, and numbers that DynamoDB has not got."""
    runner = asyncio.Runner()
    address = new_address()
    runner.run(make_tables(address, [USERS]))
    store = DynamoStore.open(address, tables=[USERS])

    @settings(max_examples=40, deadline=None)
    @given(values=st.lists(JSON, min_size=1, max_size=25))
    def check(values: list[Any]) -> None:
        users = [{"user": f"{n}", "attributes": {"v": value}} for n, value in enumerate(values)]
        runner.run(store.put_many(USERS, users))
        found = runner.run(store.get_many(USERS, [(user["user"],) for user in users]))
        assert list(map(repr, map(_ordered, found))) == list(map(repr, map(_ordered, users)))

    try:
        check()
        check_edges = [2.0, -0.0, 1e300, 5e-324, 1e-130, 1e-131, 1e22, 1e-7, 0.1, 10**37, 1.5]
        users = [{"user": "edges", "attributes": {"v": check_edges}}]
        runner.run(store.put_many(USERS, users))
        assert repr(runner.run(store.get(USERS, ("edges",)))) == repr(users[0])
    finally:
        runner.run(store.close())
        runner.run(remove_tables(address, [USERS]))
        runner.close()


def _ordered(value: Any) -> Any:
    """With the names of all maps in order, as both engines give them back."""
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "write",
    [
        Put(ROOMS, room(head=10**38)),
        Update(ROOMS, ("r",), {"head": -(10**38)}),
        Put(USERS, {"user": "u", "attributes": {"n": float("nan")}}),
        Put(USERS, {"user": "u", "attributes": {"n": [float("inf")]}}),
        Put(USERS, {"user": "u", "attributes": {"n": object()}}),
        Put(USERS, {"user": "u", "name": "\ud800"}),
        Put(ROOMS, room(room="")),
        Put(ROOMS, room(room="x" * (PARTITION_BYTES_MAX + 1))),
        Put(RECEIPTS, {"room": "r", "receipt": "é" * (SORT_BYTES_MAX // 2 + 1)}),
        Put(ROOMS, room(listing="", listed_at=1)),
        Update(ROOMS, ("r",), {"listing": "", "listed_at": 1}),
        Delete(ROOMS, ("",)),
    ],
    ids=lambda write: repr(write)[:60],
)
async def test_what_dynamodb_does_not_take(store: DynamoStore, write: Write) -> None:
    for others in ([], [Put(BADGES, {"user": "other"})]):
        with pytest.raises(ValueError, match=r"."):
            await store.write(*others, write)
    assert await store.get(BADGES, ("other",)) is None
    if isinstance(write, Put):
        with pytest.raises(ValueError, match=r"."):
            await store.put_many(write.table, [write.item])


async def test_what_can_not_be_stored_is_not_found(store: DynamoStore) -> None:
    long = "x" * (PARTITION_BYTES_MAX + 1)
    await store.write(Put(RECEIPTS, {"room": "r", "receipt": "a"}))
    for key in (("", "a"), ("r", ""), (long, "a"), ("r", long)):
        assert await store.get(RECEIPTS, key) is None
        assert await store.get_many(RECEIPTS, [key, ("r", "a")]) == [
            None,
            {"room": "r", "receipt": "a"},
        ]
    for partition, bounds in (
        ("", {}),
        (long, {}),
        ("r", {"prefix": long}),
        ("r", {"high": ""}),
        ("r", {"low": "b", "high": "a"}),
    ):
        page = await store.query(RECEIPTS, partition, **bounds)  # type: ignore[arg-type]
        assert page.items == []
        assert page.after is None


async def test_attributes_that_newer_code_wrote_are_left_out(store: DynamoStore) -> None:
    fields = {**SECRETS.fields, "colour": str}
    newer = msgspec.structs.replace(SECRETS, fields=fields)
    address = DynamoAddress("us-east-1", store._requests["secrets"].name.partition(".")[0])
    other = DynamoStore(store.calls, address, tables=[newer], clock=SetClock())
    await other.write(Put(newer, {"name": "n", "value": b"v", "colour": "red"}))
    assert await store.get(SECRETS, ("n",)) == {"name": "n", "value": b"v"}


# -- pages

LARGE = "x" * 300_000


async def test_pages_end_at_a_megabyte(store: DynamoStore) -> None:
    entries = [entry(seq, text=LARGE) for seq in range(1, 9)]
    await store.put_many(ENTRIES, entries)
    page = await store.query(ENTRIES, "acme#room_1")
    assert 1 <= len(page.items) < 8
    assert await query_all(store, ENTRIES, "acme#room_1", limit=100) == entries
    assert sorted(await scan_all(store, ENTRIES, limit=100), key=lambda e: e["seq"]) == entries


async def test_the_end_of_a_page_is_known(store: DynamoStore) -> None:
    await store.put_many(INBOXES, [inbox(n, feed=n) for n in range(6)])
    for index in (None, "by_feed"):
        page = await store.query(INBOXES, "acme#usr_1", index=index, limit=3)
        assert len(page.items) == 3
        page = await store.query(INBOXES, "acme#usr_1", index=index, limit=3, after=page.after)
        assert len(page.items) == 3
        assert page.after is None
    assert (await store.scan(INBOXES, limit=6)).after is None


# -- bulks


class StingyEngine:
    """Before an engine: does the first half of each batch, none of every third, and says so."""

    LEFT: ClassVar = {"BatchGetItem": "UnprocessedKeys", "BatchWriteItem": "UnprocessedItems"}

    def __init__(self, session: ClientSession, engine: str) -> None:
        self.batches = Counter[str]()
        self._session = session
        self._engine = engine

    async def handle(self, request: web.Request) -> web.Response:
        target = request.headers["X-Amz-Target"]
        action, payload = target.partition(".")[2], await request.json()
        if action not in self.LEFT:
            return web.json_response(await self._ask(target, payload))
        self.batches[action] += 1
        ((table, wanted),) = payload["RequestItems"].items()
        is_read = action == "BatchGetItem"
        asked = wanted["Keys"] if is_read else wanted
        done = 0 if self.batches[action] % 3 == 0 else -(-len(asked) // 2)

        def part(items: list[Any]) -> dict[str, Any]:
            return {table: wanted | {"Keys": items} if is_read else items} if items else {}

        answer: dict[str, Any] = {"Responses": {}}
        if done:
            answer = await self._ask(target, payload | {"RequestItems": part(asked[:done])})
        return web.json_response(answer | {self.LEFT[action]: part(asked[done:])})

    async def _ask(self, target: str, payload: Any) -> dict[str, Any]:
        headers = {"X-Amz-Target": target}
        async with self._session.post(self._engine, json=payload, headers=headers) as reply:
            assert reply.status == 200
            answer: dict[str, Any] = await reply.json(content_type=None)
            return answer


async def test_what_was_left_of_a_bulk_is_asked_for_again(clock: SetClock) -> None:
    async with dynamo_tables([ENTRIES]) as address, ClientSession() as session:
        assert address.endpoint is not None
        stingy, app = StingyEngine(session, address.endpoint), web.Application()
        app.router.add_post("/", stingy.handle)
        async with TestServer(app) as server:
            between = msgspec.structs.replace(address, endpoint=str(server.make_url("/")))
            async with DynamoStore.open(between, clock=clock, tables=[ENTRIES]) as store:
                entries = [entry(seq) for seq in range(130)]
                await store.put_many(ENTRIES, entries)
                keys = [("acme#room_1", seq) for seq in range(-3, 130)]
                found = await store.get_many(ENTRIES, keys)
        async with DynamoStore.open(address, clock=clock, tables=[ENTRIES]) as store:
            stored = await query_all(store, ENTRIES, "acme#room_1", limit=1_000)
    assert stored == entries
    assert found == [None, None, None, *entries]
    assert stingy.batches["BatchWriteItem"] > 2 * 6
    assert stingy.batches["BatchGetItem"] > 2 * 2


async def test_the_last_of_equal_keys_stays(store: DynamoStore) -> None:
    items = [entry(n % 40, text=str(n)) for n in range(500)]
    await store.put_many(ENTRIES, items)
    stored = await query_all(store, ENTRIES, "acme#room_1", limit=100)
    assert stored == sorted(items[-40:], key=lambda item: item["seq"])


async def test_many_keys_are_read_at_once(store: DynamoStore) -> None:
    await store.put_many(ENTRIES, [entry(seq, mentions=["a"]) for seq in range(0, 1_000, 2)])
    items = await store.get_many(ENTRIES, [("acme#room_1", seq) for seq in range(1_000)])
    assert [item and item["seq"] for item in items[::2]] == list(range(0, 1_000, 2))
    assert items[1::2] == [None] * 500
    twice = await store.get_many(ENTRIES, [("acme#room_1", 0)] * 2)
    assert twice[0] is not None
    twice[0]["mentions"].append("b")
    assert twice[1] == entry(0, mentions=["a"])


# -- writes


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (Put(ROOMS, room()), False),
        (Put(ROOMS, room(), (Exists(),)), False),
        (Put(ROOMS, room(), (Absent(),)), True),
        (Put(ROOMS, room(head=3), (Equals("head", 3),)), False),
        (Put(ROOMS, room(head=4), (Equals("head", 3),)), True),
        (Put(ROOMS, room(head=4), (LessThan("head", 5),)), False),
        (Put(ROOMS, room(head=4), (LessThan("head", 4),)), True),
        (Put(ROOMS, room(), (LessThan("listed_at", 4),)), True),
        (Update(ROOMS, ("r",), {"head": 1}), False),
        (Update(ROOMS, ("r",), {"head": 1}, when=(Exists(), Equals("epoch", 3))), False),
        (Update(ROOMS, ("r",), {"head": 1}, when=(Equals("head", 0),)), True),
        (Update(ROOMS, ("r",), {"head": 1}, when=(Absent(),)), True),
        (Update(ROOMS, ("r",), add={"head": 1}), True),
        (Update(ROOMS, ("r",), remove=("title",), when=(Equals("title", "x"),)), True),
        (Update(ROOMS, ("r",), remove=("title",), when=(Equals("title", None),)), False),
        (Delete(ROOMS, ("r",)), False),
        (Delete(ROOMS, ("r",), (Absent(),)), False),
        (Delete(ROOMS, ("r",), (Equals("head", 3),)), True),
        (Check(ROOMS, ("r",), (Exists(),)), True),
    ],
    ids=repr,
)
def test_one_write_goes_alone_where_doing_it_twice_is_doing_it_once(
    write: Write, expected: bool
) -> None:
    assert is_transaction([write]) == expected
    assert is_transaction([write, Put(BADGES, {"user": "u"})])


async def test_closing_finishes_what_was_accepted(clock: SetClock) -> None:
    async with dynamo_tables([ENTRIES, ROOMS]) as address:
        store = DynamoStore.open(address, clock=clock, tables=[ENTRIES, ROOMS])
        writes = [
            asyncio.ensure_future(store.write(Put(ENTRIES, entry(n)), Put(ROOMS, room(n))))
            for n in range(30)
        ]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        with pytest.raises(Unavailable):
            await store.write(Put(ROOMS, room()))
        with pytest.raises(Unavailable):
            await store.get(ROOMS, ("acme#room_1",))
        async with DynamoStore.open(address, clock=clock, tables=[ENTRIES, ROOMS]) as store:
            assert len(await scan_all(store, ENTRIES)) == 30


# -- what it costs, as the engine says it


async def test_on_aws_the_engine_says_what_it_consumed(clock: SetClock) -> None:
    tables = [ENTRIES, ROOMS]
    async with dynamo_tables(tables) as address, Calls.open(address) as calls:
        aws = msgspec.structs.replace(address, endpoint=None)
        store = DynamoStore(calls, aws, tables=tables, clock=clock)
        with metering() as meter:
            await store.write(Put(ENTRIES, entry(1)), Put(ROOMS, room()))
            await store.get(ROOMS, ("acme#room_1",))
            await store.query(ENTRIES, "acme#room_1")
            await store.put_many(ENTRIES, [entry(2)])
        async with DynamoStore.open(address, clock=clock, tables=tables) as elsewhere:
            with metering() as nothing:
                await elsewhere.get(ROOMS, ("acme#room_1",))
    assert meter.requests == 4
    assert {place for place, units in meter.places.items() if units.write} == {
        Place("entries", None),
        Place("rooms", None),
    }
    assert meter.write_units >= 5
    assert meter.read_units > 0
    assert nothing.requests == 0
