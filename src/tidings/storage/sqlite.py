"""The embedded engine: one SQLite file, whose commits are durable when `write` returns.

Statements run on the event loop, which each holds for a few microseconds; only what waits for the
disk (commits, checkpoints, scans) runs in threads. `docs/decisions/0001-sqlite-engine.md` tells
why, with the measurements.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import apsw

from tidings.clock import Clock, system_clock
from tidings.errors import Conflict, Unavailable
from tidings.storage.interface import (
    ITEM_BYTES_MAX,
    PAGE_ITEMS_MAX,
    ConditionFailed,
    Failure,
    Item,
    Key,
    Page,
    Position,
    Put,
    Table,
    Write,
)
from tidings.storage.refusals import check_count, check_distinct, check_key_count, check_sizes
from tidings.storage.statements import Select, Statement, TableStatements
from tidings.storage.tables import TABLES

BATCH_WRITES_MAX = 1_024
"""Writes in one transaction; they hold the event loop for about 2 ms."""
WAITING_SETS_MAX = 20_000
"""Write sets that may wait; past it `write` is refused as unavailable."""
BULK_ITEMS_MAX = 500
"""Items of one transaction of `put_many` and `sweep`."""
RANGE_BYTES = 1024 * 1024
"""Characters and bytes that a page of `scan_between` ends after."""
SPLIT_ITEMS_MIN = 500
"""Items of the smallest table that `split` divides."""
BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process that writes to the same file."""
CHECKPOINT_PAGES = 4_000
"""Pages of 4 KiB in the write-ahead log after which they are copied into the file."""
CACHE_KIB = 32 * 1024
"""Page cache of each connection."""
MMAP_BYTES = 1 << 30
"""How much of the file is read through the operating system's page cache, without a copy."""
STATEMENTS_CACHED_MAX = 512
"""Prepared statements of each connection."""

APPLICATION_ID = 0x54494447
"""Marks the file as a store of Tidings ("TIDG")."""
SCHEMA_VERSION = 1
"""Grows with changes that older code could not live with; added columns are none."""

_Result = TypeVar("_Result")

# What one write set did wrong, as opposed to what went wrong with the file.
_REFUSALS = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    ArithmeticError,
    TypeError,
    ValueError,
)


class _WriteSet:
    """Writes that wait to be applied together, and whoever waits for it."""

    __slots__ = ("changed", "error", "future", "statements", "writes")

    def __init__(
        self,
        statements: Sequence[Statement],
        writes: Sequence[Write],
        future: asyncio.Future[int],
    ) -> None:
        self.statements = statements
        self.writes = writes
        self.future = future
        self.changed = 0
        self.error: Exception | None = None


