"""How large an item is, by the rules that AWS publishes for DynamoDB.

Source: "DynamoDB item sizes and formats" in the Amazon DynamoDB Developer Guide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTAINER_BYTES = 3
"""What a list or a map weighs before its contents; each element adds one byte more."""


def item_bytes(item: Mapping[str, Any]) -> int:
    """Bytes of the names, which are ASCII, and values of all fields that are there."""
    size = 0
    for name, value in item.items():
        if type(value) is str:  # most values, and what pages of entries are made of
            size += len(name) + (len(value) if value.isascii() else len(value.encode()))
        elif type(value) is int:
            size += len(name) + (len(str(abs(value)).rstrip("0")) + 1) // 2 + 1
        elif value is not None:
            size += len(name) + value_bytes(value)
    return size


def value_bytes(value: Any) -> int:
    """Bytes of one value; those of numbers are AWS's own approximation. TypeError otherwise."""
    match value:
        case str():
            return _text_bytes(value)
        case bytes():
            return len(value)
        case bool() | None:
            return 1
        case int() | float():
            return _number_bytes(value)
        case list() | tuple():
            return CONTAINER_BYTES + sum(1 + value_bytes(element) for element in value)
        case dict():
            return CONTAINER_BYTES + sum(
                1 + _text_bytes(name) + value_bytes(element) for name, element in value.items()
            )
        case _:
            raise TypeError(f"no store takes a {type(value).__name__}")


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _number_bytes(number: float) -> int:
    """One byte for two significant digits, and one more."""
    mantissa = repr(abs(number)).partition("e")[0].replace(".", "").strip("0")
    return (len(mantissa) + 1) // 2 + 1
