"""A store that may be moved keeps the contract: at rest, while guarded, and while it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage import moved
from tests.storage.contract import SetClock, StoreContract
from tests.storage.moved import Mover, files, open_moving
from tidings.storage.interface import Store


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    moved.hurry(monkeypatch)


class TestAtRest(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        store = await open_moving(files(tmp_path), clock)
        yield store
        await store.close()


class TestGuarded(StoreContract):
    """With more guards than one, as on a network store."""

    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock, slots=3)
            await mover.begin()
            yield store
            await store.close()


class TestSwitchedTo(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock)
            await mover.begin()
            await mover.switch()
            yield store
            await store.close()


class TestToAndFro(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock)
            moving = asyncio.create_task(mover.to_and_fro())
            yield store
            assert not moving.done() or moving.result()
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            await store.close()
