"""Costs are those of AWS's published rules and worked examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.storage.contract import SetClock, StoreContract, entry, inbox, room
from tidings.errors import Unavailable
from tidings.storage.interface import (
    Absent,
    Check,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Index,
    Item,
    Put,
    Store,
    Table,
    Update,
)
from tidings.storage.metered import (
    Meter,
    MeteredStore,
    Place,
    index_write_units,
    metering,
    read_units,
    write_units,
)
from tidings.storage.remembered import Remembered
from tidings.storage.sizes import item_bytes, value_bytes
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, ROOMS


@pytest.fixture
async def engine(tmp_path: Path, clock: SetClock) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "store.db", clock=clock) as engine:
        yield engine


@pytest.fixture
async def store(engine: SqliteStore) -> MeteredStore:
    return MeteredStore(engine)


class TestMetered(StoreContract):
    @pytest.fixture(autouse=True, params=["metering", "not metering"])
    def meter(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "metering":
            with metering() as meter:
                yield meter
        else:
            yield None


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        ("", 0),
        ("abc", 3),
        ("é€\U0001f600", 9),
        (b"\x00\xff", 2),
        (True, 1),
        (0, 1),
        (7, 2),
        (27, 2),
        (123, 3),
        (-123, 3),
        (1200, 2),
        (0.0012, 2),
        (1e300, 2),
        (12345678.9, 6),
        ([], 3),
        ({}, 3),
        ([1, "ab"], 3 + 1 + 2 + 1 + 2),
        ({"ab": None}, 3 + 1 + 2 + 1),
        ([[True]], 3 + 1 + 3 + 1 + 1),
    ],
)
def test_sizes_of_values(value: Any, size_bytes: int) -> None:
    assert value_bytes(value) == size_bytes


def test_sizes_of_items() -> None:
    assert item_bytes({"room": "acme#1", "head": 12, "title": None}) == 4 + 6 + 4 + 2


@pytest.mark.parametrize(
    ("size_bytes", "units"),
    [(0, 1), (1, 1), (3_500, 1), (4_096, 1), (4_097, 2), (8_192, 2), (10 * 1024, 3)],
)
def test_reads_are_rounded_up_to_4_kb(size_bytes: int, units: int) -> None:
    assert read_units(size_bytes, consistent=True) == units
    assert read_units(size_bytes, consistent=False) == units / 2


@pytest.mark.parametrize(
    ("size_bytes", "units"), [(0, 1), (1, 1), (512, 1), (1_024, 1), (1_025, 2), (3 * 1024, 3)]
)
def test_writes_are_rounded_up_to_1_kb(size_bytes: int, units: int) -> None:
    assert write_units(size_bytes, transactional=False) == units
    assert write_units(size_bytes, transactional=True) == 2 * units


def sized(seq: int, size_bytes: int) -> dict[str, Any]:
    item = entry(seq, text="")
    return item | {"text": "x" * (size_bytes - item_bytes(item))}


def cost(meter: Meter) -> tuple[float, float]:
    return meter.read_units, meter.write_units


async def test_reads(store: MeteredStore) -> None:
    await store.put_many(ENTRIES, [sized(1, 8_192), sized(2, 1_500), sized(3, 1_500)])
    key = ("acme#room_1", 1)
    with metering() as meter:
        await store.get(ENTRIES, key)
        assert cost(meter) == (2, 0)
        await store.get(ENTRIES, key, consistent=False)
        assert cost(meter) == (3, 0)
        await store.get(ENTRIES, ("acme#room_1", 9))
        assert cost(meter) == (4, 0)
        await store.get_many(ENTRIES, [key, ("acme#room_1", 2), ("acme#room_1", 9)])
        assert cost(meter) == (8, 0)
        assert meter.requests == 4
    with metering() as meter:
        await store.query(ENTRIES, "acme#room_1", low=2)  # 3,000 bytes together
        assert cost(meter) == (1, 0)
        await store.query(ENTRIES, "acme#room_1")  # 11,192 bytes together
        assert cost(meter) == (4, 0)
        await store.query(ENTRIES, "nobody", consistent=False)
        assert cost(meter) == (4.5, 0)
        await store.scan(ENTRIES)
        assert cost(meter) == (7.5, 0)


async def test_a_query_of_an_index_reads_its_entries(store: MeteredStore) -> None:
    rows = [inbox(n, unread_feed=n, feed=n, preview="x" * 2_000) for n in range(1, 5)]
    await store.put_many(INBOXES, rows)
    with metering() as meter:
        await store.query(INBOXES, "acme#usr_1", index="by_unread")
        assert meter.places[Place("inboxes", "by_unread")].read == 1
        await store.query(INBOXES, "acme#usr_1", index="by_feed")
        assert meter.places[Place("inboxes", "by_feed")].read == 2 + (
            sum(map(item_bytes, rows)) > 2 * 4_096
        )


async def test_writes(store: MeteredStore) -> None:
    with metering() as meter:
        await store.write(Put(ENTRIES, sized(1, 1_024), (Absent(),)))
        assert cost(meter) == (0, 2)  # a transaction: its own success makes its condition false
        await store.write(Put(ENTRIES, sized(2, 3_072)), Put(ENTRIES, sized(3, 512)))
        assert cost(meter) == (0, 2 + 6 + 2)
        await store.write(Put(ENTRIES, entry(2)))  # the larger of before and after
        assert cost(meter) == (0, 10 + 3)
        assert meter.requests == 3
    with metering() as meter:
        await store.write(Update(ENTRIES, ("acme#room_1", 1), {"text": "x"}))
        assert cost(meter) == (0, 1)
        await store.write(Update(ENTRIES, ("acme#room_1", 1), {"text": "x" * 2_000}))
        assert cost(meter) == (0, 3)
        await store.write(Delete(ENTRIES, ("acme#room_1", 1)))
        assert cost(meter) == (0, 5)
        await store.write(Delete(ENTRIES, ("acme#room_1", 1)))
        assert cost(meter) == (0, 6)
        await store.write(Update(BADGES, ("u",), add={"version": 1}))
        assert cost(meter) == (0, 8)
        await store.write(Put(BADGES, {"user": "v"}, (Absent(),)))  # not to be sent twice
        assert cost(meter) == (0, 10)
    with metering() as meter:
        await store.put_many(ENTRIES, [sized(n, 1_025) for n in range(20, 30)])
        assert cost(meter) == (0, 20)


async def test_failed_writes_are_charged(store: MeteredStore) -> None:
    await store.write(Put(ENTRIES, sized(1, 3_000)), Put(BADGES, {"user": "u", "version": 1}))
    with metering() as meter:
        with pytest.raises(ConditionFailed):
            await store.write(Put(ENTRIES, sized(1, 1_500), (Absent(),)))
        assert cost(meter) == (0, 6)
        with pytest.raises(ConditionFailed):
            await store.write(
                Put(ENTRIES, sized(2, 1_500)),
                Update(BADGES, ("u",), {"version": 2}, when=(Equals("version", 7),)),
                Check(ENTRIES, ("acme#room_1", 1), (Exists(),)),
            )
        assert cost(meter) == (0, 6 + 4 + 2 + 2)
        assert meter.requests == 2


BOOKS = Table(
    "books",
    "book",
    None,
    {"book": str, "shelf": str, "place": int, "title": str, "pages": int},
    (Index("by_place", "shelf", "place", projected=("title",)),),
)
INDEX = BOOKS.indexes[0]
BOOK = {"book": "1", "shelf": "a", "place": 1, "title": "t", "pages": 5}


@pytest.mark.parametrize(
    ("before", "after", "units"),
    [
        (None, BOOK, 1),
        (None, {"book": "1", "shelf": "a"}, 0),
        (BOOK, BOOK, 0),
        (BOOK, BOOK | {"pages": 6}, 0),
        (BOOK, BOOK | {"title": "u"}, 1),
        (BOOK, BOOK | {"title": "u" * 1_100}, 2),
        (BOOK, BOOK | {"place": 2}, 2),
        (BOOK | {"title": "u" * 1_100}, BOOK | {"place": 2}, 3),
        (BOOK, BOOK | {"place": None}, 1),
        ({"book": "1"}, BOOK, 1),
        (BOOK, None, 1),
        (None, None, 0),
    ],
)
def test_indexes(before: dict[str, Any] | None, after: dict[str, Any] | None, units: int) -> None:
    assert index_write_units(BOOKS, INDEX, before, after) == units


@pytest.mark.parametrize("index_writes_doubled", [False, True])
async def test_index_writes_in_transactions(
    engine: SqliteStore, index_writes_doubled: bool
) -> None:
    store = MeteredStore(engine, index_writes_doubled=index_writes_doubled)
    factor = 2 if index_writes_doubled else 1
    row = inbox(1, feed=1, unread_feed=1)
    with metering() as meter:
        await store.write(Put(INBOXES, row))  # standard
        assert cost(meter) == (0, 3)
        await store.write(Update(INBOXES, ("acme#usr_1", "room_001"), {"feed": 2}, {"unread": 1}))
        assert meter.places[Place("inboxes", None)].write == 1 + 2
        assert meter.places[Place("inboxes", "by_feed")].write == 1 + 2 * factor
        assert meter.places[Place("inboxes", "by_unread")].write == 1
        await store.write(
            Update(INBOXES, ("acme#usr_1", "room_001"), {"unread_feed": None}),
            Put(ROOMS, room()),
        )
        assert meter.places[Place("inboxes", "by_unread")].write == 1 + factor
        assert meter.places[Place("rooms", None)].write == 2
        assert Place("rooms", "by_listing") not in meter.places


async def test_nothing_is_charged_outside(store: MeteredStore) -> None:
    with metering() as outer:
        with metering() as inner:
            await store.get(BADGES, ("u",))
        await store.write(Put(BADGES, {"user": "u"}))
    await store.get(BADGES, ("u",))
    assert cost(inner) == (1, 0)
    assert cost(outer) == (0, 1)


class CountedStore:
    """The store underneath, with a count of what the meter asks it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._store, name)


