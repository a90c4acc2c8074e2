"""Conversation lists in Redis and in Tidings: one of them decides, by the stage of the move."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Self

import structlog

from tidings.conversations.copier import LOOK_S, Copier
from tidings.conversations.interface import (
    LIST_LIMIT_DEFAULT,
    Away,
    Conversation,
    Conversations,
    ConversationsError,
    Operation,
    Operations,
    Page,
)
from tidings.conversations.mending import Difference, compare
from tidings.conversations.redis_lists import RedisConversations
from tidings.conversations.stages import Moved, Stages
from tidings.conversations.tidings_lists import TidingsConversations

HELD_S_MAX = 8.0
"""How long a call waits, when Tidings begins to decide, for the last noted operations."""
SHADOWS_MAX = 4
"""Comparisons under way at one time; reads beyond that are not compared."""
DIFFERENCES_KEPT = 100

_log = structlog.get_logger(__name__)


class MovingConversations(Operations):
    """The lists of an application that moves; many processes use it at one time.

    Until the last stage Redis decides, and Tidings follows within moments: what it can't take now
    waits in the journal. Use it as a context manager; within it operations are copied.
    """

    def __init__(
        self,
        old: RedisConversations,
        new: TidingsConversations,
        *,
        stages: Stages | None = None,
        random_0_1: Callable[[], float] = random.random,
    ) -> None:
        self.old = old
        self.new = new
        self.stages = stages or Stages(old.redis)
        self.copier = Copier(new, self.stages)
        self.compared = 0
        """Lists that were read from both."""
        self.differing = 0
        self.differences: deque[Difference] = deque(maxlen=DIFFERENCES_KEPT)
        """The newest of them."""
        self._random_0_1 = random_0_1
        self._shadows: set[asyncio.Task[None]] = set()
        self._has_moved = False
        self._copying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._copying = asyncio.create_task(self.copier.run())
        return self

    async def close(self) -> None:
        """End what runs beside; what was noted and not copied waits for the next process."""
        running = [*self._shadows, *([self._copying] if self._copying else [])]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self.new.close()

    async def apply(self, operation: Operation) -> None:
        """Carry out one change where it is decided."""
        if not self._has_moved:
            try:
                await self.old.apply_through(operation, self.stages)
            except Moved:
                await self._arrive()
            else:
                self.copier.wake()
                return
        await self.new.apply(operation)

    async def get(self, owner: str, opponent: str) -> Conversation | None:
        """One line of the owner's list."""
        return await (await self._deciding()).get(owner, opponent)

    async def list(
        self, owner: str, *, limit: int = LIST_LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page:
        """The newest lines. A cursor is good for the store that made it: ValueError elsewhere."""
        deciding = await self._deciding()
        page = await deciding.list(owner, limit=limit, cursor=cursor)
        if deciding is self.old and self._random_0_1() < (await self._share()):
            self._compare_beside(owner)
        return page

    async def count(self, owner: str) -> int:
        """How many lines the owner's list has."""
        return await (await self._deciding()).count(owner)

    async def _deciding(self) -> Conversations:
        if not self._has_moved and (await self.stages.now()).name == "tidings":
            await self._arrive()
        return self.new if self._has_moved else self.old

    async def _share(self) -> float:
        stage = await self.stages.now()
        return stage.shadow if stage.name == "both" else 0.0

    async def _arrive(self) -> None:
        """Tidings decides from now on, once it has all that Redis decided. Raises Away."""
        self.stages.forget()
        try:
            async with asyncio.timeout(HELD_S_MAX):
                while await self.stages.journal.lag():
                    self.copier.wake()
                    await asyncio.sleep(LOOK_S / 4)
        except TimeoutError as error:
            raise Away("What Redis decided last is not yet in Tidings.") from error
        await self.stages.now()
        self._has_moved = True

    def _compare_beside(self, owner: str) -> None:
        if len(self._shadows) >= SHADOWS_MAX:
            return
        task = asyncio.create_task(self._compare(owner))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(self, owner: str) -> None:
        """Compare one list, if nothing was under way meanwhile that would explain a difference."""
        journal = self.stages.journal
        try:
            if await journal.lag():
                return
            last_id = await journal.copied()
            found = await compare(self.old, self.new, owner)
            if await journal.lag() or await journal.copied() != last_id:
                return
        except ConversationsError as error:
            _log.warning("conversations_not_compared", error=str(error))
            return
        self.compared += 1
        if found:
            self.differing += 1
            self.differences.extend(found)
            _log.warning("conversations_differ", owner=owner, count=len(found))
