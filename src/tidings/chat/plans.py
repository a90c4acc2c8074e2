"""The planning half of a commit: pure functions from what is stored and asked to what is written.

`plan_commit` takes rooms with the commands that wait for them and the badges of everybody it
concerns, and returns one transaction, what it tells each user, and the answer to each command.
`plan_advance` brings members of a large room up to its head. Neither knows a clock, a store or
chance, so property tests drive them directly.

Every transaction carries a condition that its own success makes false (the room's head and
epoch, or the version of each user it touches), so sending it twice applies it once.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tidings import wire
from tidings.chat import commands, marks
from tidings.chat.attachments import LEFT_BLOBS, left_subject, plan_attached, plan_holding
from tidings.chat.commands import FOUNDERS_INLINE_MAX, Command, Posted, ReadMark
from tidings.chat.rows import (
    MINUTE_MS,
    WAKING,
    BadgeRow,
    Participation,
    RoomRow,
    entry_to_wire,
    participation_to_item,
    room_to_item,
)
from tidings.chat.updates import PostedEntry, RoomUpdate, UserUpdate
from tidings.cluster.schedule import plan_due, plan_undue
from tidings.errors import (
    Conflict,
    FieldError,
    Forbidden,
    IdempotencyMismatch,
    NotFound,
    TidingsError,
    ValidationFailed,
)
from tidings.storage.interface import Absent, Delete, Equals, Exists, Item, Put, Update, Write
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    user_key,
)

COUNT_ENTRIES_MAX = 1_000
"""Entries that one step of a read, or of a fold, goes through."""


class Torn(Exception):
    """What was read is of different moments: nothing can be planned on it, read it again."""


class RoomView(msgspec.Struct, frozen=True):
    """What is known of a room; a commit planned on it fails if it is no longer so."""

    room: RoomRow | None
    """None where there is no such room."""
    member_ids: frozenset[str] | None = frozenset()
    """All members; None where they are too many to be carried along."""
    participations: Mapping[str, Participation] = {}
    """Rows of all members of an inline room and of the users that commands name."""
    entries: Mapping[int, Item] = {}
    """Entries that commands name, and those that folds and counts go over."""


class Plan(msgspec.Struct):
    """One transaction, and what it means."""

    writes: list[Write] = []
    updates: list[UserUpdate] = []
    answers: list[tuple[Command, Any]] = []
    """What each command is answered once the writes are durable: a value or a TidingsError."""
    receipts: dict[int, commands.Post] = {}
    """Index of a receipt's write to the post that it belongs to."""
    attached: dict[int, list[commands.Post]] = {}
    """Index of a blob's write to the posts that link to it."""
    refused: list[tuple[str, commands.Post]] = []
    """Posts that can't be done now, with their room's key; one accepted before is still so."""
    unproven: list[tuple[str, Command]] = []
    """Commands, by room id, whose answers no condition stands behind: refusals, and what was so
    already. They hold for what was read, and say nothing where that was long ago."""
    rooms: dict[str, RoomRow] = {}
    """Rooms by id as they are afterwards, with the members of those that are inline."""
    members: dict[str, frozenset[str] | None] = {}
    participations: dict[tuple[str, str], Participation] = {}
    """Rows by (user, room) as they are afterwards."""
    badges: dict[str, BadgeRow] = {}
    entries_count: int = 0
    is_renewing: bool = False
    """Whether previews change of entries that were counted before."""


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
            _preview(row, entry)
        elif entry["type"] == "deleted":
            named = entry["data"]
            if row.preview_seq == named["seq"]:
                row.preview = None
            if named["seq"] > row.read_seq and named["sender_id"] != user_id:
                row.unread -= 1
                if user_id in named["mentions"]:
                    row.mentions -= 1
    assert row.unread >= row.mentions >= 0, "counts are never negative"


def _preview(row: Participation, entry: Item) -> None:
    row.preview = _preview_of(entry)
    row.preview_seq = entry["seq"]
    row.active_at = entry["created_at"]


def _preview_of(entry: Item) -> str | None:
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
    return seen.counted_seq + 1, min(head, seen.counted_seq + COUNT_ENTRIES_MAX)


def _require_whole(view: RoomView) -> None:
    """Raises Torn where members' rows and the room are not of one moment.

    The members of an inline room have reached its head, all of them and nobody else; in a large
    one nobody is ahead of it.
    """
    room = view.room
    if room is None:
        return
    counted = {
        user_id: row.counted_seq for user_id, row in view.participations.items() if not row.is_left
    }
    if not room.is_inline or view.member_ids is None:
        if any(seq > room.head for seq in counted.values()):
            raise Torn
    elif counted.keys() != view.member_ids or any(seq != room.head for seq in counted.values()):
        raise Torn


