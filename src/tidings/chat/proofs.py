"""The invariants as checks: each a small function from facts to what is wrong, or None.

The names in the tables of checks are stable: scripts and alerts may rest on them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, get_args

import msgspec

from tidings import wire
from tidings.chat import marks as marking
from tidings.chat.rows import (
    BadgeRow,
    Participation,
    RoomRow,
    participation_from_item,
    room_from_item,
)
from tidings.storage.interface import Item

_ENTRY_TYPES = frozenset(get_args(wire.EntryType))
_ROOM_KINDS = frozenset(get_args(wire.RoomKind))
_NAMING_TYPES = frozenset({"edited", "deleted", "reaction"})
"""Types that name an earlier entry as `data.seq`."""


def is_counted(entry: Mapping[str, Any], user_id: str, counted_seq: int) -> bool:
    """Whether the entry is unread for a user who has not read it, as of `counted_seq`.

    A deletion counts from its own entry on: one that stands after `counted_seq` is not yet known
    to the user's counts.
    """
    if entry["type"] not in wire.COUNTABLE_TYPES or entry.get("sender_id") == user_id:
        return False
    deleted_seq = entry.get("deleted_seq")
    return deleted_seq is None or deleted_seq > counted_seq


def contribution_of(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """What a stored inbox row adds to its user's unread and mentions; None where that is nothing.

    A muted or left room counts for itself at most, never in the total.
    """
    if item.get("is_muted") or item.get("is_left"):
        return None
    counts = (item.get("unread") or 0, item.get("mentions") or 0)
    return counts if any(counts) else None


# What a check sees. Facts are of one moment.


class Log:
    """What the checks need to know of one room's entries, added in ascending order.

    About 40 bytes an entry while a room is looked at; a deletion or a join takes 100 more.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.joins: set[int] = set()
        self.leaves = 0
        self._live = array("q")
        self._own: dict[str, array[int]] = {}
        self._mentions: dict[str, array[int]] = {}
        self._deleted: list[tuple[int, int, str | None, tuple[str, ...]]] = []
        """(deleted_seq, seq, sender, mentioned), ordered by the first when the log is whole."""
        self._claims: dict[int, int] = {}
        """Deleted entry to the seq that its `deleted_seq` claims."""
        self._deletions: dict[int, int] = {}
        """Seq of a `deleted` entry to the entry that it names."""
        self._keyed = array("q")
        self._hashes = array("q")
        self._due = bytearray()
        """Per entry with a client_id: its seq, the hash of its receipt's sort key, and whether
        that receipt must still be there."""

    def skip(self, entry: Item) -> None:
        """Take in the next entry, of which no more than the sequence makes sense."""
        self.last_seq = entry["seq"]

    def add(self, entry: Item, *, is_receipt_due: bool = False) -> None:
        """Take in the next entry, whose `entry.fields` hold."""
        seq: int = entry["seq"]
        kind: str = entry["type"]
        sender: str | None = entry.get("sender_id")
        self.last_seq = seq
        deleted_seq: int | None = entry.get("deleted_seq")
        if deleted_seq is not None:
            self._claims[seq] = deleted_seq
        if kind in wire.COUNTABLE_TYPES:
            mentioned = entry.get("mentions") or ()
            if deleted_seq is not None:
                self._deleted.append((deleted_seq, seq, sender, tuple(mentioned)))
            else:
                self._live.append(seq)
                if sender is not None:
                    self._own.setdefault(sender, array("q")).append(seq)
                for user_id in mentioned:
                    if user_id != sender:
                        self._mentions.setdefault(user_id, array("q")).append(seq)
        elif kind == "deleted":
            self._deletions[seq] = named_seq(entry) or 0
        elif kind == "joined":
            self.joins.add(seq)
        elif kind == "left":
            self.leaves += 1
        client_id = entry.get("client_id")
        if client_id is not None:
            self._keyed.append(seq)
            self._hashes.append(hash(f"{sender}#{client_id}"))
            self._due.append(is_receipt_due)

    def seal(self) -> None:
        """Say that all entries were added; counts may be asked for from now on."""
        self._deleted.sort(key=lambda deleted: deleted[:2])

    def unread(self, user_id: str, read_seq: int, counted_seq: int) -> int:
        """The fold of the log for a user who read up to `read_seq`, as of `counted_seq`."""
        unread = _between(self._live, read_seq, counted_seq)
        own = self._own.get(user_id)
        if own is not None:
            unread -= _between(own, read_seq, counted_seq)
        return unread + sum(
            sender != user_id for sender, _ in self._deleted_later(read_seq, counted_seq)
        )

    def mentions(self, user_id: str, read_seq: int, counted_seq: int) -> int:
        """Like `unread`, of the entries that mention the user."""
        mine = self._mentions.get(user_id)
        mentions = 0 if mine is None else _between(mine, read_seq, counted_seq)
        return mentions + sum(
            sender != user_id and user_id in mentioned
            for sender, mentioned in self._deleted_later(read_seq, counted_seq)
        )

    def _deleted_later(
        self, read_seq: int, counted_seq: int
    ) -> Iterator[tuple[str | None, tuple[str, ...]]]:
        first = bisect_right(self._deleted, counted_seq, key=lambda deleted: deleted[0])
        for index in range(first, len(self._deleted)):
            _, seq, sender, mentioned = self._deleted[index]
            if read_seq < seq <= counted_seq:
                yield sender, mentioned

    def deletions_unmatched(self) -> Iterator[tuple[int, str]]:
        """Entries that are deleted by none, and deletions of entries that don't know of it."""
        for seq, deleted_seq in self._claims.items():
            if self._deletions.get(deleted_seq) != seq:
                yield seq, f"deleted_seq {deleted_seq} is no `deleted` entry that names it"
        for deleted_seq, seq in self._deletions.items():
            if self._claims.get(seq) != deleted_seq:
                yield deleted_seq, f"deletes {seq}, which is not deleted by it"

    def take_receipt(self, receipt: str, seq: int) -> bool:
        """Note a receipt; False where the entry is not the one of that sender and client_id."""
        index = bisect_right(self._keyed, seq) - 1
        if index < 0 or self._keyed[index] != seq or self._hashes[index] != hash(receipt):
            return False
        self._due[index] = False
        return True

    def receipts_missing(self) -> Iterator[int]:
        """Seqs of entries whose receipt is due, and was not taken."""
        return (seq for seq, is_due in zip(self._keyed, self._due, strict=True) if is_due)

    def repeated_keys(self) -> Iterator[list[int]]:
        """Seqs, ascending, of entries that seem to share sender and client_id."""
        repeated: dict[int, list[int]] = {}
        previous: int | None = None
        for value in sorted(self._hashes):
            if value == previous:
                repeated[value] = []
            previous = value
        if repeated:
            for index, value in enumerate(self._hashes):
                if value in repeated:
                    repeated[value].append(self._keyed[index])
        yield from repeated.values()


