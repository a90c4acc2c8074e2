"""Which keys of a store changed: captured by the store itself, whoever writes to it.

A change is known from the moment it is committed until a copier has read the item after it and
says so with `forget`. Nothing but keys is captured: what is copied is always read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from tidings.storage.interface import Key, Table
from tidings.storage.tables import MOVES, TABLES

CAPTURED_TABLES: tuple[Table, ...] = tuple(table for table in TABLES if table is not MOVES)
"""Everything but the books of moves themselves, which are each store's own."""


class Change(msgspec.Struct, frozen=True):
    """An item that was put, changed or deleted."""

    table: Table
    key: Key
    mark: str | int
    """Which change of the item; opaque."""


class Capture(Protocol):
    """What changed in one store. One copier uses it at a time, and a stale one does no harm.

    Raises `tidings.errors.Unavailable` where the store does not answer.
    """

    async def begin(self, *, is_unread: bool = False) -> None:
        """From its return on, every change of an item by any process is captured.

        Lasting, and without effect where it began already. Where it `is_unread`, nobody needs what
        was captured so far, and it may be dropped.
        """
        ...

    async def pending(self, limit: int) -> list[Change]:
        """Up to `limit` changes, those that wait longest first, each item once."""
        ...

    async def forget(self, changes: Sequence[Change]) -> None:
        """These were copied. An item that changed again after it was told stays pending."""
        ...

    async def lag(self) -> int:
        """How many items are known to wait."""
        ...

    async def is_drained(self) -> bool:
        """Whether all that was changed before this call was copied and forgotten.

        Only for a store that nobody writes to any more; elsewhere it may never be true.
        """
        ...

    async def end(self) -> None:
        """Capture nothing more, and drop what waits. Without effect where it ended already."""
        ...

    async def close(self) -> None:
        """Let go of connections; what is captured stays."""
        ...
