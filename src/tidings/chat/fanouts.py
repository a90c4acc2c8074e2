"""Fan-out: bringing the members of a large room up to its head, in chunks that survive a crash.

A commit to a large room leaves its members behind and a `fanouts` item beside the room. Each
chunk is a transaction of its own that folds the log into some members' rows, conditioned on their
versions; how far a member is stands in their own row, so a pass that was cut off anywhere is
simply begun again. Passes repeat until all have reached the head, and then the item goes.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

import structlog

from tidings.chat.commands import Found
from tidings.chat.plans import COUNT_ENTRIES_MAX, Torn, plan_advance
from tidings.chat.rows import RoomRow, entry_to_wire, room_from_item
from tidings.chat.updates import PostedEntry
from tidings.clock import Clock
from tidings.errors import TidingsError, Unavailable
from tidings.storage.interface import (
    WRITE_ITEMS_MAX,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    Position,
    Store,
    Update,
)
from tidings.storage.tables import FANOUTS, MEMBERS, ROOMS, room_key, user_key

if TYPE_CHECKING:
    from tidings.chat.commits import Commits

CHUNK_MEMBERS_MAX = WRITE_ITEMS_MAX // 2
"""Members in one transaction: a row and a badge each."""
CHUNKS_MAX = 4
"""Chunks of one room under way at once."""
CHUNK_RETRIES_MAX = 20
"""How often a chunk is tried again because others were faster; then the next pass takes it."""
LOG_REMEMBERED_MAX = 2 * COUNT_ENTRIES_MAX
"""Entries that a pass keeps for its later chunks."""
PAUSE_AFTER_FAILURE_S = 1.0
WATCH_INTERVAL_S = 30.0
"""How often fan-outs are looked for that a process left open which was killed."""
FOUNDING_S_MAX = 8.0
"""How long the maker of a large room waits for its members to be in it."""
SETTLE_S_MAX = 60.0
"""How long a command waits at its end for the fan-outs that it began."""

_log = structlog.get_logger(__name__)


class _Pass:
    """One room's log while its members are brought up to it."""

    def __init__(self) -> None:
        self.entries: dict[int, Item] = {}
        self.posted: dict[int, PostedEntry] = {}

    def add(self, room_id: str, entries: dict[int, Item]) -> None:
        self.entries |= entries
        for seq, item in entries.items():
            self.posted[seq] = PostedEntry(entry_to_wire(item, room_id))

    def trim(self) -> None:
        for seq in list(self.entries)[: max(0, len(self.entries) - LOG_REMEMBERED_MAX)]:
            del self.entries[seq], self.posted[seq]


