"""What goes over a live connection: the frames of clients, and the updates told to them.

An update is written once per user and commit, however many devices get it, and an entry's JSON
once for all users. Ids and cursors hold no character that JSON would escape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from tidings import wire
from tidings.chat.updates import RoomUpdate, UserUpdate
from tidings.ids import Id

FRAME_UPDATES_MAX = 256
"""Updates in one `batch` frame."""
FRAME_BYTES_MAX = 256 * 1024
"""Bytes of one `batch` frame; a single update may be larger."""
REF_CHARACTERS_MAX = 256

Ref: TypeAlias = (
    Annotated[str, Meta(max_length=REF_CHARACTERS_MAX)]
    | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    | None
)
CursorText: TypeAlias = Annotated[str, Meta(max_length=8_192)]
Have: TypeAlias = Annotated[dict[Id, wire.HaveText], Meta(max_length=wire.HAVE_ROOMS_MAX)]


class Auth(Struct, tag="auth", tag_field="type", forbid_unknown_fields=True):
    """Who is calling, and where the device is."""

    token: Annotated[str, Meta(max_length=8_192)]
    since: CursorText | None = None
    have: Have = {}


class Seen(Struct, tag="seen", tag_field="type", forbid_unknown_fields=True):
    """Acknowledges the session's queue up to the cursor."""

    cursor: CursorText


class Send(Struct, tag="send", tag_field="type", forbid_unknown_fields=True):
    """A message to post."""

    room_id: Id
    client_id: Id
    ref: Ref = None
    text: wire.Text | None = None
    blobs: Annotated[list[Id], Meta(max_length=wire.BLOBS_MAX)] = []
    reply_to: wire.Seq | None = None
    mentions: Annotated[list[Id], Meta(max_length=wire.MENTIONS_MAX)] = []
    as_user: Id | None = None


class Read(Struct, tag="read", tag_field="type", forbid_unknown_fields=True):
    """Everything in the room up to this sequence was read."""

    room_id: Id
    seq: Annotated[int, Meta(ge=0, le=wire.SEQ_MAX)]
    ref: Ref = None


class Typing(Struct, tag="typing", tag_field="type", forbid_unknown_fields=True):
    """The user is writing in the room."""

    room_id: Id
    ref: Ref = None


class Sync(Struct, tag="sync", tag_field="type", forbid_unknown_fields=True):
    """Asks for what happened since the cursor, and for what the device lacks."""

    ref: Ref = None
    since: CursorText | None = None
    have: Have = {}
    limit: Annotated[int, Meta(ge=1, le=wire.LIST_LIMIT_MAX)] = 100


class Ping(Struct, tag="ping", tag_field="type", forbid_unknown_fields=True):
    """Asks for a `pong`."""

    ref: Ref = None


ClientFrame: TypeAlias = Auth | Seen | Send | Read | Typing | Sync | Ping


class _Referred(Struct):
    ref: Ref = None


encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_decode_ref = msgspec.json.Decoder(_Referred).decode


def decode(text: str) -> ClientFrame:
    """A client's frame. Raises msgspec.DecodeError (ValidationError is one) for anything else."""
    return _decoder.decode(text)


def ref_of(text: str) -> Ref:
    """The `ref` of a frame that is otherwise wrong, so that its sender can tell which it was."""
    try:
        return _decode_ref(text).ref
    except (msgspec.DecodeError, RecursionError):
        return None


def ready(session_id: str, user_id: str, cursor: str, version: int) -> bytes:
    """The first frame of a connection: who it is for, and the position it starts at."""
    return encode(
        {
            "type": "ready",
            "session_id": session_id,
            "user_id": user_id,
            "cursor": cursor,
            "version": version,
        }
    )


def acknowledged_entry(ref: Ref, entry_json: bytes) -> bytes:
    """The answer to `send`."""
    return b'{"type":"ack","ref":%b,"entry":%b}' % (encode(ref), entry_json)


def acknowledged_read(ref: Ref, reply: wire.ReadReply) -> bytes:
    """The answer to `read`."""
    return encode({"type": "ack", "ref": ref, "read": reply})


def error(ref: Ref, problem: wire.Problem) -> bytes:
    """Says that a frame could not be accepted."""
    frame: dict[str, Any] = {"type": "error", "problem": problem}
    if ref is not None:
        frame["ref"] = ref
    return encode(frame)


def synced(ref: Ref, reply: wire.SyncReply, *, since_version: int | None = None) -> bytes:
    """The answer to `sync`, and the catch-up after `auth`.

    One that nobody asked for tells what the service failed to tell live, since the version up to
    which it has told everything: a device that is not there yet missed something else.
    """
    head = b'{"type":"sync",' if ref is None else b'{"type":"sync","ref":%b,' % encode(ref)
    if since_version is not None:
        head += b'"since_version":%d,' % since_version
    return head + encode(reply)[1:]


def pong(ref: Ref) -> bytes:
    """The answer to `ping`."""
    return b'{"type":"pong"}' if ref is None else encode({"type": "pong", "ref": ref})


def closing(retry_after_ms: int) -> bytes:
    """Announces a planned stop, and when to come back."""
    return b'{"type":"closing","retry_after_ms":%d}' % retry_after_ms


