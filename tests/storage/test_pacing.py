from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.storage.interface import Delete, Put
from tidings.storage.metered import MeteredStore, metering
from tidings.storage.pacing import (
    BURST_S,
    THROTTLE_PAUSE_S,
    UNBUDGETED_RATE_LEAST,
    WINDOW_S,
    Pace,
    delete_units,
    put_units,
)
from tidings.storage.retries import Kind
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import INBOXES, ROOMS

TURN_S = 1e-6
"""What a turn of the loop takes."""
LOOK_S = 1e-8


class VirtualSelector(selectors.SelectSelector):
    """Lets the time that a loop would wait pass at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        self.now_s += TURN_S if ready or not timeout else max(timeout, TURN_S)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is that of its selector."""

    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)

    def time(self) -> float:
        """As any clock, it has gone on when it is looked at again."""
        self.virtual.now_s += LOOK_S
        return self.virtual.now_s


def in_virtual_time(work: Callable[[Callable[[], float]], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(work(loop.time), None))
    finally:
        loop.close()


def worst_window(spent: list[tuple[float, float]]) -> float:
    """The most that was spent in any window of WINDOW_S."""
    worst = total = 0.0
    start = 0
    for moment, units in spent:
        total += units
        while spent[start][0] <= moment - WINDOW_S + 1e-6:
            total -= spent[start][1]
            start += 1
        worst = max(worst, total)
    return worst


@settings(max_examples=25, deadline=None)
@given(
    budget=st.sampled_from([5.0, 40.0, 1_000.0, 25_000.0]),
    sizes=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=8),
    seed=st.integers(0, 1_000),
    tasks=st.integers(1, 6),
)
def test_no_window_is_over_the_budget_and_nothing_of_note_is_left_unused(
    budget: float, sizes: list[float], seed: int, tasks: int
) -> None:
    """Whatever is taken at once, as long as it fits into a burst."""
    chance = random.Random(seed)
    spent: list[tuple[float, float]] = []

    async def work(now: Callable[[], float]) -> None:
        pace = Pace(budget, monotonic=now)

        async def take() -> None:
            while now() < 40:
                units = chance.choice(sizes) * budget * BURST_S
                await pace.take(units)
                spent.append((now(), units))

        await asyncio.gather(*(take() for _ in range(tasks)))

    in_virtual_time(work)
    assert worst_window(spent) <= budget * WINDOW_S * 1.000_001
    assert sum(units for _, units in spent) >= 0.88 * budget * 40


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), largest=st.floats(0.5, 9.0))
def test_the_window_holds_for_what_costs_many_seconds_of_the_budget(
    seed: int, largest: float
) -> None:
    chance = random.Random(seed)
    spent: list[tuple[float, float]] = []

    async def work(now: Callable[[], float]) -> None:
        pace = Pace(10.0, monotonic=now)
        while now() < 200:
            units = 10.0 * (largest if chance.random() < 0.2 else chance.random() * BURST_S)
            await pace.take(units)
            spent.append((now(), units))

    in_virtual_time(work)
    assert worst_window(spent) <= 10.0 * WINDOW_S * 1.000_001
    if largest < 1:
        assert sum(units for _, units in spent) >= 0.85 * 10.0 * 200


def test_throttling_lowers_the_rate_once_a_second_and_it_grows_again() -> None:
    async def work(now: Callable[[], float]) -> None:
        pace = Pace(100.0, monotonic=now)
        await pace.take(1)
        for _ in range(5):
            pace.hear(Kind.THROTTLE)
        assert pace.rate == pytest.approx(70, rel=1e-3)
        pace.hear(Kind.CONFLICT)
        await asyncio.sleep(THROTTLE_PAUSE_S)
        pace.throttled()
        assert pace.rate == pytest.approx(49, rel=1e-3)
        await asyncio.sleep(THROTTLE_PAUSE_S + 4)
        assert pace.rate == pytest.approx(69, rel=1e-3)
        await asyncio.sleep(30)
        assert pace.rate == 100.0

    in_virtual_time(work)


def test_without_a_budget_only_throttling_slows_down() -> None:
    async def work(now: Callable[[], float]) -> None:
        pace = Pace(None, monotonic=now)
        for _ in range(1_000):
            await pace.take(100)
        assert now() < 0.1
        assert pace.burst_units is None
        await asyncio.sleep(10)
        pace.throttled()
        assert pace.rate == pytest.approx(100_000 / 10 * 0.7, rel=0.01)
        for _ in range(100):
            await asyncio.sleep(THROTTLE_PAUSE_S)
            pace.throttled()
        assert pace.rate == UNBUDGETED_RATE_LEAST

    in_virtual_time(work)


def test_a_budget_changes_while_others_wait() -> None:
    async def work(now: Callable[[], float]) -> None:
        pace = Pace(1.0, monotonic=now)
        await pace.take(0.4)
        pace.units_per_s = 1_000.0
        await pace.take(400)
        assert now() < 1.0

    in_virtual_time(work)


async def test_what_a_put_costs_is_what_the_meter_charges(tmp_path: Path) -> None:
    room = {"room": "acme#r", "title": "x" * 3_000, "listing": "acme#0", "listed_at": 7}
    inbox = {"user": "acme#u", "room_id": "r", "feed": 3, "unread_feed": 3}
    moved = {**inbox, "feed": 4, "unread_feed": 4}
    async with SqliteStore.open(tmp_path / "store.db") as engine:
        store = MeteredStore(engine)
        with metering() as bulk:
            await store.put_many(ROOMS, [room])
        with metering() as transaction:
            await store.write(Put(INBOXES, inbox), Put(ROOMS, {"room": "acme#s"}))
        with metering() as replacing:
            await store.write(Put(INBOXES, moved), Put(ROOMS, {"room": "acme#t"}))
        with metering() as removing:
            await store.write(Delete(INBOXES, INBOXES.key(moved)), Put(ROOMS, {"room": "acme#u"}))
    assert put_units(ROOMS, room, transactional=False) == bulk.write_units
    other = put_units(ROOMS, {"room": "acme#s"}, transactional=True)
    assert put_units(INBOXES, inbox, transactional=True) == transaction.write_units - other
    assert (
        put_units(INBOXES, moved, transactional=True, replacing=True)
        == replacing.write_units - other
    )
    assert delete_units(INBOXES, transactional=True) == removing.write_units - other
