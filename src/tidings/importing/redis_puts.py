"""Items on their way into the store: of several tables at one time, while more are made ready."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

from tidings.storage.interface import Item, Store, Table

ITEMS_TOGETHER = 4_000
"""Items that are put together; as many more wait meanwhile."""
PACED_TOGETHER = 25
"""Items at most that a budget lets through together."""
PACED_AT_ONCE = 8
"""Of these parts, so many are under way at one time."""


class Pace(Protocol):
    """Lets units through."""

    @property
    def burst_units(self) -> float | None:
        """What can be taken at once; None: anything."""
        ...

    async def take(self, units: float) -> None:
        """Return when that much may be spent."""
        ...


Price: TypeAlias = Callable[[Table, Item], float]
"""The write units of an item."""


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


class Puts:
    """What waits to be put, and what is being put. Close it."""

    def __init__(self, store: Store, pace: Pace | None, price: Price) -> None:
        self._store = store
        self._pace = pace
        self._price = price
        self._turns = asyncio.Semaphore(PACED_AT_ONCE)
        self._waiting: dict[str, tuple[Table, list[Item]]] = {}
        self._count = 0
        self._putting: asyncio.Task[None] | None = None

    def add(self, table: Table, items: Sequence[Item]) -> None:
        """Let items wait."""
        self._waiting.setdefault(table.name, (table, []))[1].extend(items)
        self._count += len(items)

    async def advance(self) -> None:
        """Give what is being put its turn, and begin to put what waits if it is enough.

        To be called often. Raises what the store raises.
        """
        if self._count < ITEMS_TOGETHER:
            await asyncio.sleep(0)
            return
        await self._settle()
        waiting, self._waiting, self._count = self._waiting, {}, 0
        self._putting = asyncio.create_task(self._put(waiting.values()))

    async def flush(self) -> None:
        """Put all that waits. Raises what the store raises."""
        await self._settle()
        waiting, self._waiting, self._count = self._waiting, {}, 0
        await self._put(waiting.values())

    async def close(self) -> None:
        """Leave nothing running behind."""
        if self._putting is not None:
            self._putting.cancel()
            await asyncio.gather(self._putting, return_exceptions=True)

    async def _settle(self) -> None:
        if self._putting is not None:
            putting, self._putting = self._putting, None
            await putting

    async def _put(self, waiting: Iterable[tuple[Table, Sequence[Item]]]) -> None:
        async with together() as group:
            for table, items in waiting:
                group.create_task(self._put_paced(table, items))

    async def _put_paced(self, table: Table, items: Sequence[Item]) -> None:
        if self._pace is None:
            await self._store.put_many(table, items)
            return

        async def put(part: Sequence[Item]) -> None:
            try:
                await self._store.put_many(table, part)
            finally:
                self._turns.release()

        async with together() as group:
            for units, part in self._parts(table, items, self._pace.burst_units):
                await self._turns.acquire()
                await self._pace.take(units)
                group.create_task(put(part))

    def _parts(
        self, table: Table, items: Sequence[Item], burst_units: float | None
    ) -> Iterator[tuple[float, list[Item]]]:
        """The items in parts with their units, none of which uses up what may be taken at once."""
        units_max = math.inf if burst_units is None else burst_units / 2
        part: list[Item] = []
        total = 0.0
        for item in items:
            units = self._price(table, item)
            if part and (total + units > units_max or len(part) == PACED_TOGETHER):
                yield total, part
                part, total = [], 0.0
            part.append(item)
            total += units
        if part:
            yield total, part
