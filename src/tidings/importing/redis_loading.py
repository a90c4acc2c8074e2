"""Loads conversations of Redis into a workspace without rooms: in bulk, lists in their order.

Everything is read before anything is written. Then the rooms with their logs go in by their ids,
and list by list the rows and the totals, so that each page of a store is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TypeAlias

from tidings import wire
from tidings.chat.messages import body_hash
from tidings.chat.rows import Participation, RoomRow, participation_to_item, room_to_item
from tidings.clock import Clock
from tidings.conversations.journal import Journal, Noted
from tidings.conversations.mapping import Mapping
from tidings.errors import Conflict
from tidings.ids import IdMaker, pair_room_id
from tidings.importing.private_files import told_of_no_room
from tidings.importing.redis_folding import Folded, Seat, fold
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_people import People
from tidings.importing.redis_puts import Puts, together
from tidings.importing.redis_report import Report
from tidings.importing.redis_source import Pair, RedisSource
from tidings.importing.redis_staging import StagedLine, Staging
from tidings.storage.interface import PAGE_ITEMS_MAX, Delete, Item, Store
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

PAIRS_TOGETHER = 100
"""Conversations that are made ready while what was made ready before is put."""
MESSAGES_TOGETHER = 2_000
"""Messages of these, of which the last conversation may have more."""
LINES_TOGETHER = 200
OWNERS_TOGETHER = 100
REMOVED_TOGETHER = 90
OPERATIONS_TOGETHER = 1_000
FIRST_PLACE = "0-0"
"""Before every operation of a journal."""

Progress: TypeAlias = Callable[[str, int], None]
"""(what is being done, how many lines so far)"""


class Loading:
    """One load of one workspace, which nobody else uses until it is done."""

    def __init__(
        self,
        store: Store,
        workspace: str,
        mapping: Mapping,
        oddities: Oddities,
        report: Report,
        people: People,
        clock: Clock,
        journal: Journal | None,
        puts: Puts,
    ) -> None:
        self.report = report
        self._store = store
        self._workspace = workspace
        self._mapping = mapping
        self._oddities = oddities
        self._people = people
        self._clock = clock
        self._ids = IdMaker(clock)
        self._journal = journal
        self._puts = puts

    async def run(self, source: RedisSource, show: Progress) -> None:
        """Load all lists. Raises Conflict where somebody used the workspace meanwhile."""
        with told_of_no_room(), closing(Staging()) as staging:
            try:
                async for pairs in source.pairs():
                    staging.put(pairs)
                    show("Reading", source.members)
                await self._settle(source, staging)
                await self._load_rooms(staging, show)
                await self._load_lists(source, staging, show)
                await self._puts.flush()
            finally:
                await self._puts.close()

    async def _settle(self, source: RedisSource, staging: Staging) -> None:
        """Bring what was read at different moments to one, which is a place of the journal.

        Then all operations up to there are here already, and go. Were they to go one conversation
        at a time, the others would be carried out in another order than they were made.
        """
        journal = self._journal
        if journal is None:
            return
        staging.make_findable()
        last, count = FIRST_PLACE, OPERATIONS_TOGETHER
        while operations := await journal.read(OPERATIONS_TOGETHER, after=last):
            if not all(_is_seen(each, staging) for each in operations):
                break
            last = operations[-1].id
        while count == OPERATIONS_TOGETHER:
            last, count, pairs = await source.changed(last, OPERATIONS_TOGETHER)
            staging.put(pair for pair in pairs if not pair.is_listed)
            async for part in source.with_messages([pair for pair in pairs if pair.is_listed]):
                staging.put(part)
        is_seen = partial(_is_seen, staging=staging)
        self.report.operations_seen += await journal.forget_where(is_seen)

    async def _load_rooms(self, staging: Staging, show: Progress) -> None:
        now_ms = self._clock()
        for part in _parts(staging.pairs()):
            rooms = [fold(self._mapping, pair, now_ms, self._oddities) for pair in part]
            self._load(rooms)
            staging.put_lines(
                self._line(room, seat, peer)
                for room in rooms
                for seat, peer in (room.seats, room.seats[::-1])
            )
            self.report.rooms_made += len(rooms)
            await self._puts.advance()
            show("Writing rooms", 2 * self.report.rooms_made)

    def _load(self, folded: list[Folded]) -> None:
        """Let rooms with their members and logs wait to be put."""
        rooms: list[Item] = []
        members: list[Item] = []
        entries: list[Item] = []
        receipts: list[Item] = []
        for each in folded:
            key = room_key(self._workspace, each.room_id)
            active_at = max(each.seats[0].active_at, each.seats[1].active_at)
            room = RoomRow(
                workspace=self._workspace,
                room_id=each.room_id,
                kind="direct",
                created_at=each.log[0].at_ms if each.log else active_at,
                head=len(each.log),
                epoch=2,
                member_count=2,
                listed_at=active_at // 60_000,
            )
            rooms.append(room_to_item(room))
            for seat in each.seats:
                members.append(
                    {"room": key, "user_id": seat.user_id, "role": "member", "joined_seq": 0}
                )
            for seq, said in enumerate(each.log, 1):
                entries.append(
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
                )
                receipts.append(
                    {
                        "room": key,
                        "receipt": f"{said.sender_id}#{said.client_id}",
                        "seq": seq,
                        "body_hash": body_hash(said.text),
                    }
                )
        self.report.messages_added += len(entries)
        for table, items in (
            (ROOMS, rooms),
            (MEMBERS, members),
            (ENTRIES, entries),
            (RECEIPTS, receipts),
        ):
            self._puts.add(table, items)

    def _line(self, folded: Folded, seat: Seat, peer: Seat) -> StagedLine:
        report = self.report
        report.lines_hidden += seat.is_hidden
        report.lines_added += not seat.is_hidden
        report.unread_in_source += seat.unread_in_source
        report.unread_carried += seat.unread
        log = folded.log
        return StagedLine(
            seat.user_id,
            seat.name,
            peer.user_id,
            peer.name,
            folded.room_id,
            seat.score,
            seat.active_at,
            len(log),
            seat.read_seq,
            seat.unread,
            seat.is_muted,
            seat.is_hidden,
            log[-1].text[: wire.PREVIEW_CHARACTERS_MAX] if log else None,
        )

    async def _load_lists(self, source: RedisSource, staging: Staging, show: Progress) -> None:
        people: dict[str, str] = {}
        badges: list[Item] = []
        done = 0
        for user_id, lines in staging.lists():
            version = unread = 0
            name = user_id
            while part := [*islice(lines, LINES_TOGETHER)]:
                rows: list[Item] = []
                for line in part:
                    version += 1
                    name = line.name
                    if not line.is_muted:
                        unread += line.unread
                    row = _row(line, version)
                    rows.append(participation_to_item(row, self._workspace, user_id))
                self._puts.add(INBOXES, rows)
                await self._puts.advance()
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
            done += version
            if len(people) >= OWNERS_TOGETHER:
                await self._load_people(source, people, badges)
                people, badges = {}, []
                show("Writing lists", done)
        await self._load_people(source, people, badges)

    async def _load_people(
        self, source: RedisSource, people: dict[str, str], badges: list[Item]
    ) -> None:
        """People and totals; nobody may have a total yet."""
        if not people:
            return
        keys = [(user_key(self._workspace, user_id),) for user_id in people]
        there = await self._store.get_many(BADGES, keys)
        if any(item is not None for item in there):
            raise Conflict("The workspace was used while it was loaded: run the import again.")
        self._puts.add(USERS, await self._people.missing(source, people))
        self._puts.add(BADGES, badges)

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
                async with together() as group:
                    for start in range(0, len(keys), REMOVED_TOGETHER):
                        part = keys[start : start + REMOVED_TOGETHER]
                        group.create_task(self._store.write(*[Delete(table, key) for key in part]))
                if (after := page.after) is None:
                    break


def _parts(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    part: list[Pair] = []
    messages = 0
    for pair in pairs:
        part.append(pair)
        messages += len(pair.messages)
        if len(part) == PAIRS_TOGETHER or messages >= MESSAGES_TOGETHER:
            yield part
            part, messages = [], 0
    if part:
        yield part


def _row(line: StagedLine, version: int) -> Participation:
    """The line at that place of its owner's list."""
    return Participation(
        room_id=line.room_id,
        kind="direct",
        peer_id=line.peer_id,
        unread=line.unread,
        read_seq=line.read_seq,
        counted_seq=line.head,
        is_muted=line.is_muted,
        hidden_seq=line.head if line.is_hidden else None,
        preview=line.preview,
        preview_seq=line.head,
        active_at=line.active_at,
        feed=version,
        unread_feed=version if line.unread else None,
        marks=f"{version}:{line.head}",
    )


def _is_seen(noted: Noted, staging: Staging) -> bool:
    """Whether the operation was made before its conversation was read."""
    place = staging.noted(pair_room_id(*noted.operation.pair))
    return place is not None and noted.place <= place
