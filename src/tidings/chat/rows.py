"""The rows of the chat as values: what a plan reads and what it returns."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import msgspec

from tidings import wire
from tidings.chat.attachments import attachment_to_wire
from tidings.chat.marks import Marks
from tidings.clock import rfc3339
from tidings.storage.interface import Item
from tidings.storage.tables import LISTING_SHARDS, room_key, user_key

WAKING = "waking"
"""What the schedule calls the end of a snooze; its subject is the room's key."""
INLINE_MEMBERS_MAX = 24
"""Members of a room that one transaction can carry along with the log."""
MINUTE_MS = 60_000


class RoomRow(msgspec.Struct):
    """A room. `head` is the last sequence, `epoch` grows with each change of membership."""

    workspace: str
    room_id: str
    kind: wire.RoomKind
    created_at: int
    created_by: str | None = None
    title: str | None = None
    scope: wire.Scope | None = None
    history: wire.History = "full"
    about: str | None = None
    status: wire.Status | None = None
    assignee_id: str | None = None
    customer_id: str | None = None
    snoozed_until: int | None = None
    tags: list[str] = []
    head: int = 0
    epoch: int = 0
    member_count: int = 0
    is_fanning: bool = False
    """A `fanouts` item exists: members' rows may be behind the head."""
    listed_at: int | None = None
    """Minute of the last activity, for the listing."""

    @property
    def key(self) -> str:
        """The partition of the room's rows."""
        return room_key(self.workspace, self.room_id)

    @property
    def is_inline(self) -> bool:
        """Whether all members' rows change in the same transaction as the log."""
        return self.member_count <= INLINE_MEMBERS_MAX and not self.is_fanning

    @property
    def shard(self) -> int:
        """Which partition of the listings this room is in."""
        return crc32(self.room_id.encode()) % LISTING_SHARDS

    @property
    def listing(self) -> str | None:
        """The partition of the listing that shows this room to managers, if one does."""
        if self.kind == "support":
            return f"{self.workspace}#support#{self.status}#{self.shard}"
        if self.kind == "group" and self.scope == "public":
            return f"{self.workspace}#group#public#{self.shard}"
        return None

    @property
    def waiting(self) -> str | None:
        """The partition of the queue of unassigned support rooms, if this room is in it."""
        if self.kind == "support" and self.assignee_id is None and self.status != "closed":
            return f"{self.workspace}#{self.shard}"
        return None

    @property
    def wakes_at(self) -> int | None:
        """When the room's snooze ends by itself, in milliseconds, if it is in one that does."""
        return self.snoozed_until if self.status == "snoozed" else None


def room_from_item(item: Item) -> RoomRow:
    """The stored room as a value."""
    workspace, _, room_id = item["room"].partition("#")
    return RoomRow(
        workspace=workspace,
        room_id=room_id,
        kind=item["kind"],
        created_at=item["created_at"],
        created_by=item.get("created_by"),
        title=item.get("title"),
        scope=item.get("scope"),
        history=item.get("history", "full"),
        about=item.get("about"),
        status=item.get("status"),
        assignee_id=item.get("assignee_id"),
        customer_id=item.get("customer_id"),
        snoozed_until=item.get("snoozed_until"),
        tags=item.get("tags") or [],
        head=item["head"],
        epoch=item["epoch"],
        member_count=item["member_count"],
        is_fanning=bool(item.get("is_fanning")),
        listed_at=item.get("listed_at"),
    )


def room_to_item(room: RoomRow) -> Item:
    """The room as it is stored, with the keys of its listings."""
    return {
        "room": room.key,
        "kind": room.kind,
        "created_at": room.created_at,
        "created_by": room.created_by,
        "title": room.title,
        "scope": room.scope,
        "history": room.history,
        "about": room.about,
        "status": room.status,
        "assignee_id": room.assignee_id,
        "customer_id": room.customer_id,
        "snoozed_until": room.snoozed_until,
        "tags": room.tags or None,
        "head": room.head,
        "epoch": room.epoch,
        "member_count": room.member_count,
        "is_fanning": room.is_fanning or None,
        "listing": room.listing,
        "listed_at": room.listed_at if room.listing else None,
        "waiting": room.waiting,
    }


