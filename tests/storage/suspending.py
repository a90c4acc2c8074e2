"""Stores around the embedded one that answer late: calls at one time interleave in any order.

Reads of the embedded engine never let go of the event loop, so most races between tasks can't
happen on it. Here each call waits before it reaches the engine, as a request does on its way, and
again before its answer is seen: for as long as chance wants it, or until a test lets it go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeAlias

from tidings.errors import Unavailable
from tidings.storage.interface import Item, Key, Page, Store, Table, Write
from tidings.storage.sqlite import Snapshot, SqliteStore

Action: TypeAlias = Literal["get", "get_many", "query", "scan", "write", "put_many"]
Way: TypeAlias = Literal["request", "answer"]

TURNS_MAX = 4
"""Turns of the loop that one way takes."""
LONG_WAYS = 0.05
"""How many of the ways take LONG_WAY_S_MAX at most instead."""
LONG_WAY_S_MAX = 0.003
KEYS_TOGETHER = 3
"""Keys of one `get_many` that are read at the same moment."""


class DistantStore:
    """The engine behind a way that takes its time; snapshots are the engine's own."""

    def __init__(self, engine: SqliteStore) -> None:
        self.engine = engine

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """One way of a call; `table` is None for writes of several tables."""
        raise NotImplementedError

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        await self.travel("request", "get", table)
        item = await self.engine.get(table, key, consistent=consistent)
        await self.travel("answer", "get", table)
        return item

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`: no snapshot, the items are as they were at different moments."""
        items: list[Item | None] = []
        for start in range(0, len(keys), KEYS_TOGETHER):
            await self.travel("request", "get_many", table)
            some = keys[start : start + KEYS_TOGETHER]
            items += await self.engine.get_many(table, some, consistent=consistent)
        await self.travel("answer", "get_many", table)
        return items

    async def query(self, table: Table, partition: Any, **asked: Any) -> Page:
        """See `Store.query`."""
        await self.travel("request", "query", table)
        page = await self.engine.query(table, partition, **asked)
        await self.travel("answer", "query", table)
        return page

    async def scan(self, table: Table, **asked: Any) -> Page:
        """See `Store.scan`."""
        await self.travel("request", "scan", table)
        page = await self.engine.scan(table, **asked)
        await self.travel("answer", "scan", table)
        return page

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        table = writes[0].table if len(writes) == 1 else None
        await self.travel("request", "write", table)
        try:
            await self.engine.write(*writes)
        finally:
            await self.travel("answer", "write", table)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`."""
        await self.travel("request", "put_many", table)
        await self.engine.put_many(table, items)
        await self.travel("answer", "put_many", table)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """The store as it is now, at no distance."""
        async with self.engine.snapshot() as then:
            yield then

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()


class SuspendingStore(DistantStore):
    """Ways of a random length; the same seed makes the same choices."""

    def __init__(self, engine: SqliteStore, seed: int = 0) -> None:
        super().__init__(engine)
        self._chance = random.Random(seed)

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """A few turns of the loop, and now and then some milliseconds."""
        if self._chance.random() < LONG_WAYS:
            await asyncio.sleep(self._chance.uniform(0, LONG_WAY_S_MAX))
        else:
            for _ in range(self._chance.randint(0, TURNS_MAX)):
                await asyncio.sleep(0)


class Held:
    """The one call that is being held."""

    def __init__(self, way: Way, action: Action, table: Table | None) -> None:
        self.call = (way, action, table)
        self.is_there = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.error: Exception | None = None
        """What becomes of the call in the end: an answer that is lost was good nevertheless."""


class HeldStore(DistantStore):
    """Ways that take no time, but for calls that a test holds."""

    def __init__(self, engine: SqliteStore) -> None:
        super().__init__(engine)
        self._held: list[Held] = []
        self.calls: list[tuple[Action, Table | None]] = []
        """All calls so far, in the order in which they reached the engine."""

    @contextmanager
    def failing(self, way: Way, action: Action, table: Table | None = None) -> Iterator[None]:
        """Lose the next such call on that way."""
        with self.holding(way, action, table) as held:
            held.error = Unavailable()
            held.goes_on.set()
            yield

    @contextmanager
    def holding(self, way: Way, action: Action, table: Table | None = None) -> Iterator[Held]:
        """Hold the next such call on that way, until it is let go or this ends."""
        held = Held(way, action, table)
        self._held.append(held)
        try:
            yield held
        finally:
            held.goes_on.set()

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """Wait where a test holds the call."""
        if way == "request":
            self.calls.append((action, table))
        for held in self._held:
            if held.call == (way, action, table):
                self._held.remove(held)
                held.is_there.set()
                await held.goes_on.wait()
                if held.error is not None:
                    raise held.error
                return


def are_stores(held: HeldStore, suspending: SuspendingStore) -> tuple[Store, Store]:
    """For the type checker: they are."""
    return held, suspending