class _Receipt(msgspec.Struct):
    body_hash: str
    entry: PostedEntry


class _RoomPlan:
    """One room while its commands are applied in turn."""

    def __init__(self, workspace: str, room_id: str, view: RoomView) -> None:
        _require_whole(view)
        self.workspace = workspace
        self.room_id = room_id
        self.view = view
        self.before = view.room
        self.room = copy.copy(view.room) if view.room is not None else None
        self.member_ids = None if view.member_ids is None else set(view.member_ids)
        self.is_inline = view.room is None or view.room.is_inline
        self.rows: dict[str, Participation] = {}
        self.appended: list[Item] = []
        self.posted: list[PostedEntry] = []
        self.changed: dict[int, dict[str, Any]] = {}
        self.receipts: dict[str, _Receipt] = {}
        self.receipt_posts: list[tuple[Item, commands.Post]] = []
        self.attaching: list[tuple[int, commands.Post]] = []
        self.letting_go: dict[int, int] = {}
        self.joined: dict[str, Item] = {}
        self.left: set[str] = set()
        self.read: set[str] = set()
        self.renewed: set[str] = set()
        self.founding: tuple[str, ...] | None = None

    # --- looking -----------------------------------------------------------------------------

    @property
    def there(self) -> RoomRow:
        if self.room is None:
            raise NotFound
        return self.room

    def peek(self, user_id: str) -> Participation | None:
        return self.rows.get(user_id) or self.view.participations.get(user_id)

    def is_member(self, user_id: str) -> bool:
        row = self.peek(user_id)
        return row is not None and not row.is_left

    def own(self, user_id: str) -> Participation:
        """The row of a member, to be changed."""
        row = self.rows.get(user_id)
        if row is None:
            row = self.rows[user_id] = copy.copy(self.view.participations[user_id])
        return row

    @property
    def first_appended(self) -> int:
        """The first sequence that this commit appends."""
        return (self.before.head if self.before is not None else 0) + 1

    def entry(self, seq: int) -> Item:
        if not 1 <= seq <= self.there.head:
            raise NotFound("There is no such entry.")
        if seq >= self.first_appended:
            return self.appended[seq - self.first_appended]
        stored = self.view.entries[seq]
        changed = self.changed.get(seq)
        return stored | changed if changed else stored

    def delivered(self, low: int, high: int) -> list[PostedEntry]:
        """Entries in [low, high] for delivery, those of this commit made once for all."""
        first = self.first_appended
        room_id = self.there.room_id
        stored = range(low, min(high + 1, first))
        return [
            *(PostedEntry(entry_to_wire(self.view.entries[seq], room_id)) for seq in stored),
            *self.posted[max(low, first) - first : max(high + 1 - first, 0)],
        ]

    def target(self, seq: int) -> Item:
        """A message that can still be changed."""
        entry = self.entry(seq)
        if not is_countable(entry):
            raise Conflict("Only messages can be changed.")
        if entry.get("deleted_at") is not None:
            raise Conflict("This message was deleted.")
        return entry

    def require_member(self, user_id: str) -> None:
        if not self.is_member(user_id):
            raise Forbidden("Only members may do this.")

    # --- changing ----------------------------------------------------------------------------

    def append(self, item: Item) -> PostedEntry:
        room = self.there
        room.head += 1
        item["room"] = room.key
        item["seq"] = room.head
        self.appended.append(item)
        posted = PostedEntry(entry_to_wire(item, room.room_id))
        self.posted.append(posted)
        return posted

    def note(
        self, entry_id: str, kind: wire.EntryType, actor: str | None, at: int, data: dict[str, Any]
    ) -> int:
        """Append an entry that tells of a change; its sequence."""
        self.append(
            {"id": entry_id, "type": kind, "sender_id": actor, "created_at": at, "data": data}
        )
        return self.there.head

    def change(self, seq: int, fields: dict[str, Any]) -> wire.Entry:
        """Change an entry in place; the entry as it is now."""
        first = self.first_appended
        if seq >= first:
            self.appended[seq - first].update(fields)
        else:
            self.changed.setdefault(seq, {}).update(fields)
        return entry_to_wire(self.entry(seq), self.there.room_id)

    def catch_up(self, user_id: str) -> Participation:
        """Count what a member has not counted, as far as one step may go."""
        row = self.own(user_id)
        last = min(self.there.head, row.counted_seq + COUNT_ENTRIES_MAX)
        head_seen = self.first_appended - 1
        if row.counted_seq < head_seen:  # one that was behind; no more than was loaded
            seen = self.view.participations[user_id]
            last = min(last, seen.counted_seq + COUNT_ENTRIES_MAX)
        fold(row, user_id, (self.entry(seq) for seq in range(row.counted_seq + 1, last + 1)))
        return row

    def join(self, user_id: str, role: str, joined_seq: int, at: int) -> None:
        room = self.there
        old = self.peek(user_id)
        self.rows[user_id] = Participation(
            room_id=room.room_id,
            kind=room.kind,
            read_seq=joined_seq,
            counted_seq=joined_seq,
            joined_seq=joined_seq,
            active_at=at,
            feed=old.feed if old else 0,
            marks=old.marks if old else "",
        )
        self.joined[user_id] = {
            "room": room.key,
            "user_id": user_id,
            "role": role,
            "joined_seq": joined_seq,
        }
        self.left.discard(user_id)
        self.renewed.add(user_id)
        room.member_count += 1
        room.epoch += 1
        if self.member_ids is not None:
            self.member_ids.add(user_id)

    def enter(self, user_id: str, actor: str | None, entry_id: str, at: int, role: str) -> None:
        """A later joiner: the entry that says so is the first thing they have, and it is read."""
        self.join(user_id, role, self.there.head + 1, at)
        self.note(entry_id, "joined", actor, at, {"user_id": user_id})

    # --- the commands ------------------------------------------------------------------------

    def post(self, c: commands.Post) -> Posted:
        room, name = self.there, c.receipt
        known = self.receipts.get(name)
        if known is not None:
            if known.body_hash != c.body_hash:
                raise IdempotencyMismatch
            return Posted(known.entry, is_new=False)
        is_member = self.is_member(c.sender_id)
        if not is_member and not c.is_joining:
            raise Forbidden("Only members may post.")
        if c.reply_to is not None and c.reply_to > room.head:
            raise _refused("reply_to", "It names no entry of this room.")
        for user_id in c.mentions:
            if not self.is_member(user_id) and user_id != c.sender_id:
                raise _refused("mentions", f"{user_id} is not a member of this room.")
        if c.unfit_blobs:
            unfit = ", ".join(c.unfit_blobs)
            raise _refused("blobs", f"There is nothing to attach under {unfit}.")
        if not is_member:
            self.enter(c.sender_id, c.sender_id, f"{c.entry_id}.j", c.at, "member")
        item: Item = {
            "id": c.entry_id,
            "type": c.type,
            "sender_id": c.sender_id,
            "client_id": c.client_id,
            "text": c.text,
            "created_at": c.at,
        }
        if c.blobs:
            item["blobs"] = c.blobs
        if c.reply_to is not None:
            item["reply_to"] = c.reply_to
        if c.mentions:
            item["mentions"] = c.mentions
        item |= c.imported
        posted = self.append(item)
        if c.blobs:
            self.attaching.append((item["seq"], c))
        self.receipts[name] = _Receipt(c.body_hash, posted)
        receipt: Item = {
            "room": item["room"],
            "receipt": name,
            "seq": item["seq"],
            "body_hash": c.body_hash,
            "expires_at": c.receipt_expires_at,
        }
        self.receipt_posts.append((receipt, c))
        if c.is_reopening and room.status in ("snoozed", "closed"):
            room.status = "open"
            room.snoozed_until = None
            self.note(f"{c.entry_id}.s", "status", None, c.at, {"status": "open"})
        return Posted(posted, is_new=True)

    def edit(self, c: commands.Edit) -> wire.Entry:
        target = self.target(c.seq)
        if not c.is_imported:
            self.require_member(c.actor_id)
        if target["sender_id"] != c.actor_id:
            raise Forbidden("Only its author may edit a message.")
        if target.get("text") == c.text:
            return entry_to_wire(target, self.there.room_id)
        edited = self.change(c.seq, {"text": c.text, "edited_at": c.at})
        self.note(c.entry_id, "edited", c.actor_id, c.at, {"seq": c.seq})
        self._renew_previews(c.seq, c.text[: wire.PREVIEW_CHARACTERS_MAX])
        return edited

    def remove(self, c: commands.Remove) -> wire.Entry:
        target = self.entry(c.seq)
        if not c.is_moderator:
            self.require_member(c.actor_id)
        if not is_countable(target):
            raise Conflict("Only messages can be deleted.")
        if target["sender_id"] != c.actor_id and not c.is_moderator:
            raise Forbidden("Only its author or an admin may delete a message.")
        if target.get("deleted_at") is not None:
            return entry_to_wire(target, self.there.room_id)
        data = {
            "seq": c.seq,
            "sender_id": target["sender_id"],
            "mentions": target.get("mentions") or [],
        }
        seq = self.note(c.entry_id, "deleted", c.actor_id, c.at, data)
        self._renew_previews(c.seq, None)
        fields = {"deleted_at": c.at, "deleted_seq": seq}
        return self.change(c.seq, self._emptied(c.seq, target, c.at) | fields)

    def _emptied(self, seq: int, entry: Item, at: int) -> dict[str, Any]:
        """The fields that take an entry's content away, and let go of its blobs."""
        fields: dict[str, Any] = {"text": None, "blobs": None, "reactions": None}
        if entry.get("blobs"):
            fields["left_blobs"] = [blob["blob_id"] for blob in entry["blobs"]]
            self.letting_go[seq] = at
        return fields

    def _renew_previews(self, seq: int, preview: str | None) -> None:
        """Carry a changed text into the inline members' previews of it."""
        for user_id in self.member_ids or ():
            row = self.peek(user_id)
            if row is not None and row.preview_seq == seq:
                self.own(user_id).preview = preview

    def erase(self, c: commands.Erase) -> int:
        entries = {seq: self.entry(seq) for seq in c.seqs}
        self.there.epoch += 1
        for seq, entry in entries.items():
            data = {**(entry.get("data") or {}), "erased": True}
            self.change(seq, self._emptied(seq, entry, c.at) | {"data": data})
            self._renew_previews(seq, None)
        return len(c.seqs)

    def react(self, c: commands.React) -> wire.Entry:
        target = self.target(c.seq)
        self.require_member(c.actor_id)
        reactions: dict[str, list[str]] = dict(target.get("reactions") or {})
        users = reactions.get(c.emoji, [])
        if (c.actor_id in users) is c.is_given:
            return entry_to_wire(target, self.there.room_id)
        if c.is_given:
            if not users and len(reactions) >= wire.REACTIONS_MAX:
                raise Conflict("This message has too many different reactions.")
            if len(users) >= wire.REACTION_USERS_MAX:
                raise Conflict("This reaction was given by too many.")
            reactions[c.emoji] = [*users, c.actor_id]
        else:
            reactions[c.emoji] = [user for user in users if user != c.actor_id]
            if not reactions[c.emoji]:
                del reactions[c.emoji]
        changed = self.change(c.seq, {"reactions": reactions or None})
        data = {"seq": c.seq, "emoji": c.emoji, "is_given": c.is_given}
        self.note(c.entry_id, "reaction", c.actor_id, c.at, data)
        return changed

    def mark_read(self, c: commands.Read) -> ReadMark:
        room = self.there
        if c.seq > room.head:
            raise _refused("seq", "It is beyond the head of this room.")
        self.require_member(c.user_id)
        row = self.peek(c.user_id)
        assert row is not None
        seen_seq = reached = row.read_seq
        if c.seq > row.read_seq:
            row = self.catch_up(c.user_id)
            reached = min(c.seq, row.counted_seq)
            if reached >= row.counted_seq:
                row.unread = row.mentions = 0
            else:
                reached = self._count_read(c.user_id, row, reached)
            row.read_seq = reached
            self.read.add(c.user_id)
        return ReadMark(
            read_seq=row.read_seq,
            unread=row.unread,
            mentions=row.mentions,
            total_unread=0,
            total_mentions=0,
            version=0,
            is_complete=c.seq <= row.read_seq,
            is_moved=row.read_seq > seen_seq,
        )

    def _count_read(self, user_id: str, row: Participation, seq: int) -> int:
        """Take what was read off the counts; where the mark is then, for it may be a step."""
        seen = self.view.participations.get(user_id, row)
        head_seen = self.before.head if self.before is not None else 0
        counting = read_range(seen, head_seen, seq)
        if counting is None or counting[0] == seq + 1:
            above = (self.entry(s) for s in range(seq + 1, row.counted_seq + 1))
            row.unread, row.mentions = counted(user_id, above, row.counted_seq)
            return seq
        high = min(seq, counting[1])
        below = (self.entry(s) for s in range(row.read_seq + 1, high + 1))
        unread, mentions = counted(user_id, below, row.counted_seq)
        row.unread -= unread
        row.mentions -= mentions
        return max(high, row.read_seq)

    def let_join(self, c: commands.Join) -> bool:
        if self.is_member(c.user_id):
            return False
        if self.there.kind == "direct":
            raise Conflict("A direct room has its two members for ever.")
        self.enter(c.user_id, c.actor_id, c.entry_id, c.at, c.role)
        return True

    def let_leave(self, c: commands.Leave) -> bool:
        room = self.there
        if not self.is_member(c.user_id):
            return False
        if room.kind == "direct":
            raise Conflict("A direct room has its two members for ever.")
        row = self.own(c.user_id)
        row.is_left = True
        row.is_muted = False
        row.unread = row.mentions = 0
        row.preview = None
        row.preview_seq = 0
        self.joined.pop(c.user_id, None)
        self.left.add(c.user_id)
        self.renewed.add(c.user_id)
        room.member_count -= 1
        room.epoch += 1
        if self.member_ids is not None:
            self.member_ids.discard(c.user_id)
        if room.assignee_id == c.user_id:
            room.assignee_id = None
        self.note(c.entry_id, "left", c.actor_id, c.at, {"user_id": c.user_id})
        return True

    def alter(self, c: commands.Change) -> RoomRow:
        room = self.there
        changes = {name: value for name, value in c.changes.items() if getattr(room, name) != value}
        if changes:
            for name, value in changes.items():
                setattr(room, name, value)
            if room.status != "snoozed" and room.snoozed_until is not None:
                room.snoozed_until = changes["snoozed_until"] = None
            self.note(c.entry_id, "status", c.actor_id, c.at, changes)
            assignee = changes.get("assignee_id")
            if assignee is not None and not self.is_member(assignee):
                self.enter(assignee, c.actor_id, c.join_entry_id, c.at, "member")
        return room

    def wake(self, c: commands.Wake) -> bool:
        room = self.there
        if room.wakes_at is None or room.wakes_at > c.at:
            return False
        room.status, room.snoozed_until = "open", None
        self.note(c.entry_id, "status", None, c.at, {"status": "open", "snoozed_until": None})
        return True

    def mute(self, c: commands.Mute) -> bool:
        self.require_member(c.user_id)
        row = self.peek(c.user_id)
        assert row is not None
        if row.is_muted is c.is_muted:
            return False
        self.own(c.user_id).is_muted = c.is_muted
        self.read.add(c.user_id)
        self.renewed.add(c.user_id)
        return True

    def hide(self, c: commands.Hide) -> bool:
        self.require_member(c.user_id)
        row = self.peek(c.user_id)
        assert row is not None
        if row.is_hidden is c.is_hidden:
            return False
        self.own(c.user_id).hidden_seq = self.there.head if c.is_hidden else None
        self.read.add(c.user_id)
        self.renewed.add(c.user_id)
        return True

    def create(self, c: commands.Create) -> tuple[RoomRow, bool]:
        if self.room is not None:
            return self.room, False
        self.room = copy.copy(c.room)
        self.room.listed_at = c.at // MINUTE_MS
        if c.founding:
            self.member_ids = None
            self.room.is_fanning = True
            self.founding = c.founding
        for user_id, role in c.founders:
            self._found(user_id, role, c.at)
        if c.room.kind == "direct":
            (one, _), (other, _) = c.founders
            self.rows[one].peer_id, self.rows[other].peer_id = other, one
        return self.room, True

    def found(self, c: commands.Found) -> int:
        for user_id in c.founding[:FOUNDERS_INLINE_MAX]:
            if self.peek(user_id) is None:  # who came by themselves, and perhaps left, did so
                self._found(user_id, "member", c.at)
        self.there.epoch += 1
        self.founding = c.founding[FOUNDERS_INLINE_MAX:]
        return len(self.founding)

    def _found(self, user_id: str, role: str, at: int) -> None:
        """A founder has no `joined` entry and is there from the start, however late they are."""
        self.join(user_id, role, 0, at)

    def apply(self, command: Command) -> Any:
        """The answer to one command, applied; raises TidingsError and then changed nothing."""
        match command:
            case commands.Post():
                return self.post(command)
            case commands.Read():
                return self.mark_read(command)
            case commands.Edit():
                return self.edit(command)
            case commands.Remove():
                return self.remove(command)
            case commands.Erase():
                return self.erase(command)
            case commands.React():
                return self.react(command)
            case commands.Join():
                return self.let_join(command)
            case commands.Leave():
                return self.let_leave(command)
            case commands.Change():
                return self.alter(command)
            case commands.Wake():
                return self.wake(command)
            case commands.Mute():
                return self.mute(command)
            case commands.Hide():
                return self.hide(command)
            case commands.Create():
                return self.create(command)
            case commands.Found():
                return self.found(command)

    # --- the end -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Bring members' rows to the head, where they go along with the log."""
        room = self.room
        if room is None:
            return
        if self.founding is None:
            self.is_inline = self.is_inline and room.is_inline and self.member_ids is not None
        else:
            self.is_inline = False
        if self.is_inline:
            self._settle_members()
        elif self.appended or self.changed or self.founding:
            room.is_fanning = True
        if self.appended and room.listing is not None:
            room.listed_at = max(item["created_at"] for item in self.appended) // MINUTE_MS

    def _settle_members(self) -> None:
        if not self.appended:
            return
        assert self.member_ids is not None
        start = self.first_appended - 1
        head = self.there.head
        messages = [item for item in self.appended if is_countable(item)]
        is_plain = not any(
            item.get("mentions") or item["type"] == "deleted" for item in self.appended
        )
        own = Counter(item["sender_id"] for item in messages)
        for user_id in self.member_ids:
            row = self.own(user_id)
            if is_plain and row.counted_seq == start:
                row.unread += len(messages) - own[user_id]
                row.counted_seq = head
                if messages:
                    _preview(row, messages[-1])
            else:
                self.catch_up(user_id)


