"""Any engine against a plain dictionary: random writes, reads, expiry, crashes and reopenings.

Inherit `StoreMachine`, give it `new_engine`, and let pytest find its `TestCase`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.storage.contract import SetClock, query_all, scan_all
from tidings.clock import Clock
from tidings.storage.interface import (
    Absent,
    Check,
    Condition,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Failure,
    Item,
    Key,
    LessThan,
    Put,
    Store,
    Table,
    Update,
    Write,
)
from tidings.storage.tables import ENTRIES, INBOXES, RECEIPTS, ROOMS

TABLES = (ROOMS, INBOXES, RECEIPTS, ENTRIES)
CONCURRENT_SETS_MAX = 5
SET_WRITES_MAX = 5

_Result = TypeVar("_Result")


class Engine(Protocol):
    """One place where items are kept; it can be left at once, and opened again."""

    async def open(self, clock: Clock) -> Store:
        """Open the place: what was written before is there."""
        ...

    async def crash(self, store: Store) -> None:
        """Let go of the open store as if its process had died."""
        ...

    def remove(self) -> None:
        """Remove the place."""
        ...


class Model:
    """What a store should hold."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Item]] = {table.name: {} for table in TABLES}

    def items(self, table: Table, now_s: int) -> list[Item]:
        """All items that reads see."""
        return [
            item
            for item in self.tables[table.name].values()
            if table.expires is None or item.get(table.expires, now_s + 1) > now_s
        ]

    def write(self, writes: Sequence[Write]) -> tuple[Failure, ...]:
        """Apply the set, or tell why not."""
        before = [self.tables[w.table.name].get(key_of(w)) for w in writes]
        failures = tuple(
            Failure(number, before[number])
            for number, write in enumerate(writes)
            if not all(holds(condition, before[number]) for condition in write.when)
        )
        if not failures:
            for write, item in zip(writes, before, strict=True):
                self.apply(write, item)
        return failures

    def apply(self, write: Write, before: Item | None) -> None:
        items, key = self.tables[write.table.name], key_of(write)
        if isinstance(write, Delete):
            items.pop(key, None)
        elif isinstance(write, Put):
            items[key] = present(write.item)
        elif isinstance(write, Update):
            item = dict(zip(keys_of(write.table), key, strict=True)) | (before or {})
            item.update(write.set)
            for field, number in write.add.items():
                item[field] = item.get(field, 0) + number
            for field in write.remove:
                item.pop(field, None)
            items[key] = present(item)


def present(item: Item) -> Item:
    return {field: value for field, value in item.items() if value is not None}


def keys_of(table: Table) -> tuple[str, ...]:
    return (table.partition,) if table.sort is None else (table.partition, table.sort)


def key_of(write: Write) -> Key:
    return write.table.key(write.item) if isinstance(write, Put) else write.key


def holds(condition: Condition, item: Item | None) -> bool:
    match condition:
        case Absent():
            return item is None
        case Exists():
            return item is not None
        case Equals(field, value):
            return item is not None and item.get(field) == value
        case LessThan(field, value):
            return item is not None and field in item and item[field] < value


# -- what is written: few keys and few values, so that they meet

WORDS = st.sampled_from(["", "a", "a#", "a#1", "ab", "b", "é", "\U0001f600"])
NUMBERS = st.integers(-3, 6)
VALUES: dict[type, st.SearchStrategy[Any]] = {
    str: WORDS,
    int: NUMBERS,
    bool: st.booleans(),
    list: st.lists(WORDS, max_size=2),
    dict: st.dictionaries(WORDS, NUMBERS | st.none() | st.booleans(), max_size=2),
}
PARTITIONS = ("p", "q", "q#1")
SORTS: dict[type, tuple[Any, ...]] = {
    str: ("a", "a#", "a#1", "b", "é"),
    int: (1, 2, 9, 10, 100),
}


def keys(table: Table) -> st.SearchStrategy[Key]:
    if table.sort is None:
        return st.tuples(st.sampled_from(PARTITIONS))
    return st.tuples(st.sampled_from(PARTITIONS), st.sampled_from(SORTS[table.fields[table.sort]]))


def plain_fields(table: Table) -> list[str]:
    return [field for field in table.fields if field not in keys_of(table)]


def value(table: Table, field: str, now_s: int) -> st.SearchStrategy[Any]:
    if field == table.expires:
        return st.integers(now_s - 2, now_s + 4)
    return VALUES[table.fields[field]]


