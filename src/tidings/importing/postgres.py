"""`tidings import postgres`: a mapped database becomes users, rooms, entries and counts.

All is read from one exported snapshot, in segments of chats by parallel connections. What the
source writes meanwhile is caught up afterwards (`tidings.importing.postgres_following`), from
changes that are watched since before the snapshot. A source that goes away is awaited for a while;
then a new snapshot is taken, and what was read is not read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import msgspec
import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.types.string import TextLoader

from tidings.errors import Unavailable, ValidationFailed
from tidings.ids import pair_room_id
from tidings.importing import postgres_mapping
from tidings.importing.adding import find_seqs, get_all
from tidings.importing.loading import Loading
from tidings.importing.postgres_mapping import Catalogue, Mapping
from tidings.importing.postgres_queries import Segment
from tidings.importing.postgres_reading import Chat, Reading
from tidings.importing.records import RoomRecord
from tidings.storage.interface import Store
from tidings.storage.tables import INBOXES, room_key, user_key

CONNECTIONS_DEFAULT = 2
SEGMENTS_PER_CONNECTION = 2
CONNECT_S = 10
SILENCE_S = 60
"""After so long without a sign of the network a connection is given up."""
ANSWER_S = 3_600.0
"""How long the database may take for one answer; the first of a cursor sorts a part of a table."""
RETURNS_AWAITED_MAX = 8
"""How often in a row a source that went away is awaited without any progress."""
PAUSE_S = 0.5
PAUSE_S_MAX = 30.0
COUNTED_TOGETHER = 500
"""Chats whose counts are compared at one time."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, how much of it, of how much or 0)"""

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

LOST = (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError)
"""What a source that went away looks like."""


class Counts(msgspec.Struct):
    """What was compared with the source's own counts, and how much of it differs."""

    compared: int = 0
    differing: int = 0


class _UncheckedText(TextLoader):
    """Texts of a database that does not know its encoding: what is not UTF-8 stays visible."""

    def load(self, data: Any) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class _Connection(AsyncConnection[Any]):
    """A connection on which nothing is awaited for ever."""

    async def execute(self, *given: Any, **named: Any) -> AsyncCursor[Any]:
        async with asyncio.timeout(ANSWER_S):
            return await super().execute(*given, **named)


class Source:
    """The database: connections to it, and patience with it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.is_unchecked_text = False

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection whose statements commit by themselves. Raises one of LOST."""
        connection = await _Connection.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="tidings-import",
            client_encoding="utf8",
            keepalives_idle=SILENCE_S // 4,
            keepalives_interval=SILENCE_S // 4,
            keepalives_count=3,
            tcp_user_timeout=SILENCE_S * 1000,
        )
        try:
            await connection.execute("SET jit = off")  # it costs more than it saves here
            if self.is_unchecked_text:
                await connection.execute("SET client_encoding TO SQL_ASCII")
                for name in ("text", "varchar", "bpchar", "name"):
                    connection.adapters.register_loader(name, _UncheckedText)
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def snapshot(
        self, of: str | None = None
    ) -> AsyncIterator[tuple[AsyncConnection[Any], str]]:
        """A connection that sees one moment, and the name by which others can see it too."""
        async with self.connected() as connection:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if of is None:
                found = await connection.execute("SELECT pg_export_snapshot()")
                row = await found.fetchone()
                assert row is not None, "a snapshot has a name"
                yield connection, row[0]
            else:
                named = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(of))
                await connection.execute(named)
                yield connection, of

    async def patiently(self, do: Callable[[], Awaitable[_T]], progress: Callable[[], int]) -> _T:
        """The answer of `do`, which is called again when the source went away and came back.

        Raises Unavailable after RETURNS_AWAITED_MAX calls that brought no `progress`;
        ValidationFailed for what the source refuses.
        """
        failures, reached = 0, progress()
        while True:
            try:
                return await do()
            except LOST as error:
                if progress() != reached:
                    failures, reached = 0, progress()
                failures += 1
                told = " ".join(str(error).split()) or type(error).__name__
                if failures >= RETURNS_AWAITED_MAX:
                    raise Unavailable(
                        f"The source does not come back: {told}. Run the import again when it is"
                        " there; what was imported is found and not doubled."
                    ) from error
                _log.warning("source_lost", detail=told, failures=failures)
                await asyncio.sleep(min(PAUSE_S_MAX, PAUSE_S * 2 ** (failures - 1)))
            except psycopg.Error as error:
                raise ValidationFailed(f"The source refuses: {error}") from error


