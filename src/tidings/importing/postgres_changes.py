"""What changed in a PostgreSQL database since a moment: which rows, not how.

Two ways. A replication slot, made before the snapshot that is read first, keeps every change until
it is given up (`Decoded`); it needs `wal_level = logical` and the right to replicate. Otherwise
updated-at columns say what changed (`Updated`); they can't show rows that were deleted, nor those
whose column was not touched. Either way the rows are read again as they are then.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from psycopg import AsyncConnection, sql

from tidings.errors import Conflict
from tidings.importing.postgres_mapping import Catalogue, Mapping
from tidings.importing.postgres_queries import KEYS
from tidings.importing.postgres_reading import Reading, fetched

KEYS_TOGETHER = 1_000
"""Changed rows that are read again and stored together."""
CHANGES_TOGETHER = 20_000
"""Changes of one look at a slot; it sees whole transactions, so they may be more."""
SLOT_S = 120.0
"""How long the making of a slot may wait for transactions that are under way."""
OVERLAP_MS = 60_000
"""How far back updated-at columns are looked at again, for those who commit late."""
PLUGIN = "test_decoding"
SLOT_PREFIX = "tidings_"

SECTIONS = ("users", "chats", "participants", "messages")


class Changes(msgspec.Struct):
    """Keys of rows that changed, as texts; those of rows that may be gone with what is known."""

    users: set[str] = set()
    chats: set[str] = set()
    participants: set[tuple[str, str]] = set()
    messages: set[str] = set()
    gone_participants: set[tuple[str, str]] = set()
    gone_messages: dict[str, tuple[str, str] | None] = {}
    """Message to its chat and sender, where the log of the database says them."""
    emptied: set[str] = set()
    """Tables that were truncated."""

    def __len__(self) -> int:
        return (
            len(self.users)
            + len(self.chats)
            + len(self.participants)
            + len(self.messages)
            + len(self.gone_participants)
            + len(self.gone_messages)
        )


class Watch(Protocol):
    """Where changes come from."""

    blind_spots: str
    """What it can't see; empty where it sees all."""
    is_at_end: bool
    """Whether the last `rounds` came to the end of what there was when they began."""

    def rounds(self, connection: AsyncConnection[Any]) -> AsyncGenerator[Changes, None]:
        """What changed since what was kept, in parts, or the first of it.

        `connection` is in a transaction. A change may be told twice, and is never left out.
        """
        ...

    async def keep(self, connection: AsyncConnection[Any]) -> None:
        """All of the last `rounds` is stored: it need not be told again."""
        ...

    async def lag(self, connection: AsyncConnection[Any]) -> str:
        """How far behind it is, for people to read."""
        ...

    async def end(self, connection: AsyncConnection[Any]) -> None:
        """Nothing is to be told any more."""
        ...


