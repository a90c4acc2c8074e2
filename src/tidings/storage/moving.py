"""A store around the stores that a service may be moved between: whoever uses it needs not know.

Where no move is under way it costs a comparison. While one is, reads go to the store that decides,
writes go there under a guard (`tidings.storage.moves`), and what is refused by its guard was not
applied and goes again to whichever store decides then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from tidings.errors import Unavailable
from tidings.storage import moves, standing
from tidings.storage.effects import write_key
from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    SET_ITEMS_MAX,
    WRITE_BYTES_MAX,
    ConditionFailed,
    Item,
    Key,
    Page,
    Position,
    Put,
    Store,
    Table,
    Write,
)
from tidings.storage.metered import CostSource
from tidings.storage.moves import Move, Pair
from tidings.storage.shadows import Shadows
from tidings.storage.sizes import item_bytes
from tidings.storage.standing import HELD_LOOK_INTERVAL_S, HELD_MAX_S, Opening, Standing

HELD_WRITES_MAX = 20_000
"""Write sets that may wait for a guard or for a switch; further ones are refused."""

T = TypeVar("T")


@runtime_checkable
class _HasSnapshot(Protocol):
    def snapshot(self) -> AbstractAsyncContextManager[Store]: ...


class MovingStore:
    """A `Store` that follows moves; made by `open`.

    Beyond what every store promises: what was acknowledged is in the store that decides, also where
    this process slept through a switch; an operation waits for a switch for at most HELD_MAX_S and
    then raises Unavailable. A `write` holds at most SET_ITEMS_MAX items. A scan that a switch
    interrupts has to begin anew, and is told so by Unavailable.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        boottime: Callable[[], float],
        chance: Callable[[], float],
        on_shadow: Callable[[bool], None] | None,
    ) -> None:
        self._shadows = Shadows(chance, on_shadow)
        self._standing = Standing(opening, boottime=boottime, told=self._shadows.told)
        self._boottime = boottime
        self._held_writes = 0

    @classmethod
    async def open(
        cls,
        url: str,
        opening: Opening,
        *,
        boottime: Callable[[], float] = standing.boottime,
        chance: Callable[[], float] = random.random,
        on_shadow: Callable[[bool], None] | None = None,
    ) -> MovingStore:
        """The store at that address, or the one that it is being moved to or has just been.

        `on_shadow` hears of each shadow read whether both stores said the same. Raises what
        `opening` does, and Conflict for an address from which the store was moved away, or to which
        it is only being moved.
        """
        store = cls(opening, boottime=boottime, chance=chance, on_shadow=on_shadow)
        await store._standing.open(url)
        return store

    async def close(self) -> None:
        """See `Store.close`."""
        await self._shadows.stop()
        await self._standing.close()

    # -- what is known

    @property
    def engine(self) -> Store:
        """The engine of the store that decides, as far as is known."""
        return self._standing.here.engine

    @property
    def cost_source(self) -> CostSource:
        """Who tells the prices of the store that decides."""
        return self._standing.here.cost_source

    async def books(self) -> tuple[Move, Pair] | None:
        """The last move, over or not, and its two stores, bare; None where there was none."""
        await self._standing.current()
        await self._standing.reach()
        record = self._standing.record
        return None if record is None else (record, self._standing.pair)

    # -- reads

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        if self._boottime() < self._standing.idle_until:
            return await self._standing.here.store.get(table, key, consistent=consistent)

        async def ask(store: Store) -> Item | None:
            return await store.get(table, key, consistent=consistent)

        return await self._read(ask)

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`."""

        async def ask(store: Store) -> list[Item | None]:
            return await store.get_many(table, keys, consistent=consistent)

        return await self._read(ask)

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

        async def ask(store: Store) -> Page:
            return await store.query(
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

        return await self._read(ask)

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`. Each store has an order of its own, so a position names its store."""
        here = await self._standing.current()
        place = self._standing.place(here)
        if after is not None and after[:1] != (place,):
            raise Unavailable("The store was moved meanwhile: what reads all of it begins anew.")
        page = await here.store.scan(
            table,
            segment=segment,
            segments=segments,
            limit=limit,
            after=None if after is None else after[1:],
        )
        return Page(page.items, None if page.after is None else (place, *page.after))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Store]:
        """The store that decides as it is now, where its engine can tell; else simply the store."""
        here = await self._standing.current()
        if isinstance(here.engine, _HasSnapshot):
            async with here.engine.snapshot() as then:
                yield then
        else:
            yield self

    async def _read(self, ask: Callable[[Store], Awaitable[T]]) -> T:
        now = self._standing
        if self._boottime() < now.idle_until:
            return await ask(now.here.store)
        here = await now.current()
        found = await ask(here.store)
        move = now.move
        if move is not None and move.stage in ("following", "settled"):
            with suppress(Unavailable):  # nothing can be compared
                there = now.pair.at(moves.other(move.decides))
                self._shadows.offer(move, ask, here.engine, there, found)
        return found

    # -- writes

    async def write(self, *writes: Write) -> None:
        """See `Store.write`; at most SET_ITEMS_MAX items."""
        if len(writes) > SET_ITEMS_MAX:
            raise ValueError(f"a write holds at most {SET_ITEMS_MAX} items")
        if self._boottime() < self._standing.idle_until:
            await self._standing.write_unguarded(*writes)
        else:
            await self._write_when_open(writes)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`; while a move is under way, as write sets."""
        remaining = iter(items)
        while chunk := [*islice(remaining, PAGE_ITEMS_MAX)]:
            await self._standing.current()
            if self._standing.move is None:
                await self._standing.put_unguarded(table, chunk)
                continue
            for puts in _sets(table, chunk):
                await self._write_when_open(puts)

    async def _write_when_open(self, writes: Sequence[Write]) -> None:
        """Write to the store that decides, as soon as it lets writes through."""
        if self._held_writes >= HELD_WRITES_MAX:
            raise Unavailable("Too many writes wait for the store to be switched.")
        self._held_writes += 1
        try:
            until = self._boottime() + HELD_MAX_S
            while not await self._is_written(writes):
                if self._boottime() >= until:
                    raise Unavailable("The store is being switched to another.")
        finally:
            self._held_writes -= 1

    async def _is_written(self, writes: Sequence[Write]) -> bool:
        """Write, or find out that it does not go through now; it was then certainly not applied."""
        now = self._standing
        here = await now.current()
        move, changed = now.move, now.changed
        if move is None or not writes:
            await now.write_unguarded(*writes)
            return True
        if not move.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(HELD_LOOK_INTERVAL_S):
                    await changed.wait()
            return False
        async with now.guarding(here, move) as guard:
            if guard is None:
                return False
            try:
                await here.store.write(*writes, guard)
            except ConditionFailed as failed:
                if all(failure.index < len(writes) for failure in failed.failures):
                    raise
            else:
                return True
        now.was_refused(move)
        return False


def _sets(table: Table, items: Iterable[Item]) -> Iterator[list[Put]]:
    """The items in their order as write sets that every store takes."""
    puts: list[Put] = []
    keys: set[Key] = set()
    size_bytes = 0
    for item in items:
        put = Put(table, item)
        key, more_bytes = write_key(put), item_bytes(item)
        if key in keys or len(puts) == SET_ITEMS_MAX or size_bytes + more_bytes > WRITE_BYTES_MAX:
            yield puts
            puts, keys, size_bytes = [], set(), 0
        puts.append(put)
        keys.add(key)
        size_bytes += more_bytes
    if puts:
        yield puts
