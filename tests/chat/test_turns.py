"""Commits take turns without starving anybody."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.chat.test_commits import Now, World
from tests.storage.suspending import HeldStore
from tidings.storage.sqlite import SqliteStore

DEADLINE_S = 20.0
ROOMS = 100
"""More than one transaction holds."""


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[HeldStore]:
    async with SqliteStore.open(tmp_path / "tidings.db", clock=Now()) as engine:
        yield HeldStore(engine)


@pytest_asyncio.fixture
async def world(store: HeldStore) -> AsyncIterator[World]:
    made = World(store, Now())
    await made.commits.start()
    yield made
    await made.commits.stop()


async def _desks(world: World) -> list[tuple[str, str]]:
    """Rooms of two that all have one member in common, as (room, the other member)."""
    boss, *others = await world.people(ROOMS + 1)
    desks = [(f"desk-{other}", other) for other in others]
    await asyncio.gather(*(world.room(room, [boss, other]) for room, other in desks))
    return desks


async def test_rooms_that_share_somebody_are_served_alike(world: World) -> None:
    desks = await _desks(world)
    served: Counter[str] = Counter()
    spread = 0

    async def keep_posting(room: str, sender: str) -> None:
        nonlocal spread
        for number in range(4):
            await world.post(room, sender, f"c{number}")
            served[room] += 1
            if number < 3:  # who is done asks for no turn
                spread = max(spread, served[room] - min(served[each] for each, _ in desks))

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(keep_posting(*desk) for desk in desks))
    assert spread == 1
    await world.assert_clean()
