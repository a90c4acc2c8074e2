"""The storage interface: what DynamoDB can do, and nothing that it cannot.

A store holds the tables declared in `tidings.storage.tables`. An item is a mapping of the
table's fields; a field that is None is not there. Every engine passes the same contract suite
and the same state machine (`tests/storage`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

WRITE_ITEMS_MAX = 100
"""Items in one `write` to an engine (DynamoDB's limit for a transaction)."""
SET_ITEMS_MAX = WRITE_ITEMS_MAX - 1
"""Items in one `write` of whoever plans them: a move between stores adds one that guards it."""
WRITE_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of items in one `write` (DynamoDB's limit for a transaction)."""
ITEM_BYTES_MAX = 400 * 1024
"""Bytes of one item, names included (DynamoDB's limit)."""
PAGE_ITEMS_MAX = 1_000
"""Items in one page of `query` or `scan`, and keys in one `get_many`."""

Item: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]
"""(partition,) or (partition, sort), in the order of the table's declaration."""
Position: TypeAlias = tuple[Any, ...]
"""Where a page ended: opaque, made of strings and numbers only, valid for the same query."""


class Index(msgspec.Struct, frozen=True):
    """Another order over a table's items. Sparse: an item without both fields is not in it."""

    name: str
    partition: str
    sort: str
    local: bool = False
    """A local index shares the table's partition and can be read strongly consistent."""
    projected: tuple[str, ...] | None = None
    """Fields that a query on it returns besides the keys; None: all of them."""


class Table(msgspec.Struct, frozen=True):
    """One table: its keys, its fields with their types, its indexes and its time to live."""

    name: str
    partition: str
    sort: str | None
    fields: Mapping[str, type]
    """Every field, keys included: str, int, float, bool, bytes, list or dict."""
    indexes: tuple[Index, ...] = ()
    expires: str | None = None
    """The int field, in seconds since 1970, after which reads no longer see the item."""

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The fields of the key, the partition first."""
        return (self.partition,) if self.sort is None else (self.partition, self.sort)

    def key(self, item: Mapping[str, Any]) -> Key:
        """The item's key."""
        if self.sort is None:
            return (item[self.partition],)
        return (item[self.partition], item[self.sort])

    def index(self, name: str) -> Index:
        """The declared index of that name. Raises KeyError."""
        for index in self.indexes:
            if index.name == name:
                return index
        raise KeyError(name)

    def order(self, index: Index | None) -> tuple[str, ...]:
        """The fields that order one partition: of the table, or of an index with ties broken."""
        if index is None:
            return self.key_fields[1:]
        fixed = (index.partition, index.sort)
        return (index.sort, *(field for field in self.key_fields if field not in fixed))


class Exists(msgspec.Struct, frozen=True):
    """The item is there."""


class Absent(msgspec.Struct, frozen=True):
    """The item is not there; one that has expired but was not yet deleted still is."""


class Equals(msgspec.Struct, frozen=True):
    """The item is there and the field has the value; None means that the field is missing."""

    field: str
    value: Any


class LessThan(msgspec.Struct, frozen=True):
    """The item is there and the field is less than the value."""

    field: str
    value: Any


Condition: TypeAlias = Exists | Absent | Equals | LessThan


class Put(msgspec.Struct, frozen=True):
    """Store the whole item in place of what was there."""

    table: Table
    item: Item
    when: tuple[Condition, ...] = ()


class Update(msgspec.Struct, frozen=True):
    """Change fields of an item; makes the item if it is not there and no condition forbids it.

    `add` counts up (or down) from what is stored, and from 0 where nothing is. A field is named
    once. Key fields can't be changed. A `set` to None is a `remove`.
    """

    table: Table
    key: Key
    set: Mapping[str, Any] = {}
    add: Mapping[str, int] = {}
    remove: tuple[str, ...] = ()
    when: tuple[Condition, ...] = ()


class Delete(msgspec.Struct, frozen=True):
    """Remove the item; removing what is not there succeeds unless a condition says otherwise."""

    table: Table
    key: Key
    when: tuple[Condition, ...] = ()


class Check(msgspec.Struct, frozen=True):
    """Change nothing, but let the whole write depend on the conditions."""

    table: Table
    key: Key
    when: tuple[Condition, ...]


Write: TypeAlias = Put | Update | Delete | Check


class Page(msgspec.Struct, frozen=True):
    """Some items in order, and where to go on; `after` is None at the end."""

    items: list[Item]
    after: Position | None


class Failure(msgspec.Struct, frozen=True):
    """A write whose condition did not hold, and the item as it physically is, expired or not."""

    index: int
    item: Item | None


class ConditionFailed(Exception):
    """A `write` changed nothing, because conditions did not hold: `failures`, all that failed."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__(f"conditions failed: {[failure.index for failure in failures]}")


class Store(Protocol):
    """A store of items. Safe for any number of tasks of one event loop.

    Raises `ConditionFailed` from `write`; ValueError for what no engine takes (more than
    WRITE_ITEMS_MAX items, an item above ITEM_BYTES_MAX, two writes of one item in a set, unknown
    fields, a limit out of range); `tidings.errors.Unavailable` where the engine can't be reached
    or its disk is full: the caller then does not know whether the write was applied, and
    may send the same set again if its conditions make the second time fail.
    """

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """The item, or None where there is none or it has expired."""
        ...

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """The items in the order of the keys (at most PAGE_ITEMS_MAX). Not a snapshot."""
        ...

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
        """Items of one partition by sort key, ascending unless `reverse`.

        `low` and `high` are inclusive bounds of the sort key (or of the index's); `prefix` goes
        with strings and excludes them. A global index can't be read `consistent` (ValueError).
        A page may hold fewer than `limit` items and still have an `after`.
        """
        ...

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """All items of the table, in no promised order; the segments together are all of it.

        Expired items are left out.
        """
        ...

    async def write(self, *writes: Write) -> None:
        """All of it or nothing, durable on return. Conditions see the state before the set.

        Two writes of one set never name the same item.
        """
        ...

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """Puts without conditions and without atomicity, in bulk; all are durable on return."""
        ...

    async def close(self) -> None:
        """Finish what was accepted and let go of the engine. Closing twice is fine."""
        ...
