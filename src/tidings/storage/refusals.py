"""What no engine takes: names, types, limits and combinations, refused with a ValueError."""

from __future__ import annotations

from collections.abc import Sequence

from tidings.storage.interface import (
    ITEM_BYTES_MAX,
    PAGE_ITEMS_MAX,
    WRITE_BYTES_MAX,
    WRITE_ITEMS_MAX,
    Index,
    Item,
    Key,
    Put,
    Table,
    Update,
    Write,
)
from tidings.storage.sizes import item_bytes


def check_type(table: Table, field: str, kind: type, *, is_optional: bool = False) -> None:
    """Raises ValueError if the table has no such field, or declares it otherwise."""
    declared = table.fields.get(field)
    if declared is None:
        raise ValueError(f"{table.name} has no field {field!r}")
    if (declared is float and kind is int) or (is_optional and kind is type(None)):
        return
    if not issubclass(kind, declared) or (declared is int and kind is bool):
        raise ValueError(f"{table.name}.{field} is of {declared.__name__}, not {kind.__name__}")


def check_key(table: Table, key: Key) -> None:
    """Raises ValueError if the key's length or types are not the table's."""
    fields = table.key_fields
    if len(key) != len(fields):
        raise ValueError(f"a key of {table.name} is {fields}")
    for field, part in zip(fields, key, strict=True):
        check_type(table, field, type(part))


def check_has_key(table: Table, item: Item) -> None:
    """Raises ValueError if the item lacks a field of its key."""
    for field in table.key_fields:
        if field not in item:
            raise ValueError(f"an item of {table.name} has {field!r}")


def check_changes(write: Update) -> None:
    """Raises ValueError for fields named twice, unknown or of the key, and for odd additions."""
    table = write.table
    changed = (*write.set, *write.add, *write.remove)
    if len(set(changed)) != len(changed):
        raise ValueError("an update names a field once")
    if not set(changed) <= table.fields.keys() - set(table.key_fields):
        raise ValueError(f"{table.name} has no such fields, or they are keys: {changed}")
    for field, value in write.add.items():
        if table.fields[field] is not int or type(value) is not int:
            raise ValueError("only whole numbers can be added, and to int fields")


def check_comparison(table: Table, field: str, kind: type) -> None:
    """Raises ValueError if the field can't be less than a value of that type."""
    check_type(table, field, kind)
    if table.fields[field] not in (int, float, str):
        raise ValueError("only numbers and strings are less than others")


def check_count(writes: Sequence[Write]) -> None:
    """Raises ValueError if one write holds too many items."""
    if len(writes) > WRITE_ITEMS_MAX:
        raise ValueError(f"a write holds at most {WRITE_ITEMS_MAX} items")


def check_distinct(writes: Sequence[Write]) -> None:
    """Raises ValueError if two writes name the same item."""
    if len(writes) > 1:
        items = {
            (write.table.name, write.table.key(write.item) if isinstance(write, Put) else write.key)
            for write in writes
        }
        if len(items) != len(writes):
            raise ValueError("two writes of one set name the same item")


def check_sizes(writes: Sequence[Write]) -> None:
    """Raises ValueError if an item, or all together, weigh too much.

    What an `Update` adds to an item counts alone.
    """
    sizes = [_written_bytes(write) for write in writes]
    if sizes and max(sizes) > ITEM_BYTES_MAX:
        raise ValueError(f"an item weighs at most {ITEM_BYTES_MAX} bytes")
    if sum(sizes) > WRITE_BYTES_MAX:
        raise ValueError(f"a write weighs at most {WRITE_BYTES_MAX} bytes")


def _written_bytes(write: Write) -> int:
    if isinstance(write, Put):
        return item_bytes(write.item)
    if isinstance(write, Update):
        return item_bytes({**write.set, **write.add})
    return 0


def check_limit(limit: int) -> None:
    """Raises ValueError if a page can't hold so many items."""
    if not 1 <= limit <= PAGE_ITEMS_MAX:
        raise ValueError(f"a page holds 1 to {PAGE_ITEMS_MAX} items")


def check_key_count(keys: Sequence[Key]) -> None:
    """Raises ValueError if so many keys can't be read at once."""
    if len(keys) > PAGE_ITEMS_MAX:
        raise ValueError(f"at most {PAGE_ITEMS_MAX} keys are read at once")


def check_segment(segment: int, segments: int) -> None:
    """Raises ValueError if there is no such segment."""
    if not 0 <= segment < segments:
        raise ValueError("a segment is from 0 to segments - 1")


def declared_index(table: Table, name: str) -> Index:
    """The index of that name. Raises ValueError if the table has none."""
    try:
        return table.index(name)
    except KeyError:
        raise ValueError(f"{table.name} has no index {name!r}") from None
