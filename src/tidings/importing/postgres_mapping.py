"""The mapping of a PostgreSQL database: which of its tables and columns are what; a TOML file.

Names are checked against the live catalogue before anything is read, and every difference is told.
`docs/moving.md` shows a whole file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import psycopg
from psycopg import AsyncConnection, sql

from tidings import wire
from tidings.errors import ValidationFailed
from tidings.ids import is_id

SUPPORTED_TIMES = frozenset({"timestamp with time zone", "timestamp without time zone", "date"})
INTEGERS = frozenset({"smallint", "integer", "bigint"})

Epoch: TypeAlias = Literal["s", "ms"]


class UsersTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who there is."""

    table: str
    id: str
    name: str | None = None
    email: str | None = None
    role: wire.Role = "customer"
    """Of everybody for whom `roles` says nothing else."""
    role_column: str | None = None
    roles: dict[str, wire.Role] = {}
    """Value of `role_column`, as a text, to role."""
    created_at: str | None = None
    updated_at: str | None = None
    where: str | None = None


class ChatsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rooms."""

    table: str
    id: str
    kind: wire.RoomKind = "group"
    kind_column: str | None = None
    kinds: dict[str, wire.RoomKind] = {}
    """Value of `kind_column`, as a text, to kind."""
    title: str | None = None
    customer: str | None = None
    """Of support rooms: whom they are for."""
    created_at: str | None = None
    updated_at: str | None = None
    where: str | None = None


class ParticipantsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is in which chat, and what they have read of it."""

    table: str
    chat: str
    user: str
    read_message: str | None = None
    """The id of the last message that was read; or"""
    read_at: str | None = None
    """the time up to which everything was read."""
    muted: str | None = None
    left_at: str | None = None
    """Who has left is no member; what they wrote stays."""
    updated_at: str | None = None
    where: str | None = None


class MessagesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was said."""

    table: str
    id: str
    chat: str
    sender: str
    text: str
    time: str
    order: Literal["time", "id"] = "time"
    """What orders a chat: the time, then the id; or the id alone."""
    reply_to: str | None = None
    edited_at: str | None = None
    deleted: str | None = None
    """A time or a boolean."""
    updated_at: str | None = None
    where: str | None = None


class Compare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the source counts for itself."""

    unread: str
    """A query with the columns `chat_id`, `user_id` and `unread`."""


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    name: str
    """Of the source: message 7 becomes `name:7`, for ever."""
    chats: ChatsTable
    participants: ParticipantsTable
    messages: MessagesTable
    users: UsersTable | None = None
    """Where there is none, everybody who is in a chat or has written is made a user."""
    missing_users: Literal["quarantine", "make"] = "quarantine"
    """What becomes of people whom the other tables name, and `users` does not."""
    epoch: Epoch | None = None
    """What integers that are times count since 1970."""
    time_zone: str = "UTC"
    """Of times that have none."""
    compare: Compare | None = None

    @property
    def tables(self) -> dict[str, UsersTable | ChatsTable | ParticipantsTable | MessagesTable]:
        """Those that the file names, by section."""
        found = {
            "users": self.users,
            "chats": self.chats,
            "participants": self.participants,
            "messages": self.messages,
        }
        return {name: table for name, table in found.items() if table is not None}


def read_mapping(path: Path) -> Mapping:
    """Read the file. Raises ValidationFailed that says what is wrong with it; OSError."""
    try:
        mapping = msgspec.toml.decode(path.read_bytes(), type=Mapping)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValidationFailed(f"{path}: {error}") from error
    if not is_id(mapping.name) or len(mapping.name) > 20:
        raise ValidationFailed(f"{path}: name is an id of at most 20 characters.")
    return mapping


_OPTIONS = frozenset(
    {"table", "where", "kind", "kinds", "role", "roles", "order"}
)  # fields of sections that name no column
_TIMES = frozenset({"created_at", "updated_at", "read_at", "left_at", "time", "edited_at"})


class Catalogue(msgspec.Struct, frozen=True):
    """What the database says of the mapped columns."""

    types: dict[tuple[str, str], str]
    """(section, field) to the column's type."""
    names: dict[str, list[str]]
    """Section to `schema.table`, and to those of its partitions."""
    views: list[str]
    """What is mapped and no table."""
    notes: list[str]
    """What is unusual, and may matter."""
    is_unchecked_text: bool
    """The database does not know its encoding: texts may be anything."""


