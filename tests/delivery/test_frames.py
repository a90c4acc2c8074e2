"""Updates as frames: one at a time and joined, they say the same."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tidings import wire
from tidings.chat.updates import PostedEntry, RoomUpdate, UserUpdate
from tidings.delivery import frames
from tidings.delivery.frames import FRAME_BYTES_MAX, FRAME_UPDATES_MAX, Told


def posted(room_id: str, seq: int, text: str) -> PostedEntry:
    return PostedEntry(
        wire.Entry(room_id, seq, "ent_1", "text", "ann", "2026-11-23T10:12:01.000Z", text=text)
    )


rooms = st.builds(
    lambda number, texts, is_read_moved, is_row_changed: RoomUpdate(
        room_id=f"r{number}",
        head=len(texts),
        read_seq=1,
        unread=2,
        mentions=1,
        entries=[posted(f"r{number}", seq, text) for seq, text in enumerate(texts, 1)],
        is_read_moved=is_read_moved,
        is_row_changed=is_row_changed,
    ),
    st.integers(1, 3),
    st.lists(st.text(max_size=20), max_size=5),
    st.booleans(),
    st.booleans(),
)


def told_of(*of: RoomUpdate) -> Told:
    update = UserUpdate("bob", 7, 5, 1, of)
    items = {"r1": frames.encode({"room_id": "r1"})}
    return Told(update, previous_cursor="before", cursor="after", room_items=items)


def pieces_of(told: Told) -> list[list[dict[str, Any]]]:
    pieces = [msgspec.json.decode(b"[" + piece + b"]") for piece, _ in told.joined]
    assert [len(piece) for piece in pieces] == [count for _, count in told.joined]
    return pieces


@given(st.lists(rooms, max_size=4))
def test_joined_and_single_frames_are_the_same(of: list[RoomUpdate]) -> None:
    told = told_of(*of)
    each = list(told.each())
    joined = [frame for piece in pieces_of(told) for frame in piece]
    assert [msgspec.json.decode(text) for _, _, text in each] == joined
    assert [frame["type"] for frame in joined] == [name for name, _, _ in each]
    assert [frame["cursor"] for frame in joined] == [cursor for _, cursor, _ in each]
    assert len(joined) == told.count >= 1
    assert [frame["cursor"] for frame in joined] == ["before"] * (told.count - 1) + ["after"]
    assert {frame["version"] for frame in joined} == {7}
    entries = [posted.entry for room in of for posted in room.entries]
    shown = [frame["entry"] for frame in joined if frame["type"] == "entry"]
    assert msgspec.convert(shown, list[wire.Entry]) == entries


def test_pieces_keep_to_the_limits_of_a_frame() -> None:
    many = [posted("r1", seq, "x" * (5_000 if seq % 3 else 1)) for seq in range(1, 700)]
    told = told_of(RoomUpdate("r1", 700, 0, 1, 0, many))
    assert len(told.joined) > 700 // FRAME_UPDATES_MAX
    for piece, count in told.joined:
        assert count <= FRAME_UPDATES_MAX
        assert len(piece) <= FRAME_BYTES_MAX
    seqs = [frame["entry"]["seq"] for piece in pieces_of(told) for frame in piece]
    assert seqs == list(range(1, 700))


def test_a_commit_that_shows_nothing_still_tells_its_version() -> None:
    ((badge,),) = pieces_of(told_of(RoomUpdate("r1", 1, 1, 0, 0)))
    assert badge == {"type": "badge", "unread": 5, "mentions": 1, "version": 7, "cursor": "after"}
