"""Attributes: RFC 7396, and bounds in count, size and depth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.errors import ValidationFailed
from tidings.people.attributes import merge_attributes

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
SMALL = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        LEAVES,
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


@pytest.mark.parametrize(
    ("stored", "patch", "merged"),
    [  # the cases of RFC 7396, appendix A, that are objects
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(stored: dict[str, Any], patch: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge_attributes(stored, patch) == merged


@settings(deadline=None)
@given(SMALL, SMALL)
def test_merging_twice_changes_nothing_more(stored: dict[str, Any], patch: dict[str, Any]) -> None:
    try:
        once = merge_attributes(stored, patch)
    except ValidationFailed:
        return
    assert merge_attributes(once, patch) == once


def test_neither_argument_is_changed() -> None:
    stored, patch = {"a": {"b": 1}}, {"a": {"c": 2}}
    merged = merge_attributes(stored, patch)
    assert (stored, patch) == ({"a": {"b": 1}}, {"a": {"c": 2}})
    assert merged == {"a": {"b": 1, "c": 2}}


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_bounds() -> None:
    many = {str(number): 1 for number in range(50)}
    assert merge_attributes({}, many) == many
    assert merge_attributes(many, {"0": None, "50": 1}) != many
    assert merge_attributes({}, _nested(5)) == _nested(5)
    for stored, patch in (
        (many, {"50": 1}),
        ({}, _nested(6)),
        ({}, _nested(5_000)),
        ({}, {"a": [[[[[1]]]]]}),
        ({}, {"": 1}),
        ({"a": "x" * 10_000}, {"b": "x" * 10_000}),
    ):
        with pytest.raises(ValidationFailed) as refused:
            merge_attributes(stored, patch)
        assert refused.value.errors[0].field == "attributes"
