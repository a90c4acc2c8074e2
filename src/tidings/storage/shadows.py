"""Shadow reads: a share of reads is asked of both stores of a move, and what they say compared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import structlog

from tidings.errors import TidingsError
from tidings.storage.interface import Page, Store
from tidings.storage.metered import unmetered
from tidings.storage.moves import Move

SHADOW_SHARE = "shadow"
"""The entry of a move's data that says which share of reads is compared, from 0 to 1."""
COMPARED_AT_ONCE_MAX = 16
"""Reads that are being compared at one time; what comes beyond that is not."""
PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each attempt to find both stores of one mind; changes are carried over in between."""

Ask: TypeAlias = Callable[[Store], Awaitable[Any]]

_log = structlog.get_logger(__name__)


class Shadows:
    """Compares reads in the background; nobody waits for it, and its own failures are no news."""

    def __init__(
        self, chance: Callable[[], float], on_compared: Callable[[bool], None] | None
    ) -> None:
        self._chance = chance
        self._on_compared = on_compared
        self._tasks: set[asyncio.Task[None]] = set()
        self._move_id = ""
        self._reads = 0
        self._differences = 0

    def told(self, move: Move) -> dict[str, Any]:
        """How many reads were compared during that move, and how many of them differed to the end,
        for others to read."""
        if move.id != self._move_id:
            self._move_id, self._reads, self._differences = move.id, 0, 0
        return {"reads": self._reads, "differences": self._differences}

    def offer(self, move: Move, ask: Ask, here: Store, there: Store, found: Any) -> None:
        """Compare what was found here with what is there, if this read is one of the share."""
        share = move.data.get(SHADOW_SHARE, 0)
        if not share or self._chance() >= share or len(self._tasks) >= COMPARED_AT_ONCE_MAX:
            return
        task = asyncio.create_task(self._compare(move, ask, here, there, found))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Leave what is not compared yet."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _compare(self, move: Move, ask: Ask, here: Store, there: Store, found: Any) -> None:
        try:
            with unmetered():
                is_same = await _agree(ask, here, there, found)
        except TidingsError as error:
            _log.info("shadow_read_failed", move=move.id, detail=error.detail)
            return
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="shadow read")
            return
        if move.id == self._move_id:
            self._reads += 1
            self._differences += not is_same
        if not is_same:
            _log.warning("shadow_read_differs", move=move.id)
        if self._on_compared is not None:
            self._on_compared(is_same)


async def _agree(ask: Ask, here: Store, there: Store, found: Any) -> bool:
    for pause_s in PAUSES_S:
        if pause_s:
            await asyncio.sleep(pause_s)
            found = await ask(here)
        if _is_same(found, await ask(there)):
            return True
    return False


def _is_same(mine: Any, theirs: Any) -> bool:
    """Pages may end at different places; as far as both go they are the same."""
    if not isinstance(mine, Page):
        return bool(mine == theirs)
    count = min(len(mine.items), len(theirs.items))
    has_more = (len(mine.items) > count and theirs.after is None) or (
        len(theirs.items) > count and mine.after is None
    )
    return not has_more and mine.items[:count] == theirs.items[:count]
