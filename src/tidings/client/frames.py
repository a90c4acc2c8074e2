"""The frames that a device receives, the same over a socket, a stream and a poll."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tidings import wire


class Frame(Struct, frozen=True, tag_field="type"):
    """One message of the service to a device."""


class Ready(Frame, tag="ready", frozen=True):
    """The connection is authenticated; updates after `version` follow."""

    session_id: str
    user_id: str
    cursor: str
    version: int


class Ack(Frame, tag="ack", frozen=True):
    """What was sent under `ref` is durable."""

    ref: str | int | None = None
    entry: wire.Entry | None = None
    read: wire.ReadReply | None = None


class Failed(Frame, tag="error", frozen=True):
    """What was sent under `ref` was not accepted, or the connection has a problem."""

    problem: dict[str, Any]
    ref: str | int | None = None


class EntryUpdate(Frame, tag="entry", frozen=True):
    """A new entry in one of the user's rooms, and the counts after it.

    `cursor`, here and below, is where to go on from once this frame was handled.
    """

    entry: wire.Entry
    unread: int
    mentions: int
    total: wire.Total
    version: int
    cursor: str | None = None


class ReadUpdate(Frame, tag="read", frozen=True):
    """A read mark of the user moved."""

    room_id: str
    read_seq: int
    unread: int
    mentions: int
    total: wire.Total
    version: int | None = None
    cursor: str | None = None


class BadgeUpdate(Frame, tag="badge", frozen=True):
    """The totals after a commit."""

    unread: int
    mentions: int
    version: int
    cursor: str | None = None


class Row(Struct, frozen=True):
    """An inbox row, as far as the user may still see it: that of a room just left is bare."""

    room_id: str
    head: int
    read_seq: int
    unread: int
    mentions: int
    kind: wire.RoomKind | None = None
    title: str | None = None
    updated_at: wire.Timestamp | None = None
    preview: str | None = None
    muted: bool = False
    left: bool = False
    hidden: bool = False
    status: wire.Status | None = None
    assignee_id: str | None = None


class RoomUpdate(Frame, tag="room", frozen=True):
    """An inbox row changed: joined, left, muted, hidden, or what the room is."""

    room: Row
    version: int
    total: wire.Total | None = None
    cursor: str | None = None


class QueueUpdate(Frame, tag="queue", frozen=True):
    """For managers: how many support rooms wait unassigned."""

    open: int = 0
    snoozed: int = 0
    is_capped: bool = False


class TypingUpdate(Frame, tag="typing", frozen=True):
    """Somebody is typing; nothing that is kept."""

    room_id: str
    user_id: str


class ReaderUpdate(Frame, tag="reader", frozen=True):
    """Another member of a small room has read so far; `user_id` is None to customers, for whom
    the others are one. A hint: what was missed of it is in `Client.readers`."""

    room_id: str
    user_id: str | None
    read_seq: int


class PresenceUpdate(Frame, tag="presence", frozen=True):
    """Somebody came or went."""

    user_id: str
    is_online: bool


class Synced(Frame, tag="sync", frozen=True):
    """A catch-up: the reply of `/v1/sync`."""

    cursor: str
    version: int
    total: wire.Total
    rooms: list[wire.SyncRoom]
    more: bool
    unread_rooms: list[wire.UnreadRoom] | UnsetType = UNSET
    ref: str | int | None = None
    since_version: int = 0
    """Of one that nobody asked for: the version up to which the service has told everything."""

    @property
    def reply(self) -> wire.SyncReply:
        """The same as the value that `/v1/sync` answers."""
        return wire.SyncReply(
            self.cursor, self.version, self.total, self.rooms, self.more, self.unread_rooms
        )


class Closing(Frame, tag="closing", frozen=True):
    """The service is about to stop or is busy: come back after that time."""

    retry_after_ms: int = 0


class Pong(Frame, tag="pong", frozen=True):
    """The answer to a ping."""


class Batch(Frame, tag="batch", frozen=True):
    """Several frames, in order."""

    updates: list[msgspec.Raw]


Received: TypeAlias = (
    Ready
    | Ack
    | Failed
    | EntryUpdate
    | ReadUpdate
    | BadgeUpdate
    | RoomUpdate
    | QueueUpdate
    | TypingUpdate
    | ReaderUpdate
    | PresenceUpdate
    | Synced
    | Closing
    | Pong
)
Update: TypeAlias = (
    EntryUpdate
    | ReadUpdate
    | BadgeUpdate
    | RoomUpdate
    | QueueUpdate
    | TypingUpdate
    | ReaderUpdate
    | PresenceUpdate
)
"""What a device tells its owner."""

_decode = msgspec.json.Decoder(Received | Batch).decode
_decode_type = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_KNOWN_TYPES = frozenset(
    kind.__struct_config__.tag for kind in Frame.__subclasses__() if kind.__struct_config__.tag
)


def decode(text: str | bytes) -> list[Received]:
    """The frames in a text, batches unpacked; types of a later service are left out.

    Raises msgspec.DecodeError for what is no frame at all, or a known type of another shape.
    """
    return _unpack(text)


def _unpack(text: str | bytes | msgspec.Raw) -> list[Received]:
    try:
        frame = _decode(text)
    except msgspec.ValidationError:
        if msgspec.json.decode(_decode_type(text)["type"]) in _KNOWN_TYPES:
            raise
        return []
    if isinstance(frame, Batch):
        return [inner for update in frame.updates for inner in _unpack(update)]
    return [frame]