async def test_metering_a_known_item_asks_for_nothing(engine: SqliteStore) -> None:
    counted = CountedStore(engine)
    store = MeteredStore(counted)
    key = ("acme#usr_1", "room_001")
    await engine.write(Put(INBOXES, inbox(1, feed=1)))
    await engine.write(Put(BADGES, {"user": "u", "version": 1}))
    with metering() as meter:
        await store.get_many(INBOXES, [key])
        for version in range(2, 5):
            await store.write(
                Put(ENTRIES, entry(version), (Absent(),)),
                Update(INBOXES, key, {"feed": version}, when=(Exists(),)),
                Update(BADGES, ("u",), {"version": version}),
                Check(ROOMS, ("nobody",), (Absent(),)),
            )
    assert counted.asked == {"get_many": 2, "write": 3}  # the rows, and once the badge
    assert meter.requests == 4
    assert meter.write_units == 3 * (2 + 2 + 4 + 2 + 2)
    assert meter.write_units_once == 3 * (2 + 2 + 2 + 2 + 2)


async def test_what_is_known_follows_every_write(store: MeteredStore) -> None:
    key = ("acme#usr_1", "room_001")

    async def grow(name: str) -> float:
        with metering() as meter:
            await store.write(Update(INBOXES, key, {"kind": name}))
        return meter.write_units

    await store.write(Put(INBOXES, inbox(1, preview="x" * 1_500)))
    assert await grow("read first") == 2
    await store.write(Update(INBOXES, key, {"preview": "x" * 2_500}))  # nobody's meter
    assert await grow("shrunk") == 3
    await store.put_many(INBOXES, [inbox(1)])
    assert await grow("replaced") == 1
    await store.write(Delete(INBOXES, key))
    assert await grow("anew") == 1
    with pytest.raises(ConditionFailed):
        await store.write(Put(INBOXES, inbox(1, preview="x" * 5_000), (Absent(),)))
    assert await grow("still small") == 1


