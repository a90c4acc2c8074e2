"""What each command does to its room, or why it can't be done."""

from __future__ import annotations

import copy
from typing import Any

from tidings import wire
from tidings.chat import commands
from tidings.chat.commands import FOUNDERS_INLINE_MAX, Command, Posted, ReadMark
from tidings.chat.counts import counted, is_countable, read_range
from tidings.chat.room_changes import Receipt, RoomChanges
from tidings.chat.rows import MINUTE_MS, Participation, RoomRow, entry_to_wire
from tidings.errors import Conflict, FieldError, Forbidden, IdempotencyMismatch, ValidationFailed
from tidings.storage.interface import Item


class RoomPlan(RoomChanges):
    """A room and what its commands make of it: `apply`, by a method for each kind of command."""

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
        self.receipts[name] = Receipt(c.body_hash, posted)
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
        self.renew_previews(c.seq, c.text[: wire.PREVIEW_CHARACTERS_MAX])
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
        self.renew_previews(c.seq, None)
        fields = {"deleted_at": c.at, "deleted_seq": seq}
        return self.change(c.seq, self.emptied(c.seq, target, c.at) | fields)

    def erase(self, c: commands.Erase) -> int:
        entries = {seq: self.entry(seq) for seq in c.seqs}
        self.there.epoch += 1
        for seq, entry in entries.items():
            data = {**(entry.get("data") or {}), "erased": True}
            self.change(seq, self.emptied(seq, entry, c.at) | {"data": data})
            self.renew_previews(seq, None)
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


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
