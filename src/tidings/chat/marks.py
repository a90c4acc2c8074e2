"""Marks: where in a room a user was at which version, so that a cursor needs no clock.

A user's inbox row keeps a few marks `version:seq`: after the user's commit `version`, their log
position in the room was `seq`. For any cursor the greatest mark not after it is a position from
which nothing is missed. Marks are dense near the head and their gaps grow behind it in proportion
to the distance, so what is sent again is in proportion to what is new: in a room of one entry a
commit at most as much up to 600 entries, at most 3 times as much up to 40,000.

Marks stay text, as they are stored: a commit appends to the text of each member, and only every
`MARKS_MAX - MARKS_KEPT` commits they are read and thinned out.
"""

from __future__ import annotations

from itertools import count
from typing import TypeAlias

MARKS_MAX = 24
"""Marks in one row."""
MARKS_KEPT = 14
"""Marks that a thinning leaves: the first one, from when the user joined, always among them."""

Marks: TypeAlias = str
"""`version:seq` pairs with blanks between, both ascending; empty where there are none."""


def parse(marks: Marks) -> tuple[tuple[int, int], ...]:
    """The marks as (version, seq) pairs. Raises ValueError for anything else."""
    pairs = (pair.split(":") for pair in marks.split())
    return tuple((int(version), int(seq)) for version, seq in pairs)


def append(marks: Marks, version: int, seq: int) -> Marks:
    """Marks after a commit that brought the user to `version` and the position to `seq`.

    Both only grow; a commit that did not move the position leaves the marks as they are.
    """
    if not marks:
        return f"{version}:{seq}"
    position_text = f":{seq}"
    if marks.endswith(position_text):
        return marks
    if marks.count(" ") < MARKS_MAX - 1:
        return f"{marks} {version}{position_text}"
    return _thinned([*marks.split(" "), f"{version}{position_text}"])


def _thinned(pairs: list[str]) -> Marks:
    """At most MARKS_KEPT of the marks.

    A gap that this leaves is no larger than what lies after it times a factor: 1 if that is
    enough for a room as long as this one, else the first of 3, 7, 15, … that is.
    """
    seqs = [int(pair[pair.index(":") + 1 :]) for pair in pairs]
    for exponent in count(1):
        kept = _spaced(seqs, 1 << exponent)
        if len(kept) <= MARKS_KEPT:
            break
    return " ".join([pairs[index] for index in reversed(kept)])


def _spaced(seqs: list[int], growth: int) -> list[int]:
    """Indexes to keep, newest first; each is `growth` times as far from the head as the last."""
    newest = len(seqs) - 1
    head = seqs[newest]
    kept = [newest]
    allowed = head
    for index in range(newest - 1, -1, -1):
        if index == 0 or seqs[index - 1] < allowed:
            kept.append(index)
            allowed = head - growth * (head - seqs[index])
    return kept


def position(marks: Marks, version: int) -> int:
    """The greatest marked sequence at or before that version; 0 where there is none."""
    found = 0
    for marked, seq in parse(marks):
        if marked > version:
            break
        found = seq
    return found