def _between(seqs: array[int], after: int, up_to: int) -> int:
    return max(0, bisect_right(seqs, up_to) - bisect_right(seqs, after))


def named_seq(entry: Item) -> int | None:
    """The earlier entry that this one is about, if it names one."""
    seq = (entry.get("data") or {}).get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) else None


class RoomFacts(msgspec.Struct, frozen=True):
    """A room, its log and what else is stored of it."""

    item: Item
    room: RoomRow
    log: Log
    members: int
    has_fanout: bool
    is_scheduled: bool
    """Whether the schedule has the end of the room's snooze."""


class MemberFacts(msgspec.Struct, frozen=True):
    """A member row, with the inbox row that belongs to it."""

    user_id: str
    joined_seq: int
    room: RoomRow
    log: Log
    row: Participation | None
    has_user: bool


class RowFacts(msgspec.Struct, frozen=True):
    """An inbox row, with room, member row and badge that belong to it."""

    user_id: str
    row: Participation
    room: RoomRow | None
    joined_seq: int | None
    """Of the member row; None where there is none."""
    badge: BadgeRow | None


class BadgeFacts(msgspec.Struct, frozen=True):
    """A user's totals, and the sums over the rows that they should be."""

    badge: BadgeRow
    unread: int
    mentions: int


# Rows that can't even be read as what they are.