class _Run:
    """Frames of one type in a row that differ in their bodies only."""

    __slots__ = ("bodies", "name", "opening", "suffix")

    def __init__(self, name: str, opening: bytes, bodies: list[bytes], suffix: bytes) -> None:
        self.name = name
        self.opening = opening
        self.bodies = bodies
        self.suffix = suffix


class Told:
    """The frames that tell one user of one commit, in order, shared by all their devices.

    They share the commit's `version`. Only the last one carries the cursor after the commit;
    those before it carry the cursor before it, so that a device which stores the cursor of the
    last frame it handled never skips the rest of a commit.
    """

    __slots__ = ("_joined", "_runs", "count", "cursor", "previous_cursor", "version")

    def __init__(
        self,
        update: UserUpdate,
        *,
        previous_cursor: str,
        cursor: str,
        room_items: Mapping[str, bytes],
    ) -> None:
        """`room_items` holds the JSON of the inbox row of each room whose row changed."""
        self.version = update.version
        self.cursor = cursor
        self.previous_cursor = previous_cursor
        self._joined: list[tuple[bytes, int]] | None = None
        self._runs = _runs(update, room_items)
        self.count = sum(len(run.bodies) for run in self._runs)

    @property
    def joined(self) -> list[tuple[bytes, int]]:
        """Pieces (frames joined by commas, their number), each fit for one `batch` frame."""
        if self._joined is None:
            self._joined = list(self._join())
        return self._joined

    def _join(self) -> Iterator[tuple[bytes, int]]:
        between, at_end = self._endings()
        last = self._runs[-1]
        for run in self._runs:
            opening = run.opening
            closing = run.suffix + between
            separator = closing + b"," + opening
            chunks = _chunks(run.bodies, len(separator))
            for number, bodies in enumerate(chunks, 1):
                is_end = run is last and number == len(chunks)
                ending = run.suffix + at_end if is_end else closing
                yield opening + separator.join(bodies) + ending, len(bodies)

    def each(self) -> Iterator[tuple[str, str, bytes]]:
        """Each frame by itself: its type, its cursor, and its text."""
        between, at_end = self._endings()
        left = self.count
        for run in self._runs:
            for body in run.bodies:
                left -= 1
                cursor, ending = (self.previous_cursor, between) if left else (self.cursor, at_end)
                yield run.name, cursor, run.opening + body + run.suffix + ending

    def _endings(self) -> tuple[bytes, bytes]:
        return (
            b',"cursor":"%b"}' % self.previous_cursor.encode(),
            b',"cursor":"%b"}' % self.cursor.encode(),
        )


def _chunks(bodies: list[bytes], overhead_bytes: int) -> list[list[bytes]]:
    """The bodies in order, so divided that each part keeps to the limits of a frame."""
    size = sum(map(len, bodies)) + len(bodies) * overhead_bytes
    if len(bodies) <= FRAME_UPDATES_MAX and size <= FRAME_BYTES_MAX:
        return [bodies]
    chunks: list[list[bytes]] = [[]]
    size = 0
    for body in bodies:
        size += len(body) + overhead_bytes
        if chunks[-1] and (len(chunks[-1]) == FRAME_UPDATES_MAX or size > FRAME_BYTES_MAX):
            chunks.append([])
            size = len(body) + overhead_bytes
        chunks[-1].append(body)
    return chunks


def _runs(update: UserUpdate, room_items: Mapping[str, bytes]) -> list[_Run]:
    unread, mentions, version = update.unread, update.mentions, update.version
    runs = []
    has_row_changed = False
    for room in update.rooms:
        suffix = (
            b',"unread":%d,"mentions":%d,"total":{"unread":%d,"mentions":%d,"version":%d}'
            b',"version":%d'
        ) % (room.unread, room.mentions, unread, mentions, version, version)
        if room.entries:
            bodies = [posted.json for posted in room.entries]
            runs.append(_Run("entry", b'{"type":"entry","entry":', bodies, suffix))
        if room.is_read_moved:
            body = b'"room_id":"%b","read_seq":%d' % (room.room_id.encode(), room.read_seq)
            runs.append(_Run("read", b'{"type":"read",', [body], suffix))
        if room.is_row_changed:
            has_row_changed = True
            item = room_items.get(room.room_id) or _bare_row(room)
            body = b'"room_id":"%b","room":%b' % (room.room_id.encode(), item)
            runs.append(_Run("room", b'{"type":"room",', [body], suffix))
    if has_row_changed or not runs:
        suffix = b'"unread":%d,"mentions":%d,"version":%d' % (unread, mentions, version)
        runs.append(_Run("badge", b'{"type":"badge",', [b""], suffix))
    return runs


def _bare_row(room: RoomUpdate) -> bytes:
    """What is known of a row that can no longer be read, such as that of a room just left."""
    return encode(
        {
            "room_id": room.room_id,
            "unread": room.unread,
            "mentions": room.mentions,
            "read_seq": room.read_seq,
            "head": room.head,
            "muted": room.is_muted,
            "left": room.is_left,
            "hidden": room.is_hidden,
        }
    )
