"""A store around a store that tells what its operations would cost on DynamoDB.

Units follow "DynamoDB read and write operations" and the pages on local and global secondary
indexes and on transactions in the Amazon DynamoDB Developer Guide:

- A read is a unit for each started 4 KB of an item, half of one where it need not be consistent;
  a query and a scan add up the sizes of their items before they round. Finding nothing costs as
  much as finding the smallest item. Items that have expired but are still stored are not charged,
  since the store does not show them.
- A write is a unit for each started KB of the larger of the item before and after it, two in a
  transaction; writes that fail are charged too.
- Each index adds its own writes: an entry that appears, disappears or changes is one, an entry
  whose key changes is two. Whether these double in a transaction is not published, and so a
  setting.

A write of several items is a transaction, and so is a single one that must not be done twice
(`expressions.is_transaction`), because only transactions carry a token that tells one sent again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Literal, TypeAlias

import msgspec

from tidings.errors import Unavailable
from tidings.storage.effects import after_write, write_key
from tidings.storage.expressions import is_transaction
from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    Absent,
    Check,
    ConditionFailed,
    Index,
    Item,
    Key,
    Page,
    Position,
    Put,
    Store,
    Table,
    Write,
)
from tidings.storage.remembered import Remembered
from tidings.storage.sizes import item_bytes

READ_UNIT_BYTES = 4_096
WRITE_UNIT_BYTES = 1_024
BATCH_GET_ITEMS = 100
"""Items of one BatchGetItem request."""
BATCH_WRITE_ITEMS = 25
"""Items of one BatchWriteItem request."""
PAGE_BYTES_MAX = 1024 * 1024
"""What one request of a query or scan goes over at most."""
BULK_ITEMS_MAX = 500
"""Items of `put_many` whose costs are worked out at once."""


CostSource: TypeAlias = Literal["consumed", "metered"]
"""Who knows the price: the store, which told what its calls consumed, or the meter."""


class Place(msgspec.Struct, frozen=True):
    """Where units were spent: a table, or one of its indexes."""

    table: str
    index: str | None


class Units:
    """Read and write units spent in one place.

    `doubling` is what `write` would be less if transactions did not double the writes of indexes.
    """

    __slots__ = ("doubling", "read", "write")

    def __init__(self) -> None:
        self.read = 0.0
        self.write = 0.0
        self.doubling = 0.0


class Meter:
    """What the operations of one context have cost."""

    def __init__(self) -> None:
        self.requests = 0
        self.places: defaultdict[Place, Units] = defaultdict(Units)

    @property
    def read_units(self) -> float:
        """Read units in all places."""
        return sum(units.read for units in self.places.values())

    @property
    def write_units(self) -> float:
        """Write units in all places."""
        return sum(units.write for units in self.places.values())

    @property
    def write_units_once(self) -> float:
        """Write units in all places, those of indexes counted once in transactions too."""
        return sum(units.write - units.doubling for units in self.places.values())

    def charge(self, spent: Meter, share: float) -> None:
        """Take over a share, from 0 to 1, of what was spent elsewhere on this one's behalf."""
        self.requests += spent.requests
        for place, units in spent.places.items():
            self.places[place].read += units.read * share
            self.places[place].write += units.write * share
            self.places[place].doubling += units.doubling * share

    def copy(self) -> Meter:
        """What was counted up to now."""
        copied = Meter()
        copied.charge(self, 1)
        return copied

    def since(self, earlier: Meter) -> Meter:
        """What was counted since an earlier copy."""
        counted = self.copy()
        counted.charge(earlier, -1)
        counted.requests = self.requests - earlier.requests
        return counted


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


def current_meter() -> Meter | None:
    """The meter that counts in this context, if one does."""
    return _meter.get()


@contextmanager
def metering() -> Iterator[Meter]:
    """Measure what this context, and tasks that it starts, ask of any `MeteredStore`.

    Operations that another task does on one's behalf count for that task. Contexts nest; the
    innermost meter alone counts.
    """
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


