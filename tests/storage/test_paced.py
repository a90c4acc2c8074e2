"""A paced store is the store, and takes units for all that it writes before it does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tidings.storage.interface import Check, Delete, Put, Update
from tidings.storage.paced import PacedStore
from tidings.storage.pacing import Pace, put_units
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, RECEIPTS


class Kept(Pace):
    """A pace that remembers each taking, with a burst of so many units."""

    def __init__(self, burst: float | None = None) -> None:
        super().__init__(None)
        self.takings: list[float] = []
        self._burst = burst

    @property
    def burst_units(self) -> float | None:
        return self._burst

    async def take(self, units: float) -> None:
        self.takings.append(units)
        await super().take(units)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "store.db") as made:
        yield made


async def test_bulk_is_paid_for_in_parts_that_a_burst_has(store: SqliteStore) -> None:
    pace = Kept(burst=10)
    items = [{"room": "acme#r", "receipt": f"a#{n}", "seq": n, "body_hash": "h"} for n in range(25)]
    await PacedStore(store, pace).put_many(RECEIPTS, iter(items))
    assert pace.takings == [10, 10, 5]
    assert (await store.query(RECEIPTS, "acme#r", limit=100)).items == sorted(
        items, key=lambda item: str(item["receipt"])
    )


async def test_a_set_is_paid_for_as_a_transaction(store: SqliteStore) -> None:
    pace = Kept()
    paced = PacedStore(store, pace)
    badge = {"user": "acme#u", "unread": 1, "version": 1}
    await paced.write(Put(BADGES, badge))
    once = put_units(BADGES, badge, transactional=False)
    assert pace.takings == [once]
    await paced.write(
        Update(BADGES, ("acme#u",), set={"unread": 2}),
        Check(ENTRIES, ("acme#r", 1), when=()),
        Delete(RECEIPTS, ("acme#r", "a#1")),
    )
    assert pace.takings[1:] == [2 + 2 + 2]
    assert await paced.get(BADGES, ("acme#u",)) == badge | {"unread": 2}
