"""The log of a room: posting exactly once, reading it back, editing, deleting, reacting."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from tidings import wire
from tidings.chat import access, ranges
from tidings.chat.attachments import Attachable, Fitness, no_blobs
from tidings.chat.audit import RECEIPT_LIFE_S
from tidings.chat.commands import Edit, Post, Posted, React, Read, ReadMark, Remove
from tidings.chat.commits import Commits
from tidings.chat.rows import (
    Participation,
    RoomRow,
    entry_to_wire,
    participation_from_item,
    room_from_item,
)
from tidings.clock import Clock
from tidings.errors import FieldError, Forbidden, NotFound, TooLarge, ValidationFailed
from tidings.ids import IdMaker
from tidings.people.callers import Caller
from tidings.people.users import Users
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Store
from tidings.storage.tables import ENTRIES, INBOXES, ROOMS, room_key, user_key

EMOJI_CHARACTERS_MAX = 32
READ_STEPS_MAX = 1_000
"""Steps in which one call moves a read mark, of a thousand entries each."""
IMPORTED_TOGETHER = 200
"""Imported messages that wait for their commits at one time."""
_HASH_BYTES = 16
_NOT_EMOJI = frozenset({"Cc", "Cs", "Zl", "Zp", "Zs"})
"""Unicode categories that no emoji is made of: control characters, surrogates, spaces."""

OnRead: TypeAlias = Callable[[str, str, str, int], None]
"""(workspace, room id, user id, read_seq)."""

_encode = msgspec.msgpack.Encoder().encode


class ImportedMessage(msgspec.Struct, frozen=True):
    """A message from elsewhere, with the time at which it was sent there."""

    sender_id: str
    client_id: str
    text: str
    created_at_ms: int


class ImportResult(msgspec.Struct, frozen=True):
    """How many messages of an import were new, and how many were there already."""

    added: int
    present: int


class Messages:
    """The messages of all rooms, as far as a caller may."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        users: Users,
        commits: Commits,
        attachable: Attachable = no_blobs,
        on_read: OnRead | None = None,
    ) -> None:
        """`on_read` hears of each read mark that moved, once that is durable."""
        self._on_read = on_read or _nobody_hears
        self._attachable = attachable
        self._store = store
        self._clock = clock
        self._ids = ids
        self._users = users
        self._commits = commits

    async def post(
        self, caller: Caller, room_id: str, body: wire.PostMessage
    ) -> tuple[wire.Entry, bool]:
        """Post a message, durable on return; with its client_id again the first entry, and False.

        Raises NotFound; Forbidden; ValidationFailed; TooLarge; IdempotencyMismatch; Unavailable.
        """
        posted: Posted = await (await self.submit(caller, room_id, body))
        return posted.entry.entry, posted.is_new

    async def submit(
        self, caller: Caller, room_id: str, body: wire.PostMessage
    ) -> asyncio.Future[Posted]:
        """Queue a message; the future answers once it is durable, or fails as `post` does.

        Messages of one room are appended in the order in which their calls return.
        """
        client_id = _checked(body)
        access.require_naming(caller, names_user=body.as_user is not None)
        author = caller if body.as_user is None else await self._named(caller, body.as_user)
        author_id = author.user_id or ""
        room, own = await self._look(caller, room_id, author_id)
        fitness = Fitness()
        if body.blobs:
            fitness = await self._attachable(caller, author, body.blobs)
        now_ms = self._clock()
        command = Post(
            sender_id=author_id,
            client_id=client_id,
            body_hash=_hash(body.text, body.blobs, body.reply_to, body.mentions),
            entry_id=self._ids.new("ent"),
            at=now_ms,
            text=body.text,
            blobs=fitness.blobs,
            unfit_blobs=fitness.unfit,
            reply_to=body.reply_to,
            mentions=body.mentions,
            receipt_expires_at=now_ms // 1000 + RECEIPT_LIFE_S,
            is_joining=access.is_joining(author, room, own),
            is_reopening=access.is_reopening(author, room),
        )
        return self._commits.submit(caller.workspace, room_id, command)

    async def import_entries(
        self, workspace: str, room_id: str, messages: Sequence[ImportedMessage]
    ) -> ImportResult:
        """Append messages of members with their own times, in order; receipts never expire.

        Importing the same again adds nothing. Raises NotFound for a room that is not there;
        Forbidden for a sender who is no member; TooLarge; IdempotencyMismatch; Unavailable.
        """
        added = 0
        for start in range(0, len(messages), IMPORTED_TOGETHER):
            answers = [
                self._commits.submit(workspace, room_id, self._imported(message))
                for message in messages[start : start + IMPORTED_TOGETHER]
            ]
            results = await asyncio.gather(*answers, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
                added += result.is_new
        return ImportResult(added, len(messages) - added)

    def _imported(self, message: ImportedMessage) -> Post:
        _check_text(message.text)
        return Post(
            sender_id=message.sender_id,
            client_id=message.client_id,
            body_hash=body_hash(message.text),
            entry_id=self._ids.new("ent"),
            at=message.created_at_ms,
            text=message.text,
        )

    async def list(
        self,
        caller: Caller,
        room_id: str,
        *,
        before: int | None = None,
        after: int | None = None,
        have: str | None = None,
        limit: int = wire.LIST_LIMIT_DEFAULT,
    ) -> wire.EntryList:
        """At most `limit` entries, ascending, and the head that the room had at that moment.

        The newest ones; with `before` the newest below it; with `after` the oldest above it,
        below `before` where that is given too; with `have` the oldest within these bounds that
        are in none of its ranges. Raises NotFound, ValidationFailed.
        """
        room, own = await self._visible(caller, room_id)
        low = max(access.first_visible_seq(room, own), 1 if after is None else after + 1)
        high = room.head if before is None else min(room.head, before - 1)
        held = None if have is None else ranges.parse(have)
        if held is not None:
            wanted = ranges.missing(held, high, limit, low)
        elif after is not None:
            wanted = [(low, min(high, low + limit - 1))]
        else:
            wanted = [(max(low, high - limit + 1), high)]
        items: list[Any] = []
        for first, last in wanted:
            found = await _read(self._store, room, first, last)
            items += [entry_to_wire(item, room_id) for item in found]
        return wire.EntryList(items, room.head)

    async def shows(self, caller: Caller, room_id: str, seqs: Sequence[int], blob_id: str) -> bool:
        """Whether the caller sees one of these entries of the room, and it links to the blob."""
        try:
            room, own = await self._visible(caller, room_id)
        except NotFound:
            return False
        first = access.first_visible_seq(room, own)
        keys = [(room.key, seq) for seq in seqs if seq >= first]
        entries = await self._store.get_many(ENTRIES, keys) if keys else ()
        return any(
            blob["blob_id"] == blob_id
            for entry in entries
            for blob in (entry or {}).get("blobs") or ()
        )

    async def edit(
        self, caller: Caller, room_id: str, seq: int, body: wire.EditMessage
    ) -> wire.Entry:
        """Give one's own message another text. Raises NotFound; Forbidden; Conflict; TooLarge."""
        _check_text(body.text)
        actor_id = await self._acting(caller, room_id, seq)
        command = Edit(actor_id, seq, body.text, self._ids.new("ent"), self._clock())
        edited: wire.Entry = await self._commits.submit(caller.workspace, room_id, command)
        return edited

    async def delete(self, caller: Caller, room_id: str, seq: int) -> wire.Entry:
        """Delete a message: one's own, or any as an admin or API key. Repeating it is fine.

        Whoever had it unread has one less. An API key has no user, so that the entry which tells
        of it is in the name of the message's sender. Raises NotFound; Forbidden; Conflict.
        """
        room, own = await self._visible(caller, room_id)
        _require_visible(room, own, seq)
        is_moderator = access.may_moderate(caller)
        if caller.user_id is not None:
            actor_id = caller.user_id if is_moderator else access.require_member(caller, own)
        else:
            entry = await self._store.get(ENTRIES, (room.key, seq))
            actor_id = (entry or {}).get("sender_id") or ""
        command = Remove(actor_id, seq, self._ids.new("ent"), self._clock(), is_moderator)
        deleted: wire.Entry = await self._commits.submit(caller.workspace, room_id, command)
        return deleted

    async def react(
        self, caller: Caller, room_id: str, seq: int, emoji: str, *, is_given: bool
    ) -> wire.Entry:
        """Give a reaction or take it back; repeating it changes nothing.

        Raises ValidationFailed; NotFound; Forbidden; Conflict for what can't be reacted to.
        """
        _check_emoji(emoji)
        actor_id = await self._acting(caller, room_id, seq)
        command = React(actor_id, seq, emoji, is_given, self._ids.new("ent"), self._clock())
        entry: wire.Entry = await self._commits.submit(caller.workspace, room_id, command)
        return entry

    async def read(self, caller: Caller, room_id: str, seq: int) -> wire.ReadReply:
        """Move the caller's read mark forward to `seq`; where it is further already it stays.

        Raises Forbidden; NotFound; ValidationFailed beyond the head.
        """
        _, own = await self._look(caller, room_id, access.require_user(caller))
        command = Read(access.require_member(caller, own), seq)
        for _ in range(READ_STEPS_MAX):
            mark: ReadMark = await self._commits.submit(caller.workspace, room_id, command)
            if mark.is_moved:
                self._on_read(caller.workspace, room_id, command.user_id, mark.read_seq)
            if mark.is_complete:
                break
        return wire.ReadReply(
            read_seq=mark.read_seq,
            unread=mark.unread,
            mentions=mark.mentions,
            total=wire.Total(mark.total_unread, mark.total_mentions, mark.version),
        )

    async def _named(self, caller: Caller, user_id: str) -> Caller:
        """The user whom an API key posts as. Raises ValidationFailed."""
        user = await self._users.find(caller.workspace, user_id)
        if user is None or user.is_deactivated:
            raise _refused("as_user", "There is no such active user.")
        return access.acting_as(caller, user)

    async def _visible(self, caller: Caller, room_id: str) -> tuple[RoomRow, Participation | None]:
        """The room as it is stored now, and the caller's row. Raises NotFound."""
        return await self._stored(caller, room_id, caller.user_id)

    async def _stored(
        self, caller: Caller, room_id: str, user_id: str | None
    ) -> tuple[RoomRow, Participation | None]:
        """The room as it is stored now, and a user's row. Raises NotFound."""
        workspace = caller.workspace
        item = await self._store.get(ROOMS, (room_key(workspace, room_id),))
        row = None
        if user_id is not None:
            row = await self._store.get(INBOXES, (user_key(workspace, user_id), room_id))
        own = None if row is None else participation_from_item(row)
        room = None if item is None else room_from_item(item)
        return access.require_sight(caller, room, own), own

    async def _look(
        self, caller: Caller, room_id: str, user_id: str
    ) -> tuple[RoomRow, Participation | None]:
        """The room and the user's row; for a member remembered where they can be. Raises NotFound.

        Who seems to be none may have joined by way of another process: that is looked up, at the
        same price whether the room is out of sight or isn't there.
        """
        remembered = self._commits.known.remembered(caller.workspace, room_id, user_id)
        if remembered is not None:
            room, _, own = remembered
            if access.is_member(own):
                return access.require_sight(caller, room, own), own
        return await self._stored(caller, room_id, user_id)

    async def _acting(self, caller: Caller, room_id: str, seq: int) -> str:
        """The member who changes an entry that they may see. Raises NotFound, Forbidden."""
        room, own = await self._visible(caller, room_id)
        if caller.kind != "session":
            raise Forbidden("An API key has no user who could do this.")
        _require_visible(room, own, seq)
        return access.require_member(caller, own)


def _nobody_hears(workspace: str, room_id: str, user_id: str, read_seq: int) -> None:
    """Marks are told to nobody."""


async def _read(store: Store, room: RoomRow, low: int, high: int) -> list[Item]:
    """The entries low…high, ascending."""
    items: list[Item] = []
    after = None
    while low <= high:
        page = await store.query(
            ENTRIES,
            room.key,
            low=low,
            high=high,
            limit=min(high - low + 1, PAGE_ITEMS_MAX),
            after=after,
        )
        items += page.items
        after = page.after
        if after is None:
            break
    return items


def _require_visible(room: RoomRow, own: Participation | None, seq: int) -> None:
    if not access.first_visible_seq(room, own) <= seq <= room.head:
        raise NotFound("There is no such entry.")


def _checked(body: wire.PostMessage) -> str:
    """The client_id of a message that may be posted. Raises ValidationFailed, TooLarge."""
    if body.client_id is None:
        raise _refused("client_id", "It is missing.")
    if len(set(body.blobs)) < len(body.blobs):
        raise _refused("blobs", "One of them is there more than once.")
    if body.text is None and not body.blobs:
        raise _refused("text", "A message needs a text, or blobs.")
    _check_text(body.text or "")
    return body.client_id


def _check_text(text: str) -> None:
    if len(text) > wire.TEXT_CHARACTERS_MAX:
        raise TooLarge(f"A text has at most {wire.TEXT_CHARACTERS_MAX} characters.")


def _check_emoji(emoji: str) -> None:
    is_fit = 1 <= len(emoji) <= EMOJI_CHARACTERS_MAX and "#" not in emoji
    if not is_fit or any(unicodedata.category(each) in _NOT_EMOJI for each in emoji):
        raise _refused("emoji", f"It has 1 to {EMOJI_CHARACTERS_MAX} characters, none of control.")


def body_hash(text: str) -> str:
    """What the receipt of an imported message keeps of it."""
    return _hash(text, [], None, [])


def _hash(
    text: str | None, blobs: Sequence[str], reply_to: int | None, mentions: Sequence[str]
) -> str:
    """What makes two messages of one sender and client_id the same message."""
    body = _encode((text, blobs, reply_to, mentions))
    return blake2b(body, digest_size=_HASH_BYTES).hexdigest()


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
