"""Following a database: what changes there is brought along until somebody says that it is enough.

A round reads again what changed since the last one, as it is then, and stores it through the
service's own commits; only then the round is given up at the source. Whatever dies in between, the
round is done again, and adds nothing twice. So the order in which two changes arrive is of no
importance: the later look sees the later state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from psycopg import AsyncConnection

from tidings.errors import Conflict
from tidings.importing.postgres import PostgresImport
from tidings.importing.postgres_changes import KEYS_TOGETHER, Changes, Watch
from tidings.importing.postgres_queries import Changed
from tidings.importing.postgres_reading import Chat
from tidings.importing.records import MessageRecord, RoomRecord, UserRecord

POLL_S = 1.0
"""How often a source that is at rest is asked."""
ROOMS_AT_ONCE = 64
"""Rooms that are brought up to date at one time."""

_log = structlog.get_logger(__name__)


class Progress(msgspec.Struct):
    """How far the following is."""

    rounds: int = 0
    changes: int = 0
    """Rows that were read again."""
    lag: str = ""
    is_caught_up: bool = False
    """The last round was short, and saw the end of what there was."""


class Following:
    """Rounds over one import that was loaded."""

    def __init__(
        self,
        importing: PostgresImport,
        watch: Watch,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._importing = importing
        self._reading = importing.reading
        self._loading = importing.loading
        self._watch = watch
        self._tell = tell
        self.progress = Progress()

    async def run(self, stop: asyncio.Event, *, is_ending: bool = False) -> None:
        """Go on until `stop` is set; if `is_ending` until all is caught up that there is.

        Then the counts are compared once more, and the source need not keep changes any longer.
        Raises Unavailable, Conflict.
        """
        patiently = self._importing.source.patiently
        while not stop.is_set():
            await patiently(self._round, lambda: self.progress.changes)
            self._tell(self.progress)
            if is_ending and self.progress.is_caught_up:
                await patiently(self._end, lambda: 0)
                return
            if self.progress.is_caught_up:
                try:
                    await asyncio.wait_for(stop.wait(), POLL_S)
                except TimeoutError:
                    continue

    async def _round(self) -> None:
        """One round, whole: all that the watch knows of at its beginning, or its limit."""
        before = self.progress.changes
        source = self._importing.source
        async with source.connected() as watching, source.connected() as reading:
            async with watching.transaction(), aclosing(self._watch.rounds(watching)) as parts:
                async for changes in parts:
                    await reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    await self._apply(changes, reading)
                    await reading.execute("COMMIT")
                    self.progress.changes += len(changes)
            await self._watch.keep(watching)
            self.progress.lag = await self._watch.lag(watching)
        self.progress.rounds += 1
        is_short = self.progress.changes - before < KEYS_TOGETHER
        self.progress.is_caught_up = self._watch.is_at_end and is_short

    async def _end(self) -> None:
        async with self._importing.source.snapshot() as (connection, _):
            await self._importing.compare(connection)
        async with self._importing.source.connected() as connection:
            await self._watch.end(connection)

    async def _apply(self, changes: Changes, connection: AsyncConnection[Any]) -> None:
        """Bring rows along as `connection` sees them now."""
        if changes.emptied:
            raise Conflict(
                f"[{'], ['.join(sorted(changes.emptied))}] was emptied by TRUNCATE in the source."
                " Nothing is deleted here for that: end the import with --drop-slot, and begin anew"
                " if what was loaded is still wanted."
            )
        if changes.users:
            async with aclosing(self._reading.users(connection, sorted(changes.users))) as pages:
                async for page in pages:
                    await self._loading.add_users(page)
        gone = changes.gone_messages
        there = await self._reading.chats_of(connection, sorted(changes.messages | gone.keys()))
        lost = {key: known for key, known in gone.items() if key not in there}
        removed = _by_chat((known[0], (key, known[1])) for key, known in lost.items() if known)
        left = _by_chat(changes.gone_participants)
        chats = changes.chats | set(there.values()) | {chat for chat, _ in changes.participants}
        seen = await self._update(
            connection, sorted(chats | left.keys() | removed.keys()), sorted(there), left, removed
        )
        unplaced = [key for key, known in lost.items() if known is None or known[0] not in seen]
        if unplaced:
            _log.info("deleted_messages_looked_for", count=len(unplaced))
            await self._loading.remove_messages([self._reading.client_id(key) for key in unplaced])
        await self._loading.publish()

    async def _update(
        self,
        connection: AsyncConnection[Any],
        chats: Sequence[str],
        messages: Sequence[str],
        left: dict[str, list[str]],
        removed: dict[str, list[tuple[str, str]]],
    ) -> set[str]:
        """Bring chats along; those of them that are there."""
        seen: set[str] = set()
        fresh: list[str] = []
        works: list[Any] = []
        scope = Changed(list(chats), list(messages))
        async with aclosing(self._reading.chats(connection, scope)) as found:
            async for chat in found:
                seen.add(chat.key)
                if chat.kind == "direct" and len(chat.participants) < 2:
                    continue  # it is being made: who else comes is a change of its own
                room = await self._importing.room_of(connection, chat)
                if not await self._loading.has_room(room.room_id):
                    fresh.append(chat.key)
                    continue
                texts = [text async for page in chat.messages for text in page]
                works.append((room, chat, texts))
                if len(works) >= ROOMS_AT_ONCE:
                    await self._bring(works, left, removed)
                    works = []
        await self._bring(works, left, removed)
        if fresh:
            scope = Changed(fresh, None)
            async with aclosing(self._reading.chats(connection, scope)) as found:
                async for chat in found:
                    room = await self._importing.room_of(connection, chat)
                    await self._require_people(room, ())
                    await self._loading.add_room(room, chat.messages)
        return seen

    async def _bring(
        self,
        works: Sequence[tuple[RoomRecord, Chat, list[MessageRecord]]],
        left: dict[str, list[str]],
        removed: dict[str, list[tuple[str, str]]],
    ) -> None:
        async def bring(room: RoomRecord, chat: Chat, texts: list[MessageRecord]) -> None:
            await self._require_people(room, texts)
            here = {member.user_id for member in room.members}
            gone = {self._reading.user_id(user) for user in left.get(chat.key, ())}
            await self._loading.update_room(
                room,
                texts,
                left=sorted(gone - here),
                removed={
                    self._reading.client_id(key): self._reading.user_id(sender)
                    for key, sender in removed.get(chat.key, ())
                },
            )

        await asyncio.gather(*[bring(*work) for work in works])

    async def _require_people(self, room: RoomRecord, texts: Sequence[MessageRecord]) -> None:
        """Make users whom no table lists, where the mapping wants that."""
        if not self._reading.is_making_users:
            return
        named = {member.user_id for member in room.members} | {text.sender_id for text in texts}
        await self._loading.add_users([UserRecord(each, each) for each in sorted(named)])


def _by_chat(pairs: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for chat, what in pairs:
        found.setdefault(chat, []).append(what)
    return found
