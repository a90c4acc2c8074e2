"""Copying a store that is in use: first all that is there, then again and again what changed.

`Backfill` reads the whole store once, in parts that any number of processes share. `Follow` reads
again what was captured since. They never copy at the same time: changes are captured from before
the backfill began and applied from its end on, so that whatever a backfill read too early is put
right by what follows. Items arrive as they are, with nothing added. Expired ones are not copied.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from math import ceil
from typing import Any, TypeVar

import msgspec
import structlog

from tidings.errors import Unavailable
from tidings.migrate.captures import CAPTURED_TABLES, Capture
from tidings.migrate.lanes import (
    FOLLOWING,
    SET_ITEMS_MAX,
    Lane,
    Progress,
    Stale,
    Worker,
    open_gate,
    progress,
    read_gate,
    rows,
)
from tidings.migrate.sets import CopyRefused, CopySet, gather, position_after
from tidings.storage.interface import Item, Key, Page, Position, Store, Table
from tidings.storage.metered import read_units
from tidings.storage.pacing import Pace
from tidings.storage.sizes import item_bytes
from tidings.storage.sqlite import SqliteStore

PARTS_PER_TABLE = 8
"""Into how many parts a table is divided; one process works on as many at once."""
PAGE_ITEMS = 10 * SET_ITEMS_MAX
"""Items read at once in a backfill: full sets; a page also ends after 1 MB."""
LANES_AT_ONCE = 8
"""Lanes that one process works on at the same time: with PAGE_ITEMS its bound of memory, which is
8 pages of about 1 MB, however large the store is."""
FOLLOW_LANES = 8
"""Lanes that changes are copied through, by the hash of their keys."""
STEP_CHANGES_MAX = 2_000
"""Changes of which one step of following takes care."""
READ_KEYS_MAX = 50
"""Items that a following lane reads and copies at once."""
LOOK_S = 0.5
"""How often to look whether changes came, or lanes became free."""
TROUBLE_S_MAX = 120.0
"""For how long a store that does not answer is asked again before that is the caller's."""
TROUBLE_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)

_Result = TypeVar("_Result")
_log = structlog.get_logger(__name__)


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A fixed share of a table: one of its segments, or the keys after one and up to another."""

    table: str
    segment: int = 0
    segments: int = 1
    after: list[Any] | None = None
    upto: list[Any] | None = None


async def divide(
    source: Store, tables: Sequence[Table], parts_per_table: int = PARTS_PER_TABLE
) -> list[Part]:
    """Parts that are all of the tables together, whatever is written meanwhile.

    The embedded store is divided by ranges of keys, since it would read all of a table for each of
    its segments. A small table is one part.
    """
    parts = []
    for table in tables:
        if isinstance(source, SqliteStore):
            bounds = [None, *map(list, await source.split(table, parts_per_table)), None]
            parts += [Part(table.name, after=after, upto=upto) for after, upto in pairwise(bounds)]
        else:
            is_small = (await source.scan(table, limit=PAGE_ITEMS)).after is None
            count = 1 if is_small else parts_per_table
            parts += [Part(table.name, segment, count) for segment in range(count)]
    return parts


async def read_part(source: Store, table: Table, part: Part, after: Position | None) -> Page:
    """A page of a part, after the key where the last one ended."""
    if isinstance(source, SqliteStore) and part.segments == 1:
        return await source.scan_between(
            table,
            upto=None if part.upto is None else tuple(part.upto),
            limit=PAGE_ITEMS,
            after=after or (None if part.after is None else tuple(part.after)),
        )
    return await source.scan(
        table, segment=part.segment, segments=part.segments, limit=PAGE_ITEMS, after=after
    )


class Trouble:
    """Asks a store again that does not answer, as long as it may, and says so.

    `last` is what went wrong last; None once something went well.
    """

    def __init__(self, limit_s: float = TROUBLE_S_MAX) -> None:
        self.last: Unavailable | None = None
        self._limit_s = limit_s

    async def overcome(self, action: Callable[[], Awaitable[_Result]]) -> _Result:
        """The action's result. Raises what it raises; Unavailable when it lasts too long."""
        began: float | None = None
        failures = 0
        while True:
            try:
                result = await action()
            except Unavailable as error:
                now = time.monotonic()
                began = now if began is None else began
                if self.last is None or self.last.detail != error.detail:
                    _log.warning("copying_waits", detail=error.detail)
                self.last = error
                if now - began >= self._limit_s:
                    raise
                await asyncio.sleep(TROUBLE_PAUSES_S[min(failures, len(TROUBLE_PAUSES_S) - 1)])
                failures += 1
            else:
                self.last = None
                return result