@st.composite
def changes(draw: st.DrawFn, table: Table, now_s: int, *, sparse: bool) -> dict[str, Any]:
    chosen = draw(st.lists(st.sampled_from(plain_fields(table)), unique=True, max_size=6))
    # Index keys are drawn more often: their rules are the ones that can go wrong.
    for index in table.indexes:
        for field in (index.partition, index.sort):
            if field not in keys_of(table) and field not in chosen and draw(st.booleans()):
                chosen.append(field)
    optional = st.none() if sparse else st.nothing()
    drawn: dict[str, Any] = {}
    for field in chosen:
        kind = value(table, field, now_s)
        if any(field in (index.partition, index.sort) for index in table.indexes):
            kind = kind.filter(lambda drawn: drawn != "")  # no engine indexes an empty string
        drawn[field] = draw(kind | optional)
    return drawn


@st.composite
def conditions(draw: st.DrawFn, table: Table, item: Item | None, now_s: int) -> Condition:
    """A condition; about two in three hold."""
    if draw(st.integers(0, 3)) == 0:
        return Absent() if draw(st.booleans()) else Exists()
    field = draw(st.sampled_from(plain_fields(table)))
    stored = (item or {}).get(field)
    if isinstance(stored, int) and not isinstance(stored, bool) and draw(st.booleans()):
        return LessThan(field, stored + draw(st.integers(0, 2)))
    if draw(st.integers(0, 2)):
        return Equals(field, stored)
    return Equals(field, draw(value(table, field, now_s) | st.none()))


@st.composite
def write_sets(draw: st.DrawFn, model: Model, now_s: int) -> tuple[Write, ...]:
    writes: list[Write] = []
    for table in draw(st.lists(st.sampled_from(TABLES), min_size=1, max_size=SET_WRITES_MAX)):
        key = draw(keys(table))
        if any(w.table.name == table.name and key_of(w) == key for w in writes):
            continue
        item = model.tables[table.name].get(key)
        is_conditional = draw(st.integers(0, 2)) == 0
        when: tuple[Condition, ...] = ()
        if is_conditional:
            condition = conditions(table, item, now_s)
            when = tuple(draw(st.lists(condition, min_size=1, max_size=2)))
        kind = draw(st.sampled_from([Put, Update, Update, Delete, Check]))
        if kind is Put:
            fields = dict(zip(keys_of(table), key, strict=True))
            writes.append(Put(table, fields | draw(changes(table, now_s, sparse=True)), when))
        elif kind is Update:
            writes.append(draw(updates(table, key, when, now_s)))
        else:
            writes.append(Delete(table, key, when) if kind is Delete else Check(table, key, when))
    return tuple(writes)


