"""How fast bulk work may write: never over its budget of units, and slower where the store says so.

Units are those of `tidings.storage.metered`: what DynamoDB charges for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiolimiter import AsyncLimiter

from tidings.storage.interface import Table
from tidings.storage.metered import index_write_units, write_units
from tidings.storage.retries import Kind
from tidings.storage.sizes import item_bytes

WINDOW_S = 10.0
"""In no window of this length more is spent than the budget allows for it."""
BURST_S = 0.3
"""How much of the budget may be spent at once, in seconds of it."""
STEP_S = BURST_S / 3
"""In which steps is waited for more: whoever wakes a little late has lost nothing."""
LATE_S = 0.2
"""How much later than what was taken after it something may reach the store."""
SPENT_S_MAX = WINDOW_S - BURST_S
"""Seconds of budget in a window; the rest is for whoever joins with a burst of their part."""
REMEMBERED_S = WINDOW_S + LATE_S
"""How long takings are remembered."""
USED_SHARE = SPENT_S_MAX / REMEMBERED_S
"""How much of the budget flows."""
SLOT_S = 0.05
"""Takings within that time are remembered as one."""
THROTTLE_FACTOR = 0.7
"""What the rate is multiplied with when the store throttles, at most once in THROTTLE_PAUSE_S."""
THROTTLE_PAUSE_S = 1.0
RATE_GROWTH = 0.05
"""Share of the budget that a lowered rate grows by in each second without throttling."""
RATE_SHARE_LEAST = 0.02
"""How far throttling lowers a rate, as a share of the budget."""
UNBUDGETED_RATE_LEAST = 50.0
"""Units per second that throttling leaves to work without a budget."""
UNBUDGETED_GROWTH = 1.2
"""What such a rate is multiplied with in each second without throttling."""

GROWTH_S_MAX = 120.0
"""After so long without throttling a rate without a budget grows no more."""


class _Slot(msgspec.Struct):
    """What was taken within SLOT_S."""

    start: float
    end: float = 0.0
    cost_s: float = 0.0


class Pace:
    """Lets units through at the rate of a budget; without a budget all at once.

    For any number of tasks of one event loop, who get their turn in order. Whoever takes more than
    a burst at once waits for all of it first; and everybody waits where the takings of the last
    window leave no room, so that it holds as long as nothing costs more than SPENT_S_MAX of the
    budget. Processes that share a budget have a part of it each: the one who divides sets
    `units_per_s`, at any time.
    """

    def __init__(
        self, units_per_s: float | None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`units_per_s` is above 0, or None for no budget."""
        assert units_per_s is None or units_per_s > 0, "a budget lets something through"
        self.units_per_s = units_per_s
        self.taken = 0.0
        """Units let through so far."""
        self._monotonic = monotonic
        self._limiter = AsyncLimiter(BURST_S, BURST_S / USED_SHARE)  # counts seconds of budget
        self._turn = asyncio.Lock()
        self._slots: deque[_Slot] = deque()
        self._recent_s = 0.0
        self._lowered: float | None = None
        self._lowered_at = self._started_at = monotonic()

    @property
    def rate(self) -> float | None:
        """Units per second now; None: as fast as it goes."""
        if self._lowered is None:
            return self.units_per_s
        passed_s = max(0.0, self._monotonic() - self._lowered_at - THROTTLE_PAUSE_S)
        if self.units_per_s is None:
            growth: float = UNBUDGETED_GROWTH ** min(passed_s, GROWTH_S_MAX)
            return self._lowered * growth
        rate = self._lowered + self.units_per_s * RATE_GROWTH * passed_s
        return min(max(rate, self.units_per_s * RATE_SHARE_LEAST), self.units_per_s)

    @property
    def burst_units(self) -> float | None:
        """What can be taken at once without waiting for part of it; None: anything."""
        return None if self.rate is None else self.rate * BURST_S

    async def take(self, units: float) -> None:
        """Return when that much may be spent, which is then to be spent without delay."""
        async with self._turn:
            if (rate := self.rate) is not None:
                await self._pay(units / rate)
            self.taken += units

    async def _pay(self, cost_s: float) -> None:
        left_s = cost_s
        while left_s > 0:
            part_s = min(left_s, STEP_S)
            await self._limiter.acquire(part_s)
            left_s -= part_s
        self._forget()
        while self._slots and self._recent_s + cost_s > SPENT_S_MAX:
            await asyncio.sleep(max(0.0, self._slots[0].end + REMEMBERED_S - self._monotonic()))
            self._forget()
        now = self._monotonic()
        if not self._slots or now - self._slots[-1].start > SLOT_S:
            self._slots.append(_Slot(now))
        self._slots[-1].end = now
        self._slots[-1].cost_s += cost_s
        self._recent_s += cost_s

    def _forget(self) -> None:
        """Forget what is in no window any more that begins now or later."""
        before = self._monotonic() - REMEMBERED_S
        while self._slots and self._slots[0].end <= before:
            self._recent_s -= self._slots.popleft().cost_s

    def throttled(self) -> None:
        """The store had too much: go slower for a while."""
        now = self._monotonic()
        if self._lowered is not None and now - self._lowered_at < THROTTLE_PAUSE_S:
            return
        rate = self.rate
        if rate is None:
            rate = max(self.taken / max(now - self._started_at, 1.0), UNBUDGETED_RATE_LEAST)
        least = UNBUDGETED_RATE_LEAST if self.units_per_s is None else 0.0
        self._lowered = max(rate * THROTTLE_FACTOR, least)
        self._lowered_at = now

    def hear(self, kind: Kind) -> None:
        """Slow down if that is why a call was repeated; what `on_retry` of an engine takes."""
        if kind is Kind.THROTTLE:
            self.throttled()


def put_units(
    table: Table,
    item: Mapping[str, Any],
    *,
    transactional: bool,
    replacing: bool = False,
    size_bytes: int | None = None,
) -> int:
    """What putting the item costs at most, its indexes included.

    `replacing` is for an item that may be there already and in other places of its indexes: each
    of those is then written twice. A larger item that is replaced costs more than this tells.
    `size_bytes` is the item's, where it is known.
    """
    size_bytes = item_bytes(item) if size_bytes is None else size_bytes
    units = write_units(size_bytes, transactional=transactional)
    for index in table.indexes:
        once = index_write_units(table, index, None, item) * (2 if replacing else 1)
        units += once * 2 if transactional else once
    return units


def delete_units(table: Table, *, transactional: bool) -> int:
    """What removing an item costs that is in every index and weighs no more than a unit."""
    return (1 + len(table.indexes)) * (2 if transactional else 1)
