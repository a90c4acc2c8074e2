"""A new room as the service itself would have left it: its log and its members' rows, from records.

Pure. What was edited before the import is so from the start, since no device has seen another
text; a deleted message keeps its place, and a `deleted` entry follows it at once, because counts
rest on that one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from tidings import wire
from tidings.chat.rows import RoomRow
from tidings.importing.records import MemberRecord, MessageRecord, RoomRecord
from tidings.storage.interface import Item
from tidings.storage.tables import room_key

KEYS_REMEMBERED_MAX = 100_000
"""Messages of one room whose sequences are kept in mind, the newest; 200 bytes each at most."""
TIME_MS_MAX = 253_402_300_799_999
"""The last moment of the year 9999."""
FUTURE_MS = 24 * 3600 * 1000
"""How far a time may lie ahead before it is called odd."""
MINUTE_MS = 60_000

_IMPORTED = blake2b(digest_size=16, person=b"imported")

Odd: TypeAlias = Callable[[str, str, str], None]
"""(kind, key, reason): a record is not taken, or not as it was."""


def hash_of(client_id: str) -> str:
    """What the receipt of an imported message keeps as the hash of its body, 32 hexadecimal digits.

    It follows from the id alone, so that another text is an edit and not another message.
    """
    hashing = _IMPORTED.copy()
    hashing.update(client_id.encode())
    return hashing.hexdigest()


def entry_id(created_at: int, body_hash: str) -> str:
    """The id of its entry: in the form of all others, and the same in every import."""
    return f"ent_{created_at if created_at > 0 else 0:012x}{body_hash[:16]}"


class StagedMember(msgspec.Struct, frozen=True):
    """A member with counts that are exact for the room's head."""

    user_id: str
    role: str
    unread: int
    mentions: int
    read_seq: int
    is_muted: bool
    active_at: int


class StagedRoom(msgspec.Struct, frozen=True):
    """A room whose log is stored, ready to become visible."""

    room: RoomRow
    members: list[StagedMember]
    active_at: int
    preview: str | None
    preview_seq: int

    @property
    def is_uneven(self) -> bool:
        """Whether the room's place is another one in each member's list."""
        return any(member.active_at != self.active_at for member in self.members)


class _Reader(msgspec.Struct):
    """How far a member has read, as the log goes by."""

    record: MemberRecord
    read_seq: int = 0
    live: int = 0
    """Messages that count, up to there."""
    own: int = 0
    """Those of them that are this member's."""
    mentions: int = 0
    """Mentions of this member by others so far."""
    mentions_read: int = 0