def plan_commit(
    workspace: str,
    work: Sequence[tuple[str, RoomView, Sequence[Command]]],
    badges: Mapping[str, BadgeRow],
    node_id: str,
) -> Plan:
    """One transaction for the commands of some rooms, given as (room id, view, commands).

    `badges` has the rows of all members of inline rooms and of all users that commands name.
    The node of that id is to run the fan-outs that this opens. A command that can't be done is
    answered with its error and changes nothing. Raises Torn for rows that can't have been there at
    one moment.
    """
    plan = Plan()
    rooms: list[_RoomPlan] = []
    asked: list[_RoomPlan] = []  # the room of each answer
    for room_id, view, waiting in work:
        planned = _RoomPlan(workspace, room_id, view)
        asked.extend(planned for _ in waiting)
        for command in waiting:
            try:
                plan.answers.append((command, planned.apply(command)))
            except TidingsError as error:
                plan.answers.append((command, error))
                if isinstance(command, commands.Post) and isinstance(error, ValidationFailed):
                    plan.refused.append((planned.there.key, command))
        planned.settle()
        if planned.room is not None:
            rooms.append(planned)
    for planned in rooms:
        _write_room(plan, planned, node_id)
    _write_blobs(plan, workspace, rooms)
    _write_users(plan, workspace, rooms, badges)
    _complete_reads(plan, asked, badges)
    _note_unproven(plan, asked)
    return plan


