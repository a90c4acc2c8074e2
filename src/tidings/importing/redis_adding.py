"""Adds conversations of Redis to a workspace in use, by the service's own commits.

What is there already stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping as Places
from functools import partial

from tidings.chat.chat import Chat
from tidings.chat.commands import Create, Hide, Mute, Read
from tidings.chat.messages import ImportedMessage
from tidings.chat.rows import RoomRow
from tidings.clock import Clock
from tidings.conversations.journal import Journal, Noted
from tidings.conversations.mapping import Mapping
from tidings.ids import pair_room_id
from tidings.importing.redis_folding import Folded, fold
from tidings.importing.redis_loading import Progress
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_people import People
from tidings.importing.redis_puts import together
from tidings.importing.redis_report import Report
from tidings.importing.redis_source import Place, RedisSource
from tidings.storage.interface import Store
from tidings.storage.tables import ROOMS, USERS, room_key

COMMITS_TOGETHER = 16
"""Conversations that go by the service's own commits at one time."""


class Adding:
    """One run over all lists."""

    def __init__(
        self,
        store: Store,
        chat: Chat,
        workspace: str,
        mapping: Mapping,
        oddities: Oddities,
        report: Report,
        people: People,
        clock: Clock,
        journal: Journal | None,
    ) -> None:
        self.report = report
        self._store = store
        self._chat = chat
        self._workspace = workspace
        self._mapping = mapping
        self._oddities = oddities
        self._people = people
        self._clock = clock
        self._journal = journal

    async def run(self, source: RedisSource, show: Progress) -> None:
        """Add the conversations that are not there yet."""
        turns = asyncio.Semaphore(COMMITS_TOGETHER)
        async for pairs in source.pairs():
            now_ms = self._clock()
            folded = [fold(self._mapping, pair, now_ms, self._oddities) for pair in pairs]
            keys = [(room_key(self._workspace, each.room_id),) for each in folded]
            found = await self._store.get_many(ROOMS, keys) if keys else []
            new = [each for each, item in zip(folded, found, strict=True) if item is None]
            self.report.rooms_present += len(folded) - len(new)
            for each, item in zip(folded, found, strict=True):
                if item is not None:
                    self.report.lines_present += sum(not seat.is_hidden for seat in each.seats)
            people = {seat.user_id: seat.name for each in new for seat in each.seats}
            if people:
                await self._store.put_many(USERS, await self._people.missing(source, people))
            async with together() as group:
                for each in new:
                    group.create_task(self._commit(each, turns))
            rooms = {each.room_id for each in new}
            seen = {
                each.room_id: pair.noted
                for each, pair in zip(folded, pairs, strict=True)
                if each.room_id in rooms
            }
            if self._journal is not None and any(place > (0, 0) for place in seen.values()):
                is_seen = partial(_is_among, seen=seen)
                self.report.operations_seen += await self._journal.forget_where(is_seen)
            show("Adding", source.members)

    async def _commit(self, folded: Folded, turns: asyncio.Semaphore) -> None:
        """One conversation by the service's own commits."""
        report, room_id, workspace = self.report, folded.room_id, self._workspace
        submit = self._chat.commits.submit
        async with turns:
            now_ms = self._clock()
            room = RoomRow(workspace, room_id, "direct", now_ms)
            founders = tuple((seat.user_id, "member") for seat in folded.seats)
            _, is_new = await submit(workspace, room_id, Create(room, founders, at=now_ms))
            report.rooms_made += is_new
            report.rooms_present += not is_new
            messages = [
                ImportedMessage(said.sender_id, said.client_id, said.text, said.at_ms)
                for said in folded.log
            ]
            result = await self._chat.messages.import_entries(workspace, room_id, messages)
            report.messages_added += result.added
            for seat in folded.seats:
                report.unread_in_source += seat.unread_in_source
                report.unread_carried += seat.unread
                report.lines_hidden += seat.is_hidden
                report.lines_added += not seat.is_hidden
                if seat.read_seq:
                    await submit(workspace, room_id, Read(seat.user_id, seat.read_seq))
                if seat.is_muted:
                    await submit(workspace, room_id, Mute(seat.user_id, True))
                if seat.is_hidden:
                    await submit(workspace, room_id, Hide(seat.user_id, True))


def _is_among(noted: Noted, seen: Places[str, Place]) -> bool:
    place = seen.get(pair_room_id(*noted.operation.pair))
    return place is not None and noted.place <= place
