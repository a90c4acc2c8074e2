"""Items as DynamoDB's attribute values, and back, so that what is read equals what was written.

Lists and maps are DynamoDB's own. Its numbers know no difference between 2 and 2.0 and end at
1E-130, so a float within a list or a map that they would change is a set of one string, its digits;
nothing else is stored as a set. Maps come back in the order of their names, as from the embedded
engine.

Source: "Supported data types and naming rules" in the Amazon DynamoDB Developer Guide.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tidings.storage.interface import Item, Key, Table
from tidings.storage.refusals import check_has_key, check_key, check_type

PARTITION_BYTES_MAX = 2_048
"""Bytes of a partition key that is a string."""
SORT_BYTES_MAX = 1_024
"""Bytes of a sort key that is a string."""
NUMBER_END = 10**38
"""Whole numbers are below it, on either side of 0: they have 38 digits at most."""
NUMBER_LEAST = 1e-130
"""The least number above 0."""

Value: TypeAlias = dict[str, Any]
"""One attribute value, such as {"S": "text"} or {"N": "7"}."""


def whole(value: int) -> Value:
    """A whole number. Raises ValueError for one of too many digits."""
    if not -NUMBER_END < value < NUMBER_END:
        raise ValueError("a number has at most 38 digits")
    return {"N": str(value)}


def _number(value: float) -> Value:
    if isinstance(value, int):
        return whole(value)
    if not math.isfinite(value):
        raise ValueError("a number is finite")
    return {"N": repr(value)}


def _inner(value: Any) -> Value:
    """A value within a list or a map, whose type is its own. Raises ValueError for others."""
    match value:
        case str():
            return {"S": value}
        case bool():
            return {"BOOL": value}
        case int():
            return whole(value)
        case None:
            return {"NULL": True}
        case float():
            if value.is_integer() or abs(value) < NUMBER_LEAST:
                return {"SS": [repr(value)]}
            return _number(value)
        case list() | tuple():
            return _list(value)
        case dict():
            return _map(value)
        case _:
            raise ValueError(f"no engine takes a {type(value).__name__} in a list or a map")


def _list(values: Any) -> Value:
    return {"L": [_inner(value) for value in values]}


def _map(values: Mapping[str, Any]) -> Value:
    return {"M": {name: _inner(value) for name, value in values.items()}}


def _read_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _read_inner(value: Value) -> Any:
    ((kind, content),) = value.items()
    match kind:
        case "S" | "BOOL":
            return content
        case "N":
            return _read_number(content)
        case "NULL":
            return None
        case "SS":
            return float(content[0])
        case "L":
            return [_read_inner(inner) for inner in content]
        case "M":
            return {name: _read_inner(content[name]) for name in sorted(content)}
        case _:
            raise AssertionError(f"Tidings stores no {kind} in a list or a map")


_WRITERS: Mapping[type, Callable[[Any], Value]] = {
    str: lambda value: {"S": value},
    int: whole,
    float: _number,
    bool: lambda value: {"BOOL": value},
    bytes: lambda value: {"B": base64.b64encode(value).decode()},
    list: _list,
    dict: _map,
}
_READERS: Mapping[type, Callable[[Value], Any]] = {
    str: lambda value: value["S"],
    int: lambda value: int(value["N"]),
    float: lambda value: float(value["N"]),
    bool: lambda value: value["BOOL"],
    bytes: lambda value: base64.b64decode(value["B"]),
    list: _read_inner,
    dict: _read_inner,
}
KEY_TYPES: Mapping[type, str] = {str: "S", int: "N", float: "N", bytes: "B"}
"""What DynamoDB calls the types that a key may have."""


def can_be_key(key: Key) -> bool:
    """Whether an item with that key, or with a partition alone, could be stored at all.

    Empty strings and too long ones can't; whoever looks for them finds nothing.
    """
    for part, bytes_max in zip(key, (PARTITION_BYTES_MAX, SORT_BYTES_MAX), strict=False):
        if part == "" or (isinstance(part, str) and len(part.encode()) > bytes_max):
            return False
    return True


class Attributes:
    """One table's items as attribute values.

    Raises ValueError for what does not fit the table's declaration.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._readers = {field: _READERS[kind] for field, kind in table.fields.items()}

    def value(self, field: str, value: Any) -> Value:
        """One field's value."""
        kind = type(value)
        if kind is not self.table.fields.get(field):
            check_type(self.table, field, kind)
            kind = self.table.fields[field]
        return _WRITERS[kind](value)

    def item(self, item: Item) -> dict[str, Value]:
        """A whole item; fields that are None are left out."""
        check_has_key(self.table, item)
        encode = self.value
        values = {name: encode(name, value) for name, value in item.items() if value is not None}
        if len(values) != len(item):
            self._check_absent(item)
        if not can_be_key(self.table.key(item)):
            raise ValueError(f"an empty or too long key of {self.table.name}")
        return values

    def _check_absent(self, item: Item) -> None:
        for name, value in item.items():
            if value is None:
                check_type(
                    self.table, name, type(None), is_optional=name not in self.table.key_fields
                )

    def key(self, key: Key) -> dict[str, Value]:
        """A whole key."""
        check_key(self.table, key)
        if not can_be_key(key):
            raise ValueError(f"an empty or too long key of {self.table.name}")
        return {
            field: self.value(field, part)
            for field, part in zip(self.table.key_fields, key, strict=True)
        }

    def read(self, values: Mapping[str, Value]) -> Item:
        """An item as it was written; attributes that the table does not declare are left out."""
        readers = self._readers
        return {name: readers[name](value) for name, value in values.items() if name in readers}

    def fields(self, names: Sequence[str], values: Mapping[str, Value]) -> tuple[Any, ...]:
        """Some fields alone, in that order: a key, or a position in a query."""
        return tuple(self._readers[name](values[name]) for name in names)
