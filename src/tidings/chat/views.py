"""What a plan starts from: a room as it is known, with whatever its commands name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidings.chat.rows import Participation, RoomRow
from tidings.storage.interface import Item


class Torn(Exception):
    """What was read is of different moments: nothing can be planned on it, read it again."""


class RoomView(msgspec.Struct, frozen=True):
    """What is known of a room; a commit planned on it fails if it is no longer so."""

    room: RoomRow | None
    """None where there is no such room."""
    member_ids: frozenset[str] | None = frozenset()
    """All members; None where they are too many to be carried along."""
    participations: Mapping[str, Participation] = {}
    """Rows of all members of an inline room and of the users that commands name."""
    entries: Mapping[int, Item] = {}
    """Entries that commands name, and those that folds and counts go over."""


def require_whole(view: RoomView) -> None:
    """Raises Torn where members' rows and the room are not of one moment.

    The members of an inline room have reached its head, all of them and nobody else; in a large
    one nobody is ahead of it.
    """
    room = view.room
    if room is None:
        return
    counted = {
        user_id: row.counted_seq for user_id, row in view.participations.items() if not row.is_left
    }
    if not room.is_inline or view.member_ids is None:
        if any(seq > room.head for seq in counted.values()):
            raise Torn
    elif counted.keys() != view.member_ids or any(seq != room.head for seq in counted.values()):
        raise Torn
