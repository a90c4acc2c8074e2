"""What a write does to an item, by the rules of the interface: for whoever has to know without
asking the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidings.storage.interface import Check, Delete, Item, Key, Put, Update, Write


def write_key(write: Write) -> Key:
    """The key of what is written; of a put, whole or not: that is for the store to refuse."""
    if not isinstance(write, Put):
        return write.key
    return tuple(write.item.get(field) for field in write.table.key_fields)


def after_write(write: Write, before: Mapping[str, Any] | None) -> Item | None:
    """What is stored once the write was applied to what was stored before."""
    match write:
        case Put():
            return write.item
        case Delete():
            return None
        case Check():
            return None if before is None else {**before}
        case Update():
            item = dict(zip(write.table.key_fields, write.key, strict=True)) | dict(before or {})
            item |= write.set
            item |= {field: (item.get(field) or 0) + add for field, add in write.add.items()}
            item |= dict.fromkeys(write.remove)
            return item