class Fanouts:
    """Runs the fan-outs of this node: one task a room, woken by commits and at the start."""

    def __init__(self, store: Store, clock: Clock, commits: Commits, context: Context) -> None:
        self._store = store
        self._clock = clock
        self._commits = commits
        self._context = context
        self._running: dict[str, asyncio.Task[None]] = {}
        self._founded: dict[str, asyncio.Event] = {}
        self._watching: asyncio.Task[None] | None = None
        self._is_stopping = False

    def wake(self, workspace: str, room_id: str) -> None:
        """See to it that the members of this room reach its head."""
        key = room_key(workspace, room_id)
        if key not in self._running and not self._is_stopping:
            task = asyncio.get_running_loop().create_task(
                self._run(workspace, room_id),
                context=self._context.copy(),  # no request bears its cost
            )
            self._running[key] = task

    async def founded(self, workspace: str, room_id: str) -> None:
        """Wait until all founders of a large new room are in it. Raises Unavailable in time."""
        event = self._founded.setdefault(room_key(workspace, room_id), asyncio.Event())
        self.wake(workspace, room_id)
        try:
            async with asyncio.timeout(FOUNDING_S_MAX):
                await event.wait()
        except TimeoutError as error:
            raise Unavailable("The room's members are still joining.") from error

    async def start(self) -> None:
        """Go on with what is open, now and whenever another process leaves something open."""
        await self._resume()
        self._watching = asyncio.get_running_loop().create_task(
            self._watch(), context=self._context.copy()
        )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                await self._resume()
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="fanouts")

    async def _resume(self) -> None:
        """Wake every fan-out that is open in the store."""
        after: Position | None = None
        while True:
            page = await self._store.scan(FANOUTS, after=after)
            for item in page.items:
                workspace, _, room_id = item["room"].partition("#")
                self.wake(workspace, room_id)
            after = page.after
            if after is None:
                return

    async def settle(self) -> None:
        """Wait for what is under way here, for a while; the rest is left to the next start."""
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=SETTLE_S_MAX)

    async def stop(self) -> None:
        """Leave what is open, and what commits still open, to the next start."""
        self._is_stopping = True
        tasks = list(self._running.values())
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, workspace: str, room_id: str) -> None:
        key = room_key(workspace, room_id)
        try:
            while True:
                is_closed = False
                try:
                    is_closed = await self._pass(workspace, room_id)
                except* TidingsError as errors:
                    _log.warning("fanout_failed", errors=[str(e) for e in errors.exceptions])
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                except* Exception:  # noqa: BLE001  # the root of a task
                    _log.exception("unexpected", place="fanout")
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                if is_closed:
                    return
        finally:
            del self._running[key]

    async def _pass(self, workspace: str, room_id: str) -> bool:
        """Bring every member forward once; whether the fan-out is closed."""
        key = room_key(workspace, room_id)
        item = await self._store.get(FANOUTS, (key,))
        founding = item.get("founding") if item is not None else None
        if not founding and key in self._founded:
            self._founded.pop(key).set()
        if item is None:
            return True
        if founding:
            await self._commits.submit(workspace, room_id, Found(tuple(founding), at=self._clock()))
            return False
        room = await self._room(key)
        known = _Pass()
        lowest = room.head
        after: Position | None = None
        while True:
            chunks: list[list[str]] = []
            for _ in range(CHUNKS_MAX):
                page = await self._store.query(MEMBERS, key, limit=CHUNK_MEMBERS_MAX, after=after)
                chunks.append([member["user_id"] for member in page.items])
                after = page.after
                if after is None:
                    break
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._advance(workspace, room_id, chunk, known))
                    for chunk in chunks
                ]
            lowest = min(lowest, *(task.result() for task in tasks))
            known.trim()
            if after is None:
                return lowest >= room.head and await self._close(key, room)

    async def _room(self, key: str) -> RoomRow:
        item = await self._store.get(ROOMS, (key,))
        assert item is not None, "a fan-out has a room"
        return room_from_item(item)

    async def _advance(self, workspace: str, room_id: str, users: list[str], known: _Pass) -> int:
        """Bring some members up to the head; the least sequence that one of them counts to."""
        names = [user_key(workspace, user_id) for user_id in users]
        commits = self._commits
        for _ in range(CHUNK_RETRIES_MAX):
            async with commits.turn(names):
                room = await self._room(room_key(workspace, room_id))
                badges = await commits.badges(workspace, users)
                rows = await commits.participations(workspace, room_id, users, room.epoch)
                behind = [r.counted_seq for r in rows.values() if not r.is_left]
                low = min(behind, default=room.head)
                if low >= room.head:
                    return low
                # Rows far ahead of the last one wait for the next pass: the log in hand is bounded.
                nearest = {
                    user_id: row
                    for user_id, row in rows.items()
                    if row.counted_seq < low + COUNT_ENTRIES_MAX
                }
                high = min(room.head, low + 2 * COUNT_ENTRIES_MAX)
                missing = [seq for seq in range(low + 1, high + 1) if seq not in known.entries]
                known.add(room_id, await commits.entries(room, missing))
                try:
                    plan = plan_advance(
                        workspace, room, nearest, badges, known.entries, known.posted
                    )
                    await self._store.write(*plan.writes)
                except (ConditionFailed, Torn):
                    commits.forget(names)
                    continue
                commits.remember(workspace, plan)
                commits.publish(workspace, plan)
                rows |= {user_id: row for (user_id, _), row in plan.participations.items()}
                return min(row.counted_seq for row in rows.values() if not row.is_left)
        return 0

    async def _close(self, key: str, room: RoomRow) -> bool:
        """End the fan-out, if nothing happened in the room since its pass began."""
        async with self._commits.turn([key]):
            self._commits.forget([key])
            try:
                await self._store.write(
                    Update(
                        ROOMS,
                        (key,),
                        remove=("is_fanning",),
                        when=(
                            Equals("head", room.head),
                            Equals("epoch", room.epoch),
                            Equals("is_fanning", True),
                        ),
                    ),
                    Delete(FANOUTS, (key,), when=(Exists(),)),
                )
            except ConditionFailed:
                return False
        return True
