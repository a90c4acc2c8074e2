"""Support rooms that wait: the queue that managers see, live, and the end of a snooze."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import structlog

from tidings import wire
from tidings.chat.access import TEAM_ROLES
from tidings.chat.commands import Change
from tidings.chat.commits import Commits
from tidings.chat.rows import RoomRow
from tidings.clock import Clock
from tidings.errors import TidingsError
from tidings.ids import IdMaker
from tidings.storage.interface import Store
from tidings.storage.tables import LISTING_SHARDS, ROOMS

QUEUE_COUNTED_MAX = 1_000
"""Rooms of one status that are counted in each shard; where there are more, it says so."""
QUEUE_PAUSE_S = 0.25
"""How long changes are gathered before managers are told the new counts."""
WAKING_PAUSE_S = 5.0
"""How often rooms are looked for whose snooze is over."""
WOKEN_TOGETHER_MAX = 100
"""Rooms of one shard that one look wakes."""

SignalRole: TypeAlias = Callable[[str, Collection[str], dict[str, object]], None]
"""Sends a frame that is not stored to users of roles: (workspace, roles, frame)."""

_log = structlog.get_logger(__name__)


class Waiting:
    """Counts the queue, tells managers when it changed, and wakes snoozed rooms in time."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        commits: Commits,
        signal_role: SignalRole | None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._commits = commits
        self._signal_role = signal_role
        self._changed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

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

    async def wake(self) -> int:
        """Open the rooms whose snooze is over; how many there were."""
        now_ms = self._clock()
        woken = 0
        for shard in range(LISTING_SHARDS):
            page = await self._store.query(
                ROOMS,
                f"waking#{shard}",
                index="by_waking",
                high=now_ms,
                limit=WOKEN_TOGETHER_MAX,
                consistent=False,
            )
            for item in page.items:
                workspace, _, room_id = item["room"].partition("#")
                woken += await self._wake(workspace, room_id, now_ms)
        return woken

    async def _wake(self, workspace: str, room_id: str, now_ms: int) -> bool:
        view = await self._commits.look(workspace, room_id)
        room = None if view is None else view.room
        if room is None or room.waking is None or (room.snoozed_until or 0) > now_ms:
            return False
        command = Change(
            actor_id=None,
            changes={"status": "open", "snoozed_until": None},
            entry_id=self._ids.new("ent"),
            join_entry_id=self._ids.new("ent"),
            at=now_ms,
        )
        await self._commits.submit(workspace, room_id, command)
        return True

    def start(self) -> None:
        """Wake rooms from now on."""
        self._start(self._keep_waking())

    async def _keep_waking(self) -> None:
        while True:
            try:
                await self.wake()
            except TidingsError as error:
                _log.warning("not_woken", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="waking")
            await asyncio.sleep(WAKING_PAUSE_S)

    def _start(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Stop waking and telling."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
