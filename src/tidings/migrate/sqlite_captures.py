"""Changed keys of the embedded store: written down by triggers, in the transaction of the change.

So nothing is missed, whichever process or tool writes to the file, and nothing is captured that
was rolled back. Each key is there once, at the place of its latest change.
"""

# ruff: noqa: S608  # names come from the declarations and are quoted; values are always bound

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from tidings.errors import Unavailable
from tidings.migrate.captures import CAPTURED_TABLES, Change
from tidings.storage.interface import Table
from tidings.storage.moves import RECORD, Move, MoveChanged
from tidings.storage.tables import MOVES

BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process that writes to the same file."""
FORGET_CHANGES_MAX = 1_000
"""Changes forgotten in one transaction, which others wait for."""
SEQUENCE_BITS = 62
"""Numbers of changes begin anywhere below 2 to that, and end at 2 to the 63."""

CHANGES_TABLE = "tidings_changes"
TRIGGERS_START = "tidings_capture_"

_Result = TypeVar("_Result")
_decode_key = msgspec.json.Decoder(list[Any]).decode
_decode_data = msgspec.json.Decoder(dict[str, Any]).decode


class SqliteCapture:
    """A `Capture` of one file, through a connection and a thread of its own."""

    def __init__(
        self,
        path: str | Path,
        *,
        tables: Sequence[Table] = CAPTURED_TABLES,
        move: Move | None = None,
    ) -> None:
        """Opens the file, which is there already, with the first call.

        What is for a move is neither begun nor ended once the store knows of a later one; that
        raises MoveChanged.
        """
        self._move = move
        self._path = str(path)
        self._tables = {table.name: table for table in tables}
        self._thread = ThreadPoolExecutor(1, "tidings-capture")
        self._connection: apsw.Connection | None = None

    async def begin(self, *, is_unread: bool = False) -> None:
        """See `Capture.begin`; whatever is being committed meanwhile comes before or after it.

        Nothing is dropped: it does not age.
        """
        await self._run(self._begin)

    async def pending(self, limit: int) -> list[Change]:
        """See `Capture.pending`."""
        return await self._run(partial(self._pending, limit))

    async def forget(self, changes: Sequence[Change]) -> None:
        """See `Capture.forget`."""
        for at in range(0, len(changes), FORGET_CHANGES_MAX):
            marks = [(change.mark,) for change in changes[at : at + FORGET_CHANGES_MAX]]
            await self._run(partial(self._forget, marks))

    async def lag(self) -> int:
        """See `Capture.lag`; exact."""
        return await self._run(self._lag)

    async def is_drained(self) -> bool:
        """See `Capture.is_drained`: nothing waits, since changes are there once committed."""
        return await self.lag() == 0

    async def end(self) -> None:
        """See `Capture.end`."""
        await self._run(self._end)

    async def close(self) -> None:
        """See `Capture.close`. Closing twice is fine."""
        loop = asyncio.get_running_loop()
        connection, self._connection = self._connection, None
        if connection is not None:
            await loop.run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    async def _run(self, action: Callable[[apsw.Connection], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, action)

    def _do(self, action: Callable[[apsw.Connection], _Result]) -> _Result:
        try:
            if self._connection is None:
                self._connection = _connect(self._path)
            return action(self._connection)
        except apsw.FullError as error:
            raise Unavailable("the store's disk is full") from error
        except apsw.BusyError as error:
            raise Unavailable("another process holds the store") from error
        except apsw.Error as error:
            raise Unavailable(f"changes can't be captured: {error}") from error

    def _begin(self, connection: apsw.Connection) -> None:
        with _Transaction(connection):
            self._refuse_late(connection)
            is_new = not _is_capturing(connection)
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{CHANGES_TABLE}" (seq INTEGER PRIMARY KEY'
                " AUTOINCREMENT, tbl TEXT NOT NULL, key TEXT NOT NULL, UNIQUE (tbl, key)) STRICT"
            )
            if is_new:  # so that what somebody forgets late is no change of this time
                connection.execute(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
                    (CHANGES_TABLE, secrets.randbits(SEQUENCE_BITS)),
                )
            for table in self._tables.values():
                for trigger in _triggers(table):
                    connection.execute(trigger)

    def _pending(self, limit: int, connection: apsw.Connection) -> list[Change]:
        if not _is_capturing(connection):
            return []
        rows: list[Any] = connection.execute(
            f'SELECT seq, tbl, key FROM "{CHANGES_TABLE}" ORDER BY seq LIMIT ?', (limit,)
        ).fetchall()
        return [
            Change(self._tables[name], tuple(_decode_key(key)), mark) for mark, name, key in rows
        ]

    def _forget(self, marks: Sequence[tuple[Any]], connection: apsw.Connection) -> None:
        if not _is_capturing(connection):
            return
        with _Transaction(connection):
            # A sequence number is used once: a key that changed again has another one.
            connection.executemany(f'DELETE FROM "{CHANGES_TABLE}" WHERE seq = ?', marks)

    def _lag(self, connection: apsw.Connection) -> int:
        if not _is_capturing(connection):
            return 0
        rows: list[Any] = connection.execute(f'SELECT count(*) FROM "{CHANGES_TABLE}"').fetchall()
        return int(rows[0][0])

    def _refuse_late(self, connection: apsw.Connection) -> None:
        """Raises MoveChanged where the store knows of a later move than this is for."""
        mine = self._move
        if mine is None:
            return
        rows: list[Any] = connection.execute(
            f'SELECT epoch, data FROM "{MOVES.name}" WHERE part = ? AND item = ?', RECORD
        ).fetchall()
        for epoch, data in rows:
            if epoch > mine.epoch and _decode_data(data)["id"] != mine.id:
                raise MoveChanged

    def _end(self, connection: apsw.Connection) -> None:
        with _Transaction(connection):
            self._refuse_late(connection)
            rows: list[Any] = connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, ?) = ?",
                (len(TRIGGERS_START), TRIGGERS_START),
            ).fetchall()
            for (name,) in rows:
                connection.execute(f'DROP TRIGGER "{name}"')
            connection.execute(f'DROP TABLE IF EXISTS "{CHANGES_TABLE}"')


class _Transaction:
    """One that has the write lock from its start, and waits for it no longer than the limit."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _connect(path: str) -> apsw.Connection:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(int(BUSY_TIMEOUT_S * 1000))
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _is_capturing(connection: apsw.Connection) -> bool:
    return bool(
        connection.execute(
            "SELECT 1 FROM sqlite_schema WHERE name = ?", (CHANGES_TABLE,)
        ).fetchall()
    )