async def test_what_is_known_is_bounded(engine: SqliteStore) -> None:
    remembered = Remembered(items_max=2)
    for number in (1, 2, 1, 3):
        remembered.see(BADGES, (str(number),), {"user": str(number)})
    assert remembered.find(BADGES, ("1",)) == {"user": "1"}
    with pytest.raises(KeyError):
        remembered.find(BADGES, ("2",))


async def test_requests_are_those_of_dynamodb(store: MeteredStore) -> None:
    with metering() as meter:
        await store.put_many(ENTRIES, [sized(n, 8_000) for n in range(1, 161)])
        assert meter.requests == 7
        await store.get_many(ENTRIES, [("acme#room_1", n) for n in range(1, 161)])
        assert meter.requests == 7 + 2
        await store.query(ENTRIES, "acme#room_1")  # 1.28 million bytes
        assert meter.requests == 9 + 2


class DeafStore(CountedStore):
    """The store underneath, which takes writes but answers no read."""

    async def get_many(self, *_: object, **__: object) -> list[Item | None]:
        raise Unavailable("It does not answer.")


async def test_a_price_is_no_reason_to_fail(engine: SqliteStore) -> None:
    store = MeteredStore(DeafStore(engine))
    with metering() as meter:
        await store.write(Put(BADGES, {"user": "u", "version": 1}))
    assert meter.write_units == 1
    assert await engine.get(BADGES, ("u",)) == {"user": "u", "version": 1}