def room_from_row(item: Item) -> RoomRow | str:
    """The room, or what is wrong with the stored fields (`room.fields`)."""
    wrong = _missing(item, ("kind", "created_at", "head", "epoch", "member_count"))
    if wrong:
        return wrong
    room = room_from_item(item)
    if room.kind not in _ROOM_KINDS:
        return f"kind {room.kind!r}"
    if min(room.head, room.epoch, room.member_count) < 0:
        return "a negative head, epoch or member_count"
    if (room.kind == "support") != (room.status is not None):
        return f"a {room.kind} room of status {room.status!r}"
    return room


def row_from_item(item: Item) -> Participation | str:
    """The inbox row, or what is wrong with the stored fields (`inbox.fields`)."""
    numbers = ("unread", "mentions", "read_seq", "counted_seq", "joined_seq", "active_at", "feed")
    wrong = _missing(item, ("kind", *numbers))
    if wrong:
        return wrong
    if min(item[name] for name in numbers) < 0:
        return "a negative number"
    return participation_from_item(item)


def _missing(item: Item, names: tuple[str, ...]) -> str | None:
    for name in names:
        if item.get(name) is None:
            return f"no {name}"
    return None


# Entries.


def _entry_fields(entry: Item) -> str | None:
    wrong = _missing(entry, ("id", "type", "created_at"))
    if wrong:
        return wrong
    if entry["seq"] < 1:
        return "a sequence below 1"
    if entry["type"] not in _ENTRY_TYPES:
        return f"type {entry['type']!r}"
    if entry["type"] in wire.COUNTABLE_TYPES and entry.get("sender_id") is None:
        return "a message of nobody"
    if (entry.get("deleted_seq") is not None) and entry.get("deleted_at") is None:
        return "deleted_seq without deleted_at"
    return None


def _entry_reply(entry: Item) -> str | None:
    reply_to = entry.get("reply_to")
    if reply_to is not None and not 1 <= reply_to < entry["seq"]:
        return f"replies to {reply_to}, which does not stand before it"
    return None


def _entry_names(entry: Item) -> str | None:
    if entry.get("type") not in _NAMING_TYPES:
        return None
    seq = named_seq(entry)
    if seq is None or not 1 <= seq < entry["seq"]:
        return f"is about {seq}, which does not stand before it"
    return None


EntryCheck: TypeAlias = Callable[[Item], str | None]
ENTRY_CHECKS: Mapping[str, EntryCheck] = {
    "entry.fields": _entry_fields,
    "entry.reply": _entry_reply,
    "entry.names": _entry_names,
}

# Rooms.


def _log_head(facts: RoomFacts) -> str | None:
    if facts.log.last_seq != facts.room.head:
        return f"head {facts.room.head}, last entry {facts.log.last_seq}"
    return None


def _room_epoch(facts: RoomFacts) -> str | None:
    if facts.room.epoch < 1 and (facts.log.joins or facts.log.leaves):
        return "members changed, but the epoch is 0"
    return None


def _room_member_count(facts: RoomFacts) -> str | None:
    if facts.room.member_count != facts.members:
        return f"member_count {facts.room.member_count}, members {facts.members}"
    return None


def _room_direct(facts: RoomFacts) -> str | None:
    if facts.room.kind == "direct" and facts.members != 2:
        return f"a direct room of {facts.members}"
    return None


