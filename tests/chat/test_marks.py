"""Marks never skip an entry, stay few, and send again at most in proportion to what is new."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.chat import marks as marking

Commits = list[tuple[int, int]]
"""(version, seq) after each commit of a user in one room."""


def commits(*, length_max: int = 300) -> st.SearchStrategy[Commits]:
    """Histories: versions grow by other rooms' commits too; some commits add no entry."""
    growth = st.one_of(st.integers(0, 2), st.integers(0, 40), st.sampled_from([1, 1, 1_000_000]))
    steps = st.lists(st.tuples(st.integers(1, 5), growth), min_size=1, max_size=length_max)
    return steps.map(_accumulated)


def _accumulated(steps: list[tuple[int, int]]) -> Commits:
    versions = accumulate(version for version, _ in steps)
    return list(zip(versions, accumulate(growth for _, growth in steps), strict=True))


def marks_after(history: Commits) -> marking.Marks:
    marks = ""
    for version, seq in history:
        marks = marking.append(marks, version, seq)
    return marks


def true_position(history: Commits, version: int) -> int:
    """Where the log stood for the user at that version."""
    index = bisect_right(history, version, key=lambda commit: commit[0])
    return history[index - 1][1] if index else 0


@given(commits())
def test_no_cursor_ever_skips_an_entry(history: Commits) -> None:
    marks = marks_after(history)
    for version in range(history[-1][0] + 3):
        assert marking.position(marks, version) <= true_position(history, version)


@given(commits())
def test_the_newest_and_the_first_position_are_exact(history: Commits) -> None:
    marks = marks_after(history)
    assert marking.position(marks, history[-1][0]) == history[-1][1]
    assert marking.position(marks, history[0][0]) == history[0][1]
    assert marking.position(marks, history[0][0] - 1) == 0


@given(commits())
def test_marks_ascend_and_stay_few_after_every_commit(history: Commits) -> None:
    marks = ""
    for version, seq in history:
        marks = marking.append(marks, version, seq)
        pairs = marking.parse(marks)
        assert len(pairs) <= marking.MARKS_MAX
        assert all(older[0] < newer[0] and older[1] < newer[1] for older, newer in pairwise(pairs))
        assert set(pairs) <= set(history)


@given(commits(), st.integers(1, 1_000))
def test_a_position_that_did_not_move_leaves_no_mark(history: Commits, later: int) -> None:
    marks = marks_after(history)
    version, seq = history[-1]
    assert marking.append(marks, version + later, seq) == marks


def oversend_factor(history: Commits) -> float:
    """The largest ratio of entries sent again to entries that are new, over all cursors."""
    marks = marks_after(history)
    head = history[-1][1]
    worst = 0.0
    for version, seq in history:
        again = seq - marking.position(marks, version)
        if again:
            worst = max(worst, again / (head - seq))
    return worst


def factor_promised(history: Commits) -> int:
    """The first of 1, 3, 7, … that is surely enough: each two marks multiply the distance."""
    pairs_of_marks = (marking.MARKS_KEPT - 2) // 2
    factor = 1
    while (1 + factor) ** pairs_of_marks < history[-1][1]:
        factor = 2 * factor + 1
    return factor


@given(commits())
def test_what_is_sent_again_is_in_proportion_to_what_is_new(history: Commits) -> None:
    assert oversend_factor(history) <= factor_promised(history)


@pytest.mark.parametrize(("length", "factor"), [(600, 1), (40_000, 3)])
def test_one_entry_a_commit_sends_little_again(length: int, factor: int) -> None:
    history = [(version, version) for version in range(1, length + 1)]
    assert oversend_factor(history) <= factor


def test_marks_read_as_they_are_stored() -> None:
    assert marking.parse("3:0 5:2") == ((3, 0), (5, 2))
    assert marking.parse("") == ()
    assert marking.append("3:0", 5, 2) == "3:0 5:2"


@pytest.mark.parametrize("text", ["3", "3:", "3:4:5", "a:b", "3:4,5:6"])
def test_what_are_no_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        marking.parse(text)
