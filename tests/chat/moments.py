"""Looks at a store as it is at one moment after another, while others write to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidings.chat.audit import HasSnapshot
from tidings.storage.interface import Store
from tidings.storage.tables import BADGES, INBOXES, ROOMS, room_key

PAUSE_S = 0.02


async def assert_exact(store: HasSnapshot) -> None:
    """At one moment totals are sums, and members of rooms at rest have reached the head."""
    async with store.snapshot() as then:
        sums: dict[str, Counter[str]] = {}
        rooms = {item["room"]: item for item in (await then.scan(ROOMS)).items}
        rows = (await then.scan(INBOXES)).items
        for row in rows:
            total = sums.setdefault(row["user"], Counter())
            if row.get("is_left"):
                assert row["unread"] == row["mentions"] == 0
                continue
            room = rooms[room_key(row["user"].partition("#")[0], row["room_id"])]
            assert row["counted_seq"] == room["head"] or room.get("is_fanning")
            if not row.get("is_muted"):
                total.update(unread=row["unread"], mentions=row["mentions"])
        for badge in (await then.scan(BADGES)).items:
            total = sums[badge["user"]]
            assert (badge["unread"], badge["mentions"]) == (total["unread"], total["mentions"])


@asynccontextmanager
async def watching(store: Store) -> AsyncIterator[None]:
    """Look at one moment after another; where a store shows none, just at the end of all."""
    if not isinstance(store, HasSnapshot):
        yield
        return
    is_over = asyncio.Event()

    async def watch(moments: HasSnapshot) -> int:
        samples = 0
        while not is_over.is_set():
            await assert_exact(moments)
            samples += 1
            await asyncio.sleep(PAUSE_S)
        return samples

    watcher = asyncio.create_task(watch(store))
    try:
        yield
    finally:
        is_over.set()
        samples = await watcher
    assert samples > 1
