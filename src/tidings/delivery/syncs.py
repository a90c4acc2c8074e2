"""Catching up: everything since a cursor, exactly, by version and sequence and no clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from msgspec import UNSET

from tidings import wire
from tidings.chat import access, marks, ranges
from tidings.chat.rows import (
    BadgeRow,
    Participation,
    RoomRow,
    badge_from_item,
    entry_to_wire,
    participation_from_item,
    room_from_item,
)
from tidings.cursors import Cursors
from tidings.delivery import frames
from tidings.delivery.admission import Admission
from tidings.delivery.audiences import Poll
from tidings.delivery.connections import Connection
from tidings.delivery.hub import Hub, identity
from tidings.delivery.queues import POSITIONS_MAX, Acknowledgements, Position, Queues, complete
from tidings.errors import Forbidden
from tidings.people.callers import Caller
from tidings.storage.interface import PAGE_ITEMS_MAX, Store
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, ROOMS, room_key, user_key

REPLY_ROOMS_MAX = 200
"""Rooms in one reply; more come in the next one."""
REPLY_CHARACTERS_MAX = 512 * 1024
"""Characters of text in one reply, or a single entry more; more come in the next one."""


class _Window:
    """A reply in the making: what fits into it, and where the next one goes on."""

    def __init__(self, store: Store, workspace: str, position: Position, limit: int) -> None:
        self._store = store
        self._workspace = workspace
        self.rooms: dict[str, wire.SyncRoom] = {}
        self.positions = dict(position.rooms)
        self.has_more = False
        self._entries_left = limit
        self._characters_left = REPLY_CHARACTERS_MAX

    @property
    def is_full(self) -> bool:
        """Whether another room would not fit any more."""
        return (
            self._entries_left <= 0
            or self._characters_left <= 0
            or len(self.rooms) >= REPLY_ROOMS_MAX
        )

    async def take(self, room: wire.SyncRoom, have: ranges.Ranges, first: int) -> bool:
        """Add a room with what is missing in `first`…head; whether all of that fitted."""
        earlier = self.rooms.get(room.room_id)
        entries = [] if earlier is None else earlier.entries
        is_cut = False
        held = ranges.merge((*have, *((entry.seq, entry.seq) for entry in entries)))
        lacking = ranges.missing(held, room.head, self._entries_left + 1, first)
        async for entry in self._entries(room.room_id, lacking):
            if self._entries_left <= 0 or self._characters_left <= 0:
                is_cut = True
                break
            entries.append(entry)
            self._entries_left -= 1
            self._characters_left -= len(entry.text or "")
        self.rooms[room.room_id] = msgspec.structs.replace(room, entries=entries)
        held = ranges.merge((*held, *((entry.seq, entry.seq) for entry in entries)))
        left = ranges.missing(held, room.head, 1, first)
        self._move(room.room_id, left[0][0] - 1 if left else room.head)
        self.has_more = self.has_more or is_cut
        return not is_cut

    async def _entries(
        self, room_id: str, lacking: list[tuple[int, int]]
    ) -> AsyncIterator[wire.Entry]:
        for low, high in lacking:
            after = None
            while True:
                page = await self._store.query(
                    ENTRIES,
                    room_key(self._workspace, room_id),
                    low=low,
                    high=high,
                    limit=min(high - low + 1, PAGE_ITEMS_MAX),
                    after=after,
                )
                for item in page.items:
                    yield entry_to_wire(item, room_id)
                after = page.after
                if after is None:
                    break

    def mention(self, room: wire.SyncRoom) -> None:
        """Add a room without entries."""
        self.rooms[room.room_id] = room

    def _move(self, room_id: str, seq: int) -> None:
        self.positions.pop(room_id, None)
        self.positions[room_id] = seq

    def position(self, start: Position, badge: BadgeRow, cut: int | None) -> Position:
        """Where a device is that has the reply; the rooms touched last keep their position."""
        kept = dict(list(self.positions.items())[-POSITIONS_MAX:])
        if cut is None:
            return complete(max(start.version, badge.version), kept)
        return Position(cut, start.base, badge.read_version, kept)


class Syncs:
    """Catch-ups and long polls of sessions, each with its durable queue.

    An old state plus the replies, and the updates after the last reply's version, is what a
    fresh read gives. A device gets every entry of its rooms since its queue began at least once
    and in order per room.
    """

    def __init__(
        self, store: Store, cursors: Cursors, acknowledgements: Acknowledgements, hub: Hub
    ) -> None:
        self._store = store
        self._hub = hub
        self.queues = Queues(cursors, acknowledgements)
        self.admission = Admission()

    async def sync(self, caller: Caller, request: wire.SyncRequest) -> wire.SyncReply:
        """What happened since `since`, which it acknowledges durably, or since the last one.

        With `wait`, a reply comes as soon as there is something to tell, else an empty one in
        the end. Raises Forbidden for callers without a queue, ValidationFailed for a wrong
        cursor or range, Conflict when a newer poll of the session took over, Unauthorized when
        the session was revoked meanwhile, Unavailable.
        """
        require_queue(caller)
        have = parse_have(request.have)
        start = await self.start(caller, request.since)
        if request.wait <= 0:
            return await self.read(caller, start, have, request.limit)
        self._hub.refuse_when_draining()
        with self._hub.polling(caller) as poll:
            return await self._wait(caller, start, have, request, poll)

    async def _wait(
        self,
        caller: Caller,
        start: Position,
        have: Mapping[str, ranges.Ranges],
        request: wire.SyncRequest,
        poll: Poll,
    ) -> wire.SyncReply:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + request.wait
        while True:
            poll.clear()
            reply = await self.read(caller, start, have, request.limit)
            poll.version = reply.version
            if reply.rooms or reply.more or reply.unread_rooms is not UNSET:
                return reply
            if self._hub.is_draining or not await poll.wait(deadline_s - loop.time()):
                return reply

    async def start(self, caller: Caller, since: str | None) -> Position:
        """Where a catch-up starts: at `since`, which is acknowledged, or where the queue is."""
        if since is not None:
            return await self.queues.acknowledge(caller, since)
        position = await self.queues.acknowledged(caller)
        if position is None:
            badge = await self.badge(caller)
            position = complete(badge.version)
            await self.queues.acknowledge(caller, self.queues.seal(caller, position))
        return position

    async def badge(self, caller: Caller) -> BadgeRow:
        """The caller's totals and version."""
        return badge_from_item(await self._store.get(BADGES, (user_key(*identity(caller)),)))

    async def versions(self, users: Sequence[tuple[str, str]], is_exact: bool) -> list[int]:
        """The versions of (workspace, user id) pairs, at most PAGE_ITEMS_MAX."""
        keys = [(user_key(*user),) for user in users]
        items = await self._store.get_many(BADGES, keys, consistent=is_exact)
        return [badge_from_item(item).version for item in items]

    async def read(
        self,
        caller: Caller,
        start: Position,
        have: Mapping[str, ranges.Ranges],
        limit: int,
    ) -> wire.SyncReply:
        """One window of what happened since `start`, and of what `have` lacks.

        The version is read first, so that rooms are at least as new as it says: whoever applies
        the updates after it misses nothing.
        """
        badge = await self.badge(caller)
        window = _Window(self._store, caller.workspace, start, limit)
        cut = await self._read_changed(caller, start, have, window)
        if not window.is_full or not have.keys() - window.rooms.keys():
            await self._read_lacking(caller, have, window)
        else:
            window.has_more = True
        unread_rooms: list[wire.UnreadRoom] | msgspec.UnsetType = UNSET
        if badge.read_version > start.read_version:
            unread_rooms = await self._read_unread(caller)
            await self._mention_marked(caller, start, window)
        return wire.SyncReply(
            cursor=self.queues.seal(caller, window.position(start, badge, cut)),
            version=badge.version,
            total=wire.Total(badge.unread, badge.mentions, badge.version),
            rooms=list(window.rooms.values()),
            more=window.has_more,
            unread_rooms=unread_rooms,
        )

    async def _read_changed(
        self,
        caller: Caller,
        start: Position,
        have: Mapping[str, ranges.Ranges],
        window: _Window,
    ) -> int | None:
        """Add rooms by their `feed`; where they do not all fit, the version before the next."""
        after = None
        while True:
            page = await self._store.query(
                INBOXES,
                user_key(*identity(caller)),
                index="by_feed",
                low=start.version + 1,
                limit=REPLY_ROOMS_MAX,
                after=after,
            )
            for item in page.items:
                row = participation_from_item(item)
                if window.is_full:
                    window.has_more = True
                    return row.feed - 1
                if not await self._take_changed(caller, start, have, row, window):
                    return row.feed - 1
            after = page.after
            if after is None:
                return None

    async def _take_changed(
        self,
        caller: Caller,
        start: Position,
        have: Mapping[str, ranges.Ranges],
        row: Participation,
        window: _Window,
    ) -> bool:
        if row.is_left:
            window.mention(_left(row))
            return True
        if row.room_id in have:
            first = await self._first_visible_seq(caller, row)
            return await window.take(_present(row), have[row.room_id], first)
        known = window.positions.get(row.room_id)
        if known is None:
            known = marks.position(row.marks, start.base)
        return await window.take(_present(row), (), max(known + 1, row.joined_seq))

    async def _read_lacking(
        self, caller: Caller, have: Mapping[str, ranges.Ranges], window: _Window
    ) -> None:
        """Add rooms that did not change, but of which the device lacks something."""
        wanted = [room_id for room_id in have if room_id not in window.rooms]
        user = user_key(*identity(caller))
        items = await self._store.get_many(INBOXES, [(user, room_id) for room_id in wanted])
        for room_id, item in zip(wanted, items, strict=True):
            if item is None:
                room = await self._visible_room(caller, room_id)
                if room is None:
                    continue
                present, first = wire.SyncRoom(room_id, room.head, 0, 0, 0), 1
            else:
                row = participation_from_item(item)
                if row.is_left:
                    continue
                present, first = _present(row), await self._first_visible_seq(caller, row)
            if not ranges.missing(have[room_id], present.head, 1, first):
                continue
            if window.is_full:
                window.has_more = True
                return
            if not await window.take(present, have[room_id], first):
                return

    async def _room(self, caller: Caller, room_id: str) -> RoomRow | None:
        item = await self._store.get(ROOMS, (room_key(caller.workspace, room_id),))
        return None if item is None else room_from_item(item)

    async def _first_visible_seq(self, caller: Caller, row: Participation) -> int:
        room = await self._room(caller, row.room_id)
        return 1 if room is None else access.first_visible_seq(room, row)

    async def _visible_room(self, caller: Caller, room_id: str) -> RoomRow | None:
        """A room that the caller may read without being a member."""
        room = await self._room(caller, room_id)
        return room if access.sees(caller, room, None) else None

    async def _read_unread(self, caller: Caller) -> list[wire.UnreadRoom]:
        user = user_key(*identity(caller))
        rooms = []
        after = None
        while True:
            page = await self._store.query(INBOXES, user, index="by_unread", after=after)
            keys = [(user, item["room_id"]) for item in page.items]
            for item in await self._store.get_many(INBOXES, keys) if keys else ():
                if item is not None and (item["unread"] or item["mentions"]):
                    rooms.append(
                        wire.UnreadRoom(
                            item["room_id"], item["read_seq"], item["unread"], item["mentions"]
                        )
                    )
            after = page.after
            if after is None:
                return rooms

    async def _mention_marked(self, caller: Caller, start: Position, window: _Window) -> None:
        """Add rooms whose read mark is known to have moved, without entries."""
        workspace, user_id = identity(caller)
        for room_id in self._hub.marked_rooms(workspace, user_id, start.read_version):
            if room_id in window.rooms:
                continue
            item = await self._store.get(INBOXES, (user_key(workspace, user_id), room_id))
            if item is not None:
                row = participation_from_item(item)
                window.mention(_left(row) if row.is_left else _present(row))

    async def start_live(self, caller: Caller, connection: Connection) -> None:
        """Say `ready` and go live from the present on, without a catch-up.

        The connection is holding, and reached by the hub, from before the call.
        """
        is_live = False
        while not is_live:
            async with self.admission.pass_through():
                badge = await self.badge(caller)
            self._say_ready(caller, complete(badge.version), connection)
            is_live = connection.go_live(badge.version)

    async def catch_up(
        self,
        caller: Caller,
        start: Position,
        have: Mapping[str, ranges.Ranges],
        connection: Connection,
    ) -> None:
        """Say `ready`, put every window that there is, each after the last was read, go live.

        The connection is holding, and reached by the hub, from before the call.
        """
        self._say_ready(caller, start, connection)
        await self._put_windows(caller, start, have, connection)

    async def mend(self, connection: Connection) -> None:
        """Put all that the device missed since the version it was told of, and go live again.

        Raises Unavailable, and ConnectionError if the device is gone; it is still holding then.
        """
        async with connection.reading:
            if not connection.is_complete:
                connection.hold()
                start = complete(connection.version)
                await self._put_windows(connection.caller, start, {}, connection, is_asked=False)

    async def _put_windows(
        self,
        caller: Caller,
        position: Position,
        have: Mapping[str, ranges.Ranges],
        connection: Connection,
        *,
        is_asked: bool = True,
    ) -> None:
        """Put what there is since the position, until nothing is missing, and go live."""
        lacking = dict(have)
        told_version = None if is_asked else position.version
        while connection.close_code is None:
            async with self.admission.pass_through():
                reply = await self.read(caller, position, lacking, wire.LIST_LIMIT_MAX)
            frame = frames.synced(None, reply, since_version=told_version)
            connection.put("sync", frame, reply.cursor)
            if not reply.more and connection.go_live(reply.version):
                return
            await connection.drain()
            told_version = None
            position = self.queues.open(caller, reply.cursor)
            for room in reply.rooms:
                if room.room_id in lacking:
                    got = ((entry.seq, entry.seq) for entry in room.entries)
                    lacking[room.room_id] = ranges.merge((*lacking[room.room_id], *got))

    def _say_ready(self, caller: Caller, position: Position, connection: Connection) -> None:
        _, user_id = identity(caller)
        cursor = self.queues.seal(caller, position)
        frame = frames.ready(caller.session_id or "", user_id, cursor, position.version)
        connection.put("ready", frame, cursor)


def require_queue(caller: Caller) -> None:
    """Raises Forbidden for a caller that is not a session: only sessions have queues."""
    if caller.kind != "session" or caller.user_id is None or caller.session_id is None:
        raise Forbidden("Only sessions have a queue.")


def parse_have(have: Mapping[str, str]) -> dict[str, ranges.Ranges]:
    """What a device says it has of each room. Raises ValidationFailed."""
    return {room_id: ranges.parse(text) for room_id, text in have.items()}


def _present(row: Participation) -> wire.SyncRoom:
    """The room as far as the user's counts go, so that entries and counts agree."""
    return wire.SyncRoom(
        room_id=row.room_id,
        head=row.counted_seq,
        read_seq=row.read_seq,
        unread=row.unread,
        mentions=row.mentions,
    )


def _left(row: Participation) -> wire.SyncRoom:
    return wire.SyncRoom(
        room_id=row.room_id,
        head=row.counted_seq,
        read_seq=row.read_seq,
        unread=0,
        mentions=0,
        left=True,
    )
