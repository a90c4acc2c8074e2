"""A plain chat for the tests of delivery: every commit writes the rows that delivery reads.

It keeps the rules that delivery relies on (rows, marks and versions of one commit in one write,
updates published afterwards in order), one commit at a time, and nothing else of a chat.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from tidings import wire
from tidings.chat import marks
from tidings.chat.commands import Posted
from tidings.chat.rows import (
    BadgeRow,
    Participation,
    RoomRow,
    entry_to_wire,
    participation_to_item,
    room_to_item,
)
from tidings.chat.updates import PostedEntry, Publish, RoomUpdate, Signal, UserUpdate
from tidings.errors import NotFound
from tidings.people.callers import Caller
from tidings.storage.interface import Item, Put, Store
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, ROOMS, user_key

WORKSPACE = "acme"
INLINE_MAX = 50
AT = 1_800_000_000_000


class Ledger:
    """Rooms and their members, written to the store and told to `publish`."""

    def __init__(self, store: Store, publish: Publish, signal: Signal) -> None:
        self._store = store
        self._publish = publish
        self._signal = signal
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Posted]] = set()
        self.rooms: dict[str, RoomRow] = {}
        self.rows: dict[tuple[str, str], Participation] = {}
        self.badges: dict[str, BadgeRow] = {}
        self.entries: dict[str, list[wire.Entry]] = {}
        self.unread_of: dict[tuple[str, str], list[int]] = {}

    async def _commit(
        self,
        room: RoomRow,
        change: Callable[[str, Participation], bool],
        *,
        new: Collection[Item] = (),
        users: Collection[str],
        is_read: bool = False,
        is_row_changed: Collection[str] = (),
    ) -> list[PostedEntry]:
        """Append entries and change the rows of users; one version for each of them."""
        posted = []
        writes: list[Any] = []
        if len(new) > INLINE_MAX:  # as a large room: the log first, the members afterwards
            await self._store.put_many(ENTRIES, new)
        else:
            writes += [Put(ENTRIES, item) for item in new]
        for item in new:
            entry = entry_to_wire(item, room.room_id)
            self.entries[room.room_id].append(entry)
            posted.append(PostedEntry(entry))
        writes.append(Put(ROOMS, room_to_item(room)))
        updates = []
        for user_id in users:
            row = self.rows[room.room_id, user_id]
            badge = self.badges.setdefault(user_id, BadgeRow())
            badge.version += 1
            before = row.unread
            is_touched = change(user_id, row)
            if is_touched:
                row.feed = badge.version
                row.marks = marks.append(row.marks, badge.version, row.counted_seq)
            row.unread_feed = (row.unread_feed or badge.version) if row.unread else None
            badge.unread += row.unread - before
            if is_read or user_id in is_row_changed:
                badge.read_version = badge.version
            item = participation_to_item(row, WORKSPACE, user_id)
            writes.append(Put(INBOXES, item))
            writes.append(
                Put(
                    BADGES,
                    {
                        "user": user_key(WORKSPACE, user_id),
                        "unread": badge.unread,
                        "mentions": 0,
                        "version": badge.version,
                        "read_version": badge.read_version,
                    },
                )
            )
            told = RoomUpdate(
                room_id=room.room_id,
                head=room.head,
                read_seq=row.read_seq,
                unread=row.unread,
                mentions=0,
                entries=posted if is_touched and not row.is_left else (),
                is_read_moved=is_read,
                is_row_changed=user_id in is_row_changed,
                is_left=row.is_left,
            )
            updates.append(UserUpdate(user_id, badge.version, badge.unread, 0, (told,)))
        await self._store.write(*writes)
        self._publish(WORKSPACE, updates)
        return posted

    def _item(self, room: RoomRow, **fields: Any) -> Item:
        room.head += 1
        item = {"room": room.key, "seq": room.head, "id": f"ent_{room.room_id}_{room.head}"}
        return item | {"type": "text", "created_at": AT} | fields

    def members(self, room_id: str) -> list[str]:
        return [
            user for (room, user), row in self.rows.items() if room == room_id and not row.is_left
        ]

    async def open_room(self, room_id: str, *users: str, **fields: Any) -> None:
        async with self._turn:
            room = RoomRow(WORKSPACE, room_id, fields.pop("kind", "group"), AT, **fields)
            self.rooms[room_id] = room
            self.entries[room_id] = []
            for user_id in users:
                self.rows[room_id, user_id] = Participation(room_id, room.kind)
            await self._commit(room, lambda *_: True, users=users, is_row_changed=users)

    async def post(self, room_id: str, sender: str, *texts: str) -> list[PostedEntry]:
        async with self._turn:
            room = self.rooms[room_id]
            new = [
                self._item(room, sender_id=sender, text=text, client_id=f"c{room.head + 1}")
                for text in texts
            ]

            def count(user_id: str, row: Participation) -> bool:
                row.counted_seq = room.head
                row.unread += 0 if user_id == sender else len(new)
                return True

            return await self._commit(room, count, new=new, users=self.members(room_id))

    async def mark_read(self, room_id: str, user_id: str, seq: int) -> wire.ReadReply:
        async with self._turn:
            room = self.rooms[room_id]
            row = self.rows[room_id, user_id]

            def move(_: str, row: Participation) -> bool:
                row.read_seq = max(row.read_seq, min(seq, room.head))
                row.unread = sum(
                    1
                    for entry in self.entries[room_id]
                    if entry.seq > max(row.read_seq, row.joined_seq)
                    and entry.type == "text"
                    and entry.sender_id != user_id
                )
                return False

            if seq > row.read_seq:
                await self._commit(room, move, users=[user_id], is_read=True)
            badge = self.badges[user_id]
            total = wire.Total(badge.unread, 0, badge.version)
            return wire.ReadReply(row.read_seq, row.unread, 0, total)

    async def join(self, room_id: str, user_id: str) -> None:
        async with self._turn:
            room = self.rooms[room_id]
            new = [self._item(room, type="joined", sender_id=user_id)]
            joined_seq = room.head
            feed = self.rows[room_id, user_id].feed if (room_id, user_id) in self.rows else 0
            self.rows[room_id, user_id] = Participation(
                room_id,
                room.kind,
                read_seq=joined_seq,
                joined_seq=joined_seq,
                feed=feed,
            )

            def count(_: str, row: Participation) -> bool:
                row.counted_seq = room.head
                return True

            users = self.members(room_id)
            await self._commit(room, count, new=new, users=users, is_row_changed=[user_id])

    async def leave(self, room_id: str, user_id: str) -> None:
        async with self._turn:
            room = self.rooms[room_id]
            users = self.members(room_id)
            new = [self._item(room, type="left", sender_id=user_id)]

            def count(user: str, row: Participation) -> bool:
                if user == user_id:
                    row.is_left = True
                    row.unread = 0
                else:
                    row.counted_seq = room.head
                return True

            await self._commit(room, count, new=new, users=users, is_row_changed=[user_id])

    # What sockets and the hub ask of a chat

    async def submit(
        self, caller: Caller, room_id: str, body: wire.PostMessage
    ) -> asyncio.Future[Posted]:
        user_id = caller.user_id or ""
        if user_id not in self.members(room_id):
            raise NotFound

        async def post() -> Posted:
            (posted,) = await self.post(room_id, user_id, body.text or "")
            return Posted(posted, is_new=True)

        task = asyncio.ensure_future(post())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def read(self, caller: Caller, room_id: str, seq: int) -> wire.ReadReply:
        if caller.user_id not in self.members(room_id):
            raise NotFound
        return await self.mark_read(room_id, caller.user_id or "", seq)

    async def typing(self, caller: Caller, room_id: str) -> None:
        others = [user for user in self.members(room_id) if user != caller.user_id]
        frame = {"type": "typing", "room_id": room_id, "user_id": caller.user_id}
        self._signal(WORKSPACE, others, dict(frame))

    async def inbox_item(self, workspace: str, user_id: str, room_id: str) -> wire.InboxItem:
        row = self.rows.get((room_id, user_id))
        if row is None or row.is_left:
            raise NotFound
        await asyncio.sleep(0)  # as a store that is not in this process would
        return wire.InboxItem(
            room_id=room_id,
            kind=row.kind,
            title=None,
            with_=[],
            unread=row.unread,
            mentions=0,
            read_seq=row.read_seq,
            head=row.counted_seq,
            updated_at="2027-01-15T08:00:00.000Z",
            preview=None,
        )

    async def companions(self, workspace: str, user_id: str) -> list[str]:
        return sorted(
            {
                user
                for (room_id, user), row in self.rows.items()
                if user != user_id and not row.is_left and user_id in self.members(room_id)
            }
        )
