"""What a node remembers of users between commits: in bounded memory, and never trusted."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from tidings.chat.rows import BadgeRow, Participation

USERS_REMEMBERED_MAX = 20_000
ROWS_REMEMBERED_MAX = 100_000
"""Inbox rows remembered of all users together; about 70 MB."""
ROWS_OF_USER_MAX = 2_000
"""Inbox rows remembered of one user: somebody may be in that many rooms that talk at once."""


class _KnownRow(msgspec.Struct):
    row: Participation
    epoch: int
    """Of the room when the row was read, so that nobody is taken for a member who no longer is."""


class _KnownUser(msgspec.Struct):
    badge: BadgeRow
    rows: OrderedDict[str, _KnownRow]


class KnownUsers:
    """Badges and inbox rows by the users' keys; who was kept longest ago is forgotten first.

    A row is kept with its user's badge or not at all, for the badge's version guards it.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, _KnownUser] = OrderedDict()
        self._rows_count = 0

    def __contains__(self, key: str) -> bool:
        return key in self._users

    def badge(self, key: str) -> BadgeRow | None:
        """The user's totals, if they are remembered."""
        known = self._users.get(key)
        return None if known is None else known.badge

    def row(self, key: str, room_id: str, epoch: int) -> Participation | None:
        """The user's row for a room, if it is remembered from that epoch of the room."""
        known = self._users.get(key)
        kept = None if known is None else known.rows.get(room_id)
        return kept.row if kept is not None and kept.epoch == epoch else None

    def keep_badge(self, key: str, badge: BadgeRow) -> None:
        """Remember totals; rows that are remembered of the same user stay."""
        known = self._users.get(key)
        if known is None:
            self._users[key] = _KnownUser(badge, OrderedDict())
            self._trim()
        else:
            known.badge = badge
            self._users.move_to_end(key)

    def keep_row(self, key: str, room_id: str, row: Participation, epoch: int | None) -> None:
        """Remember a row of a user whose badge is; with no epoch the one that it had so far."""
        known = self._users.get(key)
        if known is None:
            return
        kept = known.rows.get(room_id)
        if kept is not None:
            known.rows[room_id] = _KnownRow(row, kept.epoch if epoch is None else epoch)
            known.rows.move_to_end(room_id)
        elif epoch is not None:
            known.rows[room_id] = _KnownRow(row, epoch)
            self._rows_count += 1
            if len(known.rows) > ROWS_OF_USER_MAX:
                known.rows.popitem(last=False)
                self._rows_count -= 1
            self._trim()

    def forget(self, key: str) -> None:
        """Forget a user, rows and all."""
        known = self._users.pop(key, None)
        if known is not None:
            self._rows_count -= len(known.rows)

    def _trim(self) -> None:
        while len(self._users) > USERS_REMEMBERED_MAX or self._rows_count > ROWS_REMEMBERED_MAX:
            _, known = self._users.popitem(last=False)
            self._rows_count -= len(known.rows)