def _note_unproven(plan: Plan, rooms: Sequence[_RoomPlan]) -> None:
    """A room that is written proves who is in it and its log, a total the user's own rows."""
    for (command, answer), planned in zip(plan.answers, rooms, strict=True):
        is_room_proven = planned.room is not None and planned.room != planned.before
        if isinstance(command, commands.Read | commands.Mute | commands.Hide) and not isinstance(
            answer, TidingsError
        ):
            is_proven = command.user_id in plan.badges
        else:
            is_proven = is_room_proven
        if not is_proven:
            plan.unproven.append((planned.room_id, command))


def _write_room(plan: Plan, planned: _RoomPlan, node_id: str) -> None:
    room, before = planned.room, planned.before
    assert room is not None
    writes = plan.writes
    plan.rooms[room.room_id] = room
    plan.members[room.room_id] = (
        frozenset(planned.member_ids)
        if planned.member_ids is not None and planned.is_inline
        else None
    )
    if room == before:
        return
    plan.entries_count += len(planned.appended)
    writes.extend(Put(ENTRIES, item, when=(Absent(),)) for item in planned.appended)
    for receipt, command in planned.receipt_posts:
        plan.receipts[len(writes)] = command
        writes.append(Put(RECEIPTS, receipt, when=(Absent(),)))
    for seq, fields in planned.changed.items():
        writes.append(Update(ENTRIES, (room.key, seq), set=fields, when=(Exists(),)))
    writes.extend(Put(MEMBERS, item) for item in planned.joined.values())
    writes.extend(
        Delete(MEMBERS, (room.key, user_id))
        for user_id in planned.left
        if user_id in planned.view.participations
    )
    item = room_to_item(room)
    if before is None:
        writes.append(Put(ROOMS, item, when=(Absent(),)))
    else:
        old = room_to_item(before)
        changes = {name: value for name, value in item.items() if old[name] != value}
        seen = [Equals("head", before.head), Equals("epoch", before.epoch)]
        if before.is_fanning:  # closing the fan-out moves neither
            seen.append(Equals("is_fanning", True))
        writes.append(Update(ROOMS, (room.key,), set=changes, when=tuple(seen)))
    _write_fanout(plan, planned, room, node_id)
    _write_waking(plan, before, room)


