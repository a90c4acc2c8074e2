"""Loads conversations of Redis into a workspace without rooms: in bulk, lists in their order.

First the rooms with their logs, then list by list the rows and the totals.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from tidings import wire
from tidings.chat.messages import body_hash
from tidings.chat.rows import Participation, RoomRow, participation_to_item, room_to_item
from tidings.clock import Clock
from tidings.conversations.journal import Journal, Noted, place_of
from tidings.conversations.lines import Line
from tidings.conversations.mapping import Mapping
from tidings.errors import Conflict
from tidings.ids import IdMaker, pair_room_id
from tidings.importing.redis_folding import Folded, Seat, fold
from tidings.importing.redis_odd import Odd
from tidings.importing.redis_people import People
from tidings.importing.redis_report import Report
from tidings.importing.redis_source import Pair, Place, RedisSource, Side
from tidings.importing.redis_staging import StagedRow, Staging
from tidings.storage.interface import PAGE_ITEMS_MAX, Delete, Item, Store, Table
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    USERS,
    room_key,
    user_key,
)

ITEMS_TOGETHER = 2_000
"""Items of one table that are put together."""
PACED_TOGETHER = 25
"""Items at most that a budget lets through together."""
PACED_AT_ONCE = 8
"""Of these parts, so many are under way at one time."""
OWNERS_TOGETHER = 100
REMOVED_TOGETHER = 90
OPERATIONS_TOGETHER = 1_000
FIRST_PLACE = "0-0"
"""Before every operation of a journal."""

Progress: TypeAlias = Callable[[str, int], None]
"""(what is being done, how many lines so far)"""


class Pace(Protocol):
    """Lets units through."""

    @property
    def burst_units(self) -> float | None:
        """What can be taken at once; None: anything."""
        ...

    async def take(self, units: float) -> None:
        """Return when that much may be spent."""
        ...


Price: TypeAlias = Callable[[Table, Item], float]
"""The write units of an item."""


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises the first failure as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


class Loading:
    """One load of one workspace, which nobody else uses until it is done."""

    def __init__(
        self,
        store: Store,
        workspace: str,
        mapping: Mapping,
        odd: Odd,
        report: Report,
        people: People,
        clock: Clock,
        journal: Journal | None,
        folder: Path | None,
        pace: Pace | None,
        price: Price,
    ) -> None:
        self.report = report
        self._store = store
        self._workspace = workspace
        self._mapping = mapping
        self._odd = odd
        self._people = people
        self._clock = clock
        self._ids = IdMaker(clock)
        self._journal = journal
        self._folder = folder
        self._pace = pace
        self._price = price
        self._waiting: dict[str, tuple[Table, list[Item]]] = {}
        self._putting: asyncio.Task[None] | None = None

    async def run(self, source: RedisSource, show: Progress) -> None:
        """Load all lists. Raises Conflict where somebody used the workspace meanwhile."""
        staging = Staging(self._folder)
        try:
            async for pairs in source.pairs():
                now_ms = self._clock()
                lines: list[StagedRow] = []
                for pair in pairs:
                    folded = fold(self._mapping, pair, now_ms, self._odd)
                    if not staging.has(folded.seats[0].user_id, folded.room_id):
                        lines += self._take(folded)
                staging.put(lines)
                await self._put_beside()
                show("Reading", source.members)
            await self._put(1)
            await self._settle(source, staging)
            await self._put(1)
            await self._load_lists(source, staging, show)
        finally:
            await self._end_putting()
            staging.close()

    async def _settle(self, source: RedisSource, staging: Staging) -> None:
        """Bring what was read at different moments to one, which is a place of the journal.

        Then all operations up to there are here already, and go. Were they to go one conversation
        at a time, the others would be carried out in another order than they were made.
        """
        journal = self._journal
        if journal is None:
            return
        last, count = FIRST_PLACE, OPERATIONS_TOGETHER
        while operations := await journal.read(OPERATIONS_TOGETHER, after=last):
            if not all(_is_seen(each, staging) for each in operations):
                break
            last = operations[-1].id
        while count == OPERATIONS_TOGETHER:
            last, count, found = await source.changed(last, OPERATIONS_TOGETHER)
            await self._take_again(staging, found, place_of(last))
        self.report.operations_seen += await journal.forget_where(
            partial(_is_seen, staging=staging)
        )

    async def _take_again(
        self,
        staging: Staging,
        found: Sequence[tuple[tuple[str, str], Pair | None]],
        place: Place,
    ) -> None:
        now_ms = self._clock()
        await self._put(1)
        lines: list[StagedRow] = []
        for (one, other), pair in found:
            room_id = pair_room_id(one, other)
            if staging.noted(one, room_id) is not None:
                await self._clear_log(room_key(self._workspace, room_id))
            if pair is None:  # it is on nobody's list
                line = Pair((Side(one, 0.0, Line()), None), other, place)
                folded = fold(self._mapping, line, now_ms, self._odd)
                hidden = msgspec.structs.replace(folded.seats[0], is_hidden=True)
                folded = msgspec.structs.replace(folded, seats=(hidden, folded.seats[1]))
            else:
                folded = fold(self._mapping, pair, now_ms, self._odd)
            lines += self._take(folded)
        staging.put(lines)
        await self._put(ITEMS_TOGETHER)

    async def _clear_log(self, room: str) -> None:
        """Take away the log of a room that nobody sees yet."""
        for table in (ENTRIES, RECEIPTS):
            page = await self._store.query(table, room)
            while page.items:
                keys = [table.key(item) for item in page.items]
                for start in range(0, len(keys), REMOVED_TOGETHER):
                    part = keys[start : start + REMOVED_TOGETHER]
                    await self._store.write(*[Delete(table, key) for key in part])
                page = await self._store.query(table, room)

    def _take(self, folded: Folded) -> list[StagedRow]:
        """Let the room with its log wait to be put; the lines of its two people."""
        log, seats = folded.log, folded.seats
        key = room_key(self._workspace, folded.room_id)
        head = len(log)
        active_at = max(seats[0].active_at, seats[1].active_at)
        room = RoomRow(
            workspace=self._workspace,
            room_id=folded.room_id,
            kind="direct",
            created_at=log[0].at_ms if log else active_at,
            head=head,
            epoch=2,
            member_count=2,
            listed_at=active_at // 60_000,
        )
        self._wait(ROOMS, (room_to_item(room),))
        self._wait(
            MEMBERS,
            (
                {"room": key, "user_id": seat.user_id, "role": "member", "joined_seq": 0}
                for seat in seats
            ),
        )
        self._wait(
            ENTRIES,
            (
                {
                    "room": key,
                    "seq": seq,
                    "id": self._ids.new("ent"),
                    "type": "text",
                    "sender_id": said.sender_id,
                    "client_id": said.client_id,
                    "text": said.text,
                    "created_at": said.at_ms,
                }
                for seq, said in enumerate(log, 1)
            ),
        )
        self._wait(
            RECEIPTS,
            (
                {
                    "room": key,
                    "receipt": f"{said.sender_id}#{said.client_id}",
                    "seq": seq,
                    "body_hash": body_hash(said.text),
                }
                for seq, said in enumerate(log, 1)
            ),
        )
        return [self._line(folded, seat, peer) for seat, peer in (seats, seats[::-1])]

    def _line(self, folded: Folded, seat: Seat, peer: Seat) -> StagedRow:
        head = len(folded.log)
        row = Participation(
            room_id=folded.room_id,
            kind="direct",
            peer_id=peer.user_id,
            unread=seat.unread,
            read_seq=seat.read_seq,
            counted_seq=head,
            is_muted=seat.is_muted,
            hidden_seq=head if seat.is_hidden else None,
            preview=folded.log[-1].text[: wire.PREVIEW_CHARACTERS_MAX] if head else None,
            preview_seq=head,
            active_at=seat.active_at,
        )
        return StagedRow(
            seat.user_id, seat.name, peer.name, seat.score, folded.noted, seat.unread_in_source, row
        )

    async def _load_lists(self, source: RedisSource, staging: Staging, show: Progress) -> None:
        people: dict[str, str] = {}
        badges: list[Item] = []
        done = 0
        for user_id, staged_rows in staging.lists():
            version = unread = 0
            rows: list[Item] = []
            name = user_id
            for staged in staged_rows:
                version += 1
                name, row = staged.name, staged.row
                self._count(staged)
                row.feed = version
                row.unread_feed = version if row.unread else None
                row.marks = f"{version}:{row.counted_seq}"
                if not row.is_muted:
                    unread += row.unread
                rows.append(participation_to_item(row, self._workspace, user_id))
            self._wait(INBOXES, rows)
            badges.append(
                {
                    "user": user_key(self._workspace, user_id),
                    "unread": unread,
                    "mentions": 0,
                    "version": version,
                    "read_version": version,
                }
            )
            people[user_id] = name
            done += len(rows)
            if len(people) >= OWNERS_TOGETHER:
                await self._put_people(source, people, badges)
                people, badges = {}, []
                await self._put_beside()
                show("Writing lists", done)
        await self._put_people(source, people, badges)
        await self._put(1)

    def _count(self, staged: StagedRow) -> None:
        """One of the two lines of a room, ready to be stored."""
        report, row = self.report, staged.row
        is_first = row.peer_id is None or staged.user_id < row.peer_id
        report.rooms_made += is_first
        report.messages_added += row.counted_seq if is_first else 0
        report.lines_hidden += row.is_hidden
        report.lines_added += not row.is_hidden
        report.unread_in_source += staged.unread_in_source
        report.unread_carried += row.unread

    async def _put_people(
        self, source: RedisSource, people: dict[str, str], badges: list[Item]
    ) -> None:
        """People and totals; nobody may have a total yet."""
        if not people:
            return
        keys = [(user_key(self._workspace, user_id),) for user_id in people]
        there = await self._store.get_many(BADGES, keys)
        if any(item is not None for item in there):
            raise Conflict("The workspace was used while it was loaded: run the import again.")
        await self._put_paced(USERS, await self._people.missing(source, people))
        self._wait(BADGES, badges)

    def _wait(self, table: Table, items: Iterable[Item]) -> None:
        self._waiting.setdefault(table.name, (table, []))[1].extend(items)

    async def _put_beside(self) -> None:
        """Put what is enough to be put together, while the next of it is made ready."""
        if any(len(items) >= ITEMS_TOGETHER for _, items in self._waiting.values()):
            if self._putting is not None:
                await self._putting
            self._putting = asyncio.create_task(self._put_waiting(ITEMS_TOGETHER))

    async def _end_putting(self) -> None:
        """Leave nothing running behind."""
        if self._putting is not None:
            self._putting.cancel()
            await asyncio.gather(self._putting, return_exceptions=True)

    async def _put(self, least: int) -> None:
        """Put what waits of each table of which so much waits, after what is being put."""
        if self._putting is not None:
            await self._putting
            self._putting = None
        await self._put_waiting(least)

    async def _put_waiting(self, least: int) -> None:
        for name, (table, items) in list(self._waiting.items()):
            if len(items) >= least:
                del self._waiting[name]
                await self._put_paced(table, items)

    async def _put_paced(self, table: Table, items: Sequence[Item]) -> None:
        if self._pace is None:
            await self._store.put_many(table, items)
            return
        turns = asyncio.Semaphore(PACED_AT_ONCE)

        async def put(part: Sequence[Item]) -> None:
            try:
                await self._store.put_many(table, part)
            finally:
                turns.release()

        async with together() as group:
            for units, part in self._parts(table, items, self._pace.burst_units):
                await turns.acquire()
                await self._pace.take(units)
                group.create_task(put(part))

    def _parts(
        self, table: Table, items: Sequence[Item], burst_units: float | None
    ) -> Iterator[tuple[float, list[Item]]]:
        """The items in parts with their units, none of which uses up what may be taken at once."""
        units_max = math.inf if burst_units is None else burst_units / 2
        part: list[Item] = []
        total = 0.0
        for item in items:
            units = self._price(table, item)
            if part and (total + units > units_max or len(part) == PACED_TOGETHER):
                yield total, part
                part, total = [], 0.0
            part.append(item)
            total += units
        if part:
            yield total, part

    async def remove_all(self) -> None:
        """Take away the rooms, logs, rows and totals of the workspace."""
        for table in (INBOXES, BADGES, RECEIPTS, ENTRIES, MEMBERS, ROOMS):
            after = None
            while True:
                page = await self._store.scan(table, limit=PAGE_ITEMS_MAX, after=after)
                keys = [
                    table.key(item)
                    for item in page.items
                    if item[table.partition].startswith(f"{self._workspace}#")
                ]
                for start in range(0, len(keys), REMOVED_TOGETHER):
                    part = keys[start : start + REMOVED_TOGETHER]
                    await self._store.write(*[Delete(table, key) for key in part])
                if (after := page.after) is None:
                    break


def _is_seen(noted: Noted, staging: Staging) -> bool:
    """Whether the operation was made before its conversation was read."""
    one, other = noted.operation.pair
    place = staging.noted(one, pair_room_id(one, other))
    return place is not None and noted.place <= place
