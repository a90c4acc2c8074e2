"""Inboxes: a user's rooms by newest activity, their totals, and who is near them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tidings import wire
from tidings.chat import access
from tidings.chat.rows import (
    Participation,
    RoomRow,
    badge_from_item,
    participation_from_item,
    room_from_item,
)
from tidings.clock import rfc3339
from tidings.cursors import Cursors
from tidings.errors import NotFound
from tidings.people.callers import Caller
from tidings.people.rows import UserRow, named_user
from tidings.people.users import Users
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Page, Position, Store
from tidings.storage.tables import BADGES, INBOXES, MEMBERS, ROOMS, room_key, user_key

PAGES_MAX = 40
"""Queries for one page of a filtered inbox; a page may be short or empty."""
COMPANIONS_MAX = 200
COMPANION_ROOMS_MAX = 50
"""Newest rooms of a user whose members count as companions."""
SHARED_PAGES_MAX = 4
SHARED_PAGE_ROOMS = 500
"""Of so many rooms a page, so many pages are compared to find one that two users share."""

UserIds: TypeAlias = list[str]


class Inboxes:
    """The inboxes and totals of all users."""

    def __init__(self, store: Store, cursors: Cursors, users: Users) -> None:
        self._store = store
        self._cursors = cursors
        self._users = users

    async def list(
        self,
        caller: Caller,
        *,
        status: wire.Status | None,
        kind: wire.RoomKind | None,
        unread: bool,
        limit: int,
        cursor: str | None,
    ) -> wire.InboxList:
        """The caller's rooms, newest activity first; of those with something unread, the newest
        PAGE_ITEMS_MAX by when that began come first, then the next.

        A filtered page may be short and still have a `next`. Raises Forbidden, ValidationFailed.
        """
        user_id = access.require_user(caller)
        purpose = f"inbox#{caller.workspace}#{user_id}#{status}#{kind}#{unread}"
        state = None if cursor is None else self._cursors.open(purpose, cursor)
        find = self._find_unread if unread else self._find_newest
        found, state = await find(caller, status, kind, limit, state)
        items = await self._items(caller.workspace, user_id, caller.role, found)
        return wire.InboxList(items, None if state is None else self._cursors.seal(purpose, state))

    async def _find_newest(
        self,
        caller: Caller,
        status: wire.Status | None,
        kind: wire.RoomKind | None,
        limit: int,
        state: Any,
    ) -> tuple[Sequence[tuple[Participation, RoomRow]], Any]:
        user = user_key(caller.workspace, caller.user_id or "")
        after: Position | None = None if state is None else tuple(state)
        found: Any = []
        for _ in range(PAGES_MAX):
            page: Page = await self._store.query(
                INBOXES,
                user,
                index="by_feed",
                reverse=True,
                limit=limit - len(found),
                after=after,
            )
            found += await self._matching(caller.workspace, page.items, status, kind)
            after = page.after
            if after is None or len(found) == limit:
                break
        return found, after

    async def _find_unread(
        self,
        caller: Caller,
        status: wire.Status | None,
        kind: wire.RoomKind | None,
        limit: int,
        state: Any,
    ) -> tuple[Sequence[tuple[Participation, RoomRow]], Any]:
        """`state` is [start of the window, order of the last row given of it, or None]."""
        user = user_key(caller.workspace, caller.user_id or "")
        start, last = state or (None, None)
        for _ in range(PAGES_MAX):
            page = await self._store.query(
                INBOXES,
                user,
                index="by_unread",
                reverse=True,
                limit=PAGE_ITEMS_MAX,
                after=None if start is None else tuple(start),
            )
            keys = [(user, item["room_id"]) for item in page.items]
            rows = await self._store.get_many(INBOXES, keys) if keys else ()
            window = sorted((row for row in rows if row is not None and row["unread"]), key=_order)
            rest = [row for row in window if last is None or _order(row) > tuple(last)]
            found = await self._matching(caller.workspace, rest, status, kind)
            if len(found) > limit:
                final = found[limit - 1][0]
                return found[:limit], (start, (-final.feed, final.room_id))
            start, last = page.after, None
            if found or start is None:
                return found, None if start is None else (start, None)
        return (), (start, None)

    async def _matching(
        self,
        workspace: str,
        items: Sequence[Item],
        status: wire.Status | None,
        kind: wire.RoomKind | None,
    ) -> Sequence[tuple[Participation, RoomRow]]:
        """The rows that match and were neither left nor hidden, with their rooms."""
        rows = [
            row
            for row in map(participation_from_item, items)
            if not row.is_left and not row.is_hidden and kind in (None, row.kind)
        ]
        if status is not None:
            rows = [row for row in rows if row.kind == "support"]
        rooms = await self._rooms(workspace, [row.room_id for row in rows])
        return [
            (row, room)
            for row in rows
            if (room := rooms.get(row.room_id)) is not None and status in (None, room.status)
        ]

    async def _rooms(self, workspace: str, room_ids: Sequence[str]) -> Mapping[str, RoomRow]:
        keys = [(room_key(workspace, room_id),) for room_id in room_ids]
        items = await self._store.get_many(ROOMS, keys) if keys else ()
        rooms = [room_from_item(item) for item in items if item is not None]
        return {room.room_id: room for room in rooms}

    async def _items(
        self,
        workspace: str,
        user_id: str,
        role: wire.Role | None,
        found: Sequence[tuple[Participation, RoomRow]],
    ) -> Any:
        others = [_others(row, room, user_id) for row, room in found]
        people = await self._users.find_many(workspace, {each for some in others for each in some})
        return [
            _item(row, room, [seen(people[each], role) for each in some if each in people])
            for (row, room), some in zip(found, others, strict=True)
        ]

    async def item(self, workspace: str, user_id: str, room_id: str) -> wire.InboxItem:
        """One row of a user's inbox, also one that was left. Raises NotFound."""
        stored = await self._store.get(INBOXES, (user_key(workspace, user_id), room_id))
        rooms = await self._rooms(workspace, [room_id])
        if stored is None or room_id not in rooms:
            raise NotFound("There is no such room in this inbox.")
        user = await self._users.find(workspace, user_id)
        role = None if user is None else user.role
        row = participation_from_item(stored)
        items = await self._items(workspace, user_id, role, [(row, rooms[room_id])])
        item: wire.InboxItem = items[0]
        return item

    async def badge(self, caller: Caller) -> wire.Badge:
        """The caller's totals, by one read. Raises Forbidden."""
        user = user_key(caller.workspace, access.require_user(caller))
        badge = badge_from_item(await self._store.get(BADGES, (user,)))
        return wire.Badge(badge.unread, badge.mentions, badge.version)

    async def companions(self, workspace: str, user_id: str) -> UserIds:
        """The others in the user's newest small rooms, at most COMPANIONS_MAX."""
        page = await self._store.query(
            INBOXES,
            user_key(workspace, user_id),
            index="by_feed",
            reverse=True,
            limit=COMPANION_ROOMS_MAX,
        )
        rows = [row for row in map(participation_from_item, page.items) if not row.is_left]
        found = {row.peer_id: None for row in rows if row.peer_id is not None}
        wider = [row.room_id for row in rows if row.peer_id is None]
        for room in (await self._rooms(workspace, wider)).values():
            if len(found) >= COMPANIONS_MAX:
                break
            if room.is_inline:
                members = await self._store.query(MEMBERS, room.key)
                found |= {member["user_id"]: None for member in members.items}
        found.pop(user_id, None)
        return [*found][:COMPANIONS_MAX]

    async def shares_room(self, workspace: str, user_id: str, other_id: str) -> bool:
        """Whether both are members of one room, among so many of the first one's rooms."""
        user, other = user_key(workspace, user_id), user_key(workspace, other_id)
        after: Position | None = None
        for _ in range(SHARED_PAGES_MAX):
            page = await self._store.query(INBOXES, user, limit=SHARED_PAGE_ROOMS, after=after)
            keys = [(other, item["room_id"]) for item in page.items if not item.get("is_left")]
            rows = await self._store.get_many(INBOXES, keys) if keys else ()
            if any(row is not None and not row.get("is_left") for row in rows):
                return True
            after = page.after
            if after is None:
                return False
        return False