def room_to_wire(room: RoomRow) -> wire.Room:
    """The room as its readers see it."""
    return wire.Room(
        id=room.room_id,
        kind=room.kind,
        title=room.title,
        head=room.head,
        epoch=room.epoch,
        created_at=rfc3339(room.created_at),
        created_by=room.created_by,
        member_count=room.member_count,
        scope=room.scope,
        history=room.history,
        about=room.about,
        status=room.status,
        assignee_id=room.assignee_id,
        customer_id=room.customer_id,
        snoozed_until=None if room.snoozed_until is None else rfc3339(room.snoozed_until),
        tags=room.tags,
    )


class Participation(msgspec.Struct):
    """One user's row for one room.

    `unread` and `mentions` are a fold of the log up to `counted_seq`, and
    `read_seq <= counted_seq <= head`.
    """

    room_id: str
    kind: wire.RoomKind
    peer_id: str | None = None
    unread: int = 0
    mentions: int = 0
    read_seq: int = 0
    counted_seq: int = 0
    joined_seq: int = 0
    is_muted: bool = False
    is_left: bool = False
    hidden_seq: int | None = None
    """Hidden while there is no entry above this one; None where it never was."""
    preview: str | None = None
    preview_seq: int = 0
    active_at: int = 0
    feed: int = 0
    """The user's version at the last activity: the order of the inbox."""
    unread_feed: int | None = None
    """There while something is unread: the feed at which that began."""
    marks: Marks = ""

    @property
    def is_hidden(self) -> bool:
        """Whether its owner took the room off their list, and nothing came since."""
        return self.hidden_seq is not None and self.counted_seq <= self.hidden_seq


def participation_from_item(item: Item) -> Participation:
    """The stored inbox row as a value."""
    return Participation(
        room_id=item["room_id"],
        kind=item["kind"],
        peer_id=item.get("peer_id"),
        unread=item["unread"],
        mentions=item["mentions"],
        read_seq=item["read_seq"],
        counted_seq=item["counted_seq"],
        joined_seq=item["joined_seq"],
        is_muted=bool(item.get("is_muted")),
        is_left=bool(item.get("is_left")),
        hidden_seq=item.get("hidden_seq"),
        preview=item.get("preview"),
        preview_seq=item.get("preview_seq") or 0,
        active_at=item["active_at"],
        feed=item["feed"],
        unread_feed=item.get("unread_feed"),
        marks=item.get("marks") or "",
    )


def participation_to_item(row: Participation, workspace: str, user_id: str) -> Item:
    """The inbox row as it is stored."""
    return {
        "user": user_key(workspace, user_id),
        "room_id": row.room_id,
        "kind": row.kind,
        "peer_id": row.peer_id,
        "unread": row.unread,
        "mentions": row.mentions,
        "read_seq": row.read_seq,
        "counted_seq": row.counted_seq,
        "joined_seq": row.joined_seq,
        "is_muted": row.is_muted or None,
        "is_left": row.is_left or None,
        "hidden_seq": row.hidden_seq,
        "preview": row.preview,
        "preview_seq": row.preview_seq or None,
        "active_at": row.active_at,
        "feed": row.feed,
        "unread_feed": row.unread_feed,
        "marks": row.marks,
    }


class BadgeRow(msgspec.Struct):
    """A user's totals and the two numbers that order their life."""

    unread: int = 0
    mentions: int = 0
    version: int = 0
    """Commits that concerned this user; 0 where nothing is stored yet."""
    read_version: int = 0
    """The version at which read marks, mutes or counts last changed without an entry."""


def badge_from_item(item: Item | None) -> BadgeRow:
    """The stored totals; zeros for a user that no commit has concerned yet."""
    if item is None:
        return BadgeRow()
    return BadgeRow(
        unread=item["unread"],
        mentions=item["mentions"],
        version=item["version"],
        read_version=item.get("read_version") or 0,
    )


def entry_to_wire(item: Item, room_id: str) -> wire.Entry:
    """A stored entry as its readers see it; what was deleted has lost its content."""
    get = item.get
    blobs: list[Item] = get("blobs") or []
    edited_at: int | None = get("edited_at")
    deleted_at: int | None = get("deleted_at")
    data: dict[str, Any] = get("data") or {}
    return wire.Entry(
        room_id,
        item["seq"],
        item["id"],
        item["type"],
        get("sender_id"),
        rfc3339(item["created_at"]),
        get("client_id"),
        get("text"),
        [attachment_to_wire(blob, room_id) for blob in blobs] if blobs else [],
        get("reply_to"),
        get("mentions") or [],
        get("reactions") or {},
        None if edited_at is None else rfc3339(edited_at),
        None if deleted_at is None else rfc3339(deleted_at),
        data,
    )
