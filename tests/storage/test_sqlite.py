"""The embedded engine keeps the contract, and what it promises beyond."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import apsw
import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from tests.storage.contract import SetClock, StoreContract, entry, room, scan_all
from tests.storage.machine import TABLES, StoreMachine
from tidings.clock import Clock
from tidings.errors import Conflict, Unavailable
from tidings.storage import sqlite
from tidings.storage.interface import (
    Absent,
    Check,
    Equals,
    Index,
    Item,
    Put,
    Store,
    Table,
    Update,
)
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, RECEIPTS, ROOMS


@pytest.fixture
async def store(tmp_path: Path, clock: SetClock) -> AsyncIterator[SqliteStore]:
    async with SqliteStore.open(tmp_path / "store.db", clock=clock) as store:
        yield store


class TestSqlite(StoreContract):
    pass


class SqliteEngine:
    """A file in a folder of its own; after a crash, what the operating system had of it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.opened = 0

    @property
    def path(self) -> Path:
        return self.folder / f"{self.opened}.db"

    async def open(self, clock: Clock) -> Store:
        return SqliteStore.open(self.path, clock=clock)

    async def crash(self, store: Store) -> None:
        left = self.path
        self.opened += 1
        for suffix in ("", "-wal"):
            shutil.copy(f"{left}{suffix}", f"{self.path}{suffix}")
        await store.close()

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class SqliteMachine(StoreMachine):
    new_engine = SqliteEngine

    @rule()
    def sweep(self) -> None:
        assert isinstance(self.store, SqliteStore)
        expected = 0
        for table in TABLES:
            alive = self.model.items(table, self.clock.now_s)
            expected += len(self.model.tables[table.name]) - len(alive)
            self.model.tables[table.name] = {table.key(item): item for item in alive}
        assert self.run(self.store.sweep()) == expected


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


class LongSqliteMachine(SqliteMachine):
    pass


TestLongSqliteMachine = pytest.mark.slow(LongSqliteMachine.TestCase)
TestLongSqliteMachine.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


async def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    async with SqliteStore.open(tmp_path / "store.db") as store:
        await store.write(Put(ROOMS, room()))
    async with SqliteStore.open(tmp_path / "store.db") as store:
        assert await store.get(ROOMS, ("acme#room_1",)) == room()


