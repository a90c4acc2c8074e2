"""The queries of a mapping: what is read of a PostgreSQL database, and in which order.

Ids are texts, in the order of their bytes (`COLLATE "C"`), whatever their types are; times are
milliseconds since 1970. Names are quoted; what the mapping says in SQL is whoever writes it's own.
"""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from typing import NamedTuple, TypeAlias

from psycopg import sql

from tidings.importing.postgres_mapping import INTEGERS, Catalogue, Mapping, table_name

Query: TypeAlias = sql.Composed | sql.SQL

KEYS: Mapped[str, tuple[str, ...]] = {
    "users": ("id",),
    "chats": ("id",),
    "participants": ("chat", "user"),
    "messages": ("id",),
}
"""Fields of each section that name a row of it."""


OTHERS_MAX = 20
"""Chats of one pair that are looked at."""


class Segment(NamedTuple):
    """The part of all chats whose hashed ids are in it."""

    number: int
    of: int


class Changed(NamedTuple):
    """Some chats; of their messages those that are named, or all where that is None."""

    chats: list[str]
    messages: list[str] | None


Scope: TypeAlias = Segment | Changed


class Queries:
    """Queries of one mapping; the tables have the alias `t`, or `s` where something is joined."""

    def __init__(self, mapping: Mapping, catalogue: Catalogue) -> None:
        self._mapping = mapping
        self._catalogue = catalogue

    def users(self, keys: list[str] | None) -> Query:
        """(id, name, email, role, created_at) of those whom the users table has."""
        table = self._mapping.users
        assert table is not None, "only asked where there is such a table"
        return sql.SQL("SELECT {} FROM {} AS t WHERE {}").format(
            _listed(
                self._text(table.id),
                self._text(table.name),
                self._text(table.email),
                self._text(table.role_column),
                self._time("users", "created_at"),
            ),
            self._rows("users"),
            self._among("users", "id", keys),
        )

    def unlisted(self) -> Query:
        """(id,) of those whom chats and messages name, and the users table does not."""
        return sql.SQL(
            "SELECT DISTINCT u.id FROM (SELECT {} AS id FROM {} AS t UNION SELECT {} FROM {} AS t)"
            " AS u WHERE u.id IS NOT NULL AND NOT {}"
        ).format(
            self._text(self._mapping.participants.user),
            self._rows("participants"),
            self._text(self._mapping.messages.sender),
            self._rows("messages"),
            self._is_listed(sql.SQL("u.id")),
        )

    def chats_of(self, messages: list[str]) -> Query:
        """(message, chat) of these messages."""
        table = self._mapping.messages
        return sql.SQL("SELECT {}, {} FROM {} AS t WHERE {}").format(
            self._text(table.id),
            self._text(table.chat),
            self._rows("messages"),
            self._among("messages", "id", messages),
        )

    def first_message(self, chat: str) -> Query:
        """(message, sender) of a chat's oldest message."""
        table = self._mapping.messages
        return sql.SQL(
            "SELECT {}, {} FROM {} AS t WHERE {} AND {} IS NOT NULL ORDER BY t.{}, t.{} LIMIT 1"
        ).format(
            self._text(table.id),
            self._text(table.sender),
            self._rows("messages"),
            self._among("messages", "chat", [chat]),
            self._text(table.sender),
            sql.Identifier(table.time if table.order == "time" else table.id),
            sql.Identifier(table.id),
        )

    def other_chats(self, chat: str, users: list[str]) -> Query:
        """(chat,) of other chats in which these two are, some of them at most."""
        table = self._mapping.participants
        return sql.SQL(
            "SELECT {own} FROM {rows} AS t WHERE {one} AND {own} <> {chat} AND EXISTS (SELECT 1"
            " FROM {rows} AS o WHERE o.{key} = t.{key} AND o.{user}::text = {other}) LIMIT {limit}"
        ).format(
            own=self._text(table.chat),
            rows=self._rows("participants"),
            one=self._among("participants", "user", users[:1]),
            chat=sql.Literal(chat),
            key=sql.Identifier(table.chat),
            user=sql.Identifier(table.user),
            other=sql.Literal(users[-1]),
            limit=sql.Literal(OTHERS_MAX),
        )

    def changed_since(self, section: str, since_ms: int) -> Query:
        """The keys of rows whose updated-at column says that they changed since then."""
        table = self._mapping.tables[section]
        return sql.SQL("SELECT {} FROM {} AS t WHERE {} >= {}").format(
            _listed(*(self._text(getattr(table, field)) for field in KEYS[section])),
            self._rows(section),
            self._time(section, "updated_at"),
            sql.Literal(since_ms),
        )

    def chats(self, scope: Scope) -> Query:
        """(id, kind, title, created_at, customer), in the order of ids."""
        table = self._mapping.chats
        return sql.SQL('SELECT {} FROM {} AS t WHERE {} ORDER BY {} COLLATE "C"').format(
            _listed(
                self._text(table.id),
                self._text(table.kind_column),
                self._text(table.title),
                self._time("chats", "created_at"),
                self._text(table.customer),
            ),
            self._rows("chats"),
            self._in_scope("chats", "id", scope),
            self._text(table.id),
        )

    def participants(self, scope: Scope, is_counting: bool) -> Query:
        """(chat, user, is known, read message, read at, muted, unread), in that order."""
        table = self._mapping.participants
        inner: sql.Composed = sql.SQL("SELECT * FROM {} AS t WHERE {}").format(
            self._rows("participants"), self._in_scope("participants", "chat", scope)
        )
        if table.left_at is not None:
            inner += sql.SQL(" AND t.{} IS NULL").format(sql.Identifier(table.left_at))
        counted: Query = sql.SQL("")
        unread = sql.SQL("NULL::bigint")
        if is_counting and self._mapping.compare is not None:
            counted = sql.SQL(
                " LEFT JOIN ({}) AS c ON c.chat_id::text = {} AND c.user_id::text = {}"
            ).format(
                sql.SQL(self._mapping.compare.unread.strip().rstrip(";")),
                self._text(table.chat, "s"),
                self._text(table.user, "s"),
            )
            unread = sql.SQL("coalesce(c.unread, 0)::bigint")
        chat = self._text(table.chat, "s")
        return sql.SQL(
            'SELECT {} FROM ({}) AS s{}{} ORDER BY {} COLLATE "C", {} COLLATE "C"'
        ).format(
            _listed(
                chat,
                self._text(table.user, "s"),
                self._is_known(table.user),
                self._read_key(),
                self._time("participants", "read_at", "s"),
                self._column(table.muted, "s"),
                unread,
            ),
            inner,
            self._read_join(),
            counted,
            chat,
            self._text(table.user, "s"),
        )

    def _read_join(self) -> Query:
        """Looks up the message that was read last: one that is gone says nothing."""
        table, texts = self._mapping.participants, self._mapping.messages
        if table.read_message is None:
            return sql.SQL("")
        return sql.SQL(
            " LEFT JOIN LATERAL (SELECT {} AS id FROM {} AS t WHERE t.{} = s.{} AND t.{} = s.{}"
            " LIMIT 1) AS r ON true"
        ).format(
            self._text(texts.id),
            self._rows("messages"),
            sql.Identifier(texts.id),
            sql.Identifier(table.read_message),
            sql.Identifier(texts.chat),
            sql.Identifier(table.chat),
        )

    def _read_key(self) -> Query:
        """The last message that was read, or for numbers the last one there is before it."""
        table, texts = self._mapping.participants, self._mapping.messages
        if table.read_message is None:
            return sql.SQL("NULL")
        if self._catalogue.types["participants", "read_message"] not in INTEGERS:
            return sql.SQL("r.id")
        return sql.SQL(
            "CASE WHEN r.id IS NULL AND s.{read} > 0 THEN (SELECT max(t.{id}) FROM {rows} AS t"
            " WHERE t.{chat} = s.{own} AND t.{id} <= s.{read})::text ELSE r.id END"
        ).format(
            read=sql.Identifier(table.read_message),
            id=sql.Identifier(texts.id),
            chat=sql.Identifier(texts.chat),
            own=sql.Identifier(table.chat),
            rows=self._rows("messages"),
        )

    def messages(self, scope: Scope) -> Query:
        """(chat, id, sender, is known, text, time, reply to, edited, deleted at, is deleted)."""
        table = self._mapping.messages
        inner: sql.Composed = sql.SQL("SELECT * FROM {} AS t WHERE {}").format(
            self._rows("messages"), self._in_scope("messages", "chat", scope)
        )
        if isinstance(scope, Changed) and scope.messages is not None:
            inner += sql.SQL(" AND {}").format(self._among("messages", "id", scope.messages))
        is_time = self._is_deletion_timed()
        chat = self._text(table.chat, "s")
        own = sql.Identifier(table.id)
        order = sql.SQL("s.{}").format(own)
        if table.order == "time":
            order = sql.SQL("s.{}, s.{}").format(sql.Identifier(table.time), own)
        return sql.SQL('SELECT {} FROM ({}) AS s ORDER BY {} COLLATE "C", {}').format(
            _listed(
                chat,
                self._text(table.id, "s"),
                self._text(table.sender, "s"),
                self._is_known(table.sender),
                self._text(table.text, "s"),
                self._time("messages", "time", "s"),
                self._text(table.reply_to, "s"),
                self._time("messages", "edited_at", "s"),
                self._time("messages", "deleted", "s") if is_time else sql.SQL("NULL::bigint"),
                sql.SQL("false") if is_time else self._column(table.deleted, "s"),
            ),
            inner,
            chat,
            order,
        )

    def _is_deletion_timed(self) -> bool:
        return self._catalogue.types.get(("messages", "deleted"), "boolean") != "boolean"

    def _is_listed(self, user: Query) -> Query:
        """Whether the users table has the user."""
        table = self._mapping.users
        if table is None:
            return sql.SQL("false")
        return sql.SQL("EXISTS (SELECT 1 FROM {} AS t WHERE {} = {})").format(
            self._rows("users"), self._text(table.id), user
        )

    def _is_known(self, user: str) -> Query:
        if self._mapping.users is None or self._mapping.missing_users == "make":
            return sql.SQL("true")
        return self._is_listed(sql.SQL("s.{}::text").format(sql.Identifier(user)))

    def _rows(self, section: str) -> Query:
        table = self._mapping.tables[section]
        if table.where is None:
            return sql.SQL("{}").format(table_name(table.table))
        return sql.SQL("(SELECT * FROM {} WHERE {})").format(
            table_name(table.table), sql.SQL(table.where)
        )

    def _in_scope(self, section: str, field: str, scope: Scope) -> Query:
        if isinstance(scope, Changed):
            return self._among(section, field, scope.chats)
        if scope.of == 1:
            return sql.SQL("true")
        column = getattr(self._mapping.tables[section], field)
        return sql.SQL("mod(abs(hashtext(coalesce({}, ''))::bigint), {}) = {}").format(
            self._text(column), sql.Literal(scope.of), sql.Literal(scope.number)
        )

    def _among(self, section: str, field: str, keys: list[str] | None) -> Query:
        """Whether the column is one of the keys, so that its index serves."""
        if keys is None:
            return sql.SQL("true")
        column = getattr(self._mapping.tables[section], field)
        kind = self._catalogue.types[section, field]
        return sql.SQL("t.{} = ANY({}::text[]::{}[])").format(
            sql.Identifier(column), sql.Literal(keys), sql.SQL(kind)
        )

    def _column(self, column: str | None, table: str = "t") -> Query:
        if column is None:
            return sql.SQL("NULL")
        return sql.SQL("{}.{}").format(sql.Identifier(table), sql.Identifier(column))

    def _text(self, column: str | None, table: str = "t") -> Query:
        return sql.SQL("{}::text").format(self._column(column, table))

    def _time(self, section: str, field: str, table: str = "t") -> Query:
        """Milliseconds since 1970; nothing for what is infinite."""
        column = getattr(self._mapping.tables[section], field)
        if column is None:
            return sql.SQL("NULL::bigint")
        kind = self._catalogue.types[section, field]
        value = self._column(column, table)
        if kind in INTEGERS:
            factor = 1000 if self._mapping.epoch == "s" else 1
            return sql.SQL("({}::bigint * {})").format(value, sql.Literal(factor))
        moment = value
        if kind != "timestamp with time zone":
            moment = sql.SQL("({}::timestamp AT TIME ZONE {})").format(
                value, sql.Literal(self._mapping.time_zone)
            )
        return sql.SQL(
            "CASE WHEN isfinite({}) THEN floor(extract(epoch FROM {}) * 1000)::bigint END"
        ).format(value, moment)


def _listed(*columns: Query) -> Query:
    return sql.SQL(", ").join(columns)
