"""What one commit tells each user it concerned: the payload of every way of delivery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from tidings import wire

_encode = msgspec.json.Encoder().encode
_decode_entry = msgspec.json.Decoder(wire.Entry).decode


class PostedEntry:
    """An entry, with its JSON made once however many connections get it, or the other way."""

    __slots__ = ("_entry", "_json")

    def __init__(self, entry: wire.Entry | None, json: bytes | None = None) -> None:
        """One of the two is given."""
        self._entry = entry
        self._json = json

    @property
    def entry(self) -> wire.Entry:
        """The entry."""
        if self._entry is None:
            self._entry = _decode_entry(self._json or b"")
        return self._entry

    @property
    def json(self) -> bytes:
        """The entry as UTF-8 JSON."""
        if self._json is None:
            self._json = _encode(self._entry)
        return self._json


class RoomUpdate(msgspec.Struct, frozen=True, array_like=True):
    """What one commit changed in one room for one user; the counts are those after it."""

    room_id: str
    head: int
    read_seq: int
    unread: int
    mentions: int
    entries: Sequence[PostedEntry] = ()
    """New entries in ascending order, shared between the users of the commit."""
    is_read_moved: bool = False
    """The user's own read mark moved, by a device of theirs."""
    is_row_changed: bool = False
    """The inbox row itself changed: joined, left, muted, hidden."""
    is_left: bool = False
    is_muted: bool = False
    is_hidden: bool = False


class UserUpdate(msgspec.Struct, frozen=True, array_like=True):
    """What one commit changed for one user.

    Updates of one user are published in the order of `version`, which grows by exactly one from
    each to the next.
    """

    user_id: str
    version: int
    unread: int
    mentions: int
    rooms: Sequence[RoomUpdate]


Publish: TypeAlias = Callable[[str, Sequence[UserUpdate]], None]
"""Tells the delivery of this node what a commit changed: (workspace, updates). Never blocks."""

Nudge: TypeAlias = Callable[[str, Sequence[str]], None]
"""Lets delivery compare versions: these users of a workspace may have got what nobody was told."""

Signal: TypeAlias = Callable[[str, Sequence[str], dict[str, object]], None]
"""Sends a frame that is not stored to the connections of users: (workspace, user ids, frame)."""

SignalApart: TypeAlias = Callable[[str, Sequence[str], dict[str, object], dict[str, object]], None]
"""Like Signal, with one frame for whom `chat.access.knows_readers` and another for the others."""


class _Letter(msgspec.Struct, array_like=True, frozen=True):
    """Updates on their way to another node: entries once, and their places in the updates."""

    workspace: str
    entries: list[bytes]
    updates: msgspec.Raw


_encode_letter = msgspec.msgpack.Encoder().encode
_decode_letter = msgspec.msgpack.Decoder(_Letter).decode


def encode_updates(workspace: str, updates: Sequence[UserUpdate]) -> bytes:
    """Updates of one commit for other nodes; each entry's JSON is in it once."""
    entries: list[bytes] = []
    places: dict[int, int] = {}

    def place_of(posted: Any) -> int:
        place = places.get(id(posted))
        if place is None:
            place = places[id(posted)] = len(entries)
            entries.append(posted.json)
        return place

    encoded = msgspec.msgpack.encode(updates, enc_hook=place_of)
    return _encode_letter(_Letter(workspace, entries, msgspec.Raw(encoded)))


def decode_updates(body: bytes) -> tuple[str, list[UserUpdate]]:
    """The workspace and updates of `encode_updates`. Raises msgspec.DecodeError."""
    letter = _decode_letter(body)
    entries = [PostedEntry(None, json) for json in letter.entries]

    def posted_at(_: type, place: int) -> PostedEntry:
        if not 0 <= place < len(entries):
            raise ValueError("no such entry")
        return entries[place]

    updates = msgspec.msgpack.decode(letter.updates, type=list[UserUpdate], dec_hook=posted_at)
    return letter.workspace, updates