@st.composite
def updates(
    draw: st.DrawFn, table: Table, key: Key, when: tuple[Condition, ...], now_s: int
) -> Update:
    set_fields = draw(changes(table, now_s, sparse=True))
    others = [field for field in plain_fields(table) if field not in set_fields]
    countable = [f for f in others if table.fields[f] is int and f != table.expires]
    add: dict[str, int] = {}
    if countable:
        add = draw(st.dictionaries(st.sampled_from(countable), NUMBERS, max_size=2))
    rest = [field for field in others if field not in add]
    remove = draw(st.lists(st.sampled_from(rest), unique=True, max_size=2)) if rest else []
    return Update(table, key, set_fields, add, tuple(remove), when)


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to a `Model`, and compares what comes back."""

    new_engine: Callable[[], Engine]

    def __init__(self) -> None:
        super().__init__()
        self.clock = SetClock()
        self.model = Model()
        self.engine = type(self).new_engine()
        self.runner = asyncio.Runner()

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return self.runner.run(coroutine)

    @initialize()
    def open(self) -> None:
        self.store = self.run(self.engine.open(self.clock))

    def teardown(self) -> None:
        try:
            self.run(self.store.close())
        finally:
            self.runner.close()
            self.engine.remove()

    # -- changes

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        writes = data.draw(write_sets(self.model, self.clock.now_s))
        assert self.run(self._failures(writes)) == self.model.write(writes)

    @rule(data=st.data(), count=st.integers(2, CONCURRENT_SETS_MAX))
    def write_at_once(self, data: st.DataObject, count: int) -> None:
        """Sets that wait together, each with no table of another, so that their order is free."""
        sets: list[tuple[Write, ...]] = []
        taken: set[tuple[str, Key]] = set()
        for _ in range(count):
            writes = data.draw(write_sets(self.model, self.clock.now_s))
            items = {(write.table.name, key_of(write)) for write in writes}
            if not items & taken:
                taken |= items
                sets.append(writes)

        async def write_all() -> list[tuple[Failure, ...]]:
            return await asyncio.gather(*[self._failures(writes) for writes in sets])

        assert self.run(write_all()) == [self.model.write(writes) for writes in sets]

    async def _failures(self, writes: tuple[Write, ...]) -> tuple[Failure, ...]:
        try:
            await self.store.write(*writes)
        except ConditionFailed as failed:
            return failed.failures
        return ()

    @rule(data=st.data(), table=st.sampled_from(TABLES))
    def put_many(self, data: st.DataObject, table: Table) -> None:
        items = []
        for key in data.draw(st.lists(keys(table), unique=True, max_size=8)):
            fields = data.draw(changes(table, self.clock.now_s, sparse=False))
            items.append(dict(zip(keys_of(table), key, strict=True)) | fields)
        self.run(self.store.put_many(table, items))
        for item in items:
            self.model.write([Put(table, item)])

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.now_ms += 1_000 * seconds

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(self.engine.open(self.clock))

    @rule()
    def crash(self) -> None:
        self.run(self.engine.crash(self.store))
        self.store = self.run(self.engine.open(self.clock))

    # -- reads

    @rule(data=st.data(), table=st.sampled_from(TABLES))
    def get(self, data: st.DataObject, table: Table) -> None:
        chosen = data.draw(st.lists(keys(table), min_size=1, max_size=6))
        alive = {table.key(item): item for item in self.model.items(table, self.clock.now_s)}
        expected = [alive.get(key) for key in chosen]
        assert self.run(self.store.get_many(table, chosen)) == expected
        assert self.run(self.store.get(table, chosen[0])) == expected[0]

    @rule(
        table=st.sampled_from(TABLES),
        segments=st.integers(1, 4),
        limit=st.integers(1, 20),
    )
    def scan(self, table: Table, segments: int, limit: int) -> None:
        found = self.run(scan_all(self.store, table, segments=segments, limit=limit))
        expected = self.model.items(table, self.clock.now_s)
        assert sorted(found, key=table.key) == sorted(expected, key=table.key)

    @rule(
        data=st.data(),
        table=st.sampled_from([INBOXES, RECEIPTS, ENTRIES]),
        partition=st.sampled_from(PARTITIONS),
        reverse=st.booleans(),
        limit=st.integers(1, 8),
    )
    def query(
        self, data: st.DataObject, table: Table, partition: str, reverse: bool, limit: int
    ) -> None:
        assert table.sort is not None
        sort: str = table.sort
        kind = table.fields[sort]
        bounds = st.none() | st.sampled_from(SORTS[kind]) | VALUES[kind]
        prefix = data.draw(WORDS) if kind is str and data.draw(st.booleans()) else None
        low = high = None
        if prefix is None:
            low, high = data.draw(bounds), data.draw(bounds)
        found = self.run(
            query_all(
                self.store, table, partition, low=low, high=high, prefix=prefix, reverse=reverse,
                limit=limit,
            )
        )  # fmt: skip
        expected = [
            item
            for item in self.model.items(table, self.clock.now_s)
            if item[table.partition] == partition
            and (low is None or item[sort] >= low)
            and (high is None or item[sort] <= high)
            and (prefix is None or item[sort].startswith(prefix))
        ]
        assert found == sorted(expected, key=lambda item: item[sort], reverse=reverse)

    @rule(
        data=st.data(),
        place=st.sampled_from([(t, index) for t in TABLES for index in t.indexes]),
        reverse=st.booleans(),
        limit=st.integers(1, 8),
    )
    def query_index(
        self, data: st.DataObject, place: tuple[Table, Any], reverse: bool, limit: int
    ) -> None:
        table, index = place
        partition = data.draw(st.sampled_from(PARTITIONS) | WORDS.filter(bool))
        bounds = st.none() | VALUES[table.fields[index.sort]]
        low, high = data.draw(bounds), data.draw(bounds)
        found = self.run(
            query_all(
                self.store, table, partition, index=index.name, low=low, high=high,
                reverse=reverse, limit=limit, consistent=index.local,
            )
        )  # fmt: skip
        expected = []
        for item in self.model.items(table, self.clock.now_s):
            sort = item.get(index.sort)
            if item.get(index.partition) != partition or sort is None:
                continue
            if (low is None or sort >= low) and (high is None or sort <= high):
                expected.append(item)
        if index.projected is not None:
            kept = {*keys_of(table), index.partition, index.sort, *index.projected}
            expected = [{f: v for f, v in item.items() if f in kept} for item in expected]
        order = [item[index.sort] for item in found]
        assert order == sorted(order, reverse=reverse)
        assert sorted(found, key=table.key) == sorted(expected, key=table.key)
