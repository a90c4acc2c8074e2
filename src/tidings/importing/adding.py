"""Adding to rooms that are there: what is new or changed goes through the service's own commits.

What was imported before is found by its receipt and left alone where it says the same. Nothing is
taken away but what the source says was deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tidings.chat.commands import (
    FOUNDERS_INLINE_MAX,
    Change,
    Command,
    Create,
    Edit,
    Join,
    Leave,
    Mute,
    Post,
    Posted,
    React,
    Read,
    ReadMark,
    Remove,
)
from tidings.chat.commits import Commits
from tidings.chat.rows import Participation, RoomRow, participation_from_item
from tidings.clock import Clock
from tidings.errors import Unavailable
from tidings.ids import IdMaker
from tidings.importing.folding import Odd, entry_id, hash_of, message_fields, new_room
from tidings.importing.records import MemberRecord, MessageRecord, RoomRecord
from tidings.importing.reports import Report
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Position, Store, Table
from tidings.storage.tables import ENTRIES, INBOXES, MEMBERS, RECEIPTS, room_key, user_key

TOGETHER_MAX = 200
"""Commands of one room that wait for their commits at one time."""
ATTEMPTS_MAX = 6
"""How often a command that the service could not take just now is given to it again."""
PAUSE_S = 0.5
LOOKED_THROUGH_MAX = 100_000
"""Entries of a room, the newest, among which a message of somebody who left is looked for."""
READ_STEPS_MAX = 10_000
"""Steps, of a thousand entries each, in which one read mark is moved."""


class Adding:
    """Brings what a source says of rooms into rooms that are there."""

    def __init__(
        self, store: Store, commits: Commits, workspace: str, clock: Clock, report: Report, odd: Odd
    ) -> None:
        self._store = store
        self._commits = commits
        self._workspace = workspace
        self._clock = clock
        self._ids = IdMaker(clock)
        self._report = report
        self._odd = odd

    async def create(self, record: RoomRecord) -> None:
        """Make a room with its members, which are too many for one transaction."""
        now_ms = self._clock()
        room = new_room(self._workspace, record, created_at=record.created_at or now_ms)
        room.epoch = room.member_count = 0
        users = tuple(member.user_id for member in record.members)
        roles = {member.user_id: member.role for member in record.members}
        create = Create(
            room=room,
            founders=tuple((each, roles[each]) for each in users[:FOUNDERS_INLINE_MAX]),
            founding=users[FOUNDERS_INLINE_MAX:],
            at=room.created_at,
        )
        _, is_new = await self._ask(record.room_id, create)
        if create.founding:
            await self._commits.founded(self._workspace, record.room_id)
        self._report.rooms_made += is_new

    async def members(self, record: RoomRecord) -> None:
        """Let those join who are no members yet, and mute whoever wants it."""
        view = await self._commits.look(self._workspace, record.room_id)
        if view is None or view.room is None:
            return
        rows = await self._rows(record.room_id, record.members)
        for member in record.members:
            row = rows[member.user_id]
            if row is None or row.is_left:
                if record.kind == "direct":
                    self._odd("member", member.user_id, "a third in a direct room, left out")
                    continue
                join = Join(member.user_id, None, self._ids.new("ent"), self._clock(), member.role)
                self._report.members_joined += await self._ask(record.room_id, join)
            if member.is_muted is not (row is not None and row.is_muted):
                await self._ask(record.room_id, Mute(member.user_id, member.is_muted))
        if record.title is not None and record.title != view.room.title and record.kind == "group":
            ids = self._ids.new("ent"), self._ids.new("ent")
            change = Change(None, {"title": record.title}, *ids, self._clock())
            await self._ask(record.room_id, change)

    async def leave(self, room_id: str, user_id: str) -> None:
        """End a membership that the source has ended; a direct room keeps its two."""
        view = await self._commits.look(self._workspace, room_id, (user_id,))
        if view is None or view.room is None or view.room.kind == "direct":
            return
        leave = Leave(user_id, None, self._ids.new("ent"), self._clock())
        self._report.members_left += await self._ask(room_id, leave)

    async def messages(self, record: RoomRecord, messages: Sequence[MessageRecord]) -> None:
        """Append the new ones, in order; change those that the source has changed."""
        messages = [message for message in messages if message.type == "text"]
        room = room_key(self._workspace, record.room_id)
        receipts = await self._get_many(RECEIPTS, [(room, _receipt(m)) for m in messages])
        seqs = {
            message.client_id: receipt["seq"]
            for message, receipt in zip(messages, receipts, strict=True)
            if receipt is not None
        }
        stored = await self._entries(room, seqs.values())
        people = {m.sender_id for m in messages} | {u for m in messages for u in m.mentions}
        members = await self._present(room, people)
        strangers: set[str] = set()
        waiting: list[tuple[MessageRecord, Post]] = []
        for message in messages:
            seq = seqs.get(message.client_id)
            if seq is not None and seq in stored:
                self._report.messages_present += 1
                await self._change(record.room_id, message, stored[seq])
                continue
            if message.sender_id not in members:
                if record.kind == "direct":
                    self._odd("message", message.client_id, "by a stranger to a direct room")
                    continue
                strangers.add(message.sender_id)
            if message.reply_to is not None and message.reply_to not in seqs:
                seqs |= await self._post(record.room_id, waiting)
                waiting = []
                if message.reply_to not in seqs:
                    seqs |= await self._find(record, {message.reply_to})
            waiting.append((message, self._command(message, seqs, members)))
            if len(waiting) >= TOGETHER_MAX:
                seqs |= await self._post(record.room_id, waiting)
                waiting = []
        await self._post(record.room_id, waiting)
        wanted = {member.user_id for member in record.members}
        for user_id in sorted(strangers - wanted):
            await self.leave(record.room_id, user_id)

    def _command(
        self, message: MessageRecord, seqs: Mapping[str, int], members: Collection[str]
    ) -> Post:
        body_hash = hash_of(message.client_id)
        fields = message_fields(message, self._odd)
        mentions = [each for each in fields.pop("mentions", ()) if each in members]
        reply_to = None if message.reply_to is None else seqs.get(message.reply_to)
        if message.reply_to is not None and reply_to is None:
            key = message.client_id
            self._odd("message", key, "replies to what is not before it, kept without")
        return Post(
            sender_id=message.sender_id,
            client_id=message.client_id,
            body_hash=body_hash,
            entry_id=entry_id(message.created_at, body_hash),
            at=message.created_at,
            text=fields.pop("text", None),
            reply_to=reply_to,
            mentions=mentions,
            is_joining=message.sender_id not in members,
            imported=fields,
        )

    async def _post(
        self, room_id: str, waiting: Sequence[tuple[MessageRecord, Post]]
    ) -> dict[str, int]:
        """Post what waits; the sequences by `client_id`."""
        answers = await asyncio.gather(*[self._ask(room_id, post) for _, post in waiting])
        seqs: dict[str, int] = {}
        for (message, _), posted in zip(waiting, answers, strict=True):
            assert isinstance(posted, Posted)
            seq = seqs[message.client_id] = posted.entry.entry.seq
            self._report.messages_added += posted.is_new
            self._report.messages_present += not posted.is_new
            if message.deleted_at is not None:
                await self.remove(room_id, seq, message.sender_id, message.deleted_at)
        return seqs

    async def _change(self, room_id: str, message: MessageRecord, entry: Item) -> None:
        """Make the stored message what the source says it is now."""
        seq, sender = entry["seq"], message.sender_id
        if entry.get("deleted_at") is not None:
            return
        if message.deleted_at is not None:
            await self.remove(room_id, seq, sender, message.deleted_at)
            return
        fields = message_fields(message, self._odd)
        if fields.get("text") != entry.get("text") and fields.get("text"):
            at = message.edited_at or self._clock()
            ids = self._ids.new("ent"), at
            edit = Edit(sender, seq, fields["text"], *ids, is_imported=True)
            await self._ask(room_id, edit)
            self._report.messages_edited += 1
        if message.reactions is not None:
            await self._react(room_id, entry, fields.get("reactions") or {})

    async def _react(self, room_id: str, entry: Item, wanted: Mapping[str, list[str]]) -> None:
        now = {(emoji, user) for emoji, users in (entry.get("reactions") or {}).items()
               for user in users}  # fmt: skip
        then = {(emoji, user) for emoji, users in wanted.items() for user in users}
        changed = sorted(now ^ then)
        members = await self._present(entry["room"], {user for _, user in changed})
        for emoji, user in changed:
            if user in members:
                is_given = (emoji, user) in then
                ids = self._ids.new("ent"), self._clock()
                await self._ask(room_id, React(user, entry["seq"], emoji, is_given, *ids))
                self._report.reactions_changed += 1

    async def remove(self, room_id: str, seq: int, sender_id: str, at: int) -> None:
        """Delete a message as the source has done."""
        remove = Remove(sender_id, seq, self._ids.new("ent"), at, is_moderator=True)
        await self._ask(room_id, remove)
        self._report.messages_deleted += 1

    async def reads(self, record: RoomRecord) -> None:
        """Move the members' read marks to where the source has them; never back."""
        rows = await self._rows(record.room_id, record.members)
        keys = {member.read_key for member in record.members if member.read_key is not None}
        view = await self._commits.look(self._workspace, record.room_id)
        if view is None or view.room is None:
            return
        behind = [
            (member, row)
            for member in record.members
            if (row := rows[member.user_id]) is not None
            and not row.is_left
            and row.read_seq < view.room.head
        ]
        keys = {member.read_key for member, _ in behind if member.read_key is not None}
        seqs = await self._find(record, keys)
        for member, row in behind:
            seq = seqs.get(member.read_key or "", 0)
            if member.read_at is not None:
                seq = max(seq, await self._read_until(view.room, row, member.read_at))
            if seq > row.read_seq:
                await self._read(record.room_id, member.user_id, seq)
                self._report.reads_moved += 1

    async def _read(self, room_id: str, user_id: str, seq: int) -> None:
        for _ in range(READ_STEPS_MAX):
            mark: ReadMark = await self._ask(room_id, Read(user_id, seq))
            if mark.is_complete:
                return
        raise Unavailable("A read mark could not be moved to its place.")

    async def _read_until(self, room: RoomRow, row: Participation, read_at: int) -> int:
        """The newest entry that was made by then."""
        after: Position | None = None
        while True:
            page = await self._store.query(
                ENTRIES, room.key, low=row.read_seq + 1, high=room.head, reverse=True, after=after
            )
            for entry in page.items:
                if entry["created_at"] <= read_at:
                    seq: int = entry["seq"]
                    return seq
            await asyncio.sleep(0)  # a near store answers at once
            if (after := page.after) is None:
                return 0

    async def _find(self, record: RoomRecord, client_ids: Collection[str]) -> dict[str, int]:
        """The sequences of messages, whoever sent them."""
        room = room_key(self._workspace, record.room_id)
        users = [member.user_id for member in record.members]
        found = await find_seqs(self._store, room, client_ids, users)
        missing = set(client_ids) - found.keys()
        looked_through = 0
        after: Position | None = None
        while missing and looked_through < LOOKED_THROUGH_MAX:  # they are by somebody who left
            page = await self._store.query(ENTRIES, room, reverse=True, after=after)
            for item in page.items:
                if (client_id := item.get("client_id")) in missing:
                    missing.remove(client_id)
                    found[client_id] = item["seq"]
            looked_through += len(page.items)
            if (after := page.after) is None:
                break
        return found

    async def _ask(self, room_id: str, command: Command) -> Any:
        """The answer to a command. Raises TidingsError."""
        for attempt in range(ATTEMPTS_MAX):
            try:
                return await self._commits.submit(self._workspace, room_id, command)
            except Unavailable:
                if attempt == ATTEMPTS_MAX - 1:
                    raise
                await asyncio.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _rows(
        self, room_id: str, members: Sequence[MemberRecord]
    ) -> dict[str, Participation | None]:
        keys = [(user_key(self._workspace, member.user_id), room_id) for member in members]
        items = await self._get_many(INBOXES, keys)
        return {
            member.user_id: None if item is None else participation_from_item(item)
            for member, item in zip(members, items, strict=True)
        }

    async def _present(self, room: str, user_ids: Iterable[str]) -> set[str]:
        """Those of the users who are members."""
        keys = [(room, user_id) for user_id in sorted(user_ids)]
        return {item["user_id"] for item in await self._get_many(MEMBERS, keys) if item is not None}

    async def _entries(self, room: str, seqs: Iterable[int]) -> dict[int, Item]:
        items = await self._get_many(ENTRIES, [(room, seq) for seq in seqs])
        return {item["seq"]: item for item in items if item is not None}

    async def _get_many(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> list[Item | None]:
        return await get_all(self._store, table, keys)


async def find_seqs(
    store: Store, room: str, client_ids: Collection[str], senders: Sequence[str]
) -> dict[str, int]:
    """The sequences of those messages that one of these senders has sent to the room."""
    keys = [(room, f"{sender}#{each}") for each in sorted(client_ids) for sender in senders]
    found = await get_all(store, RECEIPTS, keys)
    return {item["receipt"].partition("#")[2]: item["seq"] for item in found if item is not None}


async def get_all(store: Store, table: Table, keys: Sequence[tuple[Any, ...]]) -> list[Item | None]:
    """The items of any number of keys."""
    items: list[Item | None] = []
    for start in range(0, len(keys), PAGE_ITEMS_MAX):
        items += await store.get_many(table, keys[start : start + PAGE_ITEMS_MAX])
    return items


def _receipt(message: MessageRecord) -> str:
    return f"{message.sender_id}#{message.client_id}"