def _room_fanning(facts: RoomFacts) -> str | None:
    if facts.room.is_fanning != facts.has_fanout:
        return "is_fanning without fan-out" if facts.room.is_fanning else "fan-out unannounced"
    return None


def _room_listing(facts: RoomFacts) -> str | None:
    for name, wanted in listing_keys(facts.room).items():
        if facts.item.get(name) != wanted:
            return f"{name} {facts.item.get(name)!r}, should be {wanted!r}"
    return None


def listing_keys(room: RoomRow) -> dict[str, str | None]:
    """The index keys that follow from what the room is."""
    return {"listing": room.listing, "waiting": room.waiting}


def _room_waking(facts: RoomFacts) -> str | None:
    if facts.room.wakes_at is not None and not facts.is_scheduled:
        return "snoozed until a time at which nothing wakes it"
    return None


RoomCheck: TypeAlias = Callable[[RoomFacts], str | None]
ROOM_CHECKS: Mapping[str, RoomCheck] = {
    "log.head": _log_head,
    "room.epoch": _room_epoch,
    "room.member_count": _room_member_count,
    "room.direct": _room_direct,
    "room.fanning": _room_fanning,
    "room.listing": _room_listing,
    "room.waking": _room_waking,
}

# Members, with what the log says about them.


def _member_user(facts: MemberFacts) -> str | None:
    return None if facts.has_user else "no such user"


def _member_inbox(facts: MemberFacts) -> str | None:
    if facts.row is None:
        return "no inbox row"
    return "left by its inbox row" if facts.row.is_left else None


def _member_joined(facts: MemberFacts) -> str | None:
    if facts.joined_seq and facts.joined_seq not in facts.log.joins:
        return f"joined_seq {facts.joined_seq} is no `joined` entry"
    return None


def _inbox_unread(facts: MemberFacts) -> str | None:
    row = facts.row
    if row is None or row.is_left:
        return None
    counted = facts.log.unread(facts.user_id, row.read_seq, row.counted_seq)
    return None if row.unread == counted else f"unread {row.unread}, by the log {counted}"


def _inbox_mentions(facts: MemberFacts) -> str | None:
    row = facts.row
    if row is None or row.is_left:
        return None
    counted = facts.log.mentions(facts.user_id, row.read_seq, row.counted_seq)
    return None if row.mentions == counted else f"mentions {row.mentions}, by the log {counted}"


MemberCheck: TypeAlias = Callable[[MemberFacts], str | None]
MEMBER_CHECKS: Mapping[str, MemberCheck] = {
    "member.user": _member_user,
    "member.inbox": _member_inbox,
    "member.joined": _member_joined,
    "inbox.unread": _inbox_unread,
    "inbox.mentions": _inbox_mentions,
}

# Inbox rows.


def _inbox_room(facts: RowFacts) -> str | None:
    if facts.room is None:
        return "no such room"
    if facts.room.kind != facts.row.kind:
        return f"kind {facts.row.kind}, the room is {facts.room.kind}"
    return None


def _inbox_member(facts: RowFacts) -> str | None:
    if facts.row.is_left:
        return None
    if facts.joined_seq is None:
        return "not left, but no member"
    if facts.joined_seq != facts.row.joined_seq:
        return f"joined_seq {facts.row.joined_seq}, of the member {facts.joined_seq}"
    return None


def _inbox_counted(facts: RowFacts) -> str | None:
    row, room = facts.row, facts.room
    if room is None:
        return None
    if row.counted_seq > room.head:
        return f"counted_seq {row.counted_seq} above head {room.head}"
    if row.counted_seq < room.head and not row.is_left and not room.is_fanning:
        return f"counted_seq {row.counted_seq} below head {room.head} at rest"
    return None


def _inbox_read(facts: RowFacts) -> str | None:
    row = facts.row
    if not row.joined_seq <= row.read_seq <= row.counted_seq:
        return f"read_seq {row.read_seq} not in {row.joined_seq}-{row.counted_seq}"
    return None


