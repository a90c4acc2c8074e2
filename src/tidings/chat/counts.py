"""How entries count: what they put on a member's row, and which of them have to be gone over.

Pure functions from the log and a row to the row's counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidings import wire
from tidings.chat.rows import Participation
from tidings.storage.interface import Item

COUNT_ENTRIES_MAX = 1_000
"""Entries that one step of a read, or of a fold, goes through."""


def is_countable(entry: Item) -> bool:
    """Whether an entry counts as unread for those who did not send it."""
    return entry["type"] in wire.COUNTABLE_TYPES


def fold(row: Participation, user_id: str, entries: Iterable[Item]) -> None:
    """Count the entries after `counted_seq`, which follow it without a hole, into the row.

    +1 for a countable entry of someone else, -1 for a `deleted` one that names an entry which was
    still unread. Also moves `counted_seq` and the preview.
    """
    for entry in entries:
        seq: int = entry["seq"]
        assert seq == row.counted_seq + 1, "a fold goes over the log without holes"
        row.counted_seq = seq
        if is_countable(entry):
            if entry.get("sender_id") != user_id:
                row.unread += 1
                if user_id in (entry.get("mentions") or ()):
                    row.mentions += 1
            renew_preview(row, entry)
        elif entry["type"] == "deleted":
            named = entry["data"]
            if row.preview_seq == named["seq"]:
                row.preview = None
            if named["seq"] > row.read_seq and named["sender_id"] != user_id:
                row.unread -= 1
                if user_id in named["mentions"]:
                    row.mentions -= 1
    assert row.unread >= row.mentions >= 0, "counts are never negative"


def renew_preview(row: Participation, entry: Item) -> None:
    """Show the entry in the inbox, and when it came."""
    row.preview = preview_of(entry)
    row.preview_seq = entry["seq"]
    row.active_at = entry["created_at"]


def preview_of(entry: Item) -> str | None:
    """How the text begins; of a message without one, what its first file is called."""
    text: str | None = entry.get("text")
    if text is None and entry.get("blobs"):
        text = entry["blobs"][0]["name"]
    return None if text is None else text[: wire.PREVIEW_CHARACTERS_MAX]


def counted(user_id: str, entries: Iterable[Item], counted_seq: int) -> tuple[int, int]:
    """(unread, mentions) that entries put on a user whose row counts up to `counted_seq`."""
    unread = mentions = 0
    for entry in entries:
        deleted_seq = entry.get("deleted_seq")
        if (
            is_countable(entry)
            and entry.get("sender_id") != user_id
            and (deleted_seq is None or deleted_seq > counted_seq)
        ):
            unread += 1
            if user_id in (entry.get("mentions") or ()):
                mentions += 1
    return unread, mentions


def read_range(seen: Participation, head: int, seq: int) -> tuple[int, int] | None:
    """The stored sequences, inclusive, that moving a read mark to `seq` has to count.

    `seen` and `head` are the row and the room's head before the commit, so that loading and
    planning agree. The side of the mark that is shorter is counted; where both are longer than
    COUNT_ENTRIES_MAX the move is a step. None where nothing stored has to be counted.
    """
    if seq <= seen.read_seq or seq >= head:
        return None
    below, above = seq - seen.read_seq, head - seq
    if above <= min(below, COUNT_ENTRIES_MAX):
        return seq + 1, head
    return seen.read_seq + 1, seen.read_seq + min(below, COUNT_ENTRIES_MAX)


def fold_range(seen: Participation, head: int) -> tuple[int, int] | None:
    """The stored sequences, inclusive, that one step of a fold goes over, if any."""
    if seen.counted_seq >= head:
        return None
    return seen.counted_seq + 1, fold_end(seen.counted_seq, head)


def fold_end(counted_seq: int, head: int) -> int:
    """Up to which sequence one step of a fold counts, in a log that ends at `head`."""
    return min(head, counted_seq + COUNT_ENTRIES_MAX)