def _triggers(table: Table) -> Iterator[str]:
    """What notes the key of each row that is put, changed or deleted.

    A REPLACE deletes without telling, but the row that it puts has the same key. A conflict clause
    of the statement that fires a trigger would hold within it too, so nothing in here relies on
    its own.
    """
    same = " AND ".join(f'OLD."{field}" IS NEW."{field}"' for field in table.key_fields)
    old, new = _noting(table, "OLD"), _noting(table, "NEW")
    yield _trigger(table, "insert", "INSERT", new)
    yield _trigger(table, "delete", "DELETE", old)
    yield _trigger(table, "update", "UPDATE", new)
    yield _trigger(table, "rename", "UPDATE", old, when=f"WHEN NOT ({same})")


def _noting(table: Table, row: str) -> str:
    parts = ", ".join(f'{row}."{field}"' for field in table.key_fields)
    return (
        f"DELETE FROM \"{CHANGES_TABLE}\" WHERE tbl = '{table.name}' AND key = json_array({parts});"
        f' INSERT INTO "{CHANGES_TABLE}" (tbl, key)'
        f" VALUES ('{table.name}', json_array({parts}));"
    )


def _trigger(table: Table, name: str, event: str, steps: str, *, when: str = "") -> str:
    return (
        f'CREATE TRIGGER IF NOT EXISTS "{TRIGGERS_START}{table.name}_{name}"'
        f' AFTER {event} ON "{table.name}" FOR EACH ROW {when} BEGIN {steps} END'
    )
