"""The processes that work at a move: who is alive, who leads, and what each may spend.

Each has a row in the books of the move, which it rewrites every BEAT_S with what it does. One
that does not move for SILENT_S, on the observer's own monotonic clock, is silent: whoever sees
that may take the lead from it. Two leaders harm nothing, since all that they write depends on
fences and epochs; they would only get in each other's way.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress

import structlog

from tidings.clock import Clock, system_clock
from tidings.cluster.nodes import Monotonic
from tidings.errors import TidingsError
from tidings.storage.interface import (
    Absent,
    Condition,
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Put,
    Store,
    Update,
)
from tidings.storage.progress import LEAD, WORKERS, WORKERS_MAX, Work
from tidings.storage.tables import MOVES

BEAT_S = 1.0
SILENT_S = 5.0
"""How long the others leave the lead to a worker whose row stands still."""
BURIED_S = 20.0
"""After so long the row of a silent worker is removed."""
HELD_S = 3.0
"""How long a leader believes in its lead after it sent the last beat that was written."""

_log = structlog.get_logger(__name__)


class Crew:
    """This worker and the others, as their rows in the books of one store show them."""

    def __init__(
        self,
        books: Store,
        work: Work,
        *,
        clock: Clock = system_clock,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self.books = books
        self.work = work
        """What this worker does; written with its next beat."""
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.living = frozenset({self.worker_id})
        """Workers that live as far as this one sees, itself among them."""
        self._clock = clock
        self._monotonic = monotonic
        self._beat = 0
        self._held_until_s = 0.0
        self._fence: int | None = None
        self._seen: dict[str, tuple[int, float]] = {}
        """Each other's beat, and since when it stands there."""

    @property
    def lead(self) -> int:
        """Which lead this is; grows with each one that was taken. 0 without."""
        return self._fence or 0

    @property
    def is_leading(self) -> bool:
        """Whether nobody else can lead yet: ask before each step of the work."""
        return self._fence is not None and self._monotonic() < self._held_until_s

    def is_gone(self, worker_id: str) -> bool:
        """Whether that worker left or is silent, as far as this one sees."""
        return worker_id not in self.living

    async def beat(self) -> None:
        """Write the own row, look at the others', and take the lead if nobody alive has it.

        Raises Unavailable; the lead then ends by itself.
        """
        sent_at_s = self._monotonic()
        self._beat += 1
        row: Item = {
            "part": WORKERS,
            "item": self.worker_id,
            "beat": self._beat,
            "data": self.work.data(self._clock()),
        }
        await self.books.write(Put(MOVES, row))
        await self._look()
        lead = await self.books.get(MOVES, LEAD) or {}
        holder, fence = lead.get("holder"), lead.get("fence", 0)
        if self._fence is not None and (holder, fence) == (self.worker_id, self._fence):
            self._held_until_s = sent_at_s + HELD_S
            return
        self._fence = None
        if holder == self.worker_id or holder not in self.living:
            await self._take(lead, fence + 1, sent_at_s)

    async def change_books(self, books: Store) -> None:
        """Go on in the books of another store, without the lead until the next beat there."""
        if books is not self.books:
            await self.leave()
            self.books = books
            self._seen.clear()

    async def leave(self) -> None:
        """Let others lead at once, and be no worker any more, if the store lets it."""
        self._held_until_s = 0.0
        fence, self._fence = self._fence, None
        try:
            if fence is not None:
                mine = (Equals("holder", self.worker_id), Equals("fence", fence))
                with suppress(ConditionFailed):  # it was taken over
                    await self.books.write(Update(MOVES, LEAD, remove=("holder",), when=mine))
            await self.books.write(Delete(MOVES, (WORKERS, self.worker_id)))
        except TidingsError as error:
            _log.warning("worker_not_removed", detail=error.detail)

    async def _take(self, lead: Item, fence: int, sent_at_s: float) -> None:
        when: Condition = Equals("fence", fence - 1) if lead else Absent()
        row: Item = {
            "part": LEAD[0],
            "item": LEAD[1],
            "holder": self.worker_id,
            "fence": fence,
        }
        with suppress(ConditionFailed):  # another was first
            await self.books.write(Put(MOVES, row, when=(when,)))
            self._fence = fence
            self._held_until_s = sent_at_s + HELD_S

    async def _look(self) -> None:
        """Notice who lives, and remove the rows of the long dead."""
        page = await self.books.query(MOVES, WORKERS, limit=WORKERS_MAX)
        now_s = self._monotonic()
        before, self._seen = self._seen, {}
        for row in page.items:
            seen = before.get(row["item"])
            is_same = seen is not None and seen[0] == row["beat"]
            self._seen[row["item"]] = seen if seen and is_same else (row["beat"], now_s)
        still_s = {name: now_s - since_s for name, (_, since_s) in self._seen.items()}
        for name in [name for name, time_s in still_s.items() if time_s >= BURIED_S]:
            beat = Equals("beat", self._seen[name][0])
            with suppress(ConditionFailed):  # it lives after all
                await self.books.write(Delete(MOVES, (WORKERS, name), when=(beat,)))
        living = {name for name, time_s in still_s.items() if time_s < SILENT_S}
        self.living = frozenset(living | {self.worker_id})