def _write_blobs(plan: Plan, workspace: str, rooms: Sequence[_RoomPlan]) -> None:
    """Blobs that entries link to are held by them, and those that were let go of are looked at."""
    posts: dict[str, list[commands.Post]] = {}
    for planned in rooms:
        for seq, post in planned.attaching:
            for blob in post.blobs:
                blob_id = blob["blob_id"]
                plan.writes.append(plan_holding(workspace, planned.room_id, seq, blob_id))
                posts.setdefault(blob_id, []).append(post)
        for seq, at in planned.letting_go.items():
            subject = left_subject(planned.there.key, seq)
            plan.writes.append(plan_due(LEFT_BLOBS, subject, at, seq))
    for blob_id, attaching in posts.items():  # an item is written once in a transaction
        plan.attached[len(plan.writes)] = attaching
        plan.writes.append(plan_attached(workspace, blob_id, len(attaching)))


def _write_waking(plan: Plan, before: RoomRow | None, room: RoomRow) -> None:
    """The end of a snooze goes into the schedule, and out of it, with the snooze itself."""
    old = None if before is None else before.wakes_at
    if room.wakes_at == old:
        return
    if old is not None:
        plan.writes.append(plan_undue(WAKING, room.key, old))
    if room.wakes_at is not None:
        plan.writes.append(plan_due(WAKING, room.key, room.wakes_at, room.head))


