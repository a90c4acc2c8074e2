"""Readers: how far the others in a small room have read, told when asked and, as a hint, live.

Customers learn how far the others have read together, never who of them. Nothing is written for
any of it: a hint that is lost is made good by the next one, or by asking.
"""

from __future__ import annotations

import asyncio

from tidings import wire
from tidings.chat import access
from tidings.chat.commits import Commits
from tidings.chat.rows import INLINE_MEMBERS_MAX, participation_from_item, room_from_item
from tidings.chat.updates import SignalApart
from tidings.people.callers import Caller
from tidings.storage.interface import Store
from tidings.storage.tables import INBOXES, MEMBERS, ROOMS, room_key, user_key

MERGED_S = 0.25
"""How long moves of one mark are gathered before the others in the room are told."""
MERGED_MARKS_MAX = 1_000
"""Marks that wait to be told; the moves of further ones are not told live."""


class Readers:
    """The read marks of small rooms, as far as a caller may know of them."""

    def __init__(self, store: Store, commits: Commits, signal_apart: SignalApart | None) -> None:
        self._store = store
        self._commits = commits
        self._signal_apart = signal_apart
        self._moved: dict[tuple[str, str, str], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def list(self, caller: Caller, room_id: str) -> wire.ReaderList:
        """The other members with how far they have read, by id; for customers all as one.

        Empty for a room of more than INLINE_MEMBERS_MAX members. Raises NotFound.
        """
        workspace = caller.workspace
        stored = await self._store.get(ROOMS, (room_key(workspace, room_id),))
        row = None
        if caller.user_id is not None:
            row = await self._store.get(INBOXES, (user_key(workspace, caller.user_id), room_id))
        own = None if row is None else participation_from_item(row)
        found = None if stored is None else room_from_item(stored)
        room = access.require_sight(caller, found, own)
        if room.member_count > INLINE_MEMBERS_MAX:
            return wire.ReaderList([])
        page = await self._store.query(MEMBERS, room.key, limit=INLINE_MEMBERS_MAX)
        others = [item["user_id"] for item in page.items if item["user_id"] != caller.user_id]
        keys = [(user_key(workspace, user_id), room_id) for user_id in others]
        rows = await self._store.get_many(INBOXES, keys) if keys else ()
        marks = {
            user_id: item["read_seq"]
            for user_id, item in zip(others, rows, strict=True)
            if item is not None
        }
        if access.knows_readers(caller):
            return wire.ReaderList([wire.Reader(*mark) for mark in marks.items()])
        furthest = [wire.Reader(None, max(marks.values()))] if marks else []
        return wire.ReaderList(furthest)

    def on_read(self, workspace: str, room_id: str, user_id: str, read_seq: int) -> None:
        """A member's mark moved, durably: the others in a small room hear of it soon."""
        if self._commits.known.members_remembered(workspace, room_id) is None:
            return
        if len(self._moved) < MERGED_MARKS_MAX:
            key = workspace, room_id, user_id
            self._moved[key] = max(read_seq, self._moved.get(key, 0))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MERGED_S, self._tell)

    def _tell(self) -> None:
        moved, self._moved, self._timer = self._moved, {}, None
        for (workspace, room_id, user_id), read_seq in moved.items():
            members = self._commits.known.members_remembered(workspace, room_id) or frozenset()
            others = [each for each in members if each != user_id]
            if self._signal_apart is None or user_id not in members or not others:
                continue
            frame: dict[str, object] = {"type": "reader", "room_id": room_id, "read_seq": read_seq}
            self._signal_apart(
                workspace, others, frame | {"user_id": user_id}, frame | {"user_id": None}
            )

    def stop(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
