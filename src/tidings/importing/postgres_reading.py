"""Reading a mapped PostgreSQL database as records: chats in order, each with who and what is in it.

Three server-side cursors of one snapshot, for chats, participants and messages, go through the same
chats in the same order, so that nothing but the chat at hand is in memory. Ids are texts here, in
the order of their bytes, whatever their types are. What belongs to no chat, or to nobody, is told.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from collections.abc import Mapping as Mapped
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeAlias

import msgspec
from psycopg import AsyncConnection, sql

from tidings import wire
from tidings.importing.postgres_mapping import Catalogue, Mapping
from tidings.importing.postgres_queries import Queries, Query, Scope, Segment
from tidings.importing.records import MemberRecord, MessageRecord, UserRecord, fitting_id

ROWS_TOGETHER = 2_000
"""Rows of one cursor that are fetched at once."""
PLAIN_CHARACTERS = 40
"""A key of letters and digits that is shorter fits into an id with any name before it."""
USERS_REMEMBERED_MAX = 20_000
"""Users whose ids are kept in mind."""
MEMBERS_MAX = 100_000
"""Participants of one chat; more are left out."""

OddRow: TypeAlias = Callable[[str, str, str, Mapped[str, Any]], None]
"""(kind, key, reason, record)"""


class Participant(msgspec.Struct, frozen=True):
    """A member, and what the source counts for them, where it was asked."""

    key: str
    """What the source calls the user."""
    member: MemberRecord
    unread: int | None


class Chat(msgspec.Struct):
    """A chat with its participants; its messages are to be read before the next chat."""

    key: str
    kind: wire.RoomKind
    title: str | None
    created_at: int | None
    customer_id: str | None
    participants: list[Participant]
    messages: AsyncIterator[list[MessageRecord]]


class Reading:
    """Queries of one mapping, and what their rows mean."""

    def __init__(self, mapping: Mapping, catalogue: Catalogue, odd: OddRow) -> None:
        self._mapping = mapping
        self._catalogue = catalogue
        self._queries = Queries(mapping, catalogue)
        self._odd = odd
        self._start = f"{mapping.name}:"
        self._users: dict[str, str] = {}

    @property
    def is_making_users(self) -> bool:
        """Whether people are made of whom no table says more than their id."""
        return self._mapping.users is None or self._mapping.missing_users == "make"

    # --- ids -----------------------------------------------------------------------------------

    def client_id(self, message: str) -> str:
        """The `client_id` of a message of the source."""
        if len(message) < PLAIN_CHARACTERS and message.isascii() and message.isalnum():
            return self._start + message
        return fitting_id(f"{self._mapping.name}:{message}", self._mapping.name)

    def room_id(self, chat: str) -> str:
        """The id of a chat's room, unless it is the direct room of a pair."""
        return fitting_id(chat, self._mapping.name)

    def user_id(self, user: str) -> str:
        """The id of a user."""
        known = self._users.get(user)
        if known is None:
            if len(self._users) >= USERS_REMEMBERED_MAX:
                self._users.clear()
            known = self._users[user] = fitting_id(user, self._mapping.name)
        return known

    # --- people --------------------------------------------------------------------------------

    async def users(
        self, connection: AsyncConnection[Any], keys: list[str] | None = None
    ) -> AsyncGenerator[list[UserRecord], None]:
        """Those whom the users table has, all of them or these."""
        table = self._mapping.users
        if table is None:
            return
        query = self._queries.users(keys)
        async for rows in fetched(connection, "tidings_users", query):
            users = []
            for key, name, email, role, created_at in rows:
                if key is None:
                    self._odd("user", "", "no id", {"name": name})
                    continue
                if not _is_email(email):
                    self._odd("user", key, "an e-mail address that is none, left out", {"e": email})
                    email = None
                users.append(
                    UserRecord(
                        self.user_id(key),
                        self._read(name, "user", key) or key,
                        table.roles.get(role, table.role),
                        email,
                        created_at=created_at,
                    )
                )
            yield users

    async def unlisted(
        self, connection: AsyncConnection[Any]
    ) -> AsyncGenerator[list[UserRecord], None]:
        """Those whom chats and messages name, and the users table does not."""
        if not self.is_making_users:
            return
        async for rows in fetched(connection, "tidings_unlisted", self._queries.unlisted()):
            yield [UserRecord(self.user_id(key), key) for (key,) in rows]

    # --- chats ---------------------------------------------------------------------------------

    async def chats(
        self, connection: AsyncConnection[Any], scope: Scope, *, is_counting: bool = False
    ) -> AsyncGenerator[Chat, None]:
        """The chats of the scope; if `is_counting`, with what the source counts and no messages.

        Raises psycopg.Error where the connection ends.
        """
        name = "tidings_" + ("_".join(map(str, scope)) if isinstance(scope, Segment) else "some")
        pages = [
            fetched(connection, f"{name}_chats", self._queries.chats(scope)),
            fetched(connection, f"{name}_people", self._queries.participants(scope, is_counting)),
            _nothing()
            if is_counting
            else fetched(connection, f"{name}_texts", self._queries.messages(scope)),
        ]
        async with AsyncExitStack() as closing:
            chats, people, texts = [
                _Stream(await closing.enter_async_context(aclosing(each))) for each in pages
            ]
            last: str | None = None
            while (row := await chats.next()) is not None:
                key, kind, title, created_at, customer = row
                if key is None or key == last:
                    reason = "no id" if key is None else _TWICE
                    self._odd("chat", key or "", reason, {"title": title})
                    continue
                last = key
                await self._skip(people, "participant", key)
                await self._skip(texts, "message", key)
                participants = await self._people_of(people, key)
                yield Chat(
                    key=key,
                    kind=self._mapping.chats.kinds.get(kind, self._mapping.chats.kind),
                    title=self._read(title, "chat", key),
                    created_at=created_at,
                    customer_id=None if customer is None else self.user_id(customer),
                    participants=participants,
                    messages=self._texts_of(texts, key),
                )
                await self._skip(texts, None, key, is_last=True)
            await self._skip(people, "participant", None)
            await self._skip(texts, "message", None)

    async def _skip(
        self, stream: _Stream, kind: str | None, key: str | None, *, is_last: bool = False
    ) -> None:
        """Go past rows of chats before `key`, which are not there; with `is_last` past `key`."""
        while (row := await stream.peek()) is not None:
            chat = row[0]
            is_before = key is None or chat is None or (chat <= key if is_last else chat < key)
            if not is_before:
                return
            stream.take()
            if kind is not None:
                self._odd(kind, f"{row[1]}", "of no chat", {"chat": chat})

    async def _people_of(self, stream: _Stream, chat: str) -> list[Participant]:
        found: dict[str, Participant] = {}
        while (row := await stream.peek()) is not None and row[0] == chat:
            stream.take()
            _, user, is_known, read, read_at, is_muted, unread = row
            record = {"chat": chat, "user": user}
            if user is None or not is_known:
                self._odd("participant", f"{user}", "of no user", record)
            elif user in found:
                self._odd("participant", user, _TWICE, record)
            elif len(found) >= MEMBERS_MAX:
                self._odd("participant", user, "too many in one chat", record)
            else:
                member = MemberRecord(
                    self.user_id(user),
                    read_key=None if read is None else self.client_id(read),
                    read_at=read_at,
                    is_muted=bool(is_muted),
                )
                found[user] = Participant(user, member, unread)
        return list(found.values())

    async def _texts_of(self, stream: _Stream, chat: str) -> AsyncIterator[list[MessageRecord]]:
        while (row := await stream.peek()) is not None and row[0] == chat:
            yield [
                message
                for each in stream.take_while(chat)
                if (message := self._message(each)) is not None
            ]

    def _message(self, row: Sequence[Any]) -> MessageRecord | None:
        _, key, sender, is_known, text, at, reply_to, edited_at, deleted_at, is_deleted = row
        if key is None or sender is None or not is_known:
            reason = "no id" if key is None else "by no user"
            self._odd("message", f"{key}", reason, {"sender": sender, "text": text, "at": at})
            return None
        created_at = -1 if at is None else at
        if is_deleted and deleted_at is None:
            deleted_at = edited_at or max(created_at, 0)
        return MessageRecord(
            self.client_id(key),
            self.user_id(sender),
            created_at,
            self._read(text, "message", key),
            reply_to=None if reply_to is None else self.client_id(reply_to),
            edited_at=edited_at,
            deleted_at=deleted_at,
        )

    def _read(self, text: str | None, kind: str, key: str) -> str | None:
        """The text; where the database does not know its encoding, by the best guess."""
        if text is None or not self._catalogue.is_unchecked_text or text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            self._odd(kind, key, "not UTF-8, read as Windows-1252", {})
            return text.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
        return text

    async def chats_of(
        self, connection: AsyncConnection[Any], messages: list[str]
    ) -> dict[str, str]:
        """Message to chat, for those that are there."""
        found = await connection.execute(self._queries.chats_of(messages))
        return {key: chat for key, chat in await found.fetchall() if chat is not None}

    async def first_message(
        self, connection: AsyncConnection[Any], chat: str
    ) -> tuple[str, str] | None:
        """The client_id and the sender of a chat's oldest message."""
        found = await connection.execute(self._queries.first_message(chat))
        row = await found.fetchone()
        return None if row is None else (self.client_id(row[0]), self.user_id(row[1]))

    async def other_chats(
        self, connection: AsyncConnection[Any], chat: str, users: list[str]
    ) -> list[str]:
        """Other chats in which these two are."""
        found = await connection.execute(self._queries.other_chats(chat, users))
        return [key for (key,) in await found.fetchall()]

    async def changed_since(
        self, connection: AsyncConnection[Any], section: str, since_ms: int
    ) -> AsyncGenerator[list[tuple[str, ...]], None]:
        """Keys of rows whose updated-at column says that they changed since then."""
        table = self._mapping.tables[section]
        if table.updated_at is None:
            return
        query = self._queries.changed_since(section, since_ms)
        async for rows in fetched(connection, f"tidings_{section}_since", query):
            yield [tuple(row) for row in rows]


