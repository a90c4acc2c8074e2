"""Whether two stores hold the same, while one is in use and the other follows it.

Every item of either store is looked up in the other one. What differs at first sight may just be
on its way, so it is read again around passes of the follower: a difference is what the source held
before and after, and the destination did not hold in between, two times the same. (Once could also
be an item that changed in between, and changed back.) Differences are copied again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import msgspec

from tidings.migrate.captures import CAPTURED_TABLES
from tidings.migrate.copying import READ_KEYS_MAX, Follow, Part, divide, read_part
from tidings.storage.interface import Item, Key, Position, Store, Table

PARTS_AT_ONCE = 4
"""Parts that are compared at the same time; with the pages of a backfill, of both stores, the bound
of memory."""
SUSPECTS_MAX = 2_000
"""Items that wait to be read again; so many are looked at before the comparison goes on."""
ROUNDS_MAX = 5
"""How often an item is read again that changes all the time; more than twice."""
SAMPLE_MAX = 20
"""Differences that a report shows."""
SETTLE_S = 1.0
"""How long a round waits where no follower tells when it has passed."""

_MODULUS = 2**64
_encode = msgspec.json.Encoder(order="sorted").encode
_Name: TypeAlias = tuple[str, Key]


class Difference(msgspec.Struct, frozen=True):
    """An item that was not the same in both stores."""

    table: str
    key: Key
    fields: tuple[str, ...]
    """The fields that differ; none where one store lacks the item."""
    lacking: str = ""
    """Which store lacks it: "source" or "destination"."""

    def __str__(self) -> str:
        name = f"{self.table} {'#'.join(map(str, self.key))}"
        if self.lacking:
            return f"{name}: not in the {self.lacking}"
        return f"{name}: {', '.join(self.fields)}"


class TableReport(msgspec.Struct):
    """One table of both stores.

    The hashes do not depend on any order: equal counts and hashes are equal items, but for an
    accident of 64 bits.
    """

    table: str
    source_items: int = 0
    destination_items: int = 0
    source_hash: int = 0
    destination_hash: int = 0
    differences: int = 0
    mended: int = 0
    """Differences that were gone after they were copied again."""
    unsettled: int = 0
    """Differences that are left."""
    moving: int = 0
    """Items that changed whenever they were looked at; the follower has them."""

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.unsettled


class Report(msgspec.Struct):
    """What a comparison found."""

    tables: list[TableReport]
    sample: list[Difference]
    """Some of the differences, mended ones too."""

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs in any table."""
        return all(table.is_equal for table in self.tables)