def _write_fanout(plan: Plan, planned: _RoomPlan, room: RoomRow, node_id: str) -> None:
    """The `fanouts` item goes with the commit that leaves members behind the head."""
    was_fanning = planned.before is not None and planned.before.is_fanning
    if planned.founding is not None and was_fanning:
        founding = list(planned.founding) or None
        plan.writes.append(
            Update(FANOUTS, (room.key,), set={"founding": founding}, when=(Exists(),))
        )
    elif room.is_fanning and not was_fanning:
        founding = list(planned.founding or ()) or None
        item: Item = {"room": room.key, "founding": founding, "node_id": node_id, "fence": 1}
        plan.writes.append(Put(FANOUTS, item, when=(Absent(),)))


def _write_users(
    plan: Plan, workspace: str, rooms: Sequence[_RoomPlan], badges: Mapping[str, BadgeRow]
) -> None:
    concerned: dict[str, list[_RoomPlan]] = {}
    for planned in rooms:
        for user_id, row in planned.rows.items():
            if row != planned.view.participations.get(user_id):
                concerned.setdefault(user_id, []).append(planned)
    for user_id, planned_rooms in concerned.items():
        before = badges[user_id]
        after = copy.copy(before)
        after.version += 1
        updates = [_write_row(plan, planned, user_id, after) for planned in planned_rooms]
        if any(user_id in planned.read for planned in planned_rooms):
            after.read_version = after.version
        _write_badge(plan, workspace, user_id, before, after)
        plan.updates.append(
            UserUpdate(user_id, after.version, after.unread, after.mentions, updates)
        )