class PostgresImport:
    """One mapped database into one workspace."""

    def __init__(
        self,
        source: Source,
        mapping: Mapping,
        catalogue: Catalogue,
        loading: Loading,
        store: Store,
        workspace: str,
        *,
        connections: int = CONNECTIONS_DEFAULT,
        progress: Progress | None = None,
    ) -> None:
        self.source = source
        self.mapping = mapping
        self.catalogue = catalogue
        self.loading = loading
        self.reading = Reading(mapping, catalogue, loading.quarantine.add)
        self.counts = Counts()
        self._store = store
        self._workspace = workspace
        self._connections = connections
        self._show: Progress = progress or (lambda what, done, total: None)
        self._done: set[int] = set()
        """Segments that were read."""
        self._chats = 0

    async def load(self) -> None:
        """Read everything, make it visible, and compare the counts.

        Raises Unavailable where the source or the store went away for long; Conflict.
        """
        await self.source.patiently(self._load, lambda: self._chats + len(self._done))

    async def _load(self) -> None:
        async with self.source.snapshot() as (connection, snapshot):
            await self._load_users(connection)
            total = await self._estimate(connection)
            workers = [self._work(snapshot, total) for _ in range(self._connections)]
            waiting = [number for number in self._segments() if number not in self._done]
            self._waiting = waiting
            endings = await asyncio.gather(*workers, return_exceptions=True)
            errors = [each for each in endings if isinstance(each, BaseException)]
            for error in sorted(errors, key=lambda each: isinstance(each, LOST)):
                raise error
            await self.loading.publish()
            await self.compare(connection)

    def _segments(self) -> range:
        return range(self._connections * SEGMENTS_PER_CONNECTION)

    async def _load_users(self, connection: AsyncConnection[Any]) -> None:
        done = 0
        for users in (self.reading.users(connection), self.reading.unlisted(connection)):
            async with aclosing(users) as pages:
                async for page in pages:
                    await self.loading.add_users(page)
                    done += len(page)
                    self._show("Users", done, 0)

    async def _estimate(self, connection: AsyncConnection[Any]) -> int:
        """About how many messages there are, 0 where nobody knows."""
        found = await connection.execute(
            "SELECT sum(greatest(reltuples, 0))::bigint FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname || '.' || c.relname = ANY(%s)",
            (self.catalogue.names.get("messages", []),),
        )
        row = await found.fetchone()
        return int(row[0] or 0) if row else 0

    async def _work(self, snapshot: str, total: int) -> None:
        async with self.source.snapshot(snapshot) as (connection, _):
            while self._waiting:
                number = self._waiting.pop()
                segment = Segment(number, len(self._segments()))
                async with aclosing(self.reading.chats(connection, segment)) as chats:
                    async for chat in chats:
                        room = await self.room_of(connection, chat)
                        if not self.loading.is_staged(room.room_id):
                            await self.loading.add_room(room, chat.messages)
                        self._chats += 1
                        report = self.loading.report
                        done = report.messages_added + report.messages_present
                        self._show("Messages", done, total)
                self._done.add(number)

    # --- rooms ---------------------------------------------------------------------------------

    async def room_of(self, connection: AsyncConnection[Any], chat: Chat) -> RoomRecord:
        """The room of a chat, always the same one."""
        room = self._record(chat)
        if room.kind != "direct":
            return room
        one, other = (member.user_id for member in room.members)
        pair = pair_room_id(one, other)
        if await self._has_pair(connection, chat, pair):
            return msgspec.structs.replace(room, room_id=pair)
        self.loading.quarantine.add("chat", chat.key, "a second one of a pair: a private group")
        return msgspec.structs.replace(room, kind="group", scope="private")

    async def _has_pair(self, connection: AsyncConnection[Any], chat: Chat, pair: str) -> bool:
        """Whether the pair's direct room is this chat's: the first one has it."""
        if self.loading.has_claimed(pair, chat.key):
            return True
        own, common = await self.loading.has_rooms(self.reading.room_id(chat.key), pair)
        if own:
            return False
        if not common:
            return self.loading.claim(pair, chat.key)
        if await self._is_in(connection, chat.key, pair):
            return self.loading.claim(pair, chat.key)
        # Loaded before its first message was there, or a second chat of the two that is new.
        users = [each.key for each in chat.participants]
        others = await self.reading.other_chats(connection, chat.key, users)
        if any([await self._is_in(connection, other, pair) for other in others]):
            return False
        return self.loading.claim(pair, chat.key)

    async def _is_in(self, connection: AsyncConnection[Any], chat: str, room_id: str) -> bool:
        """Whether the room has the chat's first message."""
        first = await self.reading.first_message(connection, chat)
        if first is None:
            return False
        key = room_key(self._workspace, room_id)
        return bool(await find_seqs(self._store, key, [first[0]], [first[1]]))

    def _record(self, chat: Chat) -> RoomRecord:
        kind = chat.kind
        members = tuple(each.member for each in chat.participants)
        if kind == "direct" and len(members) != 2:
            kind = "group"
            self.loading.quarantine.add("chat", chat.key, "direct, but not of two: a private group")
        if kind == "support" and chat.customer_id is None:
            kind = "group"
            self.loading.quarantine.add("chat", chat.key, "support of nobody: a private group")
        return RoomRecord(
            self.reading.room_id(chat.key),
            kind,
            members,
            title=None if kind == "direct" else chat.title,
            created_at=chat.created_at,
            customer_id=chat.customer_id if kind == "support" else None,
        )

    # --- counts --------------------------------------------------------------------------------

    async def compare(self, connection: AsyncConnection[Any]) -> None:
        """Compare what is stored with the source's own counts, where the mapping asks for them.

        Differences go to the quarantine file, as of kind `count`.
        """
        self.counts = Counts()
        if self.mapping.compare is None:
            return
        waiting: list[Chat] = []
        async with aclosing(
            self.reading.chats(connection, Segment(0, 1), is_counting=True)
        ) as chats:
            async for chat in chats:
                waiting.append(chat)
                if len(waiting) >= COUNTED_TOGETHER:
                    await self._compare(waiting)
                    waiting = []
                    self._show("Comparing", self.counts.compared, 0)
        await self._compare(waiting)

    async def _compare(self, chats: list[Chat]) -> None:
        places = [
            (chat.key, each.member.user_id, each.unread)
            for chat in chats
            for each in chat.participants
        ]
        rooms: dict[str, tuple[str, ...]] = {}
        for chat in chats:
            own = self.reading.room_id(chat.key)
            users = [each.member.user_id for each in chat.participants]
            is_pair = chat.kind == "direct" and len(users) == 2
            rooms[chat.key] = (own, pair_room_id(*users)) if is_pair else (own,)
        keys = [
            (user_key(self._workspace, user_id), room_id)
            for chat, user_id, _ in places
            for room_id in rooms[chat]
        ]
        found = {
            (item["user"], item["room_id"]): item
            for item in await get_all(self._store, INBOXES, keys)
            if item is not None
        }
        for chat_key, user_id, wanted in places:
            user = user_key(self._workspace, user_id)
            rows = (found.get((user, room_id)) for room_id in rooms[chat_key])
            row = next((each for each in rows if each is not None), None)
            stored = None if row is None else row["unread"]
            self.counts.compared += 1
            if stored != wanted:
                self.counts.differing += 1
                self.loading.quarantine.add(
                    "count",
                    f"{chat_key}/{user_id}",
                    "unread differs from the source's own count",
                    {"source": wanted, "here": stored},
                )


async def looked_up(source: Source, mapping: Mapping) -> Catalogue:
    """What the database says of the mapping. Raises ValidationFailed, Unavailable."""

    async def check() -> Catalogue:
        async with source.connected() as connection:
            return await postgres_mapping.check(connection, mapping)

    try:
        catalogue = await check()
    except psycopg.OperationalError as error:
        raise Unavailable(f"The source can't be reached: {error}") from error
    source.is_unchecked_text = catalogue.is_unchecked_text
    return catalogue