class Backfill:
    """Copies all items of a store, with any number of others like it in other processes.

    `source` and `destination` are engines, whose tables are alike. `name` is of this move and this
    direction alone. What is paid for is what is written; where that is an embedded store, what is
    read of one that has a price. Safe to be cancelled, killed and begun again at any time.
    """

    def __init__(
        self,
        source: Store,
        destination: Store,
        *,
        name: str,
        worker: Worker,
        pace: Pace,
        tables: Sequence[Table] = CAPTURED_TABLES,
        trouble_s_max: float = TROUBLE_S_MAX,
    ) -> None:
        self.trouble = Trouble(trouble_s_max)
        self._source = source
        self._destination = destination
        self._name = name
        self._worker = worker
        self._pace = pace
        self._is_priced = not isinstance(destination, SqliteStore)
        self._is_read_priced = not self._is_priced and not isinstance(source, SqliteStore)
        self._tables = {table.name: table for table in tables}
        self._mine: set[str] = set()
        self._claiming = asyncio.Lock()

    async def plan(self) -> None:
        """Divide the source into parts, unless somebody did before. Raises Stale if retired."""
        if await read_gate(self._destination, self._name) is None:
            parts = await divide(self._source, [*self._tables.values()])
            await open_gate(self._destination, self._name, msgspec.to_builtins(parts))

    async def progress(self) -> Progress:
        """How far all processes together got."""
        return await progress(self._destination, self._name)

    async def run(self) -> None:
        """Work on what is free until everything was copied, by whomever.

        Raises Stale where the name was retired; CopyRefused for an item that the destination does
        not take; Unavailable where a store does not answer for TROUBLE_S_MAX. Whatever it raises,
        it can be run again.
        """
        await self.trouble.overcome(self.plan)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES_AT_ONCE):
                    group.create_task(self._work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _work(self) -> None:
        """Copy part after part until all are done."""
        while True:
            async with self._claim() as claimed:
                if claimed is True:
                    return
                if claimed is False:
                    await asyncio.sleep(LOOK_S)
                    continue
                try:
                    await self._copy(*claimed)
                except Stale:
                    # Of this lane perhaps: somebody took us for dead. Of the name, if it is closed.
                    await read_gate(self._destination, self._name)

    @asynccontextmanager
    async def _claim(self) -> AsyncIterator[tuple[Lane, Part] | bool]:
        """A lane of ours, as long as it is worked on; else whether everything is done."""
        async with self._claiming:
            claimed = await self.trouble.overcome(self._find)
            if not isinstance(claimed, bool):
                self._mine.add(claimed[0].number)
        try:
            yield claimed
        finally:
            if not isinstance(claimed, bool):
                self._mine.discard(claimed[0].number)

    async def _find(self) -> tuple[Lane, Part] | bool:
        plan = await read_gate(self._destination, self._name)
        assert plan is not None, "the plan is there before the work begins"
        taken = await rows(self._destination, self._name)
        is_done = True
        for place, part in enumerate(msgspec.convert(plan, list[Part])):
            number = f"{place:04}"
            row = taken.get(number)
            if row is not None and "stage" in row:
                continue
            is_done = False
            if number not in self._mine and self._is_free(row):
                lane = Lane(self._destination, self._name, number, self._worker.worker_id)
                if await lane.take(over=row):
                    return lane, part
        return is_done

    def _is_free(self, row: Item | None) -> bool:
        return (
            row is None
            or row["holder"] == self._worker.worker_id
            or self._worker.is_gone(row["holder"])
        )

    async def _copy(self, lane: Lane, part: Part) -> None:
        table = self._tables[part.table]
        is_done = False
        while not is_done:
            is_done = await self.trouble.overcome(lambda: self._copy_page(lane, table, part))

    async def _copy_page(self, lane: Lane, table: Table, part: Part) -> bool:
        """Copy a page from where the lane is; whether it was the part's last."""
        page = await read_part(self._source, table, part, lane.position)
        found = [(table, table.key(item), item) for item in page.items]
        due = read_units(_size_bytes(page.items), consistent=True) if self._is_read_priced else 0.0
        for copy_set in gather(found, self._pace, is_priced=self._is_priced):
            copy_set.units += ceil(due)
            due = 0.0
            position = position_after(copy_set.writes)
            if not await _write(lane, copy_set, self._pace, position=position):
                return False
        if page.after is None:
            return await lane.write((), is_last=True)
        if page.after != lane.position:  # the page ended with items that have expired
            await lane.write((), position=page.after)
        return False


class Follow:
    """Copies what changed, in lanes of its own; one such copier counts, the one that came last.

    `source` and `destination` are engines. Every copied item was read, consistently, after the
    change that is forgotten for it; in the destination nothing older ever comes after newer.
    """

    def __init__(
        self,
        source: Store,
        destination: Store,
        capture: Capture,
        *,
        name: str,
        worker: Worker,
        pace: Pace,
        trouble_s_max: float = TROUBLE_S_MAX,
    ) -> None:
        self.trouble = Trouble(trouble_s_max)
        self._source = source
        self._destination = destination
        self._capture = capture
        self._name = name
        self._worker = worker
        self._pace = pace
        self._is_priced = not isinstance(destination, SqliteStore)
        self._is_read_priced = not self._is_priced and not isinstance(source, SqliteStore)
        self._lanes: list[Lane] = []
        self._turn = asyncio.Lock()
        self._pass_ended = asyncio.Event()
        self._passes = 0

    async def take_over(self) -> None:
        """Take all lanes, whoever has them; from then on nobody else's copies arrive.

        To be called when the backfill is done and its lanes are. Raises Stale where the name was
        retired, Unavailable.
        """
        async with self._turn:
            await open_gate(self._destination, self._name)
            found = await rows(self._destination, self._name)
            numbers = [f"{FOLLOWING}{place}" for place in range(FOLLOW_LANES)]
            self._lanes = await asyncio.gather(*[self._taken(each, found) for each in numbers])

    async def _taken(self, number: str, found: Mapping[str, Item]) -> Lane:
        """The lane of that number, taken from whomever has it by the rows or by now."""
        lane = Lane(self._destination, self._name, number, self._worker.worker_id)
        while not await lane.take(over=found.get(number)):
            found = await rows(self._destination, self._name)
        return lane

    async def step(self) -> int:
        """Copy what waits, up to STEP_CHANGES_MAX items, and return how many those were.

        Raises Stale, CopyRefused, Unavailable; what waits stays pending then.
        """
        async with self._turn:
            changes = await self._capture.pending(STEP_CHANGES_MAX)
            if changes:
                await self._copy([(change.table, change.key) for change in changes])
                await self._capture.forget(changes)
            if len(changes) < STEP_CHANGES_MAX:
                self._passes += 1
                self._pass_ended.set()
                self._pass_ended = asyncio.Event()
            return len(changes)

    async def run(self) -> None:
        """Follow until cancelled. Raises Stale when somebody newer took over; else as `step`."""
        while True:
            if not await self.trouble.overcome(self.step):
                await asyncio.sleep(LOOK_S)

    async def drain(self, within_s: float) -> bool:
        """Copy all that was changed before this call; False if the time does not suffice.

        Only for a source that nobody writes to any more.
        """
        try:
            async with asyncio.timeout(within_s):
                while True:
                    while await self.step():
                        pass
                    if await self._capture.is_drained():
                        return True
        except (TimeoutError, Unavailable):
            return False

    async def passed(self) -> None:
        """Return when all that waits now was copied; for a caller beside `run`, in this process."""
        wanted = self._passes + 2  # the step under way may have looked before
        while self._passes < wanted:
            await self._pass_ended.wait()

    async def copy(self, table: Table, keys: Sequence[Key]) -> None:
        """Copy these items as they are now, though nothing tells that they changed."""
        async with self._turn:
            await self._copy([(table, key) for key in keys])

    async def _copy(self, keys: Iterable[tuple[Table, Key]]) -> None:
        assert self._lanes, "lanes are taken over before anything is copied through them"
        shares: defaultdict[int, list[tuple[Table, Key]]] = defaultdict(list)
        for table, key in keys:
            shares[_hash(table, key) % FOLLOW_LANES].append((table, key))
        try:
            async with asyncio.TaskGroup() as group:
                for place, share in shares.items():
                    group.create_task(self._copy_share(self._lanes[place], share))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _copy_share(self, lane: Lane, keys: Sequence[tuple[Table, Key]]) -> None:
        for at in range(0, len(keys), READ_KEYS_MAX):
            wanted = keys[at : at + READ_KEYS_MAX]
            while not await self._copy_items(lane, wanted):
                pass

    async def _copy_items(self, lane: Lane, keys: Sequence[tuple[Table, Key]]) -> bool:
        """Whether the items arrived; else what they are now is to be read again."""
        by_table: defaultdict[str, list[tuple[Table, Key]]] = defaultdict(list)
        for table, key in keys:
            by_table[table.name].append((table, key))
        found: list[tuple[Table, Key, Item | None]] = []
        for same in by_table.values():
            table = same[0][0]
            items = await self._source.get_many(table, [key for _, key in same])
            found += [(table, key, item) for (_, key), item in zip(same, items, strict=True)]
        for copy_set in gather(found, self._pace, is_priced=self._is_priced, replacing=True):
            if not await _write(lane, copy_set, self._pace):
                return False
        return True


async def _write(
    lane: Lane, copy_set: CopySet, pace: Pace, *, position: Position | None = None
) -> bool:
    """Pay for a set and write it. Raises CopyRefused for the item that is not taken."""
    await pace.take(copy_set.units)
    try:
        return await lane.write(copy_set.writes, position=position, counts=copy_set.counts)
    except ValueError as refused:
        if len(copy_set.writes) == 1:
            key = position_after(copy_set.writes)
            raise CopyRefused(copy_set.writes[0].table, key, refused) from refused
    for write in copy_set.writes:  # one by one, to find out which it is
        single = CopySet()
        single.add(write, 0, 0)
        reached = None if position is None else position_after([write])
        if not await _write(lane, single, pace, position=reached):
            return False
    return True


def _size_bytes(items: Iterable[Item]) -> int:
    return sum(map(item_bytes, items))


def _hash(table: Table, key: Key) -> int:
    """The same in every process."""
    return zlib.crc32(msgspec.json.encode([table.name, *key]))
