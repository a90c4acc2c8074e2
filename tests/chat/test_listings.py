"""Listings over an index that follows its table late, as a global one of DynamoDB does."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from tests.storage.contract import SetClock
from tidings.chat.listings import list_rooms, public_listings, support_listings
from tidings.chat.rows import RoomRow, room_to_item
from tidings.cursors import Cursors
from tidings.storage.interface import Item, Page, Put, Update
from tidings.storage.metered import MeteredStore, Place, metering
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ROOMS

CURSORS = Cursors(b"k" * 32)


class LateIndex:
    """The store, whose listings stand still from the moment they are first read."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._pages: dict[Any, Page] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def query(self, table: Any, partition: Any, **arguments: Any) -> Page:
        place = partition, repr(arguments)
        if place not in self._pages:
            self._pages[place] = await self._store.query(table, partition, **arguments)
        return self._pages[place]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "store.db", clock=SetClock()) as store:
        yield store


def room(number: int, **fields: Any) -> RoomRow:
    return RoomRow(
        workspace="acme",
        room_id=f"room_{number}",
        kind="support",
        created_at=1,
        status="open",
        listed_at=number,
        **fields,
    )


async def listed(store: Any, partitions: list[str], **fields: Any) -> list[tuple[str, int]]:
    def matches(item: Item) -> bool:
        return all(item.get(name) == value for name, value in fields.items())

    found, _ = await list_rooms(store, CURSORS, "test", partitions, matches, limit=50, cursor=None)
    return [(each.room_id, each.head) for each in found]


async def test_a_room_is_shown_as_it_is_and_where_it_is(store: SqliteStore) -> None:
    late = LateIndex(store)
    for number in range(1, 5):
        await store.write(Put(ROOMS, room_to_item(room(number, assignee_id="mia"))))
    everywhere = support_listings("acme", None)
    assert len(await listed(late, everywhere)) == 4
    closed = room(2)
    closed.status = "closed"
    await store.write(Update(ROOMS, (room(1).key,), {"head": 7}))
    await store.write(Put(ROOMS, room_to_item(closed)))
    await store.write(Update(ROOMS, (room(3).key,), {"assignee_id": "max"}))
    seen = await listed(late, support_listings("acme", "open"), assignee_id="mia")
    assert seen == [("room_4", 0), ("room_1", 7)]
    assert len(await listed(store, everywhere)) == 4
    assert await listed(store, public_listings("acme")) == []


async def test_a_message_within_the_minute_leaves_the_listing_alone(store: SqliteStore) -> None:
    metered = MeteredStore(store)
    row = room(1)
    await metered.write(Put(ROOMS, room_to_item(row)))
    with metering() as meter:
        await metered.write(Update(ROOMS, (row.key,), {"head": 1, "epoch": 1, "member_count": 3}))
        assert Place("rooms", "by_listing") not in meter.places
        await metered.write(Update(ROOMS, (row.key,), {"head": 2, "listed_at": 2}))
        assert meter.places[Place("rooms", "by_listing")].write == 2


class AnyOrderWithin:
    """The store, whose index breaks ties as chance would have it, though always the same way."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def query(
        self, table: Any, partition: Any, *, limit: int, after: Any, **arguments: Any
    ) -> Page:
        def place(item: Item) -> tuple[int, int]:
            return -item["listed_at"], crc32(item["room"].encode())

        items = sorted((await self._store.query(table, partition, **arguments)).items, key=place)
        rest = [item for item in items if after is None or place(item) > after]
        return Page(rest[:limit], place(rest[limit - 1]) if len(rest) > limit else None)


@pytest.mark.parametrize("limits", [(1,), (3,), (7, 1), (2, 50)])
async def test_no_room_is_left_out_however_a_store_breaks_ties(
    store: SqliteStore, limits: tuple[int, ...]
) -> None:
    for number in range(60):
        row = room(number)
        row.listed_at = number // 20
        await store.write(Put(ROOMS, room_to_item(row)))
    any_order: Any = AnyOrderWithin(store)
    seen: list[RoomRow] = []
    moved = None
    cursor = None
    for limit in itertools.cycle(limits):
        found, cursor = await list_rooms(
            any_order,
            CURSORS,
            "test",
            support_listings("acme", "open"),
            lambda item: True,
            limit=limit,
            cursor=cursor,
        )
        seen += found
        if len(seen) > 10 and moved is None:  # the room that the cursor stands at moves on
            moved = Update(ROOMS, (seen[-1].key,), {"listed_at": 9})
            await store.write(moved)
        if cursor is None:
            break
    assert {each.room_id for each in seen} == {f"room_{number}" for number in range(60)}
    assert [each.listed_at for each in seen] == sorted(
        (each.listed_at or 0 for each in seen), reverse=True
    )
    assert len(seen) < 80
