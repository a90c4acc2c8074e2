"""Rooms whose read mark or row moved lately, by user: a hint for catch-ups, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque

from tidings.chat.updates import UserUpdate

MARKED_ROOMS_MAX = 32
"""Rooms remembered of one user."""
MARKED_USERS_MAX = 10_000


class MarkedRooms:
    """What updates said of read marks and rows, the newest of each user."""

    def __init__(self) -> None:
        self._marked: OrderedDict[tuple[str, str], deque[tuple[int, str]]] = OrderedDict()

    def note(self, workspace: str, update: UserUpdate) -> None:
        """Remember the rooms of the update whose mark or row moved."""
        key = (workspace, update.user_id)
        marked = self._marked.get(key)
        if marked is None:
            if len(self._marked) >= MARKED_USERS_MAX:
                self._marked.popitem(last=False)
            marked = self._marked[key] = deque(maxlen=MARKED_ROOMS_MAX)
        else:
            self._marked.move_to_end(key)
        for room in update.rooms:
            if room.is_read_moved or room.is_row_changed:
                marked.append((update.version, room.room_id))

    def since(self, workspace: str, user_id: str, version: int) -> list[str]:
        """Rooms known to have moved after the version; there may be others."""
        marked = self._marked.get((workspace, user_id), ())
        return list(dict.fromkeys(room for moved_at, room in marked if moved_at > version))