async def check(connection: AsyncConnection[Any], mapping: Mapping) -> Catalogue:
    """Look up all that the mapping names. Raises ValidationFailed with everything that is wrong."""
    wrong: list[str] = []
    notes: list[str] = []
    types: dict[tuple[str, str], str] = {}
    names: dict[str, list[str]] = {}
    views: list[str] = []
    for section, table in mapping.tables.items():
        columns = await _columns(connection, table.table)
        if columns is None:
            wrong.append(f"[{section}] there is no table {table.table} that this user may read")
            continue
        for field, name in _named(table):
            kind = columns.get(name)
            if kind is None:
                wrong.append(f"[{section}] {field}: {_unknown(name, columns)}")
                continue
            types[section, field] = kind
            if problem := _misfit(mapping, field, kind):
                wrong.append(f"[{section}] {field}: {table.table}.{name} {problem}")
        names[section] = await _names(connection, table.table)
        if not names[section]:
            views.append(table.table)
        if table.where is not None:
            wrong += await _try(connection, section, table)
        key = getattr(table, "id", None)
        if key in columns and not await _is_unique(connection, table.table, key):
            notes.append(
                f"{table.table}.{key} has no unique index: second rows with a key are left out"
            )
    if not wrong and mapping.compare is not None:
        wrong += await _try_compare(connection, mapping.compare)
    if wrong:
        raise ValidationFailed("The mapping does not fit the database: " + "; ".join(wrong))
    encoding = connection.info.parameter_status("server_encoding")
    if encoding == "SQL_ASCII":
        notes.append("the database is SQL_ASCII: texts that are not UTF-8 are read as Windows-1252")
    return Catalogue(types, names, views, notes, encoding == "SQL_ASCII")


def _named(table: Any) -> Iterator[tuple[str, str]]:
    for field in table.__struct_fields__:
        value = getattr(table, field)
        if field not in _OPTIONS and value is not None:
            yield field, value


def _unknown(name: str, columns: dict[str, str]) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    there = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(columns))}"
    return f"there is no column {name}; {there}"


def _misfit(mapping: Mapping, field: str, kind: str) -> str | None:
    is_time = kind.startswith("timestamp") or kind == "date"
    if field in _TIMES and not is_time:
        if kind not in INTEGERS:
            return f"is {kind}, and no time"
        if mapping.epoch is None:
            return f'is {kind}: say epoch = "s" or "ms" at the top of the file'
    if field == "deleted" and not is_time and kind != "boolean":
        return f"is {kind}, neither a time nor a boolean"
    if field == "muted" and kind != "boolean":
        return f"is {kind}, not a boolean"
    return None


def table_name(name: str) -> sql.Identifier:
    """A table's name, with its schema where one is given."""
    return sql.Identifier(*name.split("."))


async def _columns(connection: AsyncConnection[Any], table: str) -> dict[str, str] | None:
    """Columns and their types; None where there is no such table, or it can't be read."""
    quoted = table_name(table).as_string(connection)
    found = await connection.execute(
        "SELECT a.attname, format_type(a.atttypid, NULL)"
        " FROM pg_attribute a WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0"
        " AND NOT a.attisdropped AND has_table_privilege(a.attrelid, 'SELECT')",
        (quoted,),
    )
    columns = dict(await found.fetchall())
    return columns or None


async def _names(connection: AsyncConnection[Any], table: str) -> list[str]:
    """The table and its partitions with their schemas; empty for what is no table."""
    quoted = table_name(table).as_string(connection)
    found = await connection.execute(
        "SELECT n.nspname || '.' || c.relname FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.oid IN"
        " (SELECT to_regclass(%s) UNION SELECT relid FROM pg_partition_tree(to_regclass(%s)))",
        (quoted, quoted),
    )
    return [name for (name,) in await found.fetchall()]


async def _is_unique(connection: AsyncConnection[Any], table: str, column: str) -> bool:
    quoted = table_name(table).as_string(connection)
    found = await connection.execute(
        "SELECT 1 FROM pg_index i JOIN pg_attribute a"
        " ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indnkeyatts = 1"
        " AND i.indpred IS NULL AND a.attname = %s",
        (quoted, column),
    )
    return await found.fetchone() is not None


async def _try(connection: AsyncConnection[Any], section: str, table: Any) -> list[str]:
    query = sql.SQL("SELECT 1 FROM {} WHERE ({}) LIMIT 0").format(
        table_name(table.table), sql.SQL(table.where)
    )
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(query)
    except psycopg.Error as error:
        return [f"[{section}] where: {error.diag.message_primary}"]
    return []


async def _try_compare(connection: AsyncConnection[Any], compare: Compare) -> list[str]:
    query = sql.SQL("SELECT chat_id, user_id, unread FROM ({}) AS counted LIMIT 0").format(
        sql.SQL(compare.unread.strip().rstrip(";"))
    )
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(query)
    except psycopg.Error as error:
        return [f"[compare] unread: {error.diag.message_primary}"]
    return []