def _inbox_left(facts: RowFacts) -> str | None:
    row = facts.row
    if row.is_left and (row.unread or row.mentions):
        return f"left, but unread {row.unread} and mentions {row.mentions}"
    return None


def _inbox_unread_feed(facts: RowFacts) -> str | None:
    row = facts.row
    if (row.unread_feed is not None) != (row.unread > 0 and not row.is_left):
        return f"unread_feed {row.unread_feed} with unread {row.unread}"
    if row.unread_feed is not None and not 1 <= row.unread_feed <= row.feed:
        return f"unread_feed {row.unread_feed} with feed {row.feed}"
    return None


def _inbox_feed(facts: RowFacts) -> str | None:
    if facts.badge is not None and not 1 <= facts.row.feed <= facts.badge.version:
        return f"feed {facts.row.feed} with version {facts.badge.version}"
    return None


def _inbox_marks(facts: RowFacts) -> str | None:
    version = wire.SEQ_MAX if facts.badge is None else facts.badge.version
    return marks_wrong(facts.row.marks, version, facts.row.counted_seq)


def marks_wrong(marks: str, version: int, counted_seq: int) -> str | None:
    """What is wrong with the marks of a row of that `counted_seq`, of a user at that version."""
    try:
        pairs = marking.parse(marks)
    except ValueError:
        return "unreadable marks"
    if len(pairs) > marking.MARKS_MAX:
        return f"{len(pairs)} marks"
    previous = (0, -1)
    for pair in pairs:
        if not (previous[0] < pair[0] and previous[1] < pair[1]):
            return f"mark {pair[0]}:{pair[1]} does not ascend"
        previous = pair
    if previous[0] > version or previous[1] > counted_seq:
        return f"mark {previous[0]}:{previous[1]} beyond {version}:{counted_seq}"
    return None


def _inbox_preview(facts: RowFacts) -> str | None:
    row = facts.row
    if row.preview is not None and len(row.preview) > wire.PREVIEW_CHARACTERS_MAX:
        return f"a preview of {len(row.preview)} characters"
    if row.preview_seq > row.counted_seq:
        return f"preview_seq {row.preview_seq} above counted_seq {row.counted_seq}"
    return None


def _badge_exists(facts: RowFacts) -> str | None:
    return "an inbox row, but no badge" if facts.badge is None else None


RowCheck: TypeAlias = Callable[[RowFacts], str | None]
ROW_CHECKS: Mapping[str, RowCheck] = {
    "inbox.room": _inbox_room,
    "inbox.member": _inbox_member,
    "inbox.counted": _inbox_counted,
    "inbox.read": _inbox_read,
    "inbox.left": _inbox_left,
    "inbox.unread_feed": _inbox_unread_feed,
    "inbox.feed": _inbox_feed,
    "inbox.marks": _inbox_marks,
    "inbox.preview": _inbox_preview,
    "badge.exists": _badge_exists,
}

# Badges.


def _badge_unread(facts: BadgeFacts) -> str | None:
    if facts.badge.unread != facts.unread:
        return f"total unread {facts.badge.unread}, by the rooms {facts.unread}"
    return None


def _badge_mentions(facts: BadgeFacts) -> str | None:
    if facts.badge.mentions != facts.mentions:
        return f"total mentions {facts.badge.mentions}, by the rooms {facts.mentions}"
    return None


def _badge_versions(facts: BadgeFacts) -> str | None:
    if not 0 <= facts.badge.read_version <= facts.badge.version:
        return f"read_version {facts.badge.read_version}, version {facts.badge.version}"
    return None


BadgeCheck: TypeAlias = Callable[[BadgeFacts], str | None]
BADGE_CHECKS: Mapping[str, BadgeCheck] = {
    "badge.unread": _badge_unread,
    "badge.mentions": _badge_mentions,
    "badge.versions": _badge_versions,
}
