"""What a node knows of rooms and their users: remembered between commits, and never trusted.

Whoever plans on it has conditions that make the commit fail where it is no longer so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import msgspec

from tidings.chat.memory import KnownUsers
from tidings.chat.plans import Plan
from tidings.chat.rows import (
    INLINE_MEMBERS_MAX,
    BadgeRow,
    Participation,
    RoomRow,
    badge_from_item,
    participation_from_item,
    room_from_item,
)
from tidings.chat.views import RoomView
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Store
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MEMBERS, ROOMS, room_key, user_key

ROOMS_REMEMBERED_MAX = 20_000
Remembered: TypeAlias = tuple[RoomRow, frozenset[str] | None, Participation]


class KnownRoom(msgspec.Struct):
    """A room, and its members if they are few."""

    row: RoomRow
    members: frozenset[str] | None


class Known:
    """Reads rooms, their users' rows and totals, and remembers what it read or a commit left.

    `busy` are the keys of the rooms and users whose turn somebody holds: what is read of them
    without it may be old by then, and is not remembered.
    """

    def __init__(self, store: Store, busy: Collection[str]) -> None:
        self._store = store
        self._busy = busy
        self._rooms: OrderedDict[str, KnownRoom] = OrderedDict()
        self._users = KnownUsers()

    def __contains__(self, name: str) -> bool:
        return name in self._rooms or name in self._users

    def room(self, key: str) -> KnownRoom | None:
        """The room of that key, if it is remembered."""
        return self._rooms.get(key)

    async def look(
        self, workspace: str, room_id: str, users: Sequence[str] = ()
    ) -> RoomView | None:
        """The room with its members, and the rows of the users; None where there is no room."""
        known = await self.read_room(workspace, room_id, is_fresh=True)
        if known is None:
            return None
        rows: dict[str, Participation] = {}
        missing: list[str] = []
        for user_id in users:
            row = self._users.row(user_key(workspace, user_id), room_id, known.row.epoch)
            if row is not None:
                rows[user_id] = row
            else:
                missing.append(user_id)
        if missing:
            rows |= await self._read_rows(workspace, room_id, missing)
        return RoomView(room=known.row, member_ids=known.members, participations=rows)

    def remembered(self, workspace: str, room_id: str, user_id: str) -> Remembered | None:
        """The room, its members if they are few, and the user's row, where they are in memory.

        Good enough before a commit, which checks.
        """
        known = self._rooms.get(room_key(workspace, room_id))
        if known is None:
            return None
        row = self._users.row(user_key(workspace, user_id), room_id, known.row.epoch)
        return None if row is None else (known.row, known.members, row)

    def members_remembered(self, workspace: str, room_id: str) -> frozenset[str] | None:
        """All members of an inline room that is remembered, as they were; None for any other."""
        known = self._rooms.get(room_key(workspace, room_id))
        return None if known is None else known.members

    def newest(self, room: RoomRow) -> RoomRow:
        """The room as it was read, or as this node has left it if that was later."""
        known = self._rooms.get(room.key)
        return known.row if known is not None and _age(known.row) > _age(room) else room

    async def entries(self, room: RoomRow, seqs: Iterable[int]) -> dict[int, Item]:
        """Entries of a room by sequence, read in runs."""
        found: dict[int, Item] = {}
        for low, high in _runs(sorted(seqs)):
            page = await self._store.query(ENTRIES, room.key, low=low, high=high)
            items = page.items
            while page.after is not None:
                page = await self._store.query(
                    ENTRIES, room.key, low=low, high=high, after=page.after
                )
                items = items + page.items
            found |= {item["seq"]: item for item in items}
        return found

    async def badges(self, workspace: str, users: Iterable[str]) -> dict[str, BadgeRow]:
        """Totals of users whose turn is held. They are read before their rows, never after."""
        found: dict[str, BadgeRow] = {}
        missing: list[str] = []
        for user_id in users:
            badge = self._users.badge(user_key(workspace, user_id))
            if badge is None:
                missing.append(user_id)
            else:
                found[user_id] = badge
        for user_id, item in zip(
            missing,
            await _get_all(self._store, [(user_key(workspace, u),) for u in missing]),
            strict=True,
        ):
            found[user_id] = badge_from_item(item)
            self._users.keep_badge(user_key(workspace, user_id), found[user_id])
        return found

    async def participations(
        self,
        workspace: str,
        wanted: Iterable[tuple[str, int, Iterable[str]]],
        *,
        held: Collection[str],
    ) -> dict[str, dict[str, Participation]]:
        """Rows by room and user, for (room id, its epoch, users); those that are there.

        They say who was a member at that epoch of the room, or at a later one. Of users that are
        `held`, whose turn it is, they are what a commit may start from, once their `badges` were
        asked for.
        """
        found: dict[str, dict[str, Participation]] = {}
        missing: list[tuple[str, str, int]] = []
        for room_id, epoch, users in wanted:
            rows = found[room_id] = {}
            for user_id in users:
                row = self._users.row(user_key(workspace, user_id), room_id, epoch)
                if row is None:
                    missing.append((user_id, room_id, epoch))
                else:
                    rows[user_id] = row
        if missing:
            keys = [(user_key(workspace, user_id), room_id) for user_id, room_id, _ in missing]
            items = await self._store.get_many(INBOXES, keys)
            for (user_id, room_id, epoch), item in zip(missing, items, strict=True):
                if item is not None:
                    row = found[room_id][user_id] = participation_from_item(item)
                    if user_id in held:  # another turn may change the others' at this moment
                        self._users.keep_row(user_key(workspace, user_id), room_id, row, epoch)
        return found

    async def _read_rows(
        self, workspace: str, room_id: str, users: Sequence[str]
    ) -> dict[str, Participation]:
        keys = [(user_key(workspace, user_id), room_id) for user_id in users]
        items = await self._store.get_many(INBOXES, keys)
        return {
            user_id: participation_from_item(item)
            for user_id, item in zip(users, items, strict=True)
            if item is not None
        }

    async def read_room(
        self, workspace: str, room_id: str, *, is_fresh: bool, is_held: bool = False
    ) -> KnownRoom | None:
        """The room as it is stored, or unless `is_fresh` as it is remembered; None without one.

        It is remembered if its turn `is_held` by whoever asks, or by nobody.
        """
        key = room_key(workspace, room_id)
        known = self._rooms.get(key)
        if known is not None and not is_fresh:
            return known
        item = await self._store.get(ROOMS, (key,))
        if item is None:
            return None
        row = room_from_item(item)
        known = self._rooms.get(key)
        if known is not None and _age(known.row) >= _age(row):
            return known
        members: frozenset[str] | None = None
        if known is not None and known.row.epoch == row.epoch and row.is_inline:
            members = known.members
        if members is None and row.is_inline:
            page = await self._store.query(MEMBERS, key, limit=INLINE_MEMBERS_MAX + 1)
            members = frozenset(member["user_id"] for member in page.items)
            known = self._rooms.get(key)
            if known is not None and _age(known.row) >= _age(row):  # a commit was faster
                return known
        known = KnownRoom(row, members)
        if is_held or key not in self._busy:
            self._rooms[key] = known
            self._trim()
        return known

    def remember(self, workspace: str, plan: Plan) -> None:
        """What a commit left behind is what the next one starts from."""
        for room_id, row in plan.rooms.items():
            key = room_key(workspace, room_id)
            self._rooms[key] = KnownRoom(row, plan.members[room_id])
            self._rooms.move_to_end(key)
        for user_id, badge in plan.badges.items():
            self._users.keep_badge(user_key(workspace, user_id), badge)
        for (user_id, room_id), participation in plan.participations.items():
            room = plan.rooms.get(room_id)
            epoch = None if room is None else room.epoch  # a fan-out changes nobody's membership
            self._users.keep_row(user_key(workspace, user_id), room_id, participation, epoch)
        self._trim()

    def forget(self, names: Iterable[str]) -> None:
        """Read these rooms and users anew: somebody else was faster."""
        for name in names:
            self._rooms.pop(name, None)
            self._users.forget(name)

    def _trim(self) -> None:
        while len(self._rooms) > ROOMS_REMEMBERED_MAX:
            self._rooms.popitem(last=False)


async def _get_all(store: Store, keys: Sequence[tuple[str, ...]]) -> list[Item | None]:
    found: list[Item | None] = []
    for start in range(0, len(keys), PAGE_ITEMS_MAX):
        found += await store.get_many(BADGES, keys[start : start + PAGE_ITEMS_MAX])
    return found


def _runs(seqs: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Runs of consecutive numbers among ascending ones, as (first, last)."""
    start = None
    for index, seq in enumerate(seqs):
        if start is None:
            start = seq
        if index + 1 == len(seqs) or seqs[index + 1] != seq + 1:
            yield start, seq
            start = None


def _age(room: RoomRow) -> tuple[int, int, bool]:
    """Greater for a later state of a room: a fan-out opens with an entry, and just closes."""
    return room.head, room.epoch, not room.is_fanning
