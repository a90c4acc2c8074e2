"""What one commit tells each user it concerned: the payload of every way of delivery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from tidings import wire

_encode = msgspec.json.Encoder().encode


class PostedEntry:
    """An entry, with its JSON made once however many connections get it."""

    __slots__ = ("_json", "entry")

    def __init__(self, entry: wire.Entry) -> None:
        self.entry = entry
        self._json: bytes | None = None

    @property
    def json(self) -> bytes:
        """The entry as UTF-8 JSON."""
        if self._json is None:
            self._json = _encode(self.entry)
        return self._json


class RoomUpdate(msgspec.Struct, frozen=True):
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
    """The inbox row itself changed: joined, left, muted."""
    is_left: bool = False
    is_muted: bool = False


class UserUpdate(msgspec.Struct, frozen=True):
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

Signal: TypeAlias = Callable[[str, Sequence[str], dict[str, object]], None]
"""Sends a frame that is not stored to the connections of users: (workspace, user ids, frame)."""
