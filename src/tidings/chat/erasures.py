"""Erasures: what an erased user left in rooms is taken away, room after room, until it is gone.

A user's own mark in the store is the job: it stays until everything is done, and whoever finds
it goes on. Entries keep their place, type and countability, so no sequence gets a hole and no
count moves. What members preview goes with the commit that erases it, in a large room with the
fan-out that this commit opens.
"""

from __future__ import annotations

import asyncio

import structlog

from tidings.chat.commands import Erase
from tidings.chat.commits import Commits
from tidings.chat.rows import RoomRow, room_from_item
from tidings.clock import Clock
from tidings.cluster.leases import Lease, Leases
from tidings.errors import TidingsError
from tidings.people.users import Users
from tidings.storage.interface import Delete, Item, Position, Store, Table
from tidings.storage.tables import (
    ENTRIES,
    INBOXES,
    RECEIPTS,
    ROOMS,
    USERS,
    WORKSPACES,
    room_key,
    user_key,
)

ERASED_TOGETHER_MAX = 20
"""Entries that one commit erases."""
DELETED_TOGETHER_MAX = 50
"""Receipts that one write deletes."""
LOOK_PAUSE_S = 60.0
"""How often users are looked for whose erasure another process began or left open."""
LATE_MS = 30_000
"""What was on its way when its author was deactivated is in the log after so long: a connection
that another node has yet to end (5 s), a wait in the room's queue (10 s), and the write."""
LEASE = "erasures"
LEASE_PAUSE_S = 5.0
"""How often the lease is asked for while another node has it."""

_log = structlog.get_logger(__name__)


class Erasures:
    """Erases users one after the other, in the background, on one node at a time.

    Each step may be repeated, by anybody, so the lease saves work and is no condition of it.
    """

    def __init__(
        self, store: Store, clock: Clock, users: Users, commits: Commits, leases: Leases
    ) -> None:
        self._store = store
        self._clock = clock
        self._users = users
        self._commits = commits
        self._leases = leases
        self._has_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look for users to erase, now and again and again."""
        self._task = asyncio.get_running_loop().create_task(self._keep_erasing())

    async def stop(self) -> None:
        """Break off; the next start goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def begin(self, workspace: str, user_id: str) -> None:
        """A user was marked: look soon. Where nothing was started the mark waits for a service."""
        self._has_work.set()

    async def _keep_erasing(self) -> None:
        while True:
            self._has_work.clear()
            pause_s = LEASE_PAUSE_S
            try:
                if await self._run_leased():
                    pause_s = LOOK_PAUSE_S
            except TidingsError as error:
                _log.warning("erasure_broken_off", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="erasure")
            try:
                async with asyncio.timeout(pause_s):
                    await self._has_work.wait()
            except TimeoutError:
                pass

    async def _run_leased(self) -> bool:
        """Erase everybody who is marked; False if that is, or became, another node's to do."""
        lease = await self._leases.hold(LEASE)
        if lease is None:
            return False
        try:
            await self.run(lease)
            return lease.is_held
        finally:
            await self._leases.release(LEASE)

    async def run(self, lease: Lease | None = None) -> int:
        """Erase everybody who is marked; how many of them are done with. Ends where the lease does.

        Raises Unavailable.
        """
        erased = 0
        after: Position | None = None
        while True:
            page = await self._store.scan(WORKSPACES, after=after)
            for workspace in page.items:
                for user_id in await self._marked(workspace["workspace"]):
                    if lease is not None and not lease.is_held:
                        return erased
                    erased += await self.erase(workspace["workspace"], user_id)
            after = page.after
            if after is None:
                return erased

    async def _marked(self, workspace: str) -> list[str]:
        page = await self._store.query(USERS, workspace, index="by_erasing", consistent=False)
        return [item["user_id"] for item in page.items]

    async def erase(self, workspace: str, user_id: str) -> bool:
        """Erase a user from every room that they are or were in, and take the mark away.

        False where something of theirs may still be on its way: it has to be repeated. That is
        fine at any time, also after it was broken off anywhere. Raises Unavailable.
        """
        began_ms = self._clock()
        user = await self._users.find(workspace, user_id)
        after: Position | None = None
        while True:
            page = await self._store.query(INBOXES, user_key(workspace, user_id), after=after)
            for row in page.items:
                item = await self._store.get(ROOMS, (room_key(workspace, row["room_id"]),))
                if item is not None:
                    await self._erase_in(room_from_item(item), user_id)
            after = page.after
            if after is None:
                break
        if user is not None and began_ms - user.updated_at < LATE_MS:
            return False
        await self._users.finish_erasing(workspace, user_id)
        return True

    async def _erase_in(self, room: RoomRow, user_id: str) -> None:
        after: Position | None = None
        while True:
            page = await self._store.query(ENTRIES, room.key, after=after)
            seqs = [item["seq"] for item in page.items if _is_left_by(item, user_id)]
            for start in range(0, len(seqs), ERASED_TOGETHER_MAX):
                some = tuple(seqs[start : start + ERASED_TOGETHER_MAX])
                command = Erase(some, self._clock())
                await self._commits.submit(room.workspace, room.room_id, command)
            after = page.after
            if after is None:
                break
        await self._delete_receipts(room, user_id)

    async def _delete_receipts(self, room: RoomRow, user_id: str) -> None:
        while True:
            page = await self._store.query(
                RECEIPTS, room.key, prefix=f"{user_id}#", limit=DELETED_TOGETHER_MAX
            )
            if not page.items:
                return
            await self._store.write(*(_deletion(RECEIPTS, item) for item in page.items))


def _deletion(table: Table, item: Item) -> Delete:
    return Delete(table, table.key(item))


def _is_left_by(entry: Item, user_id: str) -> bool:
    """Whether an entry holds anything of the user's that is not erased yet."""
    return (
        entry.get("sender_id") == user_id
        and (entry.get("text") is not None or bool(entry.get("blobs")))
        and not (entry.get("data") or {}).get("erased")
    )