async def test_closing_finishes_what_was_accepted(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    writes = [asyncio.ensure_future(store.write(Put(ENTRIES, entry(n)))) for n in range(50)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await asyncio.gather(*writes)
    await store.close()
    with pytest.raises(Unavailable):
        await store.write(Put(ROOMS, room()))
    with pytest.raises(Unavailable):
        await store.get(ROOMS, ("acme#room_1",))
    with pytest.raises(Unavailable):
        await store.scan(ROOMS)
    async with SqliteStore.open(tmp_path / "store.db") as store:
        assert len(await scan_all(store, ENTRIES)) == 50


async def test_a_snapshot_stays_as_it_was(store: SqliteStore) -> None:
    await store.write(Put(ROOMS, room()), Put(ENTRIES, entry(1)))
    async with store.snapshot() as then:
        await store.write(Update(ROOMS, ("acme#room_1",), {"head": 5}), Put(ENTRIES, entry(2)))
        assert await then.get(ROOMS, ("acme#room_1",)) == room()
        assert await then.get_many(ENTRIES, [("acme#room_1", 2)]) == [None]
        assert (await then.query(ENTRIES, "acme#room_1")).items == [entry(1)]
        assert await scan_all(then, ENTRIES) == [entry(1)]
        with pytest.raises(TypeError):
            await then.write(Put(ROOMS, room()))
    assert await store.get(ROOMS, ("acme#room_1",)) == room(head=5)


async def test_a_sweep_deletes_what_has_expired(store: SqliteStore, clock: SetClock) -> None:
    def receipt(number: int, expires_at: int | None) -> dict[str, object]:
        return {"room": "r", "receipt": f"{number:05}", "expires_at": expires_at}

    now = clock.now_s
    await store.put_many(RECEIPTS, [receipt(n, now) for n in range(1_100)])
    await store.put_many(RECEIPTS, [receipt(5_000, now + 1), receipt(5_001, None)])
    assert await store.sweep() == 1_100
    assert await store.sweep() == 0
    await store.write(Check(RECEIPTS, ("r", "00001"), (Absent(),)))
    assert len(await scan_all(store, RECEIPTS)) == 2


async def test_anyone_can_open_the_file(store: SqliteStore, tmp_path: Path) -> None:
    await store.write(Put(ROOMS, room(tags=["a"], is_fanning=True)))
    connection = sqlite3.connect(tmp_path / "store.db")
    rows = connection.execute("SELECT room, head, tags, is_fanning FROM rooms").fetchall()
    connection.close()
    assert rows == [("acme#room_1", 0, '["a"]', 1)]


PETS = Table("pets", "pet", None, {"pet": str, "name": str})
MORE_PETS = Table(
    "pets", "pet", None, {"pet": str, "name": str, "weight": float},
    (Index("by_name", "name", "weight"),),
)  # fmt: skip


async def test_missing_columns_and_indexes_are_made(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteStore.open(path, tables=[PETS]) as store:
        await store.write(Put(PETS, {"pet": "1", "name": "Rex"}))
    async with SqliteStore.open(path, tables=[MORE_PETS]) as store:
        await store.write(Update(MORE_PETS, ("1",), {"weight": 3}))
        page = await store.query(MORE_PETS, "Rex", index="by_name", consistent=False)
        assert page.items == [{"pet": "1", "name": "Rex", "weight": 3.0}]
    async with SqliteStore.open(path, tables=[PETS]) as store:  # older code on the newer file
        await store.write(Put(PETS, {"pet": "2", "name": "Tom"}))


async def test_other_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    newer = tmp_path / "newer.db"
    await SqliteStore.open(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute(f"PRAGMA user_version = {sqlite.SCHEMA_VERSION + 1}")
    connection.commit()
    connection.close()
    text = tmp_path / "text.db"
    text.write_text("This is no database at all. " * 100)
    changed = tmp_path / "changed.db"
    await SqliteStore.open(changed, tables=[PETS]).close()
    retyped = Table("pets", "pet", None, {"pet": str, "name": int})
    for path in (foreign, newer, text):
        before = path.read_bytes()
        with pytest.raises(Conflict):
            SqliteStore.open(path)
        assert path.read_bytes() == before
    with pytest.raises(Conflict):
        SqliteStore.open(changed, tables=[retyped])
    with pytest.raises(Unavailable):
        SqliteStore.open(tmp_path / "no" / "such" / "folder.db")


async def test_two_processes_may_write(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = apsw.Connection(str(tmp_path / "store.db"))
    other.execute("BEGIN IMMEDIATE; UPDATE rooms SET head = 9")
    writing = asyncio.ensure_future(store.write(Put(ROOMS, room())))
    await asyncio.sleep(0.05)  # long enough to meet the other's lock, which it then waits for
    assert not writing.done()
    other.execute("COMMIT")
    await writing
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another process"):
        await store.write(Put(BADGES, {"user": "u"}))
    other.execute("COMMIT")
    other.close()
    await store.write(Put(BADGES, {"user": "u"}))
    assert await store.get(BADGES, ("u",)) == {"user": "u"}


async def test_a_full_disk_is_survived(store: SqliteStore) -> None:
    await store.write(Put(ROOMS, room()))
    writer = store._writer
    pages = writer.pragma("page_count")
    writer.pragma("max_page_count", pages)
    large = [Put(ENTRIES, entry(n, text="x" * 100_000)) for n in range(20)]
    with pytest.raises(Unavailable, match="full"):
        await store.write(*large, Update(ROOMS, ("acme#room_1",), {"head": 1}))
    assert await store.get(ROOMS, ("acme#room_1",)) == room()
    writer.pragma("max_page_count", 1 << 30)
    await store.write(*large, Update(ROOMS, ("acme#room_1",), {"head": 1}))
    assert await store.get(ROOMS, ("acme#room_1",)) == room(head=1)


async def test_too_many_waiting_writes_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAITING_SETS_MAX", 3)
    writes = [store.write(Put(ENTRIES, entry(number))) for number in range(5)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 3 + [Unavailable] * 2


async def test_more_than_one_batch(store: Store) -> None:
    await store.write(Put(ROOMS, room()))
    count = 2 * sqlite.BATCH_WRITES_MAX
    await asyncio.gather(
        *[
            store.write(Update(ROOMS, ("acme#room_1",), {"head": n + 1}, when=(Equals("head", n),)))
            for n in range(count)
        ]
    )
    assert await store.get(ROOMS, ("acme#room_1",)) == room(head=count)


async def test_ranges_of_keys_are_together_the_table(store: SqliteStore, clock: SetClock) -> None:
    items = [{"room": f"r{number // 40:02}", "seq": number % 40} for number in range(1_600)]
    await store.put_many(ENTRIES, items)
    bounds = await store.split(ENTRIES, 4)
    assert bounds == [(f"r{number:02}", 39) for number in (9, 19, 29)]
    found: list[Item] = []
    for start, upto in pairwise([None, *bounds, None]):
        after, pages = start, 0
        while True:
            page = await store.scan_between(ENTRIES, upto=upto, limit=150, after=after)
            found += page.items
            pages += 1
            if (after := page.after) is None:
                break
        assert pages == 3
    assert found == items
    assert await store.split(ROOMS, 4) == []
    receipts = [
        {"room": f"r{n}", "receipt": "a", "expires_at": clock.now_s + n} for n in (-1, 0, 1)
    ]
    await store.put_many(RECEIPTS, receipts)
    assert (await store.scan_between(RECEIPTS)).items == receipts[2:]


async def test_a_range_ends_a_page_by_its_size(store: SqliteStore) -> None:
    large = [{"room": "r", "seq": seq, "text": "x" * 300_000} for seq in range(9)]
    await store.put_many(ENTRIES, large)
    page = await store.scan_between(ENTRIES)
    assert page.items == large[:4]
    assert page.after == ("r", 3)
    assert (await store.scan_between(ENTRIES, after=("r", 7))).after is None
