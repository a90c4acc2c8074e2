"""Lookups: one load at a time, forgotten at once, bounded, and safe against cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.people.clocks import FakeClock
from tidings.errors import Unavailable
from tidings.people.lookups import Lookups


class Source:
    """Counts loads and holds them back until it is let go."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.loads: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def load(self, keys: Sequence[str]) -> Sequence[str | None]:
        self.loads.append(tuple(keys))
        values = [self.values.get(key) for key in keys]
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return values


async def _turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _lookups(source: Source, clock: FakeClock, size_max: int = 100) -> Lookups[str | None]:
    return Lookups(source.load, clock, ttl_ms=2_000, size_max=size_max)


async def test_a_value_and_an_absence_are_kept_until_their_time_is_over(clock: FakeClock) -> None:
    source = Source()
    lookups = _lookups(source, clock)
    assert await lookups.get("a") is None
    source.values["a"] = "1"
    clock.forward(1.999)
    assert await lookups.get("a") is None
    clock.forward(0.001)
    assert await lookups.get("a") == "1"
    assert len(source.loads) == 2


async def test_a_clock_that_goes_back_keeps_nothing_alive(clock: FakeClock) -> None:
    source = Source()
    lookups = _lookups(source, clock)
    await lookups.get("a")
    source.values["a"] = "1"
    clock.forward(-3600)
    assert await lookups.get("a") == "1"


async def test_many_who_ask_at_once_share_one_load(clock: FakeClock) -> None:
    source = Source()
    source.values["a"] = "1"
    source.gate.clear()
    lookups = _lookups(source, clock)
    asking = [asyncio.create_task(lookups.get("a")) for _ in range(50)]
    asking_many = asyncio.create_task(lookups.get_many(["a", "b", "a"]))
    await _turns()
    source.gate.set()
    assert await asyncio.gather(*asking) == ["1"] * 50
    assert await asking_many == {"a": "1", "b": None}
    assert source.loads == [("a",), ("b",)]


async def test_what_was_forgotten_while_it_was_loaded_is_loaded_again(clock: FakeClock) -> None:
    source = Source()
    source.values["a"] = "old"
    source.gate.clear()
    lookups = _lookups(source, clock)
    early = asyncio.create_task(lookups.get("a"))
    await _turns()
    source.values["a"] = "new"
    lookups.forget("a")
    late = asyncio.create_task(lookups.get("a"))
    await _turns()
    source.gate.set()
    assert await early == "old"
    assert await late == "new"
    assert await lookups.get("a") == "new"


async def test_a_cancelled_loader_leaves_the_others_unharmed(clock: FakeClock) -> None:
    source = Source()
    source.values["a"] = "1"
    source.gate.clear()
    lookups = _lookups(source, clock)
    first = asyncio.create_task(lookups.get("a"))
    await _turns()
    others = [asyncio.create_task(lookups.get("a")) for _ in range(3)]
    await _turns()
    first.cancel()
    await _turns()
    source.gate.set()
    assert await asyncio.gather(*others) == ["1"] * 3
    assert first.cancelled()
    assert len(source.loads) == 2


async def test_an_error_reaches_all_who_wait_and_is_not_kept(clock: FakeClock) -> None:
    source = Source()
    source.error = Unavailable()
    source.gate.clear()
    lookups = _lookups(source, clock)
    asking = [asyncio.create_task(lookups.get("a")) for _ in range(3)]
    await _turns()
    source.gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert results == [source.error] * 3
    source.error = None
    assert await lookups.get("a") is None


async def test_no_more_is_kept_than_allowed(clock: FakeClock) -> None:
    source = Source()
    lookups = _lookups(source, clock, size_max=10)
    await lookups.get_many([f"k{number}" for number in range(1_000)])
    assert len(lookups) == 10
    await lookups.get("k999")
    assert len(source.loads) == 1
    await lookups.get("k0")
    assert len(source.loads) == 2