def _write_row(plan: Plan, planned: _RoomPlan, user_id: str, badge: BadgeRow) -> RoomUpdate:
    old = planned.view.participations.get(user_id)
    row = planned.rows[user_id]
    room = planned.there
    is_renewed = user_id in planned.renewed
    is_new = user_id in planned.joined
    _finish_row(row, old, badge, is_activity=is_new or row.is_left)
    plan.participations[user_id, room.room_id] = row
    plan.writes.append(_row_write(planned.workspace, user_id, old, row))
    entries: Sequence[PostedEntry] = ()
    if is_new or old is None:
        entries = planned.delivered(max(row.joined_seq, planned.first_appended), row.counted_seq)
    elif not row.is_left:
        entries = planned.delivered(old.counted_seq + 1, row.counted_seq)
    return RoomUpdate(
        room_id=room.room_id,
        head=row.counted_seq,
        read_seq=row.read_seq,
        unread=row.unread,
        mentions=row.mentions,
        entries=entries,
        is_read_moved=old is not None and not is_renewed and row.read_seq != old.read_seq,
        is_row_changed=is_renewed,
        is_left=row.is_left,
        is_muted=row.is_muted,
        is_hidden=row.is_hidden,
    )


def _finish_row(
    row: Participation, old: Participation | None, badge: BadgeRow, *, is_activity: bool
) -> None:
    """Order the row by the user's new version, and carry its counts into the total."""
    version = badge.version
    if is_activity or old is None or row.counted_seq != old.counted_seq:
        row.feed = version
        row.marks = marks.append(row.marks, version, row.counted_seq)
    if row.unread == 0:
        row.unread_feed = None
    elif row.unread_feed is None:
        row.unread_feed = version
    if old is not None and not old.is_muted and not old.is_left:
        badge.unread -= old.unread
        badge.mentions -= old.mentions
    if not row.is_muted and not row.is_left:
        badge.unread += row.unread
        badge.mentions += row.mentions
    if not badge.unread >= badge.mentions >= 0:  # the total was read before the row had changed
        raise Torn


