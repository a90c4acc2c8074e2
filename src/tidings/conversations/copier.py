"""Carries out in Tidings what was noted in Redis: in order for each person, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from redis.exceptions import LockError

from tidings.conversations.interface import Away, ConversationsError, Refused
from tidings.conversations.journal import Noted
from tidings.conversations.redis_lists import translated
from tidings.conversations.stages import Stages
from tidings.conversations.tidings_lists import TidingsConversations

BATCH = 200
"""Operations that are read, carried out and forgotten together."""
TOGETHER = 16
"""Operations under way at one time."""
LEASE_S = 30.0
"""For one batch: longer than the deadlines of its calls."""
BATCH_S_MAX = 20.0
"""A batch that takes longer is broken off, and begun again."""
LOOK_S = 0.2
"""Between looks at a journal that was empty."""
PAUSE_S_MAX = 5.0
"""Between tries while Redis or Tidings is away."""

_log = structlog.get_logger(__name__)


class Copier:
    """Copies while it runs and while it holds the lease; others take over when it is gone."""

    def __init__(self, new: TidingsConversations, stages: Stages) -> None:
        self._new = new
        self._stages = stages
        self._journal = stages.journal
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is something to copy."""
        self._news.set()

    async def run(self) -> None:
        """Copy until cancelled, in the stages in which Tidings gets everything."""
        pause_s = LOOK_S
        while not _is_ending():
            try:
                copied = await self.step()
                pause_s = LOOK_S
            except ConversationsError as error:
                _log.warning("conversations_not_copied", error=str(error))
                copied, pause_s = 0, min(PAUSE_S_MAX, pause_s * 2)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="conversations")
                copied, pause_s = 0, PAUSE_S_MAX
            if not copied:
                await self._wait(pause_s)

    async def _wait(self, pause_s: float) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(pause_s):
                await self._news.wait()
        except TimeoutError:
            return

    async def catch_up(self) -> None:
        """Return once nothing waits. Raises Away where a store can't be reached."""
        while await self._journal.lag():
            if not await self.step():
                await asyncio.sleep(LOOK_S)  # somebody else is at it

    async def step(self) -> int:
        """Copy a batch, if it is our turn; how many operations it had.

        Raises Away where Tidings could not take all of them: they wait for the next step.
        """
        if (await self._stages.now()).name not in ("both", "tidings"):
            return 0
        lease = self._journal.lease(LEASE_S)
        async with translated():
            if not await lease.acquire(blocking=False):
                return 0
        try:
            async with asyncio.timeout(BATCH_S_MAX):
                return await self._copy(await self._journal.read(BATCH))
        except TimeoutError as error:
            raise Away("Tidings is slow") from error
        finally:
            async with translated():
                with suppress(LockError):  # it ended meanwhile, and may be somebody else's
                    await lease.release()

    async def _copy(self, batch: Sequence[Noted]) -> int:
        if not batch:
            return 0
        turns = asyncio.Semaphore(TOGETHER)
        latest: dict[str, asyncio.Task[bool]] = {}
        tasks = []
        for noted in batch:
            before = {latest[user] for user in noted.operation.users if user in latest}
            task = asyncio.create_task(self._carry(noted, before, turns))
            tasks.append(task)
            latest.update((user, task) for user in noted.operation.users)
        try:
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        done = [noted for noted, ok in zip(batch, outcomes, strict=True) if ok is True]
        if done:
            await self._journal.forget(done)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(done)

    async def _carry(
        self, noted: Noted, before: set[asyncio.Task[bool]], turns: asyncio.Semaphore
    ) -> bool:
        """Carry out one operation after those before it; False where one of these was not."""
        if before:
            await asyncio.wait(before)
            if not all(not task.cancelled() and not task.exception() for task in before):
                return False
            if not all(task.result() for task in before):
                return False
        async with turns:
            try:
                await self._new.apply(noted.operation)
            except Refused as refused:
                _log.warning("conversation_refused", id=noted.id, reason=str(refused))
                await self._journal.refuse(noted, str(refused))
        return True


def _is_ending() -> bool:
    """Whether this task was cancelled: a call to Redis that ends at the same moment may hide it
    (`asyncio.wait_for` of Python 3.11).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
