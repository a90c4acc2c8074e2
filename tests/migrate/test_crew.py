"""Who leads a move: one worker at a time, whoever died or slept, by clocks that nobody compares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.stores import EVERY_STORE, StoreKind, open_store
from tidings.migrate.crew import BURIED_S, HELD_S, SILENT_S, Crew
from tidings.storage.interface import Store
from tidings.storage.progress import WORKERS, Work
from tidings.storage.tables import MOVES

STORES = EVERY_STORE


class Crews:
    """Workers of one store, all of whose clocks are turned together."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_s = 0.0

    def add(self) -> Crew:
        """Another worker."""
        return Crew(self.store, Work(), clock=lambda: 1, monotonic=lambda: self.now_s)

    async def beat(self, *crews: Crew, times: int = 1) -> None:
        """Each of them beats, and a second goes by, so many times."""
        for _ in range(times):
            for crew in crews:
                await crew.beat()
            self.now_s += 1


@pytest.fixture
async def crews(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Crews]:
    """Of a new store."""
    async with open_store(store_kind, tmp_path) as store:
        yield Crews(store)


async def test_the_first_one_leads_as_long_as_it_beats(crews: Crews) -> None:
    a, b = crews.add(), crews.add()
    await crews.beat(a, b, times=20)
    assert (a.is_leading, b.is_leading) == (True, False)
    assert a.living == b.living == {a.worker_id, b.worker_id}


async def test_a_dead_leader_is_followed_by_another_after_it_stopped_believing(
    crews: Crews,
) -> None:
    a, b = crews.add(), crews.add()
    await crews.beat(a, b)
    while not b.is_leading:
        assert crews.now_s <= SILENT_S + 2
        await crews.beat(b)
        assert not (a.is_leading and b.is_leading)
    assert b.living == {b.worker_id}
    await crews.beat(b, times=int(BURIED_S))
    assert len((await crews.store.query(MOVES, WORKERS)).items) == 1


async def test_a_leader_that_slept_finds_out_and_does_not_come_back(crews: Crews) -> None:
    a, b = crews.add(), crews.add()
    await crews.beat(a, b)
    first = a.lead
    await crews.beat(b, times=int(SILENT_S + 2))
    assert not a.is_leading
    await crews.beat(a, b)
    assert (a.is_leading, b.is_leading) == (False, True)
    assert b.lead > first


async def test_a_leader_that_leaves_is_followed_at_once(crews: Crews) -> None:
    a, b = crews.add(), crews.add()
    await crews.beat(a, b)
    await a.leave()
    assert not a.is_leading
    await crews.beat(b)
    assert b.is_leading
    assert b.living == {b.worker_id}


async def test_a_lead_is_believed_in_for_a_while_only(crews: Crews) -> None:
    a = crews.add()
    await crews.beat(a)
    crews.now_s += HELD_S
    assert not a.is_leading
    await crews.beat(a)
    assert a.is_leading, "nobody else took it"


async def test_other_books_have_a_lead_of_their_own(crews: Crews, tmp_path: Path) -> None:
    a = crews.add()
    await crews.beat(a)
    (tmp_path / "other").mkdir()
    async with open_store("sqlite", tmp_path / "other") as other:
        await a.change_books(other)
        assert not a.is_leading
        assert not (await crews.store.query(MOVES, WORKERS)).items
        await crews.beat(a)
        assert a.is_leading