class Decoded:
    """Changes from a replication slot, decoded by SQL functions; `connection`s commit by themselves
    but for `rounds`."""

    blind_spots = ""

    def __init__(self, mapping: Mapping, catalogue: Catalogue, slot: str) -> None:
        self.slot = slot
        self._tables = _decoded_tables(mapping, catalogue)
        self._upto: str | None = None
        self.is_at_end = False

    @staticmethod
    async def hindrance(connection: AsyncConnection[Any], catalogue: Catalogue) -> str | None:
        """Why this server or this user can't have a slot; None where they can."""
        if catalogue.views:
            return f"{', '.join(catalogue.views)}: changes of what is no table are not logged"
        found = await connection.execute("SHOW wal_level")
        row = await found.fetchone()
        if row is None or row[0] != "logical":
            return f"wal_level is {row[0] if row else 'unknown'}, not logical"
        found = await connection.execute(
            "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user"
        )
        row = await found.fetchone()
        if row is None or not row[0]:
            return "this user has neither REPLICATION nor superuser rights"
        return None

    async def begin(self, connection: AsyncConnection[Any]) -> bool:
        """Make the slot; False if it is there. Raises Conflict for one that was lost."""
        found = await connection.execute(
            "SELECT wal_status, active, database = current_database() FROM pg_replication_slots"
            " WHERE slot_name = %s",
            (self.slot,),
        )
        row = await found.fetchone()
        if row is None:
            await self._make(connection)
            return True
        if row[0] == "lost" or not row[2]:
            raise Conflict(
                f"The slot {self.slot} is of no use (the server has thrown away what it was to"
                " keep, or it belongs to another database): drop it with --drop-slot, and begin"
                " anew; what was imported is found again and not doubled."
            )
        if row[1]:
            raise Conflict(f"The slot {self.slot} is in use: another import goes on with it.")
        return False

    async def _make(self, connection: AsyncConnection[Any]) -> None:
        try:
            async with asyncio.timeout(SLOT_S):
                await connection.execute(
                    "SELECT pg_create_logical_replication_slot(%s, %s)", (self.slot, PLUGIN)
                )
        except TimeoutError:
            raise Conflict(
                "The server makes no slot as long as transactions are open that have written"
                " something: pg_stat_activity shows who they are. End them, and begin again."
            ) from None

    async def warnings(self, connection: AsyncConnection[Any]) -> list[str]:
        """What may go wrong with slots on this server."""
        told = []
        found = await connection.execute(
            "SELECT slot_name, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn))"
            " FROM pg_replication_slots WHERE NOT active AND slot_name <> %s",
            (self.slot,),
        )
        for name, kept in await found.fetchall():
            told.append(f"the slot {name} is not in use and keeps {kept} of log on the server")
        found = await connection.execute("SHOW max_slot_wal_keep_size")
        row = await found.fetchone()
        if row is not None and row[0] != "-1":
            told.append(
                f"max_slot_wal_keep_size is {row[0]}: an import that is further behind has to begin"
                " anew"
            )
        return told

    async def rounds(self, connection: AsyncConnection[Any]) -> AsyncGenerator[Changes, None]:
        """See `Watch.rounds`. Each call goes on to at most CHANGES_TOGETHER, or one transaction."""
        changes = Changes()
        found = await connection.execute("SELECT pg_current_wal_flush_lsn()::text")
        row = await found.fetchone()
        query = sql.SQL(
            "SELECT lsn::text, data FROM pg_logical_slot_peek_changes({}, NULL, {},"
            " 'include-xids', '0', 'skip-empty-xacts', '1')"
        ).format(sql.Literal(self.slot), sql.Literal(CHANGES_TOGETHER))
        seen = 0
        async with aclosing(fetched(connection, "tidings_changes", query)) as pages:
            async for rows in pages:
                seen += len(rows)
                for lsn, line in rows:
                    if line.startswith("COMMIT"):
                        self._upto = lsn
                    else:
                        note_change(line, self._tables, changes)
                if len(changes) >= KEYS_TOGETHER:
                    yield changes
                    changes = Changes()
        self.is_at_end = seen < CHANGES_TOGETHER
        if self.is_at_end and row is not None:  # where others write, there is nothing to be kept
            self._upto = max(self._upto or row[0], row[0], key=_place)
        if len(changes) or changes.emptied:
            yield changes

    async def keep(self, connection: AsyncConnection[Any]) -> None:
        """See `Watch.keep`."""
        if self._upto is not None:
            await connection.execute(
                "SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", (self.slot, self._upto)
            )
            self._upto = None

    async def lag(self, connection: AsyncConnection[Any]) -> str:
        """See `Watch.lag`."""
        found = await connection.execute(
            "SELECT pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn))"
            " FROM pg_replication_slots WHERE slot_name = %s",
            (self.slot,),
        )
        row = await found.fetchone()
        return f"{row[0]} of log" if row else "the slot is gone"

    async def end(self, connection: AsyncConnection[Any]) -> None:
        """Drop the slot. Also where there is none."""
        await connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE slot_name = %s",
            (self.slot,),
        )


class Updated:
    """Changes by updated-at columns: what they say is later than the last look, and a while before.

    Times are the source's own; when its clock jumps back the look goes back as far.
    """

    is_at_end = True  # a round of columns always is

    def __init__(self, mapping: Mapping, reading: Reading) -> None:
        self._mapping = mapping
        self._reading = reading
        self._since_ms = 0
        self._next: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        without = [name for name, table in mapping.tables.items() if table.updated_at is None]
        self.blind_spots = "rows that are deleted, and changes that leave updated_at alone" + (
            f"; [{'], ['.join(without)}] have no updated_at: of them nothing is seen but what"
            " stands in chats where something else changed"
            if without
            else ""
        )

    @staticmethod
    def hindrance(mapping: Mapping) -> str | None:
        """Why the mapping does not allow it; None where it does."""
        if mapping.messages.updated_at is None:
            return "[messages] names no updated_at column"
        return None

    async def begin(self, connection: AsyncConnection[Any]) -> None:
        """From now on, and from whoever is in the middle of a transaction."""
        self._last = await _now(connection)
        self._since_ms = self._last[0]

    async def rounds(self, connection: AsyncConnection[Any]) -> AsyncGenerator[Changes, None]:
        """See `Watch.rounds`."""
        self._next = now_ms, now_s = await _now(connection)
        if self._last is not None:  # a clock that was put back: what it wrote since is older
            passed_ms = int((now_s - self._last[1]) * 1000)
            self._since_ms = min(self._since_ms, now_ms - passed_ms)
        changes = Changes()
        for section in SECTIONS:
            if section not in self._mapping.tables:
                continue
            since_ms = self._since_ms - OVERLAP_MS
            async with aclosing(
                self._reading.changed_since(connection, section, since_ms)
            ) as pages:
                async for keys in pages:
                    into: Any = getattr(changes, section)
                    into.update(keys if section == "participants" else (key for (key,) in keys))
                    if len(changes) >= KEYS_TOGETHER:
                        yield changes
                        changes = Changes()
        if len(changes):
            yield changes

    async def keep(self, connection: AsyncConnection[Any]) -> None:
        """See `Watch.keep`."""
        if self._next is not None:
            self._last = self._next
            self._since_ms = self._next[0]

    async def lag(self, connection: AsyncConnection[Any]) -> str:
        """See `Watch.lag`."""
        now_ms, _ = await _now(connection)
        return f"{max(0, now_ms - self._since_ms) / 1000:.0f} s"

    async def end(self, connection: AsyncConnection[Any]) -> None:
        """See `Watch.end`: nothing was made."""


