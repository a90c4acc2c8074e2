"""What the tests of copying share: stores in use, workers, and whether two stores are the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tests.storage.contract import scan_all
from tidings.migrate.captures import CAPTURED_TABLES
from tidings.storage.interface import (
    Absent,
    ConditionFailed,
    Delete,
    Exists,
    Item,
    Key,
    Put,
    Store,
    Table,
    Update,
    Write,
)
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MEMBERS, RECEIPTS, ROOMS

ROOMS_USED = 6
"""Few, so that the same items change again and again."""


class Someone:
    """A worker; the dead are those that a test names."""

    def __init__(self, worker_id: str = "one", dead: set[str] | None = None) -> None:
        self.worker_id = worker_id
        self.dead: set[str] = set() if dead is None else dead

    def is_gone(self, worker_id: str) -> bool:
        """See `Worker.is_gone`."""
        return worker_id in self.dead


def random_set(chance: random.Random) -> list[Write]:
    """Writes of every kind to a few items, some of them conditional."""
    room = f"acme#room_{chance.randrange(ROOMS_USED)}"
    user = f"acme#usr_{chance.randrange(ROOMS_USED)}"
    text = "é" * chance.randrange(20)
    wishes: list[Write] = [
        Put(ROOMS, {"room": room, "title": text, "head": chance.randrange(9), "tags": [text]}),
        Put(ROOMS, {"room": room, "title": "new"}, when=(Absent(),)),
        Update(ROOMS, (room,), add={"head": 1}, set={"title": text}, remove=("tags",)),
        Delete(ROOMS, (room,)),
        Put(ENTRIES, {"room": room, "seq": chance.randrange(40), "data": {"n": [1, 2.5, text]}}),
        Update(ENTRIES, (room, chance.randrange(40)), set={"text": text}, when=(Exists(),)),
        Delete(ENTRIES, (room, chance.randrange(40))),
        Put(MEMBERS, {"room": room, "user_id": user, "joined_seq": chance.randrange(9)}),
        Delete(MEMBERS, (room, user), when=(Exists(),)),
        Update(BADGES, (user,), add={"unread": 1, "version": 1}),
        Put(
            INBOXES,
            {"user": user, "room_id": room, "feed": chance.randrange(99), "is_muted": True},
        ),
    ]
    wanted = chance.sample(wishes, chance.randint(1, 3))
    by_item = {
        (write.table.name, write.table.key(write.item) if isinstance(write, Put) else write.key): (
            write
        )
        for write in wanted
    }
    return [*by_item.values()]


async def write_at_random(store: Store, chance: random.Random, sets: int) -> None:
    """That many sets, one after the other; those whose conditions fail change nothing."""
    for _ in range(sets):
        with suppress(ConditionFailed):
            await store.write(*random_set(chance))
        await asyncio.sleep(0)


async def fill(store: Store, rooms: int, entries: int, **fields: Any) -> None:
    """Rooms with entries and receipts."""
    names = [f"acme#room_{number:06}" for number in range(rooms)]
    await store.put_many(ROOMS, [{"room": name, "head": entries} for name in names])
    for name in names:
        await store.put_many(
            ENTRIES,
            [
                {"room": name, "seq": seq, "text": f"{name} {seq}"} | fields
                for seq in range(entries)
            ],
        )
    await store.put_many(
        RECEIPTS, [{"room": name, "receipt": "a#1", "expires_at": 4_000_000_000} for name in names]
    )


async def contents(
    store: Store, tables: Sequence[Table] = CAPTURED_TABLES
) -> dict[tuple[str, Key], Item]:
    """Every item of the store that reads see."""
    return {
        (table.name, table.key(item)): item
        for table in tables
        for item in await scan_all(store, table, limit=1_000)
    }