@contextmanager
def unmetered() -> Iterator[None]:
    """Measure nothing in this context: metering reads what is written, and costs time."""
    token = _meter.set(None)
    try:
        yield
    finally:
        _meter.reset(token)


def read_units(size_bytes: int, *, consistent: bool) -> float:
    """What reading that many bytes costs."""
    return max(1, -(-size_bytes // READ_UNIT_BYTES)) * (1.0 if consistent else 0.5)


def write_units(size_bytes: int, *, transactional: bool) -> int:
    """What writing an item of that size costs."""
    return max(1, -(-size_bytes // WRITE_UNIT_BYTES)) * (2 if transactional else 1)


def index_write_units(
    table: Table, index: Index, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> int:
    """What an index costs, outside a transaction, when an item of its table changes."""
    old, new = _projection(table, index, before), _projection(table, index, after)
    if old == new:
        return 0
    sizes = [item_bytes(entry) for entry in (old, new) if entry is not None]
    if old is not None and new is not None:
        key_fields = (index.partition, index.sort)
        if all(old[field] == new[field] for field in key_fields):
            sizes = [max(sizes)]
    return sum(write_units(size, transactional=False) for size in sizes)


def _projection(table: Table, index: Index, item: Mapping[str, Any] | None) -> Item | None:
    """The index's entry for the item, None where it has none."""
    if item is None or item.get(index.partition) is None or item.get(index.sort) is None:
        return None
    kept = {*table.fields}
    if index.projected is not None:
        kept = {*table.key_fields, index.partition, index.sort, *index.projected}
    return {field: value for field, value in item.items() if field in kept and value is not None}


class MeteredStore:
    """A `Store` that charges the `metering` in whose context it is called, if any.

    The price of a write depends on what it replaces. Nothing is asked for that: what was read by
    its key or written here is remembered, a put of what has to be absent replaces nothing, and a
    check has its price. Only an item of which nothing is known is read first, which is not
    charged. Where another process wrote an item since, or another task at the same time, its
    size may be an old one.

    A store that `is_near` is soon asked: a write that nobody meters is not followed, and what was
    remembered until then is forgotten.
    """

    def __init__(
        self, store: Store, *, index_writes_doubled: bool = True, is_near: bool = False
    ) -> None:
        self._store = store
        self._is_near = is_near
        self._index_writes_doubled = index_writes_doubled
        self._remembered = Remembered()

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        item = await self._store.get(table, key, consistent=consistent)
        meter = _meter.get()
        if consistent:
            self._remembered.see(table, key, item, is_new=meter is not None)
        if meter is not None:
            _charge_read(meter, table, None, [item], consistent=consistent)
        return item

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`; each item is rounded for itself, as in BatchGetItem."""
        items = await self._store.get_many(table, keys, consistent=consistent)
        meter = _meter.get()
        if consistent:
            for key, item in zip(keys, items, strict=True):
                self._remembered.see(table, key, item, is_new=meter is not None)
        if meter is not None:
            meter.requests += -(-len(items) // BATCH_GET_ITEMS)
            meter.places[Place(table.name, None)].read += sum(
                read_units(item_bytes(item or {}), consistent=consistent) for item in items
            )
        return items

    async def query(
        self,
        table: Table,
        partition: Any,
        *,
        index: str | None = None,
        low: Any = None,
        high: Any = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
        consistent: bool = True,
    ) -> Page:
        """See `Store.query`."""
        page = await self._store.query(
            table,
            partition,
            index=index,
            low=low,
            high=high,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            after=after,
            consistent=consistent,
        )
        if (meter := _meter.get()) is not None:
            _charge_read(meter, table, index, page.items, consistent=consistent)
        return page

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`; charged as strongly consistent, which it is."""
        page = await self._store.scan(
            table, segment=segment, segments=segments, limit=limit, after=after
        )
        if (meter := _meter.get()) is not None:
            _charge_read(meter, table, None, page.items, consistent=True)
        return page

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        meter = _meter.get()
        if meter is None and self._is_near:
            try:
                await self._store.write(*writes)
            finally:
                self._remembered.clear()
            return
        before = [] if meter is None else await self._replaced(writes)
        try:
            await self._store.write(*writes)
        except ConditionFailed as failed:
            physical = {failure.index: failure.item for failure in failed.failures}
            for number, item in physical.items():
                write = writes[number]
                self._remembered.see(write.table, write_key(write), item, is_new=False)
            if meter is not None:
                before = [physical.get(number, old) for number, old in enumerate(before)]
                self._charge(meter, writes, before, is_failed=True)
            raise
        except BaseException:
            self._remembered.forget(writes)
            raise
        self._remembered.follow(writes)
        if meter is not None:
            self._charge(meter, writes, before)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`; each put is charged for itself, as in BatchWriteItem."""
        if (meter := _meter.get()) is None:
            await self._store.put_many(table, self._forgetting(table, items))
            return
        remaining = iter(items)
        while puts := [Put(table, item) for item in islice(remaining, BULK_ITEMS_MAX)]:
            before = await self._replaced(puts)
            replacing = self._forgetting(table, (put.item for put in puts))
            await self._store.put_many(table, replacing)
            meter.requests += -(-len(puts) // BATCH_WRITE_ITEMS)
            for put, old in zip(puts, before, strict=True):
                self._charge_write(meter, put, old, transactional=False)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    async def _replaced(self, writes: Sequence[Write]) -> list[Item | None]:
        """What the writes will find, in their order, as far as their price depends on it."""
        found: list[Item | None] = [None] * len(writes)
        unknown: defaultdict[str, list[int]] = defaultdict(list)
        for number, write in enumerate(writes):
            if isinstance(write, Check) or Absent() in write.when:
                continue
            try:
                found[number] = self._remembered.find(write.table, write_key(write))
            except KeyError:
                unknown[write.table.name].append(number)
        for numbers in unknown.values():
            keys = [write_key(writes[number]) for number in numbers]
            try:
                items = await self._store.get_many(writes[numbers[0]].table, keys)
            except Unavailable:  # a price is no reason to fail: as if there were nothing
                continue
            for number, item in zip(numbers, items, strict=True):
                self._remembered.see(writes[number].table, write_key(writes[number]), item)
                found[number] = item
        return found

    def _forgetting(self, table: Table, items: Iterable[Item]) -> Iterator[Item]:
        """The items, of which nothing is known from here on."""
        for item in items:
            self._remembered.forget([Put(table, item)])
            yield item

    def _charge(
        self,
        meter: Meter,
        writes: Sequence[Write],
        before: Sequence[Item | None],
        *,
        is_failed: bool = False,
    ) -> None:
        """Charge one request, all of whose writes were applied or none."""
        meter.requests += 1
        transactional = is_transaction(writes)
        for write, old in zip(writes, before, strict=True):
            self._charge_write(meter, write, old, transactional=transactional, is_failed=is_failed)

    def _charge_write(
        self,
        meter: Meter,
        write: Write,
        before: Item | None,
        *,
        transactional: bool,
        is_failed: bool = False,
    ) -> None:
        table, after = write.table, after_write(write, before)
        size_bytes = max(item_bytes(before or {}), item_bytes(after or {}))
        if isinstance(write, Check):
            size_bytes = 0
        meter.places[Place(table.name, None)].write += write_units(
            size_bytes, transactional=transactional
        )
        if is_failed:
            return
        for index in table.indexes:
            if once := index_write_units(table, index, before, after):
                units = meter.places[Place(table.name, index.name)]
                units.write += once
                if transactional and self._index_writes_doubled:
                    units.write += once
                    units.doubling += once


def _charge_read(
    meter: Meter,
    table: Table,
    index: str | None,
    items: Sequence[Item | None],
    *,
    consistent: bool,
) -> None:
    size_bytes = sum(item_bytes(item or {}) for item in items)
    meter.requests += max(1, -(-size_bytes // PAGE_BYTES_MAX))
    meter.places[Place(table.name, index)].read += read_units(size_bytes, consistent=consistent)
