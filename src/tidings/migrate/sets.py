"""Items on their way: how many go together, what they cost, and which one a store refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from tidings.errors import Conflict
from tidings.migrate.lanes import SET_ITEMS_MAX
from tidings.storage.interface import Delete, Item, Key, Put, Table
from tidings.storage.pacing import Pace, delete_units, put_units
from tidings.storage.sizes import item_bytes

SET_BYTES_MAX = 2 * 1024 * 1024
"""Bytes of items in one set, far below what a transaction may hold."""
LANE_UNITS = 2
"""What the row of the lane costs that goes with each set."""


class CopyRefused(Conflict):
    """The store that is copied to does not take an item."""

    def __init__(self, table: Table, key: Key, reason: object) -> None:
        self.table = table
        self.key = key
        name = "#".join(map(str, key))
        super().__init__(
            f"The store that is copied to refuses the item {name!r} of {table.name} ({reason})."
            " Change or delete it where it is, and go on."
        )


class CopySet(msgspec.Struct):
    """What one transaction copies."""

    writes: list[Put | Delete] = []
    size_bytes: int = 0
    units: int = 0

    def add(self, write: Put | Delete, size_bytes: int, units: int) -> None:
        """Take one more."""
        self.writes.append(write)
        self.size_bytes += size_bytes
        self.units += units

    @property
    def counts(self) -> dict[str, int]:
        """What a lane counts of it."""
        return {"items": len(self.writes), "bytes": self.size_bytes, "units": self.units}


def gather(
    found: Iterable[tuple[Table, Key, Item | None]],
    pace: Pace,
    *,
    is_priced: bool,
    replacing: bool = False,
) -> Iterator[CopySet]:
    """Sets in the order of what was found; an item that is None is deleted.

    A set is no larger than a burst of the pace, unless it holds but one item. Where the store that
    is copied to has no price, units are not counted.
    """
    waiting, burst = _new_set(is_priced), pace.burst_units
    for table, key, item in found:
        write: Put | Delete
        if item is None:
            write, size_bytes = Delete(table, key), 0
            units = delete_units(table, transactional=True) if is_priced else 0
        else:
            write, size_bytes = Put(table, item), item_bytes(item)
            units = 0
            if is_priced:
                units = put_units(
                    table, item, transactional=True, replacing=replacing, size_bytes=size_bytes
                )
        if waiting.writes and (
            len(waiting.writes) == SET_ITEMS_MAX
            or waiting.size_bytes + size_bytes > SET_BYTES_MAX
            or (burst is not None and waiting.units + units > burst)
        ):
            yield waiting
            waiting, burst = _new_set(is_priced), pace.burst_units
        waiting.add(write, size_bytes, units)
    if waiting.writes:
        yield waiting


def _new_set(is_priced: bool) -> CopySet:
    return CopySet(units=LANE_UNITS if is_priced else 0)


def position_after(writes: Sequence[Put | Delete]) -> Key:
    """The key of the last item."""
    last = writes[-1]
    return last.table.key(last.item) if isinstance(last, Put) else last.key
