"""Publishing: loaded rooms become visible, each with all its members' rows and totals at once.

One transaction holds the room, its members, their inbox rows and their badges, on the condition
that the room is not there and that the badges are as they were read. So whoever looks sees all of
a room or nothing of it, totals are the sums of the rows at every moment, and a load that was broken
off has changed no count. It goes well beside a running service: a refused set is planned again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import msgspec

from tidings.chat import marks
from tidings.chat.rows import (
    BadgeRow,
    Participation,
    badge_from_item,
    participation_from_item,
    participation_to_item,
    room_to_item,
)
from tidings.errors import Unavailable
from tidings.importing.folding import StagedMember, StagedRoom
from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    SET_ITEMS_MAX,
    Absent,
    Check,
    ConditionFailed,
    Equals,
    Exists,
    Item,
    Position,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MEMBERS, ROOMS, user_key

SETS_AT_ONCE = 8
"""Transactions under way at one time; no two of them concern the same person."""
ATTEMPTS_MAX = 12
"""How often a set is planned again because somebody in it was busy."""
BADGES_REMEMBERED_MAX = 20_000


class _Set(msgspec.Struct):
    """Rooms that become visible in one transaction."""

    rooms: list[StagedRoom] = []
    users: set[str] = set()
    items: int = 0


class Publishing:
    """Makes staged rooms of one workspace visible, in the order in which they are given."""

    def __init__(
        self,
        store: Store,
        workspace: str,
        on_taken: Callable[[StagedRoom], None],
        clear: Callable[[str], Awaitable[None]],
    ) -> None:
        """`on_taken` hears of rooms that are there already: they are not touched. `clear` removes
        a log, by the room's key, that is of no room.
        """
        self._store = store
        self._workspace = workspace
        self._on_taken = on_taken
        self._clear = clear
        self._badges: OrderedDict[str, BadgeRow] = OrderedDict()
        """As they are stored, unless somebody else was there since: then a set is refused."""
        self._open: list[_Set] = []
        """Sets that are being filled; no two of them concern the same person."""
        self._flying: dict[asyncio.Future[None], set[str]] = {}
        """Sets on their way, with their people: no two of these either."""
        self.published = 0

    async def run(self, rooms: Iterable[StagedRoom]) -> None:
        """Publish them. Raises Unavailable where the store can't take them, or never rests."""
        try:
            for staged in rooms:
                place = self._place(staged)
                if place is None:
                    await self._launch()
                    place = self._place(staged)
                    assert place is not None, "where nothing is open there is a place for any room"
                place.rooms.append(staged)
                place.users |= {member.user_id for member in staged.members}
                place.items += _items(staged)
            await self._launch()
        finally:
            ended = await asyncio.gather(*self._flying, return_exceptions=True)
            self._open, self._flying = [], {}
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome

    def _place(self, staged: StagedRoom) -> _Set | None:
        """The open set that the room can go into, so that open sets share nobody."""
        users = {member.user_id for member in staged.members}
        sharing = [each for each in self._open if not users.isdisjoint(each.users)]
        if len(sharing) > 1:
            return None
        candidates = sharing or self._open[-1:]
        if candidates and candidates[0].items + _items(staged) <= SET_ITEMS_MAX:
            return candidates[0]
        if sharing or len(self._open) >= SETS_AT_ONCE:
            return None
        self._open.append(_Set())
        return self._open[-1]

    async def _launch(self) -> None:
        """Write what is open; what is on its way and concerns the same people comes first."""
        sets, self._open = self._open, []
        for one in sets:
            while len(self._flying) >= SETS_AT_ONCE:
                await self._land(list(self._flying), asyncio.FIRST_COMPLETED)
            await self._land([task for task, users in self._flying.items()
                              if not users.isdisjoint(one.users)])  # fmt: skip
            self._flying[asyncio.ensure_future(self._publish(one))] = one.users
        while len(self._badges) > BADGES_REMEMBERED_MAX:
            self._badges.popitem(last=False)

    async def _land(
        self, tasks: Sequence[asyncio.Future[None]], when: str = asyncio.ALL_COMPLETED
    ) -> None:
        """Wait for sets on their way. Raises what they raise."""
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=when)
            for task in done:
                task.result()
                del self._flying[task]

    async def _publish(self, one: _Set) -> None:
        await self._know(one.users)
        await self._write(one)

    async def _write(self, one: _Set) -> None:
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(0.01 * 2 ** min(attempt, 6))
                await self._know(one.users, is_fresh=True)
            writes, badges = self._plan(one)
            if not one.rooms:
                return
            try:
                await self._store.write(*writes)
            except ConditionFailed as failed:
                await self._give_way(one, [writes[each.index] for each in failed.failures])
            else:
                self._badges |= badges
                self.published += len(one.rooms)
                return
        raise Unavailable("Somebody in the rooms to be published is never at rest.")

    async def _give_way(self, one: _Set, refused: Sequence[Write]) -> None:
        """Leave out rooms that are there, and clear what was left where a log should be empty."""
        there = {each.item["room"] for each in refused
                 if isinstance(each, Put) and each.table is ROOMS}  # fmt: skip
        for staged in one.rooms:
            if staged.room.key in there:
                self._on_taken(staged)
        one.rooms = [each for each in one.rooms if each.room.key not in there]
        for write in refused:
            if isinstance(write, Check):
                await self._clear(write.key[0])

    def _plan(self, one: _Set) -> tuple[list[Write], dict[str, BadgeRow]]:
        """The writes, and the badges after them."""
        writes: list[Write] = []
        badges: dict[str, BadgeRow] = {}
        for staged in one.rooms:
            room = staged.room
            writes.append(Put(ROOMS, room_to_item(room), when=(Absent(),)))
            if room.head == 0:  # one with a log has claimed it already
                writes.append(Check(ENTRIES, (room.key, 1), when=(Absent(),)))
            for member in staged.members:
                badge = badges.get(member.user_id)
                if badge is None:
                    badge = msgspec.structs.replace(self._badges[member.user_id])
                    badges[member.user_id] = badge
                badge.version += 1
                if not member.is_muted:
                    badge.unread += member.unread
                    badge.mentions += member.mentions
                writes += self._member_writes(staged, member, badge.version)
        for user_id, badge in badges.items():
            writes.append(_badge_write(self._workspace, user_id, self._badges[user_id], badge))
        return writes, badges

    def _member_writes(
        self, staged: StagedRoom, member: StagedMember, version: int
    ) -> tuple[Write, Write]:
        room = staged.room
        row = Participation(
            room_id=room.room_id,
            kind=room.kind,
            peer_id=_peer(staged, member.user_id),
            unread=member.unread,
            mentions=member.mentions,
            read_seq=member.read_seq,
            counted_seq=room.head,
            is_muted=member.is_muted,
            preview=staged.preview,
            preview_seq=staged.preview_seq,
            active_at=member.active_at,
            feed=version,
            unread_feed=version if member.unread else None,
            marks=marks.append("", version, room.head),
        )
        there = {"room": room.key, "user_id": member.user_id, "role": member.role, "joined_seq": 0}
        return (
            Put(MEMBERS, there),
            Put(INBOXES, participation_to_item(row, self._workspace, member.user_id)),
        )

    async def _know(self, users: Collection[str], *, is_fresh: bool = False) -> None:
        """Read the badges of these users, where they are not known."""
        for user_id in users:
            if user_id in self._badges:  # to be forgotten last, as long as the set is on its way
                self._badges.move_to_end(user_id)
        wanted = sorted(each for each in users if is_fresh or each not in self._badges)
        for start in range(0, len(wanted), PAGE_ITEMS_MAX):
            part = wanted[start : start + PAGE_ITEMS_MAX]
            keys = [(user_key(self._workspace, user_id),) for user_id in part]
            for user_id, item in zip(part, await self._store.get_many(BADGES, keys), strict=True):
                self._badges[user_id] = badge_from_item(item)

    async def put_in_order(self, user_id: str) -> None:
        """Give the rooms of a user's list the order of their own last activity, then of the peer.

        Each step is a transaction that raises the user's version; counts stay as they are. A room
        with newer activity meanwhile stays where that has put it. Raises Unavailable.
        """
        user = user_key(self._workspace, user_id)
        rows: list[tuple[int, str, str]] = []
        after: Position | None = None
        while True:
            page = await self._store.query(INBOXES, user, after=after)
            rows += [
                (item["active_at"], item.get("peer_id") or "", item["room_id"])
                for item in page.items
            ]
            if (after := page.after) is None:
                break
        rows.sort()
        for start in range(0, len(rows), SET_ITEMS_MAX - 1):
            await self._reorder(user, user_id, rows[start : start + SET_ITEMS_MAX - 1])

    async def _reorder(self, user: str, user_id: str, rows: list[tuple[int, str, str]]) -> None:
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(0.01 * 2 ** min(attempt, 6))
            before = badge_from_item(await self._store.get(BADGES, (user,)))
            items = await self._store.get_many(INBOXES, [(user, room_id) for *_, room_id in rows])
            badge = msgspec.structs.replace(before)
            writes: list[Write] = []
            for (active_at, _, room_id), item in zip(rows, items, strict=True):
                if item is None or item["active_at"] != active_at:
                    continue
                row = participation_from_item(item)
                badge.version += 1
                fields: Item = {
                    "feed": badge.version,
                    "marks": marks.append(row.marks, badge.version, row.counted_seq),
                }
                seen = (Equals("feed", row.feed), Equals("counted_seq", row.counted_seq))
                writes.append(Update(INBOXES, (user, room_id), set=fields, when=seen))
            if not writes:
                return
            writes.append(_badge_write(self._workspace, user_id, before, badge))
            try:
                await self._store.write(*writes)
            except ConditionFailed:
                continue
            self._badges.pop(user_id, None)
            return
        raise Unavailable("A list that is to be put in order is never at rest.")


def _items(staged: StagedRoom) -> int:
    return 2 + 3 * len(staged.members)


def _peer(staged: StagedRoom, user_id: str) -> str | None:
    if staged.room.kind != "direct":
        return None
    return next(each.user_id for each in staged.members if each.user_id != user_id)


def _badge_write(workspace: str, user_id: str, before: BadgeRow, after: BadgeRow) -> Write:
    user = user_key(workspace, user_id)
    fields = msgspec.structs.asdict(after)
    if before.version == 0:
        return Put(BADGES, {"user": user, **fields}, when=(Absent(),))
    seen = (Exists(), Equals("version", before.version))
    return Update(BADGES, (user,), set=fields, when=seen)
