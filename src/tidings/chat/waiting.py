"""Support rooms that wait: the queue that managers see, live, and the end of a snooze.

When a snooze ends is in the schedule, put there and taken away by the commits that begin and end
it; one node at a time works it (`tidings.cluster.schedule`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import structlog

from tidings import wire
from tidings.chat.access import TEAM_ROLES
from tidings.chat.commands import Wake
from tidings.chat.commits import Commits
from tidings.chat.listings import support_listings
from tidings.chat.rows import WAKING, RoomRow, room_from_item
from tidings.clock import Clock
from tidings.cluster.schedule import Schedule, plan_due
from tidings.errors import TidingsError, Unavailable
from tidings.ids import IdMaker
from tidings.storage.interface import Absent, ConditionFailed, Position, Put, Store
from tidings.storage.tables import LISTING_SHARDS, ROOMS, SCHEDULE, WORKSPACES

QUEUE_COUNTED_MAX = 1_000
"""Rooms of one status that are counted in each shard; where there are more, it says so."""
QUEUE_PAUSE_S = 0.25
"""How long changes are gathered before managers are told the new counts."""
SignalRole: TypeAlias = Callable[[str, Collection[str], dict[str, object]], None]
"""Sends a frame that is not stored to users of roles: (workspace, roles, frame)."""

_log = structlog.get_logger(__name__)


class Waiting:
    """Counts the queue, tells managers when it changed, and wakes snoozed rooms that are due."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        commits: Commits,
        schedule: Schedule,
        signal_role: SignalRole | None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._commits = commits
        self._signal_role = signal_role
        self._changed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        schedule.on(WAKING, self._wake)

    async def count(self, workspace: str) -> wire.Queue:
        """How many support rooms wait unassigned, by status."""
        open_count, is_open_capped = await self._count(workspace, "open")
        snoozed_count, is_snoozed_capped = await self._count(workspace, "snoozed")
        return wire.Queue(open_count, snoozed_count, is_open_capped or is_snoozed_capped)

    async def _count(self, workspace: str, status: wire.Status) -> tuple[int, bool]:
        count = 0
        is_capped = False
        for shard in range(LISTING_SHARDS):
            page = await self._store.query(
                ROOMS,
                f"{workspace}#{shard}",
                index="by_waiting",
                low=status,
                high=status,
                limit=QUEUE_COUNTED_MAX,
                consistent=False,
            )
            count += len(page.items)
            is_capped = is_capped or page.after is not None
        return count, is_capped

    def on_room_changed(self, before: RoomRow | None, after: RoomRow) -> None:
        """A commit changed a room: managers are told soon if the queue is another now."""
        if self._signal_role is None or after.kind != "support":
            return
        if (
            before is not None
            and before.waiting == after.waiting
            and (after.waiting is None or before.status == after.status)
        ):
            return
        if not self._changed:
            self._start(self._tell())
        self._changed.add(after.workspace)

    async def _tell(self) -> None:
        await asyncio.sleep(QUEUE_PAUSE_S)
        changed, self._changed = self._changed, set()
        for workspace in changed:
            try:
                queue = await self.count(workspace)
            except TidingsError as error:
                _log.warning("queue_not_told", detail=error.detail)
                continue
            if self._signal_role is not None:
                frame: dict[str, object] = {
                    "type": "queue",
                    "open": queue.open,
                    "snoozed": queue.snoozed,
                    "is_capped": queue.is_capped,
                }
                self._signal_role(workspace, TEAM_ROLES, frame)

    async def _wake(self, room: str, due_ms: int) -> bool:
        """Open a room whose snooze ends now; False where that snooze has ended already."""
        workspace, _, room_id = room.partition("#")
        await self._commits.look(workspace, room_id)  # another node may have put it to sleep
        command = Wake(self._ids.new("ent"), max(self._clock(), due_ms))
        if await self._commits.submit(workspace, room_id, command):
            return True
        item = await self._store.get(ROOMS, (room,))
        if item is not None and room_from_item(item).wakes_at == due_ms:
            raise Unavailable("The room has changed meanwhile.")
        return False

    async def adopt(self) -> int:
        """Put the snoozes of an older version, which had no schedule, into it; how many."""
        adopted = 0
        after: Position | None = None
        while True:
            page = await self._store.scan(WORKSPACES, after=after)
            for item in page.items:
                for listing in support_listings(item["workspace"], "snoozed"):
                    adopted += await self._adopt(listing)
            after = page.after
            if after is None:
                return adopted

    async def _adopt(self, listing: str) -> int:
        adopted = 0
        after: Position | None = None
        while True:
            page = await self._store.query(
                ROOMS, listing, index="by_listing", after=after, consistent=False
            )
            keys = [(item["room"],) for item in page.items]
            for item in await self._store.get_many(ROOMS, keys) if keys else ():
                room = None if item is None else room_from_item(item)
                if room is not None and room.wakes_at is not None:
                    due = plan_due(WAKING, room.key, room.wakes_at, room.head)
                    adopted += await self._put_if_absent(due)
            after = page.after
            if after is None:
                return adopted

    async def _put_if_absent(self, due: Put) -> bool:
        if await self._store.get(SCHEDULE, SCHEDULE.key(due.item)) is not None:
            return False
        try:
            await self._store.write(Put(SCHEDULE, due.item, when=(Absent(),)))
        except ConditionFailed:
            return False
        return True

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Stop telling."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
