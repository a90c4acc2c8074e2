"""What a device knows: rooms, entries and counts such that old state + updates = fresh fetch.

Pure values: nothing here does I/O. Counts are shown as the service said them, never counted.
Each count remembers the version that it was told with, and an older one is ignored. A room that
was read elsewhere while the device was away is shown as read to its head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from tidings import wire
from tidings.client.frames import (
    BadgeUpdate,
    EntryUpdate,
    PresenceUpdate,
    QueueUpdate,
    ReaderUpdate,
    ReadUpdate,
    Received,
    RoomUpdate,
    Row,
    Synced,
    TypingUpdate,
    Update,
)

ENTRIES_KEPT_MAX = 500
"""Newest entries that are kept of each room."""
ROOMS_KEPT_MAX = 10_000
"""Rooms that are kept; the one that was touched least recently goes."""
VERSIONS_AHEAD_MAX = 1_000
"""Versions remembered past a gap; more make no difference, the catch-up brings them."""
STALE_MAX = 200
"""Entries of a room that wait to be fetched again; past it the oldest stay as they are."""

_NAMING_TYPES = frozenset({"edited", "deleted", "reaction"})


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as inclusive ranges."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def named_by(entry: wire.Entry) -> int | None:
    """The sequence of the entry that this one says was edited, deleted or reacted to."""
    return entry.data.get("seq") if entry.type in _NAMING_TYPES else None


class LocalRoom:
    """One room as the device knows it.

    `position` is the sequence up to which the device has told everything to its owner, in order;
    entries above it wait for a hole to be filled.
    """

    __slots__ = (
        "counts_version",
        "entries",
        "head",
        "left",
        "mentions",
        "muted",
        "position",
        "read_seq",
        "room_id",
        "stale",
        "unread",
    )

    def __init__(self, room_id: str, position: int) -> None:
        self.room_id = room_id
        self.position = position
        self.head = position
        self.entries: dict[int, wire.Entry] = {}
        self.read_seq = 0
        self.unread = 0
        self.mentions = 0
        self.muted = False
        self.left = False
        self.counts_version = -1
        self.stale: set[int] = set()
        """Entries that were changed after they came, and have to be fetched again."""

    def __repr__(self) -> str:
        return (
            f"LocalRoom({self.room_id!r}, head={self.head}, read_seq={self.read_seq}, "
            f"unread={self.unread}, mentions={self.mentions}, left={self.left})"
        )

    @property
    def has_hole(self) -> bool:
        """Whether an entry is known to exist that the device does not have."""
        return not self.left and self.position < self.head

    def have(self) -> str:
        """What need not be sent: `1-97,105`. What came before the device looked is claimed too."""
        above = ranges(sorted(seq for seq in self.entries if seq > self.position))
        if self.position:
            above.insert(0, (1, self.position))
        shown = above[: wire.HAVE_RANGES_MAX]
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in shown)

    def log(self) -> list[wire.Entry]:
        """The entries that the device has, ascending."""
        return [self.entries[seq] for seq in sorted(self.entries)]

    def set_counts(
        self, version: int, *, unread: int, mentions: int, read_seq: int | None = None
    ) -> bool:
        """Show these counts if they are not older than those shown; whether they were taken."""
        if version < self.counts_version:
            return False
        self.counts_version = version
        self.unread, self.mentions = unread, mentions
        if read_seq is not None:
            self.read_seq = max(self.read_seq, read_seq)
        return True

    def add(self, entries: Sequence[wire.Entry], *, is_current: bool, as_of: int) -> None:
        """Take entries as they were when the head was `as_of`, or later.

        `is_current` says that they were read now and replace what is there. Replies and updates
        overtake each other: what is known to have changed after `as_of` is fetched again.
        """
        if self.head > as_of:
            taken = {entry.seq for entry in entries}
            self._doubt(taken & {named_by(self.entries[seq]) for seq in self._after(as_of)})
        for entry in entries:
            seq = entry.seq
            self.head = max(self.head, seq)
            if is_current or seq not in self.entries:
                self.entries[seq] = entry
            named = named_by(entry)
            if named is not None and named in self.entries:
                self._doubt((named,))

    def _after(self, seq: int) -> list[int]:
        return [known for known in self.entries if known > seq]

    def _doubt(self, seqs: Iterable[int | None]) -> None:
        for seq in seqs:
            if seq is not None and len(self.stale) < STALE_MAX:
                self.stale.add(seq)

    def advance(self, *, through: int = 0) -> list[wire.Entry]:
        """Move `position` over what is there, and return the entries that it passed, in order.

        What is missing up to `through` is taken to be none of the user's business (from before
        they joined, say) and passed over.
        """
        passed: list[wire.Entry] = []
        while True:
            entry = self.entries.get(self.position + 1)
            if entry is not None:
                passed.append(entry)
                self.position += 1
            elif self.position < through:
                self.position += 1
            else:
                break
        if len(self.entries) > ENTRIES_KEPT_MAX:
            for seq in sorted(self.entries)[: len(self.entries) - ENTRIES_KEPT_MAX]:
                if seq <= self.position:
                    del self.entries[seq]
                    self.stale.discard(seq)
        return passed


class State:
    """All that a device knows.

    `version` is the last one up to which nothing was missed, `cursor` where to go on from. A
    frame whose version is further than one ahead leaves a gap (`has_gap`) until a catch-up.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, LocalRoom] = {}
        self.total = wire.Total(0, 0, 0)
        self.version = 0
        self.cursor: str | None = None
        self._ahead: set[int] = set()
        self._missed = 0
        """The last version of which something was left to the catch-up."""
        self._holed: dict[str, None] = {}
        self._stale: dict[str, None] = {}

    @property
    def has_gap(self) -> bool:
        """Whether updates were missed."""
        return bool(self._ahead) or self.version < self._missed

    @property
    def holed_rooms(self) -> list[LocalRoom]:
        """Rooms of which entries are missing."""
        return [self.rooms[room_id] for room_id in self._holed if room_id in self.rooms]

    @property
    def stale_rooms(self) -> list[LocalRoom]:
        """Rooms with entries that have to be fetched again."""
        return [self.rooms[room_id] for room_id in self._stale if room_id in self.rooms]

    def have(self, rooms_max: int) -> dict[str, str]:
        """What the device has of the rooms that were touched last."""
        recent: list[str] = []
        for room_id in reversed(self.rooms):
            if len(recent) >= rooms_max:
                break
            if not self.rooms[room_id].left:
                recent.append(room_id)
        return {room_id: self.rooms[room_id].have() for room_id in recent}

    def apply(self, frame: Received) -> list[Update]:
        """Take one frame; the updates that it led to, entries in order and each once."""
        match frame:
            case EntryUpdate():
                return self._apply_entry(frame)
            case Synced() if frame.since_version > self.version:
                self._missed = max(self._missed, frame.version)  # more than it brings was missed
                return []
            case Synced():
                return self.apply_sync(frame.reply)
            case ReadUpdate():
                self._reach(frame.version, frame.cursor)
                self._take_total(frame.total)
                room = self.rooms.get(frame.room_id)
                if room is not None:
                    room.set_counts(
                        frame.total.version,
                        unread=frame.unread,
                        mentions=frame.mentions,
                        read_seq=frame.read_seq,
                    )
                return [frame]
            case BadgeUpdate():
                self._reach(frame.version, frame.cursor)
                self._take_total(wire.Total(frame.unread, frame.mentions, frame.version))
                return [frame]
            case RoomUpdate():
                self._reach(frame.version, frame.cursor)
                if frame.total is not None:
                    self._take_total(frame.total)
                if self._begins_in_gap(frame.room.room_id, frame.version):
                    return []
                self.take_item(frame.room, frame.version)
                return [frame]
            case QueueUpdate() | TypingUpdate() | ReaderUpdate() | PresenceUpdate():
                return [frame]
            case _:
                return []

    def take_read(self, room_id: str, read: wire.ReadReply) -> None:
        """The device's own read mark was accepted.

        Something may have been posted in the same commit: its frame tells the counts after all
        of it, the answer those after the mark. So the answer counts only where it is newer.
        """
        room = self.rooms.get(room_id)
        if room is not None:
            room.read_seq = max(room.read_seq, read.read_seq)
            if read.total.version > room.counts_version:
                room.set_counts(read.total.version, unread=read.unread, mentions=read.mentions)
        if read.total.version > self.total.version:
            self.total = read.total

    def take_item(self, item: wire.InboxItem | Row, version: int) -> None:
        """Show an inbox row that is at least as new as `version`."""
        room = self._touch(item.room_id, item.head)
        room.head = max(room.head, item.head)
        if room.set_counts(
            version, unread=item.unread, mentions=item.mentions, read_seq=item.read_seq
        ):
            room.left, room.muted = item.left, item.muted
        self._note(room)

    def take_history(self, room_id: str, entries: Sequence[wire.Entry], head: int) -> None:
        """Show entries that were fetched now; they are nobody's news."""
        room = self._touch(room_id, head)
        room.add(entries, is_current=True, as_of=head)
        self._note(room)

    def take_range(
        self, room_id: str, entries: Sequence[wire.Entry], head: int, *, is_all: bool
    ) -> list[Update]:
        """Take what was missing of a room; with `is_all` there is no more up to `head`."""
        room = self._touch(room_id, head)
        room.head = max(room.head, head)
        room.add(entries, is_current=True, as_of=head)
        return self._tell(room, through=head if is_all else 0)

    def take_again(self, room_id: str, entries: Iterable[wire.Entry]) -> None:
        """Replace entries by what they are now."""
        room = self.rooms.get(room_id)
        if room is not None:
            for entry in entries:
                if entry.seq in room.entries:
                    room.entries[entry.seq] = entry

    def set_aside(self, room: LocalRoom, counts_version: int) -> bool:
        """The room can't be seen: what is missing of it waits for the next update about it.

        False if there was one since `counts_version`, and it is worth another try.
        """
        if room.counts_version != counts_version:
            return False
        self._holed.pop(room.room_id, None)
        self._stale.pop(room.room_id, None)
        return True

    def put_stale_back(self, room: LocalRoom, seqs: Iterable[int]) -> None:
        """They could not be fetched."""
        room.stale.update(seqs)
        self._stale[room.room_id] = None

    def take_stale(self, room: LocalRoom) -> list[int]:
        """The entries of the room to be fetched again; they are forgotten as such."""
        seqs = sorted(room.stale)
        room.stale.clear()
        self._stale.pop(room.room_id, None)
        return seqs

    def apply_sync(self, reply: wire.SyncReply) -> list[Update]:
        """Take a catch-up from `cursor`; complete up to its version unless there is `more`."""
        updates: list[Update] = []
        for synced in reply.rooms:
            first = synced.entries[0].seq - 1 if synced.entries else synced.head
            room = self._touch(synced.room_id, first)
            room.head = max(room.head, synced.head)
            if room.set_counts(
                reply.version,
                unread=synced.unread,
                mentions=synced.mentions,
                read_seq=synced.read_seq,
            ):
                room.left = synced.left is True
            room.add(synced.entries, is_current=True, as_of=synced.head)
            updates += self._tell(room)
            updates.append(
                ReadUpdate(room.room_id, room.read_seq, room.unread, room.mentions, reply.total)
            )
        if reply.unread_rooms is not UNSET:
            self._take_unread_rooms(reply.unread_rooms, reply.version)
        self._take_total(reply.total)
        if not reply.more:
            self.version = max(self.version, reply.version)
            self._settle()
        self.cursor = reply.cursor
        updates.append(BadgeUpdate(self.total.unread, self.total.mentions, self.total.version))
        return updates

    def _apply_entry(self, frame: EntryUpdate) -> list[Update]:
        self._reach(frame.version, frame.cursor)
        self._take_total(frame.total)
        entry = frame.entry
        if self._begins_in_gap(entry.room_id, frame.version):
            return []
        room = self._touch(entry.room_id, entry.seq - 1)
        room.set_counts(frame.version, unread=frame.unread, mentions=frame.mentions)
        if room.position + 1 == entry.seq and room.head < entry.seq:
            room.add((entry,), is_current=False, as_of=entry.seq)
            room.advance()
            if room.stale:
                self._stale[room.room_id] = None
            return [frame]
        room.add((entry,), is_current=False, as_of=entry.seq)
        return self._tell(room)

    def _begins_in_gap(self, room_id: str, version: int) -> bool:
        """Whether it is not known where the room began, so that this is left to the catch-up."""
        if room_id in self.rooms or not self.has_gap:
            return False
        self._ahead.discard(version)
        self._missed = max(self._missed, version)
        return True

    def _tell(self, room: LocalRoom, *, through: int = 0) -> list[Update]:
        passed = room.advance(through=through)
        self._note(room)
        return [
            EntryUpdate(entry, room.unread, room.mentions, self.total, room.counts_version)
            for entry in passed
        ]

    def _note(self, room: LocalRoom) -> None:
        if room.has_hole:
            self._holed[room.room_id] = None
        else:
            self._holed.pop(room.room_id, None)
        if room.stale:
            self._stale[room.room_id] = None

    def _touch(self, room_id: str, position: int) -> LocalRoom:
        room = self.rooms.pop(room_id, None)
        if room is None:
            room = LocalRoom(room_id, position)
            if len(self.rooms) >= ROOMS_KEPT_MAX:
                oldest = next(iter(self.rooms))
                del self.rooms[oldest]
                self._holed.pop(oldest, None)
                self._stale.pop(oldest, None)
        self.rooms[room_id] = room
        return room

    def _take_total(self, total: wire.Total) -> None:
        if total.version >= self.total.version:
            self.total = total

    def _take_unread_rooms(self, unread_rooms: Sequence[wire.UnreadRoom], version: int) -> None:
        named = {unread.room_id for unread in unread_rooms}
        for unread in unread_rooms:
            room = self.rooms.get(unread.room_id)
            if room is not None:
                room.set_counts(
                    version,
                    unread=unread.unread,
                    mentions=unread.mentions,
                    read_seq=unread.read_seq,
                )
        for room in self.rooms.values():
            if room.room_id not in named and room.set_counts(version, unread=0, mentions=0):
                room.read_seq = max(room.read_seq, room.head)

    def _reach(self, version: int | None, cursor: str | None) -> None:
        """A frame of that version came. A cursor from beyond a gap would skip what is missing."""
        if version is None:
            return
        if version <= self.version + 1:
            self.version = max(self.version, version)
            self._settle()
            if cursor is not None and version == self.version and not self.has_gap:
                self.cursor = cursor
        elif len(self._ahead) < VERSIONS_AHEAD_MAX:
            self._ahead.add(version)

    def _settle(self) -> None:
        if self._ahead:
            while self.version + 1 in self._ahead:
                self.version += 1
            self._ahead = {version for version in self._ahead if version > self.version}
