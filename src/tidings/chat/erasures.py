"""Erasures: what an erased user left in rooms is taken away, room after room, until it is gone.

A user's own mark in the store is the job: it stays until everything is done, and whoever finds
it goes on. Entries keep their place, type and countability, so no sequence gets a hole and no
count moves.
"""

from __future__ import annotations

import asyncio

import structlog

from tidings.chat.commands import Erase
from tidings.chat.commits import Commits
from tidings.chat.rows import RoomRow, room_from_item
from tidings.clock import Clock
from tidings.errors import TidingsError
from tidings.people.users import Users
from tidings.storage.interface import (
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Position,
    Store,
    Table,
    Update,
)
from tidings.storage.tables import (
    ENTRIES,
    INBOXES,
    MEMBERS,
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
PREVIEW_MEMBERS_MAX = 1_000
"""Members of a large room whose previews are looked at; further ones pass with the next message."""
LOOK_PAUSE_S = 60.0
"""How often users are looked for whose erasure another process began or left open."""

_log = structlog.get_logger(__name__)


class Erasures:
    """Erases users one after the other, in the background."""

    def __init__(self, store: Store, clock: Clock, users: Users, commits: Commits) -> None:
        self._store = store
        self._clock = clock
        self._users = users
        self._commits = commits
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
            try:
                await self.run()
            except TidingsError as error:
                _log.warning("erasure_broken_off", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="erasure")
            try:
                async with asyncio.timeout(LOOK_PAUSE_S):
                    await self._has_work.wait()
            except TimeoutError:
                pass

    async def run(self) -> int:
        """Erase everybody who is marked; how many were. Raises Unavailable."""
        erased = 0
        after: Position | None = None
        while True:
            page = await self._store.scan(WORKSPACES, after=after)
            for workspace in page.items:
                for user_id in await self._marked(workspace["workspace"]):
                    await self.erase(workspace["workspace"], user_id)
                    erased += 1
            after = page.after
            if after is None:
                return erased

    async def _marked(self, workspace: str) -> list[str]:
        page = await self._store.query(USERS, workspace, index="by_erasing", consistent=False)
        return [item["user_id"] for item in page.items]

    async def erase(self, workspace: str, user_id: str) -> None:
        """Erase a user from every room that they are or were in, and take the mark away.

        Repeating it is fine, also after it was broken off anywhere. Raises Unavailable.
        """
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
        await self._users.finish_erasing(workspace, user_id)

    async def _erase_in(self, room: RoomRow, user_id: str) -> None:
        after: Position | None = None
        while True:
            page = await self._store.query(ENTRIES, room.key, after=after)
            seqs = [item["seq"] for item in page.items if _is_left_by(item, user_id)]
            for start in range(0, len(seqs), ERASED_TOGETHER_MAX):
                some = tuple(seqs[start : start + ERASED_TOGETHER_MAX])
                command = Erase(some, self._clock())
                await self._commits.submit(room.workspace, room.room_id, command)
            if seqs and not room.is_inline:
                await self._clear_previews(room, set(seqs))
            after = page.after
            if after is None:
                break
        await self._delete_receipts(room, user_id)

    async def _clear_previews(self, room: RoomRow, seqs: set[int]) -> None:
        """Previews in a large room; those in small ones went with the entries."""
        page = await self._store.query(MEMBERS, room.key, limit=PREVIEW_MEMBERS_MAX)
        keys = [(user_key(room.workspace, item["user_id"]), room.room_id) for item in page.items]
        rows = await self._store.get_many(INBOXES, keys) if keys else []
        for key, row in zip(keys, rows, strict=True):
            if row is None or row.get("preview") is None or row.get("preview_seq") not in seqs:
                continue
            seen = (Equals("preview_seq", row["preview_seq"]),)
            try:
                await self._store.write(Update(INBOXES, key, set={"preview": None}, when=seen))
            except ConditionFailed:
                continue  # a newer message has taken its place
            self._commits.forget([key[0]])

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
