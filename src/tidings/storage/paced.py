"""A store around a store that spends no more than a budget: units are taken before each write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    Check,
    Delete,
    Item,
    Key,
    Page,
    Position,
    Put,
    Store,
    Table,
    Write,
)
from tidings.storage.metered import write_units
from tidings.storage.pacing import Pace, delete_units, put_units
from tidings.storage.tables import LEASES

BULK_ITEMS_MAX = 400
"""Items of one `put_many` that are paid for together, if the budget has as many at once."""


class PacedStore:
    """A `Store` whose writes wait for their units; reads go through.

    An update is taken for a put of what it sets: what else is in the item is not known here.
    """

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        return await self._store.get(table, key, consistent=consistent)

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`."""
        return await self._store.get_many(table, keys, consistent=consistent)

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
        return await self._store.query(
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

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`."""
        return await self._store.scan(
            table, segment=segment, segments=segments, limit=limit, after=after
        )

    async def write(self, *writes: Write) -> None:
        """See `Store.write`. Leases are kept at once: a unit in seconds, which no window feels."""
        if any(write.table is LEASES for write in writes):
            await self._store.write(*writes)
            return
        is_transactional = len(writes) > 1
        units = sum(_units(write, is_transactional=is_transactional) for write in writes)
        await self._pace.take(units)
        await self._store.write(*writes)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`; in parts that the budget has at once."""
        part: list[Item] = []
        units = 0
        for item in items:
            cost = put_units(table, item, transactional=False)
            burst = self._pace.burst_units
            is_full = len(part) >= BULK_ITEMS_MAX or (burst is not None and units + cost > burst)
            if part and is_full:
                await self._pace.take(units)
                await self._store.put_many(table, part)
                part, units = [], 0
            part.append(item)
            units += cost
        if part:
            await self._pace.take(units)
            await self._store.put_many(table, part)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()


def _units(write: Write, *, is_transactional: bool) -> int:
    match write:
        case Put(table, item):
            return put_units(table, item, transactional=is_transactional)
        case Delete(table):
            return delete_units(table, transactional=is_transactional)
        case Check():
            return write_units(0, transactional=is_transactional)
        case _:
            item = dict(zip(write.table.key_fields, write.key, strict=True)) | dict(write.set)
            return put_units(write.table, item, transactional=is_transactional, replacing=True)