async def _now(connection: AsyncConnection[Any]) -> tuple[int, float]:
    """The source's clock, or the beginning of its oldest transaction; and our own monotonic one."""
    found = await connection.execute(
        "SELECT floor(extract(epoch FROM least(clock_timestamp(), (SELECT min(xact_start)"
        " FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
        " AND datname = current_database()))) * 1000)::bigint"
    )
    row = await found.fetchone()
    assert row is not None, "a clock says something"
    return row[0], time.monotonic()


def _place(lsn: str) -> int:
    """A place in the log of the database as a number."""
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


# --- what test_decoding writes -------------------------------------------------------------------

_LINE = re.compile(r"table (?P<table>(?:\"(?:[^\"]|\"\")+\"|[^\s.:]+)"
                   r"\.(?:\"(?:[^\"]|\"\")+\"|[^\s:]+)): (?P<action>[A-Z]+): ?")  # fmt: skip
_COLUMN = re.compile(
    r"(?P<name>\"(?:[^\"]|\"\")+\"|[^\s\[\"]+)\[(?:[^\[\]]|\[\])*\]:"
    r"(?:B?'(?P<quoted>(?:[^']|'')*)'|(?P<plain>[^\s']+)) ?"
)
_OLD, _NEW = "old-key: ", "new-tuple: "


class Decodable(msgspec.Struct, frozen=True):
    """A mapped table, as the log of the database calls it."""

    section: str
    columns: dict[str, str]
    """Field of the mapping to column."""


def _decoded_tables(mapping: Mapping, catalogue: Catalogue) -> dict[str, Decodable]:
    tables: dict[str, Decodable] = {}
    for section, table in mapping.tables.items():
        fields = (*KEYS[section], *(("chat", "sender") if section == "messages" else ()))
        columns = {field: getattr(table, field) for field in fields}
        for name in catalogue.names[section]:
            tables[name] = Decodable(section, columns)
    return tables


def note_change(line: str, tables: dict[str, Decodable], changes: Changes) -> None:
    """Take in one line of `test_decoding`; those of other tables are passed over."""
    match = _LINE.match(line)
    if match is None:
        return
    table = tables.get(_bare(match["table"]))
    if table is None:
        return
    if match["action"] == "TRUNCATE":
        changes.emptied.add(table.section)
        return
    rest = line[match.end() :]
    if match["action"] == "DELETE":
        _note_gone(table, dict(_columns(rest)), changes)
        return
    if rest.startswith(_OLD):
        old = dict(_columns(rest[len(_OLD) :]))
        rest = rest[rest.index(_NEW) + len(_NEW) :] if _NEW in rest else ""
        new = dict(_columns(rest))
        names = [table.columns[field] for field in KEYS[table.section]]
        if any(old.get(name) != new.get(name) for name in names):
            _note_gone(table, old, changes)
    else:
        new = dict(_columns(rest))
    key = [new.get(table.columns[field]) for field in KEYS[table.section]]
    if None not in key:
        into: Any = getattr(changes, table.section)
        into.add(tuple(key) if len(key) > 1 else key[0])


def _note_gone(table: Decodable, old: dict[str, str | None], changes: Changes) -> None:
    named = {field: old.get(column) for field, column in table.columns.items()}
    if table.section == "participants":
        chat, user = named["chat"], named["user"]
        if chat is not None and user is not None:
            changes.gone_participants.add((chat, user))
    elif table.section == "messages" and (key := named["id"]) is not None:
        chat, sender = named["chat"], named["sender"]
        is_known = chat is not None and sender is not None
        changes.gone_messages[key] = (chat or "", sender or "") if is_known else None


def _columns(text: str) -> Iterator[tuple[str, str | None]]:
    """Column names and values as texts, up to what is no column."""
    position = 0
    while match := _COLUMN.match(text, position):
        position = match.end()
        plain = match["plain"]
        quoted = match["quoted"]
        value = plain if quoted is None else quoted.replace("''", "'")
        yield _bare(match["name"]), None if plain == "null" else value


def _bare(name: str) -> str:
    """A name without its quotes."""
    return re.sub(r'"((?:[^"]|"")+)"', lambda found: found[1].replace('""', '"'), name)