class RoomFold:
    """Folds the messages of one room, in their order, into items."""

    def __init__(self, workspace: str, record: RoomRecord, now_ms: int, odd: Odd) -> None:
        self._workspace = workspace
        self._record = record
        self._key = room_key(workspace, record.room_id)
        self._now_ms = now_ms
        self._time_max = min(now_ms + FUTURE_MS, TIME_MS_MAX)
        self._odd = odd
        self._readers = {member.user_id: _Reader(member) for member in record.members}
        self._by_key: dict[str, list[_Reader]] = {}
        self._by_time: list[_Reader] = []
        for reader in self._readers.values():
            if reader.record.read_key is not None:
                self._by_key.setdefault(reader.record.read_key, []).append(reader)
            if reader.record.read_at is not None:
                self._by_time.append(reader)
        self._by_time.sort(key=_read_at)
        self._seqs: dict[str, int] = {}
        """By `client_id`."""
        self._live = 0
        self._own: dict[str, int] = {}
        self._first_at: int | None = None
        self._last_at: int | None = None
        self._listed_at = 0
        self._preview: str | None = None
        self._preview_seq = 0
        self.head = 0
        self.messages = 0
        self.senders: set[str] = set()
        self.is_forgetful = False
        """Whether there are earlier messages that are no longer in mind."""

    def unknown_replies(self, messages: Sequence[MessageRecord]) -> list[str]:
        """Messages that these reply to and that are no longer in mind, if they ever were."""
        if not any(message.reply_to for message in messages):
            return []
        here = {message.client_id for message in messages}
        return [
            message.reply_to
            for message in messages
            if message.reply_to is not None
            and message.reply_to not in here
            and message.reply_to not in self._seqs
        ]

    def remember(self, client_id: str, seq: int) -> None:
        """An earlier message is the entry `seq`."""
        self._seqs[client_id] = seq

    def take(
        self, messages: Sequence[MessageRecord], entries: list[Item], receipts: list[Item]
    ) -> None:
        """Append the next messages to the log: their items go to the ends of the lists."""
        for message in messages:
            self._take(message, entries, receipts)
        while len(self._seqs) > KEYS_REMEMBERED_MAX:
            self.is_forgetful = True
            del self._seqs[next(iter(self._seqs))]

    def _take(self, message: MessageRecord, entries: list[Item], receipts: list[Item]) -> None:
        client_id, sender = message.client_id, message.sender_id
        if client_id in self._seqs:
            self._odd("message", client_id, "a second message with this key, left out")
            return
        at = message.created_at
        if not 0 <= at <= self._time_max:
            at = self._odd_time(message)
        while self._by_time and at > _read_at(self._by_time[0]):
            self._read(self._by_time.pop(0))
        self.head = seq = self.head + 1
        self._seqs[client_id] = seq
        self.senders.add(sender)
        body_hash = hash_of(client_id)
        item: Item = {
            "room": self._key,
            "seq": seq,
            "id": entry_id(message.created_at, body_hash),
            "type": message.type,
            "sender_id": sender,
            "created_at": at,
        } | message_fields(message, self._odd)
        entries.append(item)
        if at > self._listed_at:
            self._listed_at = at
        if message.type != "text":
            item["data"] = {"user_id": sender}
            self._pass(client_id)
            return
        self.messages += 1
        item["client_id"] = client_id
        if message.reply_to is not None:
            replied = self._seqs.get(message.reply_to, seq)
            if replied < seq:
                item["reply_to"] = replied
            else:
                self._odd("message", client_id, "replies to what is not before it, kept without")
        receipts.append(
            {
                "room": self._key,
                "receipt": f"{sender}#{client_id}",
                "seq": seq,
                "body_hash": body_hash,
            }
        )
        self._first_at = at if self._first_at is None else self._first_at
        self._last_at = at
        self._preview_seq = seq
        self._preview = None
        if message.deleted_at is not None:
            self._delete(item, message.deleted_at, body_hash, entries)
        else:
            text = item.get("text")
            self._preview = None if text is None else text[: wire.PREVIEW_CHARACTERS_MAX]
            self._live += 1
            self._own[sender] = self._own.get(sender, 0) + 1
            for user_id in message.mentions:
                reader = self._readers.get(user_id)
                if reader is not None and user_id != sender:
                    reader.mentions += 1
        self._pass(client_id)

    def _delete(self, item: Item, at: int, body_hash: str, entries: list[Item]) -> None:
        self.head += 1
        item |= {"deleted_at": at, "deleted_seq": self.head}
        entries.append(
            {
                "room": self._key,
                "seq": self.head,
                "id": entry_id(at, f"{int(body_hash[:16], 16) ^ 1:016x}"),
                "type": "deleted",
                "sender_id": item["sender_id"],
                "created_at": at,
                "data": {
                    "seq": item["seq"],
                    "sender_id": item["sender_id"],
                    "mentions": item.get("mentions") or [],
                },
            }
        )

    def _odd_time(self, message: MessageRecord) -> int:
        at = message.created_at
        if not 0 <= at <= TIME_MS_MAX:
            self._odd("message", message.client_id, "a time that is none, kept with the last one's")
            return self._last_at or self._record.created_at or self._now_ms
        self._odd("message", message.client_id, "a time in the future, kept")
        return at

    def _pass(self, client_id: str) -> None:
        """The log has come to the end of this message: who has read it has read up to here."""
        if client_id in self._by_key:
            for reader in self._by_key.pop(client_id):
                self._read(reader)

    def _read(self, reader: _Reader) -> None:
        reader.read_seq = self.head
        reader.live = self._live
        reader.own = self._own.get(reader.record.user_id, 0)
        reader.mentions_read = reader.mentions

    def staged(self) -> StagedRoom:
        """The room after its last message."""
        for reader in self._by_time:
            self._read(reader)
        for key, readers in self._by_key.items():
            for reader in readers:
                if reader.record.read_at is None:
                    self._odd("member", key, "has read a message that is not there: read nothing")
        record = self._record
        created_at = _first(record.created_at, self._first_at, record.active_at, self._now_ms)
        active_at = _first(record.active_at, self._last_at, created_at)
        return StagedRoom(
            room=new_room(
                self._workspace,
                record,
                created_at=created_at,
                head=self.head,
                listed_at=(self._listed_at or active_at) // MINUTE_MS,
            ),
            members=[self._member(reader, active_at) for reader in self._readers.values()],
            active_at=active_at,
            preview=self._preview,
            preview_seq=self._preview_seq,
        )

    def _member(self, reader: _Reader, active_at: int) -> StagedMember:
        record = reader.record
        own = self._own.get(record.user_id, 0)
        return StagedMember(
            user_id=record.user_id,
            role=record.role,
            unread=(self._live - reader.live) - (own - reader.own),
            mentions=reader.mentions - reader.mentions_read,
            read_seq=reader.read_seq,
            is_muted=record.is_muted,
            active_at=active_at if record.active_at is None else record.active_at,
        )


