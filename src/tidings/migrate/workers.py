"""Which processes work on a move now, as each of them sees it: rows that move while they live.

Nothing rests on it but who begins what, and how a budget is divided: a lane's fence alone decides
who may write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from tidings.errors import TidingsError
from tidings.storage.interface import Delete, Put, Store
from tidings.storage.pacing import Pace
from tidings.storage.tables import MOVES

BEAT_S = 1.0
"""How often a worker writes its row, and reads those of the others."""
WORKER_SILENT_S = 5.0
"""A worker whose row did not move for so long is dead."""
PASSED_S_MAX = 2.0
"""What the time between two looks counts at most: whoever was frozen has not seen silence."""
WORKERS_MAX = 1_000
"""Workers of one move."""
PART = "workers"

_log = structlog.get_logger(__name__)


class _Sight(msgspec.Struct):
    beat: int
    silent_s: float = 0.0


class Worker:
    """One process that works on moves, and what it knows of the others.

    A pace that it is given is set to this worker's part of the budget whenever their number
    changes. Whoever comes last spends nothing before the others have seen it.
    """

    def __init__(
        self,
        books: Store,
        worker_id: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`books` is the store whose rows tell who works; the id is this process's alone."""
        self.worker_id = worker_id
        self._books = books
        self._monotonic = monotonic
        self._beat = 0
        self._seen: dict[str, _Sight] = {}
        self._looked_at: float | None = None
        self._shared: list[tuple[Pace, float]] = []

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Be seen by others; on leaving they know at once."""
        await self.beat()
        task = asyncio.ensure_future(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(TidingsError):
                await self._books.write(Delete(MOVES, (PART, self.worker_id)))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self.beat()
            except TidingsError as error:  # the next one tries again
                _log.info("worker_beat_failed", detail=error.detail)

    async def beat(self) -> None:
        """Move this worker's row, look at the others' and divide what is shared."""
        self._beat += 1
        await self._books.write(
            Put(MOVES, {"part": PART, "item": self.worker_id, "beat": self._beat})
        )
        page = await self._books.query(MOVES, PART, limit=WORKERS_MAX)
        now = self._monotonic()
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, PASSED_S_MAX)
        self._looked_at = now
        seen = {}
        for item in page.items:
            sight = self._seen.get(item["item"])
            if sight is None or sight.beat != item["beat"]:
                sight = _Sight(item["beat"])
            else:
                sight.silent_s += passed_s
            seen[item["item"]] = sight
        self._seen = seen
        self._divide()

    def alive(self) -> list[str]:
        """The workers that are there, this one among them, in the order of their ids."""
        there = {
            worker_id for worker_id, sight in self._seen.items() if sight.silent_s < WORKER_SILENT_S
        }
        return sorted(there | {self.worker_id})

    def is_gone(self, worker_id: str) -> bool:
        """Whether that worker left, or was silent for long enough."""
        return worker_id not in self.alive()

    async def share(self, pace: Pace, units_per_s: float) -> None:
        """Give the pace this worker's part of a budget of all workers, from now on.

        Returns when the others have had the time to take no more than theirs.
        """
        self._shared.append((pace, units_per_s))
        self._divide()
        if len(self.alive()) > 1:
            await asyncio.sleep(2 * BEAT_S)

    def _divide(self) -> None:
        for pace, units_per_s in self._shared:
            pace.units_per_s = units_per_s / len(self.alive())
