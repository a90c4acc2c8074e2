"""What was last seen of items, in bounded memory: so that a meter need not read what a write
replaces.

What is remembered is what this process read or wrote. Another process may have changed the item
since; whoever plans a write on a read of its own, as commits do, has refreshed it by that read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

from tidings.storage.effects import after_write, write_key
from tidings.storage.interface import Item, Key, Table, Write

REMEMBERED_ITEMS_MAX = 10_000
"""Items kept, the ones used last; some 2 KB of memory each."""

_Name: TypeAlias = tuple[str, Key]


class Remembered:
    """The last known state of items by table and key; None for one that is known to be absent."""

    def __init__(self, items_max: int = REMEMBERED_ITEMS_MAX) -> None:
        self._items_max = items_max
        self._items: OrderedDict[_Name, Item | None] = OrderedDict()

    def find(self, table: Table, key: Key) -> Item | None:
        """What is known of the item. Raises KeyError where nothing is."""
        name = (table.name, key)
        found = self._items[name]
        self._items.move_to_end(name)
        return found

    def see(self, table: Table, key: Key, item: Item | None, *, is_new: bool = True) -> None:
        """Remember the item as it is now; unless `is_new`, only if it was known before."""
        name = (table.name, key)
        if not is_new and name not in self._items:
            return
        self._items[name] = None if item is None else dict(item)
        self._items.move_to_end(name)
        if len(self._items) > self._items_max:
            self._items.popitem(last=False)

    def follow(self, writes: Sequence[Write]) -> None:
        """Keep up with writes that were applied to items of which something is known."""
        for write in writes:
            key = write_key(write)
            try:
                before = self.find(write.table, key)
            except KeyError:
                continue
            self.see(write.table, key, after_write(write, before))

    def forget(self, writes: Sequence[Write]) -> None:
        """Nothing is known any more of what these writes name."""
        for write in writes:
            self._items.pop((write.table.name, write_key(write)), None)

    def clear(self) -> None:
        """Nothing is known any more."""
        self._items.clear()
