"""The listings of a workspace's rooms: sharded partitions, merged into one order.

Newest activity first, which is kept to the minute; within a minute in the store's own order, which
is by id, descending, on the embedded one and promised by no other. The index
holds a room's place and what lists are filtered by, and nothing that changes with each message:
it would cost every message a write, in a partition that many rooms share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec.structs import asdict

from tidings import wire
from tidings.chat.rows import (
    MINUTE_MS,
    Participation,
    RoomRow,
    participation_from_item,
    room_from_item,
    room_to_wire,
)
from tidings.clock import rfc3339
from tidings.cursors import Cursors
from tidings.storage.interface import Item, Position, Store
from tidings.storage.tables import INBOXES, LISTING_SHARDS, ROOMS, user_key

SCANNED_MAX = 2_000
"""Rooms looked through for one page of a filtered list; a page may be short or empty."""
STATUSES: tuple[wire.Status, ...] = ("open", "snoozed", "closed")

Matches: TypeAlias = Callable[[Item], bool]
"""Whether a list shows a room, by the fields that the index holds."""
_Place: TypeAlias = tuple[int, str]
"""(listed_at, key of the room): greater is earlier in the list."""


def support_listings(workspace: str, status: wire.Status | None) -> list[str]:
    """The partitions of the support rooms of one status, or of all."""
    statuses = STATUSES if status is None else (status,)
    return [
        f"{workspace}#support#{each}#{shard}"
        for each in statuses
        for shard in range(LISTING_SHARDS)
    ]


def public_listings(workspace: str) -> list[str]:
    """The partitions of the public team rooms."""
    return [f"{workspace}#group#public#{shard}" for shard in range(LISTING_SHARDS)]


class _Shard:
    """One partition, read page by page.

    Where it stands is the start and the length of its present page and the place of the last room
    taken from it, so that a cursor holds a few numbers however many rooms there are.
    """

    def __init__(self, store: Store, partition: str, limit: int, state: Sequence[Any]) -> None:
        self._store = store
        self._partition = partition
        self._limit = limit
        start, taken, is_read, length = state or (None, None, False, limit)
        self._is_read: bool = is_read
        self._length: int = length
        self._start: Position | None = None if start is None else tuple(start)
        self._taken: _Place | None = None if taken is None else (taken[0], taken[1])
        self._items: list[Item] = []
        self._after: Position | None = None

    @property
    def state(self) -> list[Any]:
        """What a cursor keeps: [start of the page, place taken last, whether that was all, length
        of the page].
        """
        return [self._start, self._taken, self._is_read, self._length]

    async def look(self) -> _Place | None:
        """The place of the next room, or None at the end."""
        while not self._items and not self._is_read:
            page = await self._store.query(
                ROOMS,
                self._partition,
                index="by_listing",
                reverse=True,
                limit=self._length,
                after=self._start,
                consistent=False,
            )
            self._items = _following(page.items, self._taken)
            self._items.reverse()
            self._after = page.after
            if not self._items:
                self._turn_page()
        return _place(self._items[-1]) if self._items else None

    def take(self) -> Item:
        """The next room, after `look` found it."""
        item = self._items.pop()
        self._taken = _place(item)
        if not self._items:
            self._turn_page()
        return item

    def _turn_page(self) -> None:
        self._is_read = self._after is None
        self._start = self._after
        self._taken = None
        self._length = self._limit


def _place(item: Item) -> _Place:
    return item["listed_at"], item["room"]


def _following(items: Sequence[Item], taken: _Place | None) -> list[Item]:
    """What comes after the room taken last.

    Where that room has moved on, it is everything that is no newer: rooms of the same minute may
    come again, but none is left out.
    """
    if taken is None:
        return [*items]
    places = [_place(item) for item in items]
    if taken in places:
        return [*items[places.index(taken) + 1 :]]
    return [item for item in items if item["listed_at"] <= taken[0]]


async def list_rooms(
    store: Store,
    cursors: Cursors,
    purpose: str,
    partitions: Sequence[str],
    matches: Matches,
    *,
    limit: int,
    cursor: str | None,
) -> tuple[list[RoomRow], str | None]:
    """A page of the rooms that match, and the cursor of the next one, None at the end.

    It looks through SCANNED_MAX rooms at most. Raises ValidationFailed for a cursor that was not
    made for the purpose.
    """
    states: Sequence[Any] = [None] * len(partitions)
    if cursor is not None:
        states = cursors.open(purpose, cursor)
    shards = [
        _Shard(store, partition, limit, state)
        for partition, state in zip(partitions, states, strict=True)
    ]
    found: list[Item] = []
    for _ in range(SCANNED_MAX):
        places = [(place, shard) for shard in shards if (place := await shard.look()) is not None]
        if not places:
            return await _rooms(store, found, matches), None
        if len(found) == limit:
            break
        item = max(places, key=lambda each: each[0])[1].take()
        if matches(item):
            found.append(item)
    following = cursors.seal(purpose, [shard.state for shard in shards])
    return await _rooms(store, found, matches), following


async def _rooms(store: Store, found: Sequence[Item], matches: Matches) -> list[RoomRow]:
    """The rooms as they are stored now; those that have moved on since the index found them go."""
    if not found:
        return []
    items = await store.get_many(ROOMS, [(item["room"],) for item in found])
    return [
        room_from_item(item)
        for item, listed in zip(items, found, strict=True)
        if item is not None and item.get("listing") == listed["listing"] and matches(item)
    ]


async def listed(
    store: Store, workspace: str, rooms: Sequence[RoomRow], customers: Mapping[str, wire.User]
) -> list[wire.ListedRoom]:
    """The rooms with what was said last in each conversation, as its customer's own row has it.

    `customers` are those of the rooms' customers who are known, by id.
    """
    keys = [
        (user_key(workspace, room.customer_id), room.room_id)
        for room in rooms
        if room.customer_id is not None
    ]
    items = await store.get_many(INBOXES, keys, consistent=False) if keys else ()
    rows = [participation_from_item(item) for item in items if item is not None]
    by_room = {row.room_id: row for row in rows}
    return [
        _listed(room, by_room.get(room.room_id), customers.get(room.customer_id or ""))
        for room in rooms
    ]


def _listed(
    room: RoomRow, row: Participation | None, customer: wire.User | None
) -> wire.ListedRoom:
    at = room.created_at if room.listed_at is None else room.listed_at * MINUTE_MS
    return wire.ListedRoom(
        **asdict(room_to_wire(room)),
        with_=[] if customer is None else [customer],
        updated_at=rfc3339(at if row is None else row.active_at),
        preview=None if row is None else row.preview,
    )
