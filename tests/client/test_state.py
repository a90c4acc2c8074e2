"""Old state + updates = fresh fetch, whatever was lost, doubled or cut in pieces on the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidings import wire
from tidings.client.frames import (
    BadgeUpdate,
    EntryUpdate,
    ReadUpdate,
    RoomUpdate,
    Row,
    Synced,
    Update,
)
from tidings.client.state import ENTRIES_KEPT_MAX, LocalRoom, State, ranges

ROOMS = ("room_1", "room_2", "room_3")
AT = "2026-11-23T10:00:00.000Z"


class Life:
    """What a service knows of one user, and the frames it would send."""

    def __init__(self) -> None:
        self.logs: dict[str, list[wire.Entry]] = {room: [] for room in ROOMS}
        self.read_seq = dict.fromkeys(ROOMS, 0)
        self.feed = dict.fromkeys(ROOMS, 0)
        self.version = 0
        self.read_version = 0
        self.stamps: list[tuple[int, str, int]] = []

    def unread(self, room: str) -> int:
        return len(self.logs[room]) - self.read_seq[room]

    def total(self) -> wire.Total:
        return wire.Total(sum(map(self.unread, ROOMS)), 0, self.version)

    def post(self, room: str, count: int) -> list[EntryUpdate]:
        self.version += 1
        self.feed[room] = self.version
        log = self.logs[room]
        for _ in range(count):
            seq = len(log) + 1
            log.append(wire.Entry(room, seq, f"ent_{room}{seq}", "text", "usr_b", AT))
            self.stamps.append((self.version, room, seq))
        before = str(self.version - 1)
        return [
            EntryUpdate(
                entry,
                self.unread(room),
                0,
                self.total(),
                self.version,
                str(self.version) if entry is log[-1] else before,
            )
            for entry in log[-count:]
        ]

    def read(self, room: str) -> list[ReadUpdate]:
        if not self.unread(room):
            return []
        self.version += 1
        self.read_version = self.version
        self.read_seq[room] = len(self.logs[room])
        seq = self.read_seq[room]
        return [ReadUpdate(room, seq, 0, 0, self.total(), self.version, str(self.version))]

    def sync(self, since: str | None, have: dict[str, str], limit: int) -> wire.SyncReply:
        """As `/v1/sync`, a window of at most `limit` entries."""
        start = int(since or 0)
        rooms: list[wire.SyncRoom] = []
        is_all = True
        for room in sorted(ROOMS, key=lambda name: self.feed[name]):
            if self.feed[room] <= start and room not in have:
                continue
            if limit == 0:
                is_all = False
                break
            known = _numbers(have[room]) if room in have else self._told(room, start)
            missing = [entry for entry in self.logs[room] if entry.seq not in known]
            is_all = len(missing) <= limit
            rooms.append(
                wire.SyncRoom(
                    room,
                    len(self.logs[room]),
                    self.read_seq[room],
                    self.unread(room),
                    0,
                    missing[:limit],
                )
            )
            limit = max(0, limit - len(missing))
        unread = [
            wire.UnreadRoom(room, self.read_seq[room], self.unread(room), 0)
            for room in ROOMS
            if self.unread(room)
        ]
        cursor = str(self.version if is_all else start)
        return wire.SyncReply(cursor, self.version, self.total(), rooms, not is_all, unread)

    def _told(self, room: str, version: int) -> set[int]:
        return {seq for stamp, name, seq in self.stamps if name == room and stamp <= version}


def _numbers(have: str) -> set[int]:
    pairs = (part.partition("-") for part in have.split(",") if part)
    return {n for low, _, high in pairs for n in range(int(low), int(high or low) + 1)}


steps = st.lists(
    st.tuples(
        st.sampled_from(("post", "post", "post", "read", "break")),
        st.sampled_from(ROOMS),
        st.integers(1, 4),
        st.sets(st.integers(0, 3)),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@given(steps=steps, limit=st.integers(1, 6))
def test_old_state_and_updates_are_a_fresh_fetch(
    steps: list[tuple[str, str, int, set[int], bool, bool]], limit: int
) -> None:
    life, state = Life(), State()
    told: dict[str, list[int]] = {room: [] for room in ROOMS}

    def note(updates: list[Update]) -> None:
        for update in updates:
            if isinstance(update, EntryUpdate):
                told[update.entry.room_id].append(update.entry.seq)

    def catch_up() -> None:
        for _ in range(1_000):
            reply = life.sync(state.cursor, state.have(len(ROOMS)), limit)
            note(state.apply_sync(reply))
            if not reply.more:
                return
        raise AssertionError("the catch-up does not end")

    catch_up()
    for kind, room, count, lost, is_doubled, is_noticed in steps:
        if kind == "break":
            catch_up()
            continue
        frames: Sequence[EntryUpdate | ReadUpdate] = (
            life.post(room, count) if kind == "post" else life.read(room)
        )
        arrived = frames[: min(lost, default=len(frames))]
        for frame in (*arrived, *arrived) if is_doubled else arrived:
            note(state.apply(frame))
        if 0 < len(arrived) < len(frames) or (state.has_gap and is_noticed):
            catch_up()  # the connection broke within a commit, or a version was skipped
    catch_up()

    assert not state.has_gap
    assert not state.holed_rooms
    assert state.version == life.version
    assert state.total == life.total()
    for room, log in life.logs.items():
        assert told[room] == list(range(1, len(log) + 1))
        if log:
            known = state.rooms[room]
            assert known.log() == log
            assert (known.head, known.unread) == (len(log), life.unread(room))
            assert known.read_seq == life.read_seq[room]


def test_what_is_older_than_what_is_shown_is_ignored() -> None:
    state = State()
    state.apply(BadgeUpdate(3, 1, 7))
    state.apply(BadgeUpdate(9, 9, 6))
    assert state.total == wire.Total(3, 1, 7)


def test_a_cursor_from_beyond_a_gap_is_not_taken() -> None:
    life, state = Life(), State()
    state.apply(life.post("room_1", 1)[0])
    assert state.cursor == "1"
    life.post("room_2", 1)
    state.apply(life.post("room_1", 1)[0])
    assert state.has_gap
    assert state.cursor == "1"
    state.apply_sync(life.sync(state.cursor, {}, 100))
    assert not state.has_gap
    assert state.cursor == "3"


def test_a_room_that_begins_in_a_gap_is_left_to_the_catch_up() -> None:
    life, state = Life(), State()
    state.apply(life.post("room_1", 1)[0])
    life.post("room_1", 1)
    for frame in life.post("room_2", 2):  # a commit by which the user joined room 2, say
        state.apply(frame)
    row = Row("room_2", head=2, read_seq=0, unread=2, mentions=0)
    state.apply(RoomUpdate(row, life.version, life.total(), str(life.version)))
    state.apply(BadgeUpdate(4, 0, life.version, str(life.version)))
    assert state.has_gap
    have = state.have(100)
    assert "room_2" not in have, "nothing is claimed that was not kept"
    state.apply_sync(life.sync(state.cursor, have, 100))
    assert not state.has_gap
    assert [entry.seq for entry in state.rooms["room_2"].log()] == [1, 2]


def test_an_unasked_sync_shows_what_was_missed_before_it() -> None:
    life, state = Life(), State()
    state.apply(life.post("room_1", 1)[0])
    life.post("room_1", 1)  # told, and lost
    life.post("room_1", 1)  # not told
    reply = life.sync("2", {}, 100)
    fields = {name: getattr(reply, name) for name in reply.__struct_fields__}
    state.apply(Synced(**fields, since_version=2))
    assert state.has_gap
    assert state.cursor == "1"
    reply = life.sync(state.cursor, {}, 100)
    state.apply(Synced(**{name: getattr(reply, name) for name in fields}, since_version=1))
    assert not state.has_gap
    assert [entry.seq for entry in state.rooms["room_1"].log()] == [1, 2, 3]


def test_a_room_that_was_unread_and_is_not_listed_is_read() -> None:
    life, state = Life(), State()
    for frame in life.post("room_1", 2):
        state.apply(frame)
    life.read("room_1")
    state.apply_sync(life.sync(state.cursor, {}, 100))
    room = state.rooms["room_1"]
    assert (room.unread, room.read_seq) == (0, 2)


def test_the_frame_of_a_commit_says_more_than_the_answer_to_a_read_in_it() -> None:
    for is_answered_first in (True, False):
        life, state = Life(), State()
        state.apply(life.post("room_1", 1)[0])
        life.read_seq["room_1"] = 1  # in one commit with the post that follows
        [frame] = life.post("room_1", 1)
        answer = wire.ReadReply(1, 0, 0, wire.Total(0, 0, 2))
        if is_answered_first:
            state.take_read("room_1", answer)
        state.apply(frame)
        if not is_answered_first:
            state.take_read("room_1", answer)
        room = state.rooms["room_1"]
        assert (room.unread, room.read_seq, state.total) == (1, 1, wire.Total(1, 0, 2))


def test_entries_above_a_hole_wait_for_it() -> None:
    state = State()
    first, second, third = [
        wire.Entry("room_1", seq, f"ent_{seq}", "text", "usr_b", AT) for seq in (1, 2, 3)
    ]
    total = wire.Total(0, 0, 1)
    state.apply(EntryUpdate(first, 1, 0, total, 1))
    assert state.apply(EntryUpdate(third, 3, 0, total, 1)) == []
    assert [room.have() for room in state.holed_rooms] == ["1,3"]
    passed = state.take_range("room_1", [second], 3, is_all=True)
    assert [update.entry.seq for update in passed if isinstance(update, EntryUpdate)] == [2, 3]
    assert state.holed_rooms == []


def test_what_one_may_not_see_is_passed_over() -> None:
    state = State()
    total = wire.Total(0, 0, 1)
    old = wire.Entry("room_1", 1, "ent_1", "text", "usr_b", AT)
    new = wire.Entry("room_1", 9, "ent_9", "joined", None, AT)
    state.apply(EntryUpdate(old, 1, 0, total, 1))
    state.apply(EntryUpdate(new, 1, 0, total, 2))
    passed = state.take_range("room_1", [], 9, is_all=True)
    assert [update.entry.seq for update in passed if isinstance(update, EntryUpdate)] == [9]
    assert state.rooms["room_1"].have() == "1-9"


def test_a_reply_that_was_overtaken_by_a_change_is_fetched_again() -> None:
    state = State()
    total = wire.Total(0, 0, 1)
    text = wire.Entry("room_1", 1, "ent_1", "text", "usr_b", AT, text="first")
    edited = wire.Entry("room_1", 2, "ent_2", "edited", "usr_b", AT, data={"seq": 1})
    state.take_history("room_1", [], 1)
    state.apply(EntryUpdate(edited, 1, 0, total, 1))
    assert state.stale_rooms == []
    state.take_history("room_1", [text], 1)  # as it was before the change
    [room] = state.stale_rooms
    assert state.take_stale(room) == [1]
    state.take_history("room_1", [text, edited], 2)
    state.take_again("room_1", [text])
    room.stale.clear()
    state.take_history("room_1", [text], 2)  # as it is after the change
    assert not room.stale


def test_a_room_out_of_sight_waits_for_its_next_update() -> None:
    state = State()
    total = wire.Total(0, 0, 1)
    first, third = [wire.Entry("room_1", seq, f"e{seq}", "text", "usr_b", AT) for seq in (1, 3)]
    state.apply(EntryUpdate(first, 1, 0, total, 1))
    state.apply(EntryUpdate(third, 1, 0, total, 2))
    [room] = state.holed_rooms
    assert not state.set_aside(room, 1), "an update came meanwhile"
    assert state.holed_rooms == [room]
    assert state.set_aside(room, 2)
    assert state.holed_rooms == []
    fourth = wire.Entry("room_1", 4, "e4", "text", "usr_b", AT)
    state.apply(EntryUpdate(fourth, 1, 0, total, 3))
    assert state.holed_rooms == [room]


def test_a_room_keeps_a_bounded_number_of_entries() -> None:
    room = LocalRoom("room_1", 0)
    count = ENTRIES_KEPT_MAX + 50
    entries = [
        wire.Entry("room_1", seq, f"e{seq}", "text", None, AT) for seq in range(1, count + 1)
    ]
    room.add(entries, is_current=True, as_of=entries[-1].seq)
    assert len(room.advance()) == count
    assert [entry.seq for entry in room.log()] == list(range(51, count + 1))


@given(st.sets(st.integers(1, 60)))
def test_ranges_hold_the_same_numbers(numbers: set[int]) -> None:
    found = ranges(sorted(numbers))
    assert {n for low, high in found for n in range(low, high + 1)} == numbers
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(found))
