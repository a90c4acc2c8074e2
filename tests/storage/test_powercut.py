"""What was acknowledged survives power cuts, and every write set is whole afterwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.storage.contract import query_all
from tests.storage.powercut import PowerCutFiles
from tidings.storage import sqlite
from tidings.storage.interface import Absent, Equals, Put, Update, Write
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, RECEIPTS, ROOMS

CUTS = 60
ROOM_NAMES = tuple(f"room_{number}" for number in range(6))


@pytest.fixture
def files() -> Iterator[PowerCutFiles]:
    files = PowerCutFiles("powercut", seed=7)
    yield files
    files.unregister()


class Log:
    """Rooms whose entries are numbered, with a receipt of each, and what was acknowledged."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.heads = dict.fromkeys(ROOM_NAMES, 0)
        self.is_over = False

    def next_set(self, room: str) -> tuple[list[Write], int]:
        head = self.heads[room]
        count = self.chance.randrange(1, 5)
        writes: list[Write] = [
            Update(ROOMS, (room,), {"head": head + count}, when=(Equals("head", head or None),)),
            Update(BADGES, (room,), {"unread": head + count}, {"version": 1}),
        ]
        if head == 0:
            writes[0] = Put(ROOMS, {"room": room, "head": count}, (Absent(),))
        for seq in range(head + 1, head + count + 1):
            text = "x" * self.chance.randrange(3_000)
            writes.append(Put(ENTRIES, {"room": room, "seq": seq, "text": text}, (Absent(),)))
            writes.append(Put(RECEIPTS, {"room": room, "receipt": f"{seq:06}"}, (Absent(),)))
        return writes, head + count

    async def grow(self, store: SqliteStore, room: str) -> None:
        while not self.is_over:
            writes, head = self.next_set(room)
            await store.write(*writes)
            self.heads[room] = head


async def heads_left(path: Path) -> dict[str, int]:
    """The heads after a power cut, once every room has shown to be whole."""
    heads = {}
    async with SqliteStore.open(path) as store:
        for name in ROOM_NAMES:
            room = await store.get(ROOMS, (name,)) or {"head": 0}
            badge = await store.get(BADGES, (name,)) or {"unread": 0}
            heads[name] = room["head"]
            expected = list(range(1, room["head"] + 1))
            entries = await query_all(store, ENTRIES, name, limit=1_000)
            receipts = await query_all(store, RECEIPTS, name, limit=1_000)
            assert [item["seq"] for item in entries] == expected
            assert [int(item["receipt"]) for item in receipts] == expected
            assert badge["unread"] == room["head"]
    connection = apsw.Connection(str(path))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
    return heads


async def cut_while_writing(
    files: PowerCutFiles, chance: random.Random, path: Path, left: Path, *, sync: str
) -> tuple[dict[str, int], dict[str, int]]:
    """The heads acknowledged before a power cut, and those after it."""
    log = Log(chance)
    log.heads = await heads_left(path)
    acknowledged: dict[str, int] = {}
    loop, is_cut = asyncio.get_running_loop(), asyncio.Event()

    def cut() -> None:
        acknowledged.update(log.heads)
        files.cut(path, left)
        loop.call_soon_threadsafe(is_cut.set)

    async with SqliteStore.open(path, vfs=files.name) as store:
        store._writer.pragma("synchronous", sync)
        files.cut_after(chance.randrange(1, 400), cut)
        async with asyncio.TaskGroup() as group:
            for room in ROOM_NAMES:
                group.create_task(log.grow(store, room))
            await is_cut.wait()
            log.is_over = True
    return acknowledged, await heads_left(left)


async def test_power_cuts(
    files: PowerCutFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 40)  # so that cuts meet checkpoints
    chance = random.Random(11)
    path = tmp_path / "0.db"
    last: dict[str, int] = {}
    for number in range(1, CUTS + 1):
        left = tmp_path / f"{number}.db"
        acknowledged, last = await cut_while_writing(files, chance, path, left, sync="FULL")
        assert all(last[room] >= acknowledged[room] for room in ROOM_NAMES)
        path = left
    assert sum(last.values()) > 10 * CUTS


async def test_a_cut_before_anything_was_written(files: PowerCutFiles, tmp_path: Path) -> None:
    for number in range(12):
        path, left = tmp_path / f"{number}.db", tmp_path / f"{number}-left.db"
        files.cut_after(1 + 5 * number, lambda path=path, left=left: files.cut(path, left))  # type: ignore[misc]
        await SqliteStore.open(path, vfs=files.name).close()
        assert set((await heads_left(left)).values()) == {0}


async def test_without_syncing_the_cut_is_noticed(
    files: PowerCutFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer does forget: a store that does not sync loses what it acknowledged."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 1_000_000)
    acknowledged: dict[str, int] = {}
    left: dict[str, int] = {}
    chance = random.Random(5)
    for number in range(20):
        path, to = tmp_path / f"{number}.db", tmp_path / f"{number}-left.db"
        acknowledged, left = await cut_while_writing(files, chance, path, to, sync="OFF")
        if any(left[room] < acknowledged[room] for room in ROOM_NAMES):
            return
    pytest.fail("nothing was lost in 20 power cuts without syncs")