class Comparison:
    """Compares two stores, once. The follower has to be at work meanwhile, by `run` or `step`.

    Without a follower nothing is mended.
    """

    def __init__(
        self,
        source: Store,
        destination: Store,
        follow: Follow | None,
        *,
        tables: Sequence[Table] = CAPTURED_TABLES,
    ) -> None:
        self.compared = 0
        """Items that were looked at so far, those of either store."""
        self._source = source
        self._destination = destination
        self._follow = follow
        self._tables = {table.name: table for table in tables}
        self._reports = {table.name: TableReport(table.name) for table in tables}
        self._sample: list[Difference] = []
        self._suspects: dict[_Name, Table] = {}
        self._settling = asyncio.Lock()

    async def run(self) -> Report:
        """Compare everything. Raises Unavailable where a store does not answer; Stale."""
        tables = [*self._tables.values()]
        for store, compare in (
            (self._source, self._compare_page),
            (self._destination, self._find_extra),
        ):
            waiting = await divide(store, tables)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(PARTS_AT_ONCE):
                        group.create_task(self._work(store, waiting, compare))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from failed
            await self._settle()
        return Report([*self._reports.values()], self._sample)

    async def _work(
        self,
        store: Store,
        waiting: list[Part],
        compare: Callable[[Table, Sequence[Item]], Awaitable[None]],
    ) -> None:
        while waiting:
            part = waiting.pop()
            table = self._tables[part.table]
            after: Position | None = None
            while True:
                page = await read_part(store, table, part, after)
                await compare(table, page.items)
                self.compared += len(page.items)
                if len(self._suspects) >= SUSPECTS_MAX:
                    await self._settle()
                after = page.after
                if after is None:
                    break

    async def _compare_page(self, table: Table, items: Sequence[Item]) -> None:
        keys = [table.key(item) for item in items]
        theirs = await self._destination.get_many(table, keys)
        for key, ours, other in zip(keys, items, theirs, strict=True):
            if ours == other:
                digest = _digest(ours)
                self._count(table, digest, digest)
            else:
                self._suspects[table.name, key] = table

    async def _find_extra(self, table: Table, items: Sequence[Item]) -> None:
        keys = [table.key(item) for item in items]
        ours = await self._source.get_many(table, keys)
        for key, item in zip(keys, ours, strict=True):
            if item is None:
                self._suspects[table.name, key] = table

    def _count(self, table: Table, ours: int, theirs: int) -> None:
        report = self._reports[table.name]
        report.source_items += ours != 0
        report.destination_items += theirs != 0
        report.source_hash = (report.source_hash + ours) % _MODULUS
        report.destination_hash = (report.destination_hash + theirs) % _MODULUS

    async def _settle(self) -> None:
        """Find out what the suspects are, mend what differs, and count them all."""
        async with self._settling:
            suspects, self._suspects = self._suspects, {}
            differing = await self._look_again(suspects)
            for name in differing:
                self._reports[name[0]].differences += 1
            if self._follow is None or not differing:
                for table, _ in differing:
                    self._reports[table].unsettled += 1
                return
            for table_name in {name[0] for name in differing}:
                keys = [key for name, key in differing if name == table_name]
                await self._follow.copy(self._tables[table_name], keys)
            left = await self._look_again(differing, is_counting=False)
            for name in differing:
                if name in left:
                    self._reports[name[0]].unsettled += 1
                else:
                    self._reports[name[0]].mended += 1

    async def _look_again(
        self, suspects: dict[_Name, Table], *, is_counting: bool = True
    ) -> dict[_Name, Table]:
        """Those of the suspects that differ while nobody changes them."""
        differing: dict[_Name, Table] = {}
        seen: dict[_Name, tuple[int, int]] = {}
        for _ in range(ROUNDS_MAX):
            if not suspects:
                return differing
            before = await _read(self._source, suspects)
            await self._passed()
            theirs = await _read(self._destination, suspects)
            after = await _read(self._source, suspects)
            moving: dict[_Name, Table] = {}
            for name, table in suspects.items():
                if theirs[name] in (before[name], after[name]):
                    ours = theirs[name]
                elif before[name] == after[name] and seen.get(name) == (after[name], theirs[name]):
                    ours = after[name]
                    differing[name] = table
                    await self._show(name, table)
                else:
                    seen[name] = (after[name], theirs[name])
                    moving[name] = table
                    continue
                if is_counting:
                    self._count(table, ours, theirs[name])
            suspects = moving
        for name, table in suspects.items():
            self._reports[name[0]].moving += 1
            if is_counting:
                self._count(table, after[name], after[name])
        return differing

    async def _show(self, name: _Name, table: Table) -> None:
        shown = {(each.table, each.key) for each in self._sample}
        if len(self._sample) >= SAMPLE_MAX or name in shown:
            return
        ours = await self._source.get(table, name[1])
        theirs = await self._destination.get(table, name[1])
        if ours is None or theirs is None:
            lacking = "source" if ours is None else "destination"
            self._sample.append(Difference(*name, fields=(), lacking=lacking))
            return
        fields = [field for field in {**ours, **theirs} if ours.get(field) != theirs.get(field)]
        self._sample.append(Difference(*name, fields=tuple(sorted(fields))))

    async def _passed(self) -> None:
        if self._follow is None:
            await asyncio.sleep(SETTLE_S)
        else:
            await self._follow.passed()


async def _read(store: Store, names: dict[_Name, Table]) -> dict[_Name, int]:
    """What the items are in the store now, as digests."""
    found: dict[_Name, int] = {}
    for table in {table.name: table for table in names.values()}.values():
        keys = [key for name, key in names if name == table.name]
        for at in range(0, len(keys), READ_KEYS_MAX):
            some = keys[at : at + READ_KEYS_MAX]
            items = await store.get_many(table, some)
            found |= {
                (table.name, key): _digest(item) for key, item in zip(some, items, strict=True)
            }
    return found


def _digest(item: Item | None) -> int:
    """The same for equal items, 0 for none."""
    if item is None:
        return 0
    return int.from_bytes(hashlib.blake2b(_encode(item), digest_size=8).digest())
