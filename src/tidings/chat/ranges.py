"""Ranges of sequences, such as `1-97,105`: what a client has, and what it therefore lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from tidings.errors import FieldError, ValidationFailed
from tidings.wire import HAVE_RANGES_MAX, SEQ_MAX

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""(low, high), both inclusive; ascending, and neither overlapping nor adjacent."""

_is_range = re.compile(r"(?:[1-9][0-9]{0,15})(?:-[1-9][0-9]{0,15})?").fullmatch


def parse(text: str) -> Ranges:
    """Read ranges as clients write them; an empty text means none.

    They may come in any order and overlap. Raises ValidationFailed for a range that is reversed,
    holds zero, is out of bounds or malformed, and for more than HAVE_RANGES_MAX of them.
    """
    if not text:
        return ()
    parts = text.split(",")
    if len(parts) > HAVE_RANGES_MAX:
        raise _invalid(f"At most {HAVE_RANGES_MAX} ranges fit.")
    ranges = []
    for part in parts:
        if _is_range(part) is None:
            raise _invalid("Ranges are written as 1-97,105.")
        low, _, high = part.partition("-")
        pair = (int(low), int(high or low))
        if not pair[0] <= pair[1] <= SEQ_MAX:
            raise _invalid("A range goes from a lower to a higher sequence.")
        ranges.append(pair)
    return merge(ranges)


def _invalid(detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError("have", detail),))


def merge(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The same sequences as ranges in ascending order, joined where they touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def encode(ranges: Ranges) -> str:
    """Write ranges as `parse` reads them."""
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


def missing(ranges: Ranges, head: int, limit: int, first: int = 1) -> list[tuple[int, int]]:
    """The lowest `limit` sequences of first…head that are in none of the ranges, as ranges."""
    found: list[tuple[int, int]] = []
    next_seq = first
    for low, high in (*ranges, (head + 1, head + 1)):
        if limit <= 0 or next_seq > head:
            break
        gap_end = min(low - 1, head, next_seq + limit - 1)
        if gap_end >= next_seq:
            found.append((next_seq, gap_end))
            limit -= gap_end - next_seq + 1
        next_seq = max(next_seq, high + 1)
    return found
