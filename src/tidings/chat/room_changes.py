"""One room while a commit is planned: the state that its commands look at and change.

Nothing here is written: `tidings.chat.plans` makes the writes of what has changed in the end.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import msgspec

from tidings import wire
from tidings.chat import commands
from tidings.chat.counts import fold, fold_end, is_countable, renew_preview
from tidings.chat.rows import MINUTE_MS, Participation, RoomRow, entry_to_wire
from tidings.chat.updates import PostedEntry
from tidings.chat.views import RoomView, require_whole
from tidings.errors import Conflict, Forbidden, NotFound
from tidings.storage.interface import Item


class Receipt(msgspec.Struct):
    """A post of this commit: sent again in it, it has the same answer."""

    body_hash: str
    entry: PostedEntry


class RoomChanges:
    """One room while its commands are applied in turn: how it was, and what has changed so far."""

    def __init__(self, workspace: str, room_id: str, view: RoomView) -> None:
        require_whole(view)
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
        self.receipts: dict[str, Receipt] = {}
        """Posts of this commit by their receipts."""
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
        """The room as it is by now. Raises NotFound where it is not, or not yet."""
        if self.room is None:
            raise NotFound
        return self.room

    def peek(self, user_id: str) -> Participation | None:
        """The row of a user, to be looked at."""
        return self.rows.get(user_id) or self.view.participations.get(user_id)

    def is_member(self, user_id: str) -> bool:
        """Whether the user is in the room by now."""
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
        """An entry as it is by now, stored or of this commit. Raises NotFound."""
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
        """A message that can still be changed. Raises Conflict, NotFound."""
        entry = self.entry(seq)
        if not is_countable(entry):
            raise Conflict("Only messages can be changed.")
        if entry.get("deleted_at") is not None:
            raise Conflict("This message was deleted.")
        return entry

    def require_member(self, user_id: str) -> None:
        """Raises Forbidden for who is not in the room."""
        if not self.is_member(user_id):
            raise Forbidden("Only members may do this.")

    # --- changing ----------------------------------------------------------------------------

    def append(self, item: Item) -> PostedEntry:
        """Put an entry at the end of the log."""
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
        last = fold_end(row.counted_seq, self.there.head)
        head_seen = self.first_appended - 1
        if row.counted_seq < head_seen:  # one that was behind; no more than was loaded
            seen = self.view.participations[user_id]
            last = fold_end(seen.counted_seq, last)
        fold(row, user_id, (self.entry(seq) for seq in range(row.counted_seq + 1, last + 1)))
        return row

    def join(self, user_id: str, role: str, joined_seq: int, at: int) -> None:
        """Make a member of a user, who has the entries after `joined_seq` to read."""
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

    def emptied(self, seq: int, entry: Item, at: int) -> dict[str, Any]:
        """The fields that take an entry's content away, and let go of its blobs."""
        fields: dict[str, Any] = {"text": None, "blobs": None, "reactions": None}
        if entry.get("blobs"):
            fields["left_blobs"] = [blob["blob_id"] for blob in entry["blobs"]]
            self.letting_go[seq] = at
        return fields

    def renew_previews(self, seq: int, preview: str | None) -> None:
        """Carry a changed text into the inline members' previews of it."""
        for user_id in self.member_ids or ():
            row = self.peek(user_id)
            if row is not None and row.preview_seq == seq:
                self.own(user_id).preview = preview

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
                    renew_preview(row, messages[-1])
            else:
                self.catch_up(user_id)
