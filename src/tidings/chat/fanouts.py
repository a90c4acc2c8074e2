"""Fan-out: bringing the members of a large room up to its head, in chunks that survive a crash.

A commit to a large room leaves its members behind and a `fanouts` item beside the room. Each
chunk is a transaction of its own that folds the log into some members' rows, conditioned on their
versions; how far a member is stands in their own row, so a pass that was cut off anywhere is
simply begun again. Passes repeat until all have reached the head, and then the item goes.

The item names the node that runs it. The others leave it alone until that node is down; one of
them then takes it over, under a fence that is one higher. Were two at it all the same, as when a
node wakes up that was frozen, they would do each other's work twice over, but never wrong: each
chunk is refused if its members have moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import Context
from typing import TYPE_CHECKING

import structlog

from tidings.chat.appended import Appended
from tidings.chat.commands import Found
from tidings.chat.counts import COUNT_ENTRIES_MAX
from tidings.chat.plans import plan_advance
from tidings.chat.rows import Participation, RoomRow, entry_to_wire, room_from_item
from tidings.chat.updates import PostedEntry
from tidings.chat.views import Torn
from tidings.clock import Clock
from tidings.cluster.nodes import Nodes
from tidings.errors import TidingsError, Unavailable
from tidings.storage.interface import (
    SET_ITEMS_MAX,
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Position,
    Store,
    Update,
)
from tidings.storage.tables import FANOUTS, MEMBERS, ROOMS, room_key, user_key

if TYPE_CHECKING:
    from tidings.chat.commits import Commits

CHUNK_MEMBERS_MAX = SET_ITEMS_MAX // 2
"""Members in one transaction: a row and a badge each."""
CHUNKS_MAX = 4
"""Chunks of one room under way at once."""
CHUNK_RETRIES_MAX = 20
"""How often a chunk is tried again because others were faster; then the next pass takes it."""
LOG_REMEMBERED_MAX = 2 * COUNT_ENTRIES_MAX
"""Entries that a pass keeps for its later chunks."""
PAUSE_AFTER_FAILURE_S = 1.0
WATCH_INTERVAL_S = 5.0
"""How often fan-outs are looked for whose node is down."""
FOUNDING_S_MAX = 8.0
"""How long the maker of a large room waits for its members to be in it."""
FOUNDING_LOOK_S = 0.5
"""How often the maker of a large room looks whether another node has finished it."""
SETTLE_S_MAX = 60.0
"""How long a command waits at its end for the fan-outs that it began."""

_log = structlog.get_logger(__name__)


class _Pass:
    """One room's log while its members are brought up to it.

    What it holds was read after the room, as the pass saw it. An entry that is changed later moves
    the room's head or epoch, so the fan-out is not closed and another pass reads it anew.
    """

    def __init__(self, item: Item, room: RoomRow) -> None:
        self.item = item
        """The fan-out."""
        self.room = room
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
    """Runs the fan-outs of this node, one task a room, and takes over those of nodes that died."""

    def __init__(
        self, store: Store, clock: Clock, nodes: Nodes, commits: Commits, context: Context
    ) -> None:
        self._store = store
        self._clock = clock
        self._nodes = nodes
        self._commits = commits
        self._context = context
        self.appended = Appended()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._woken: set[str] = set()
        """Rooms that something happened in since their pass began."""
        self._founded: dict[str, asyncio.Event] = {}
        self._watching: asyncio.Task[None] | None = None
        self._is_look_due = asyncio.Event()
        self._is_stopping = False

    def wake(self, workspace: str, room_id: str) -> None:
        """See to it that the members of this room reach its head, if that is for this node."""
        key = room_key(workspace, room_id)
        self._woken.add(key)
        if key not in self._running and not self._is_stopping:
            task = asyncio.get_running_loop().create_task(
                self._run(workspace, room_id),
                context=self._context.copy(),  # no request bears its cost
            )
            self._running[key] = task

    async def founded(self, workspace: str, room_id: str) -> None:
        """Wait until all founders of a large new room are in it, whichever node lets them join.

        Raises Unavailable in time.
        """
        key = room_key(workspace, room_id)
        event = self._founded.setdefault(key, asyncio.Event())
        self.wake(workspace, room_id)
        try:
            async with asyncio.timeout(FOUNDING_S_MAX):
                while not await _is_set(event, FOUNDING_LOOK_S):
                    if key in self._running:
                        continue  # it is this node that lets them join
                    item = await self._store.get(FANOUTS, (key,))
                    if item is None or not item.get("founding"):
                        event.set()
        except TimeoutError as error:
            raise Unavailable("The room's members are still joining.") from error
        finally:
            self._founded.pop(key, None)

    async def start(self) -> None:
        """Go on with what is open, now and whenever a node that is down leaves something open."""
        await self._resume()
        self._nodes.on_gone.append(self._look_soon)
        self._watching = asyncio.get_running_loop().create_task(
            self._watch(), context=self._context.copy()
        )

    def _look_soon(self, _: str) -> None:
        self._is_look_due.set()

    async def _watch(self) -> None:
        while True:
            await _is_set(self._is_look_due, WATCH_INTERVAL_S)
            self._is_look_due.clear()
            try:
                await self._resume()
            except TidingsError as error:
                _log.warning("fanouts_not_read", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="fanouts")

    async def _resume(self) -> None:
        """Wake the open fan-outs that are this node's, and those that nobody runs any more."""
        after: Position | None = None
        while True:
            page = await self._store.scan(FANOUTS, after=after)
            if page.items:  # a node is in the store before its fan-outs are: it is seen by now
                await self._nodes.look()
            for item in page.items:
                if await self._is_ours(item):
                    workspace, _, room_id = item["room"].partition("#")
                    self.wake(workspace, room_id)
            after = page.after
            if after is None:
                return

    async def _is_ours(self, item: Item) -> bool:
        """Whether this node runs the fan-out, taken over if its node is down."""
        holder, fence = item.get("node_id"), item.get("fence")
        if holder == self._nodes.node_id:
            return True
        if holder is not None and self._nodes.is_live(holder):
            return False
        taken = {"node_id": self._nodes.node_id, "fence": (fence or 0) + 1}
        seen = (Equals("node_id", holder), Equals("fence", fence))
        try:
            await self._store.write(Update(FANOUTS, (item["room"],), set=taken, when=seen))
        except ConditionFailed:
            return False  # another node was first, or it is closed
        _log.info("fanout_taken_over", room=item["room"], holder=holder)
        return True

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
                is_done = False
                self._woken.discard(key)
                try:
                    is_done = await self._pass(workspace, room_id)
                except* TidingsError as errors:
                    _log.warning("fanout_failed", errors=[str(e) for e in errors.exceptions])
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                except* Exception:  # noqa: BLE001  # the root of a task
                    _log.exception("unexpected", place="fanout")
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                if is_done and key not in self._woken:
                    return
        finally:
            del self._running[key]
            self._woken.discard(key)

    async def _pass(self, workspace: str, room_id: str) -> bool:
        """Bring every member forward once; whether nothing is left to do here."""
        key = room_key(workspace, room_id)
        item = await self._store.get(FANOUTS, (key,))
        founding = item.get("founding") if item is not None else None
        if not founding and key in self._founded:
            self._founded.pop(key).set()
        if item is None or item.get("node_id") != self._nodes.node_id:
            return True
        if founding:
            await self._commits.submit(workspace, room_id, Found(tuple(founding), at=self._clock()))
            return False
        room = await self._room(key)
        known = _Pass(item, room)
        lowest = room.head
        after: Position | None = None
        while True:
            page = await self._store.query(
                MEMBERS, key, limit=CHUNKS_MAX * CHUNK_MEMBERS_MAX, after=after
            )
            after = page.after
            users = [member["user_id"] for member in page.items]
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(
                        self._advance(
                            workspace, room_id, users[start : start + CHUNK_MEMBERS_MAX], known
                        )
                    )
                    for start in range(0, len(users), CHUNK_MEMBERS_MAX)
                ]
            lowest = min([lowest, *(task.result() for task in tasks)])
            known.trim()
            if after is None:
                is_at_head = lowest >= room.head and self._commits.known.newest(room) is room
                return is_at_head and await self._close(key, known)

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
                # What this node has brought the log to meanwhile goes along.
                room = commits.known.newest(known.room)
                badges = await commits.known.badges(workspace, users)
                asked = [(room_id, room.epoch, users)]
                rows = (await commits.known.participations(workspace, asked, held=users))[room_id]
                low = _lowest(rows.values(), room.head)
                # Rows far ahead of the last one wait for the next pass: the log in hand is bounded.
                nearest = {
                    user_id: row
                    for user_id, row in rows.items()
                    if row.counted_seq < low + COUNT_ENTRIES_MAX
                }
                high = min(room.head, low + 2 * COUNT_ENTRIES_MAX)
                needed = {row.preview_seq for row in nearest.values() if row.preview_seq}
                missing = needed.union(range(low + 1, high + 1)).difference(known.entries)
                own = self.appended.entries(known.room)
                known.add(room_id, {seq: own[seq] for seq in missing if seq in own})
                missing.difference_update(own)
                if missing:
                    known.add(room_id, await commits.known.entries(room, missing))
                try:
                    plan = plan_advance(
                        workspace, room, nearest, badges, known.entries, known.posted
                    )
                    if plan.is_renewing and await self._has_moved(known.room):
                        plan = plan_advance(
                            workspace,
                            room,
                            nearest,
                            badges,
                            known.entries,
                            known.posted,
                            is_renewing=False,
                        )
                    if not plan.writes:
                        return low
                    await self._store.write(*plan.writes)
                except (ConditionFailed, Torn):
                    commits.known.forget(names)
                    commits.nudge(workspace, users)  # perhaps by ourselves: the answer was lost
                    continue
                except Unavailable:  # applied or not, now or in a moment
                    commits.nudge(workspace, users)
                    raise
                commits.known.remember(workspace, plan)
                commits.publish(workspace, plan)
                rows |= {user_id: row for (user_id, _), row in plan.participations.items()}
                return _lowest(rows.values(), room.head)
        return 0

    async def _has_moved(self, room: RoomRow) -> bool:
        """Whether entries may say something else by now than when the pass began.

        Whoever changed one has opened a fan-out, or keeps this one open: previews are theirs.
        """
        now = await self._room(room.key)
        return (now.head, now.epoch) != (room.head, room.epoch)

    async def _close(self, key: str, known: _Pass) -> bool:
        """End the fan-out, if nothing happened in the room since its pass began.

        A commit of another node that the fan-out goes on for moves the head or the epoch, and one
        that opens another fan-out finds this one; so none is ever left without its members.
        """
        room, item = known.room, known.item
        async with self._commits.turn([key]):
            self._commits.known.forget([key])
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
                    Delete(
                        FANOUTS,
                        (key,),
                        when=(Equals("node_id", item["node_id"]), Equals("fence", item["fence"])),
                    ),
                )
            except ConditionFailed:
                return False
        self.appended.forget(key)
        return True


def _lowest(rows: Iterable[Participation], head: int) -> int:
    """The least sequence that a member counts to; the head where there is none."""
    return min((row.counted_seq for row in rows if not row.is_left), default=head)


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the event, or for the time to be over."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
