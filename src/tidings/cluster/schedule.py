"""The schedule: what is due when, kept in the store, and worked by one node at a time.

An item is put and taken away by the very transactions that make it so, and its work is a
transaction that takes it away: an item is worked once, whoever finds it and however often. The
lease of each shard only keeps nodes from trying the same things at the same time. A time to live
could not do this: what has expired is deleted days later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias
from zlib import crc32

import structlog

from tidings.clock import Clock
from tidings.cluster.leases import Leases
from tidings.errors import TidingsError
from tidings.storage.interface import (
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Key,
    Position,
    Put,
    Store,
)
from tidings.storage.tables import SCHEDULE

SHARDS = 4
"""Partitions of the schedule, each with a lease of its own."""
LOOK_PAUSE_S = 5.0
"""How often each shard is looked at: an item is worked that much late."""
WORKED_TOGETHER_MAX = 20
"""Items of one shard that are worked at once."""
WORKED_MAX = 1_000
"""Items of one shard that one look works; the next look goes on."""
_DIGITS = 15
"""Of a time in milliseconds: enough for the year 9999."""

Work: TypeAlias = Callable[[str, int], Awaitable[bool]]
"""(subject, due): whether its own transaction took the item away; if not, it was late."""

_log = structlog.get_logger(__name__)


def plan_due(kind: str, subject: str, due_ms: int, seq: int) -> Put:
    """Let the work of that kind be done for the subject once the time has come.

    A subject has one item of a kind and a time; `seq` sets it apart from an earlier one that was
    the same, and has to be greater.
    """
    shard, due = schedule_key(kind, subject, due_ms)
    row: Item = {"shard": shard, "due": due, "kind": kind, "subject": subject, "seq": seq}
    return Put(SCHEDULE, row)


def plan_undue(kind: str, subject: str, due_ms: int) -> Delete:
    """Take an item away, where there is one: for a transaction that decides by other rows."""
    return Delete(SCHEDULE, schedule_key(kind, subject, due_ms))


def schedule_key(kind: str, subject: str, due_ms: int) -> Key:
    """(shard, due): items of a shard are in the order of their times."""
    shard = crc32(subject.encode()) % SHARDS
    return str(shard), f"{due_ms:0{_DIGITS}d}#{kind}#{subject}"


class Schedule:
    """Works what is due, in the shards whose leases this node has."""

    def __init__(self, store: Store, clock: Clock, leases: Leases) -> None:
        self._store = store
        self._clock = clock
        self._leases = leases
        self._works: dict[str, Work] = {}
        self._task: asyncio.Task[None] | None = None

    def on(self, kind: str, work: Work) -> None:
        """Have items of a kind worked by this. What it raises leaves the item for the next look."""
        assert kind not in self._works, "a kind is worked in one place"
        self._works[kind] = work

    async def start(self) -> None:
        """Work what is due from now on."""
        self._task = asyncio.get_running_loop().create_task(self._keep_working())

    async def stop(self) -> None:
        """Work nothing any more; what was begun may have been done or not."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> int:
        """Work what is due now; how many items were. Raises Unavailable."""
        worked = 0
        for shard in range(SHARDS):
            worked += await self._run_shard(str(shard))
        return worked

    async def _run_shard(self, shard: str) -> int:
        lease = await self._leases.hold(f"schedule#{shard}")
        if lease is None:
            return 0
        high = f"{self._clock() + 1:0{_DIGITS}d}"  # below every item of the next millisecond
        worked = 0
        after: Position | None = None
        while worked < WORKED_MAX and lease.is_held:
            page = await self._store.query(
                SCHEDULE, shard, high=high, limit=WORKED_TOGETHER_MAX, after=after
            )
            async with asyncio.TaskGroup() as group:
                for item in page.items:
                    group.create_task(self._work(item))
            worked += len(page.items)
            after = page.after
            if after is None:
                break
        return worked

    async def _work(self, item: Item) -> None:
        work = self._works.get(item["kind"])
        if work is None:
            return  # of a newer version, which will see to it
        try:
            if not await work(item["subject"], int(item["due"].partition("#")[0])):
                await self._drop(item)
        except TidingsError as error:
            _log.warning("not_worked", kind=item["kind"], detail=error.detail)
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="schedule")

    async def _drop(self, item: Item) -> None:
        """Take a late item away, unless it is another one by now."""
        seen = (Equals("seq", item["seq"]),)
        with suppress(ConditionFailed):
            await self._store.write(Delete(SCHEDULE, SCHEDULE.key(item), when=seen))

    async def _keep_working(self) -> None:
        while True:
            try:
                await self.run()
            except TidingsError as error:
                _log.warning("schedule_not_read", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="schedule")
            await asyncio.sleep(LOOK_PAUSE_S)
