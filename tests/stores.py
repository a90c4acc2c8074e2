"""The stores that the service's own tests run on, by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from tests.storage.suspending import DistantStore, SuspendingStore
from tidings.clock import Clock, system_clock
from tidings.storage.sqlite import SqliteStore

LocalStore: TypeAlias = SqliteStore | DistantStore
"""A store that can be read as it was at one moment."""


@asynccontextmanager
async def open_store(
    engine: str, folder: Path, *, clock: Clock = system_clock, seed: int = 0
) -> AsyncIterator[LocalStore]:
    async with SqliteStore.open(folder / "store.db", clock=clock) as store:
        yield SuspendingStore(store, seed) if engine == "suspending" else store