def _order(row: Item) -> tuple[int, str]:
    """Newest activity first."""
    return -row["feed"], row["room_id"]


def _others(row: Participation, room: RoomRow, user_id: str) -> Sequence[str]:
    """Whom a row of an inbox shows: the peer, or the customer and who takes care of them."""
    shown = (row.peer_id, room.customer_id, room.assignee_id)
    return [each for each in dict.fromkeys(shown) if each is not None and each != user_id]


def seen(user: UserRow, role: wire.Role | None) -> wire.User:
    """The other one, as far as a reader of that role may know them."""
    if role in access.TEAM_ROLES:
        return wire.User(id=user.user_id, name=user.name, role=user.role, email=user.email)
    return named_user(user)


def _item(row: Participation, room: RoomRow, others: Sequence[wire.User]) -> wire.InboxItem:
    """The row as its owner sees it; who left learns nothing more of the room."""
    is_there = not row.is_left
    return wire.InboxItem(
        room_id=row.room_id,
        kind=row.kind,
        title=room.title if is_there else None,
        with_=[*others] if is_there else [],
        unread=row.unread,
        mentions=row.mentions,
        read_seq=row.read_seq,
        head=room.head if is_there else row.counted_seq,
        updated_at=rfc3339(row.active_at),
        preview=row.preview,
        muted=row.is_muted,
        left=row.is_left,
        hidden=row.is_hidden,
        status=room.status if is_there else None,
        assignee_id=room.assignee_id if is_there else None,
    )