class _Reader:
    """Reads through one connection; for one thread at a time."""

    def __init__(
        self, connection: apsw.Connection, tables: dict[str, TableStatements], clock: Clock
    ) -> None:
        self.connection = connection
        self._cursor = connection.cursor()
        self._tables = tables
        self._clock = clock

    def rows(self, sql: str, bindings: Sequence[Any]) -> list[Any]:
        try:
            return self._cursor.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise _unavailable(error) from error

    def get(self, table: Table, key: Key) -> Item | None:
        statements = _statements(self._tables, table)
        statements.check_key(key)
        if statements.is_expiring:
            rows = self.rows(statements.get_alive_sql, (*key, self._clock() // 1000))
        else:
            rows = self.rows(statements.get_sql, key)
        return statements.decode(statements.columns, rows[0]) if rows else None

    def get_many(self, table: Table, keys: Sequence[Key]) -> list[Item | None]:
        check_key_count(keys)
        return [self.get(table, key) for key in keys]

    def query(
        self,
        table: Table,
        partition: Any,
        *,
        index: str | None,
        low: Any,
        high: Any,
        prefix: str | None,
        reverse: bool,
        limit: int,
        after: Position | None,
        consistent: bool,
    ) -> Page:
        statements = _statements(self._tables, table)
        select = statements.query(
            partition,
            index=index,
            low=low,
            high=high,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            after=after,
            now_s=self._clock() // 1000,
        )
        if consistent and index is not None and not table.index(index).local:
            raise ValueError("a global index is not strongly consistent")
        return self._page(statements, select, limit)

    def scan(
        self, table: Table, *, segment: int, segments: int, limit: int, after: Position | None
    ) -> Page:
        statements = _statements(self._tables, table)
        select = statements.scan(
            segment=segment,
            segments=segments,
            limit=limit,
            after=after,
            now_s=self._clock() // 1000,
        )
        return self._page(statements, select, limit)

    def between(self, table: Table, *, upto: Key | None, limit: int, after: Key | None) -> Page:
        statements = _statements(self._tables, table)
        select = statements.between(
            upto=upto, limit=limit, after=after, now_s=self._clock() // 1000
        )
        taken: list[Any] = []
        size_bytes = 0
        cursor = self.connection.cursor()  # closed early, so that it holds no snapshot
        try:
            for row in cursor.execute(select.sql, select.bindings):
                if len(taken) == limit or size_bytes >= RANGE_BYTES:
                    return self._cut(statements, select, taken)
                taken.append(row)
                size_bytes += sum([len(value) for value in row if type(value) in (str, bytes)])
        except apsw.Error as error:
            raise _unavailable(error) from error
        finally:
            cursor.close(True)
        return Page([statements.decode(select.columns, row) for row in taken], None)

    def _cut(self, statements: TableStatements, select: Select, rows: list[Any]) -> Page:
        """A page that is not the last one; the key comes first in every row."""
        position = tuple(rows[-1][: len(select.order)])
        return Page([statements.decode(select.columns, row) for row in rows], position)

    def split(self, table: Table, parts: int) -> list[Key]:
        statements = _statements(self._tables, table)
        ((count,),) = self.rows(f'SELECT count(*) FROM "{table.name}"', ())  # noqa: S608
        if count < SPLIT_ITEMS_MIN:
            return []
        return self.rows(statements.every(-(-count // parts)), ())[: parts - 1]

    def _page(self, statements: TableStatements, select: Select, limit: int) -> Page:
        rows = self.rows(select.sql, select.bindings)
        position = None
        if len(rows) > limit:
            del rows[limit:]
            last = dict(zip(select.columns, rows[-1], strict=True))
            position = tuple(last[field] for field in select.order)
        return Page([statements.decode(select.columns, row) for row in rows], position)


class _Reads:
    """The reading half of a store, on the event loop: a page is a matter of microseconds."""

    _reader: _Reader

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`; always consistent."""
        return self._reader.get(table, key)

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`; always consistent, and a snapshot but for other processes."""
        return self._reader.get_many(table, keys)

    async def query(
        self,
        table: Table,
        partition: Any,
        *,
        index: str | None = None,
        low: Any = None,
        high: Any = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
        consistent: bool = True,
    ) -> Page:
        """See `Store.query`; always consistent, though a global index must not be asked to be."""
        return self._reader.query(
            table,
            partition,
            index=index,
            low=low,
            high=high,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            after=after,
            consistent=consistent,
        )


class Snapshot(_Reads):
    """A store as it was at one moment, to read only; made by `SqliteStore.snapshot`."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`."""
        return self._reader.scan(
            table, segment=segment, segments=segments, limit=limit, after=after
        )

    async def write(self, *writes: Write) -> NoReturn:
        """Raises TypeError: a snapshot is not written to."""
        raise TypeError("a snapshot is not written to")

    async def put_many(self, table: Table, items: Iterable[Item]) -> NoReturn:
        """Raises TypeError: a snapshot is not written to."""
        raise TypeError("a snapshot is not written to")

    async def close(self) -> None:
        """Does nothing: the snapshot ends with its context."""


class SqliteStore(_Reads):
    """A `Store` in one SQLite file, which any SQLite tool can read meanwhile.

    All write sets that wait at one moment become one transaction, in the order of their `write`
    calls; a failed condition of one harms no other. A cancelled `write` is applied or not, never
    half. Other processes may use the same file.
    """

    def __init__(
        self,
        path: str,
        tables: dict[str, TableStatements],
        clock: Clock,
        vfs: str | None,
        mmap_bytes: int = MMAP_BYTES,
    ) -> None:
        self._path = path
        self._vfs = vfs
        self._tables = tables
        self._clock = clock
        self._mmap_bytes = mmap_bytes
        self._writer = self._connect()
        try:
            _refuse_foreign(self._writer)
            _tune(self._writer, mmap_bytes)
            _make_schema(self._writer, tables)
        except BaseException:
            self._writer.close()
            raise
        self._writer.set_busy_timeout(0)
        self._writer.wal_autocheckpoint(CHECKPOINT_PAGES)
        self._cursor = self._writer.cursor()
        self._reader = self._new_reader()
        self._scanner = self._new_reader()
        self._loop = asyncio.get_running_loop()
        self._commit_thread = ThreadPoolExecutor(1, "tidings-commit")
        self._scan_thread = ThreadPoolExecutor(1, "tidings-scan")
        self._waiting: deque[_WriteSet] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self.on_batch: Callable[[int], None] | None = None
        """Hears how many write sets each transaction held."""
        self._closed = asyncio.ensure_future(self._run())

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        clock: Clock = system_clock,
        vfs: str | None = None,
        tables: Sequence[Table] = TABLES,
        mmap_bytes: int = MMAP_BYTES,
    ) -> Self:
        """Open the file, or make it; to be called on the event loop that will use the store.

        Missing tables, columns and indexes are made. `clock` decides what has expired; `vfs`
        names the SQLite file system layer to go through. With `mmap_bytes` of 0 the process's
        memory stays small however large the file is. Raises Conflict for a file that is not
        ours or was made by newer code, Unavailable where it can't be opened.
        """
        statements = {table.name: TableStatements(table) for table in tables}
        try:
            return cls(str(path), statements, clock, vfs, mmap_bytes)
        except apsw.NotADBError as error:
            raise Conflict(f"{path} is not a store of Tidings") from error
        except apsw.Error as error:
            raise _unavailable(error) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Store.close`: what was accepted is finished even if this call is cancelled."""
        self._is_closing = True
        self._arrived.set()
        await asyncio.shield(self._closed)

    # -- writes

    async def write(self, *writes: Write) -> None:
        """See `Store.write`. What an `Update` adds to an item counts alone for its size."""
        check_count(writes)
        statements = [_statements(self._tables, write.table).compile(write) for write in writes]
        check_distinct(writes)
        _check_sizes(writes, statements)
        if statements:
            await self._submit(statements, writes)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`."""
        compile_write = _statements(self._tables, table).compile
        remaining = iter(items)
        while puts := [Put(table, item) for item in islice(remaining, BULK_ITEMS_MAX)]:
            statements = [compile_write(put) for put in puts]
            for put, statement in zip(puts, statements, strict=True):
                _check_sizes((put,), (statement,))
            await self._submit(statements, ())

    async def sweep(self) -> int:
        """Delete what has expired, in small transactions, and return the number of items."""
        return sum([await self._sweep(table) for table in self._tables.values()])

    async def _sweep(self, table: TableStatements) -> int:
        deleted = 0
        after: Position | None = None
        while table.is_expiring:
            now_s = self._clock() // 1000
            select = table.expired(limit=BULK_ITEMS_MAX, after=after, now_s=now_s)
            keys = await self._in_scan_thread(
                partial(self._scanner.rows, select.sql, select.bindings)
            )
            if not keys:
                break
            deleted += await self._submit([table.delete_expired(key, now_s) for key in keys], ())
            after = keys[-1]
        return deleted

    def _submit(
        self, statements: Sequence[Statement], writes: Sequence[Write]
    ) -> asyncio.Future[int]:
        if self._is_closing:
            raise Unavailable("the store is closed")
        if len(self._waiting) >= WAITING_SETS_MAX:
            raise Unavailable("too many writes are waiting")
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(_WriteSet(statements, writes, future))
        self._arrived.set()
        return future

    async def _run(self) -> None:
        """The one task that writes: batch after batch until the store is closed."""
        try:
            while self._waiting or not self._is_closing:
                await self._arrived.wait()
                self._arrived.clear()
                while batch := self._take_batch():
                    await self._finish(batch)
        finally:
            await self._let_go()

    def _take_batch(self) -> list[_WriteSet]:
        batch: list[_WriteSet] = []
        count = 0
        while self._waiting and count < BATCH_WRITES_MAX:
            write_set = self._waiting.popleft()
            count += len(write_set.statements)
            batch.append(write_set)
        return batch

    async def _finish(self, batch: list[_WriteSet]) -> None:
        try:
            await self._apply(batch)
        except Exception as error:  # noqa: BLE001  # the task's root: a bug fails this batch alone
            with suppress(apsw.Error):
                self._roll_back()
            for write_set in batch:
                write_set.error = _unavailable(error) if isinstance(error, apsw.Error) else error
        if self.on_batch is not None:
            self.on_batch(len(batch))
        for write_set in batch:
            if write_set.future.done():  # its waiter was cancelled
                continue
            if write_set.error is None:
                write_set.future.set_result(write_set.changed)
            else:
                write_set.future.set_exception(write_set.error)

    async def _apply(self, batch: list[_WriteSet]) -> None:
        """Run the batch as one transaction.

        Nearly all sets hold, and a savepoint costs as much as five writes; so it is tried
        without, and from the start again with one for each set where something did not hold.
        """
        await self._begin()
        if not self._run_plainly(batch):
            self._roll_back()
            await self._begin()
            for write_set in batch:
                self._run_apart(write_set)
        await self._in_commit_thread(self._commit)

    async def _begin(self) -> None:
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        except apsw.BusyError:
            await self._in_commit_thread(self._begin_patiently)

    def _begin_patiently(self) -> None:
        self._writer.set_busy_timeout(int(BUSY_TIMEOUT_S * 1000))
        try:
            self._cursor.execute("BEGIN IMMEDIATE")
        finally:
            self._writer.set_busy_timeout(0)

    def _commit(self) -> None:
        self._cursor.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._cursor.execute("ROLLBACK")

    def _run_plainly(self, batch: list[_WriteSet]) -> bool:
        try:
            return all(map(self._run_set, batch))
        except _REFUSALS:
            return False

    def _run_set(self, write_set: _WriteSet) -> bool:
        execute, changes = self._cursor.execute, self._writer.changes
        changed = 0
        for statement in write_set.statements:
            shape = statement.shape
            if shape.is_select:
                effects = len(execute(shape.sql, statement.bindings).fetchall())
            else:
                execute(shape.sql, statement.bindings)
                effects = changes()
                changed += effects
            if shape.is_exact and effects != 1:
                return False
        write_set.changed = changed
        return True

    def _run_apart(self, write_set: _WriteSet) -> None:
        self._cursor.execute("SAVEPOINT write_set")
        try:
            holds = self._run_set(write_set)
        except _REFUSALS as error:
            holds = False
            write_set.error = ValueError(f"no engine takes this: {error}")
            write_set.error.__cause__ = error
        if not holds:
            self._cursor.execute("ROLLBACK TO write_set")
            if write_set.error is None:
                write_set.error = ConditionFailed(self._failures(write_set.writes))
        self._cursor.execute("RELEASE write_set")

    def _failures(self, writes: Sequence[Write]) -> list[Failure]:
        failures = []
        for number, write in enumerate(writes):
            table = self._tables[write.table.name]
            key = write.table.key(write.item) if isinstance(write, Put) else write.key
            rows = self._cursor.execute(table.get_sql, key).fetchall()
            item = table.decode(table.columns, rows[0]) if rows else None
            if not table.holds(write.when, item):
                failures.append(Failure(number, item))
        assert failures, "a write had no effect though its conditions hold"
        return failures

    # -- other reads

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`; in a thread, since finding a segment's items may read many others."""
        return await self._in_scan_thread(
            partial(
                self._scanner.scan,
                table,
                segment=segment,
                segments=segments,
                limit=limit,
                after=after,
            )
        )

    async def scan_between(
        self,
        table: Table,
        *,
        upto: Key | None = None,
        limit: int = PAGE_ITEMS_MAX,
        after: Key | None = None,
    ) -> Page:
        """Items in the order of their keys, from after one key to another, which is included.

        Either may be None, for the beginning and the end. A page also ends with the item that
        brings it to RANGE_BYTES. Its `after` is a key. Expired items are left out.
        """
        return await self._in_scan_thread(
            partial(self._scanner.between, table, upto=upto, limit=limit, after=after)
        )

    async def split(self, table: Table, parts: int) -> list[Key]:
        """Keys that divide the table into at most that many parts of about the same count.

        None for a small table: it is one part.
        """
        return await self._in_scan_thread(partial(self._scanner.split, table, parts))

    async def count(self, table: Table) -> int:
        """How many items the table holds, expired ones too; goes over all of them."""
        sql = f'SELECT count(*) FROM "{table.name}"'  # noqa: S608  # a declared name
        rows = await self._in_scan_thread(partial(self._scanner.rows, sql, ()))
        return int(rows[0][0])

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """The store as it is now, whatever is written meanwhile.

        Meant for audits: the write-ahead log can't start anew while it is open.
        """
        reader = self._new_reader()
        try:
            reader.rows("BEGIN", ())
            reader.rows("SELECT 1 FROM sqlite_schema", ())  # here the snapshot is taken
            yield Snapshot(reader)
        finally:
            reader.connection.close()

    # -- connections and threads

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(
            self._path, vfs=self._vfs, statementcachesize=STATEMENTS_CACHED_MAX
        )
        connection.set_busy_timeout(int(BUSY_TIMEOUT_S * 1000))
        return connection

    def _new_reader(self) -> _Reader:
        connection = self._connect()
        _tune(connection, self._mmap_bytes)
        return _Reader(connection, self._tables, self._clock)

    async def _in_commit_thread(self, action: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(self._commit_thread, action)

    async def _in_scan_thread(self, action: Callable[[], _Result]) -> _Result:
        if self._is_closing:
            raise Unavailable("the store is closed")
        return await self._loop.run_in_executor(self._scan_thread, action)

    async def _let_go(self) -> None:
        self._is_closing = True
        self._scan_thread.shutdown(wait=False)
        await self._loop.run_in_executor(self._commit_thread, self._disconnect)
        self._commit_thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        """Close all connections; the last one to close copies the log into the file."""
        self._scan_thread.shutdown(wait=True)
        for connection in (self._scanner.connection, self._reader.connection, self._writer):
            connection.close()


def _statements(tables: dict[str, TableStatements], table: Table) -> TableStatements:
    try:
        return tables[table.name]
    except KeyError:
        raise ValueError(f"the store has no table {table.name!r}") from None


def _check_sizes(writes: Sequence[Write], statements: Sequence[Statement]) -> None:
    if sum([statement.bytes_bound for statement in statements]) > ITEM_BYTES_MAX:
        check_sizes(writes)


def _tune(connection: apsw.Connection, mmap_bytes: int) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"cache_size = -{CACHE_KIB}",
        f"mmap_size = {mmap_bytes}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _refuse_foreign(connection: apsw.Connection) -> None:
    """Raises Conflict for a file that is not ours, or newer, before anything is changed."""
    application_id = connection.pragma("application_id")
    is_empty = not connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    if application_id != APPLICATION_ID and (application_id or not is_empty):
        raise Conflict("the file is not a store of Tidings")
    if connection.pragma("user_version") > SCHEMA_VERSION:
        raise Conflict("the store was made by a newer version of Tidings")


def _make_schema(connection: apsw.Connection, tables: dict[str, TableStatements]) -> None:
    """Make what is missing; a store that has everything is not written to, and not waited for.

    Raises Conflict where a column is of another type.
    """
    if not any(_missing(connection, tables)):
        return
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        for statement in [*_missing(connection, tables)]:
            cursor.execute(statement)
        cursor.execute("COMMIT")
    finally:
        if connection.in_transaction:
            cursor.execute("ROLLBACK")


def _missing(connection: apsw.Connection, tables: dict[str, TableStatements]) -> Iterator[str]:
    """The statements that make the file a store with these tables, as far as it is not one."""
    for pragma, value in (("application_id", APPLICATION_ID), ("user_version", SCHEMA_VERSION)):
        if connection.pragma(pragma) != value:
            yield f"PRAGMA {pragma} = {value}"
    rows: list[Any] = connection.execute("SELECT name, sql FROM sqlite_schema").fetchall()
    existing: dict[str, str] = dict(rows)
    for table in tables.values():
        name = table.table.name
        if name not in existing:
            yield table.create_table()
        else:
            columns: list[Any] = connection.execute(
                "SELECT name, type FROM pragma_table_info(?)", (name,)
            ).fetchall()
            kinds: dict[str, str] = dict(columns)
            for field in table.columns:
                if field not in kinds:
                    yield f'ALTER TABLE "{name}" ADD COLUMN {table.column(field)}'
                elif kinds[field] != table.column_type(field):
                    raise Conflict(f"the store holds {name}.{field} as {kinds[field]}")
        for index, sql in table.create_indexes():
            if existing.get(index) != sql:
                yield f'DROP INDEX IF EXISTS "{index}"'
                yield sql


def _unavailable(error: apsw.Error) -> Unavailable:
    match error:
        case apsw.FullError():
            unavailable = Unavailable("the store's disk is full")
        case apsw.BusyError():
            unavailable = Unavailable("another process holds the store")
        case apsw.ConnectionClosedError():
            unavailable = Unavailable("the store is closed")
        case _:
            unavailable = Unavailable("the store can't be read or written")
    unavailable.__cause__ = error
    return unavailable