def new_room(
    workspace: str, record: RoomRecord, *, created_at: int, head: int = 0, listed_at: int = 0
) -> RoomRow:
    """The room's row with all its members in it."""
    scope = (record.scope or "private") if record.kind == "group" else None
    return RoomRow(
        workspace=workspace,
        room_id=record.room_id,
        kind=record.kind,
        created_at=created_at,
        created_by=record.created_by,
        title=None if record.title is None else record.title[: wire.NAME_CHARACTERS_MAX],
        scope=scope,
        history=record.history,
        status=(record.status or "open") if record.kind == "support" else None,
        customer_id=record.customer_id,
        assignee_id=record.assignee_id,
        head=head,
        epoch=max(1, len(record.members)),
        member_count=len(record.members),
        listed_at=listed_at,
    )


def message_fields(message: MessageRecord, odd: Odd) -> dict[str, Any]:
    """What a message says, within the limits of an entry; nothing where it was deleted."""
    fields: dict[str, Any] = {}
    if message.mentions:
        fields["mentions"] = list(message.mentions[: wire.MENTIONS_MAX])
    if message.deleted_at is not None:
        return fields
    if message.text:
        if len(message.text) > wire.TEXT_CHARACTERS_MAX:
            odd("message", message.client_id, "a text that is too long, kept as far as it may be")
        fields["text"] = message.text[: wire.TEXT_CHARACTERS_MAX]
    if message.edited_at is not None:
        fields["edited_at"] = message.edited_at
    if message.reactions:
        fields["reactions"] = _reactions(message.reactions, message.client_id, odd)
    if message.data:
        fields["data"] = dict(message.data)
    return fields


def _reactions(
    reactions: Mapping[str, list[str]], client_id: str, odd: Odd
) -> dict[str, list[str]]:
    kept = {
        emoji: list(dict.fromkeys(users))[: wire.REACTION_USERS_MAX]
        for emoji, users in list(reactions.items())[: wire.REACTIONS_MAX]
        if users
    }
    if sum(map(len, kept.values())) < sum(len(set(users)) for users in reactions.values()):
        odd("message", client_id, "too many reactions, kept as far as they may be")
    return kept


def _first(*times: int | None) -> int:
    """The first of the times that is one."""
    return next(time for time in times if time is not None and 0 <= time <= TIME_MS_MAX)


def _read_at(reader: _Reader) -> int:
    return reader.record.read_at or 0
