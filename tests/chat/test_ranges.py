"""Ranges of sequences against plain sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.chat import ranges
from tidings.errors import ValidationFailed

HEAD = 60
pairs = st.tuples(st.integers(1, HEAD), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))


def members(found: object) -> set[int]:
    assert isinstance(found, (tuple, list))
    return {seq for low, high in found for seq in range(low, high + 1)}


@settings(deadline=None)
@given(st.lists(pairs, max_size=8))
def test_parsing_joins_and_orders(parts: list[tuple[int, int]]) -> None:
    parsed = ranges.parse(",".join(f"{low}-{high}" for low, high in parts))
    assert members(parsed) == members(parts)
    assert all(low <= high for low, high in parsed)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(parsed))
    assert ranges.parse(ranges.encode(parsed)) == parsed


@settings(deadline=None)
@given(
    st.lists(pairs, max_size=8), st.integers(0, HEAD), st.integers(0, HEAD), st.integers(1, HEAD)
)
def test_missing_is_the_lowest_of_what_is_left(
    parts: list[tuple[int, int]], head: int, limit: int, first: int
) -> None:
    missing = ranges.missing(ranges.merge(parts), head, limit, first)
    left = sorted(set(range(first, head + 1)) - members(parts))
    assert [seq for low, high in missing for seq in range(low, high + 1)] == left[:limit]


def test_none_and_single_sequences() -> None:
    assert ranges.parse("") == ()
    assert ranges.parse("105,1-97") == ((1, 97), (105, 105))
    assert ranges.missing(ranges.parse("1-97,105,110-200"), 202, 100) == [
        (98, 104),
        (106, 109),
        (201, 202),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("0", "5-3", "0-4", "1-", "-1", "a", "1,,2", "1-2-3", " 1", "1 ", "+1", "01", "1.5", "²"),
        *("9" * 17, f"1-{2**53}", ",", "1\n"),
        ",".join(str(2 * number + 1) for number in range(501)),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        ranges.parse(text)
    assert refused.value.errors[0].field == "have"