def _row_write(
    workspace: str, user_id: str, old: Participation | None, row: Participation
) -> Write:
    if old is None or row.joined_seq != old.joined_seq:  # who joined starts anew
        return Put(INBOXES, participation_to_item(row, workspace, user_id))
    fields: dict[str, Any] = {
        "unread": row.unread,
        "mentions": row.mentions,
        "unread_feed": row.unread_feed,
    }
    if row.read_seq != old.read_seq:
        fields["read_seq"] = row.read_seq
    if row.feed != old.feed or row.preview != old.preview:
        fields |= {
            "counted_seq": row.counted_seq,
            "preview": row.preview,
            "preview_seq": row.preview_seq or None,
            "active_at": row.active_at,
            "feed": row.feed,
            "marks": row.marks,
        }
    if row.is_muted is not old.is_muted or row.is_left is not old.is_left:
        fields |= {"is_muted": row.is_muted or None, "is_left": row.is_left or None}
    if row.hidden_seq != old.hidden_seq:
        fields["hidden_seq"] = row.hidden_seq
    key = (user_key(workspace, user_id), row.room_id)
    return Update(INBOXES, key, set=fields, when=(Exists(),))


def _write_badge(
    plan: Plan, workspace: str, user_id: str, before: BadgeRow, after: BadgeRow
) -> None:
    plan.badges[user_id] = after
    key = user_key(workspace, user_id)
    fields: dict[str, Any] = {
        "unread": after.unread,
        "mentions": after.mentions,
        "version": after.version,
        "read_version": after.read_version,
    }
    if before.version == 0:
        plan.writes.append(Put(BADGES, {"user": key, **fields}, when=(Absent(),)))
    else:
        seen = (Equals("version", before.version),)
        plan.writes.append(Update(BADGES, (key,), set=fields, when=seen))


def _complete_reads(plan: Plan, rooms: Sequence[_RoomPlan], badges: Mapping[str, BadgeRow]) -> None:
    """The counts of a read, in the room and in total, are those after the whole commit."""
    for index, ((command, answer), room) in enumerate(zip(plan.answers, rooms, strict=True)):
        if isinstance(answer, ReadMark):
            assert isinstance(command, commands.Read)
            row = room.peek(command.user_id)
            assert row is not None
            badge = plan.badges.get(command.user_id) or badges[command.user_id]
            mark = msgspec.structs.replace(
                answer,
                unread=row.unread,
                mentions=row.mentions,
                total_unread=badge.unread,
                total_mentions=badge.mentions,
                version=badge.version,
            )
            plan.answers[index] = (command, mark)


def plan_advance(
    workspace: str,
    room: RoomRow,
    rows: Mapping[str, Participation],
    badges: Mapping[str, BadgeRow],
    entries: Mapping[int, Item],
    posted: Mapping[int, PostedEntry],
    *,
    is_renewing: bool = True,
) -> Plan:
    """Bring members of a large room up to `room.head`, or a step nearer to it, and, if
    `is_renewing`, their previews to what `entries` say.

    `entries` are the log after the least `counted_seq` of the rows and those that the rows
    preview, `posted` the same for delivery. The members' versions are what makes a second time
    fail. They don't prove that an entry still says what it said: previews are only to be renewed
    from entries that are known to be so after the rows were read. Raises Torn.
    """
    plan = Plan()
    for user_id, old in rows.items():
        if old.is_left:
            continue
        row = copy.copy(old)
        last = min(room.head, old.counted_seq + COUNT_ENTRIES_MAX)
        fold(row, user_id, (entries[seq] for seq in range(old.counted_seq + 1, last + 1)))
        previewed = entries.get(row.preview_seq)
        if is_renewing and previewed is not None and row.preview != _preview_of(previewed):
            row.preview = _preview_of(previewed)  # it was edited, deleted or erased meanwhile
            plan.is_renewing = True
        if row == old:
            continue
        before = badges[user_id]
        after = copy.copy(before)
        after.version += 1
        _finish_row(row, old, after, is_activity=False)
        plan.participations[user_id, room.room_id] = row
        plan.writes.append(_row_write(workspace, user_id, old, row))
        _write_badge(plan, workspace, user_id, before, after)
        update = RoomUpdate(
            room_id=room.room_id,
            head=row.counted_seq,
            read_seq=row.read_seq,
            unread=row.unread,
            mentions=row.mentions,
            entries=[posted[seq] for seq in range(old.counted_seq + 1, last + 1)],
            is_muted=row.is_muted,
        )
        plan.updates.append(
            UserUpdate(user_id, after.version, after.unread, after.mentions, [update])
        )
    return plan


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