_TWICE = "a second one with this key, left out"


def _is_email(text: str | None) -> bool:
    if text is None:
        return True
    try:
        msgspec.convert(text, wire.Email)
    except msgspec.ValidationError:
        return False
    return True


async def fetched(
    connection: AsyncConnection[Any], name: str, query: Query
) -> AsyncGenerator[list[Any], None]:
    """Rows in pages, by a cursor of the server's, in a transaction of the connection."""
    declare = sql.SQL("DECLARE {} NO SCROLL CURSOR FOR {}").format(sql.Identifier(name), query)
    fetch = sql.SQL("FETCH FORWARD {} FROM {}").format(ROWS_TOGETHER, sql.Identifier(name))
    await connection.execute(declare)
    while True:
        rows = await (await connection.execute(fetch)).fetchall()
        if rows:
            yield rows
        if len(rows) < ROWS_TOGETHER:
            break
    await connection.execute(sql.SQL("CLOSE {}").format(sql.Identifier(name)))


async def _nothing() -> AsyncGenerator[list[Any], None]:
    """No rows."""
    return
    yield


class _Stream:
    """Rows of pages, one after the other, with a look at the next."""

    def __init__(self, pages: AsyncIterator[list[Any]]) -> None:
        self._pages = pages
        self._page: list[Any] = []
        self._at = 0

    async def peek(self) -> Any | None:
        """The next row, or None at the end."""
        if self._at >= len(self._page):
            self._page = await anext(self._pages, [])
            self._at = 0
        return self._page[self._at] if self._page else None

    def take(self) -> Any:
        """The row that was looked at."""
        self._at += 1
        return self._page[self._at - 1]

    def take_while(self, key: str) -> list[Any]:
        """The rows of the page that begin with the key."""
        start = end = self._at
        page, count = self._page, len(self._page)
        while end < count and page[end][0] == key:
            end += 1
        self._at = end
        return page[start:end]

    async def next(self) -> Any | None:
        """The next row, taken; None at the end."""
        row = await self.peek()
        if row is not None:
            self._at += 1
        return row
