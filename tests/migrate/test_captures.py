"""What captures promise: every change of every item, by whomever, and no change forgotten."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import apsw
import pytest

from tests.migrate.copies import random_set
from tidings.errors import Unavailable
from tidings.migrate import sqlite_captures
from tidings.migrate.captures import Capture, Change
from tidings.migrate.sqlite_captures import SqliteCapture
from tidings.storage import moves
from tidings.storage.effects import write_key
from tidings.storage.interface import ConditionFailed, Delete, Failure, Key, Put, Update
from tidings.storage.moves import MoveChanged, Pair
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, MOVES, ROOMS


def keys(changes: list[Change]) -> list[tuple[str, Key]]:
    return [(change.table.name, change.key) for change in changes]


async def all_keys(capture: Capture) -> set[tuple[str, Key]]:
    return set(keys(await capture.pending(10_000)))


async def test_every_change_is_captured_once_and_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    capture = SqliteCapture(path)
    async with SqliteStore.open(path) as store:
        await store.put_many(ROOMS, [{"room": "before"}])
        assert await capture.pending(10) == []
        assert await capture.is_drained()
        await capture.begin()
        await capture.begin()
        assert await capture.lag() == 0
        await store.write(Put(ROOMS, {"room": "a"}), Put(ENTRIES, {"room": "a", "seq": 1}))
        await store.put_many(ENTRIES, [{"room": "a", "seq": seq} for seq in (2, 3)])
        await store.write(Update(BADGES, ("é\n\x00\"'",), add={"unread": 1}))
        await store.write(Update(ROOMS, ("a",), set={"title": "x"}))
        await store.write(Delete(ROOMS, ("before",)), Delete(ROOMS, ("never",)))
        await store.write(Put(MOVES, {"part": "p", "item": "i"}))
        expected = [
            ("entries", ("a", 1)),
            ("entries", ("a", 2)),
            ("entries", ("a", 3)),
            ("badges", ("é\n\x00\"'",)),
            ("rooms", ("a",)),
            ("rooms", ("before",)),
        ]
        changes = await capture.pending(10)
        assert keys(changes) == expected
        assert keys(await capture.pending(2)) == expected[:2]
        assert await capture.lag() == 6
        assert not await capture.is_drained()
        await store.write(Put(ENTRIES, {"room": "a", "seq": 2, "text": "again"}))
        await capture.forget(changes)
        assert keys(await capture.pending(10)) == [("entries", ("a", 2))]
        await capture.end()
        await capture.end()
        await store.write(Put(ROOMS, {"room": "after"}))
        assert await capture.pending(10) == []
    await capture.close()
    await capture.close()


async def test_a_key_that_changes_right_after_it_was_forgotten_is_captured_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    capture = SqliteCapture(path)
    async with SqliteStore.open(path) as store:
        await capture.begin()
        await store.write(Put(ROOMS, {"room": "a"}))
        first = await capture.pending(10)
        await capture.forget(first)
        await store.write(Put(ROOMS, {"room": "a"}))
        await capture.forget(first)
        assert keys(await capture.pending(10)) == [("rooms", ("a",))]
    await capture.close()


async def test_what_is_late_has_no_effect_on_what_was_begun_since(tmp_path: Path) -> None:
    """Two moves in a row from the same store, and a leader of the first who slept."""
    path = tmp_path / "store.db"
    async with SqliteStore.open(path) as store, SqliteStore.open(tmp_path / "b.db") as target:
        pair = Pair(store, target)
        first = await moves.announce(pair, move_id="m1", source="a", target="b", data={})
        late, other = (SqliteCapture(path, move=first) for _ in range(2))
        await late.begin()
        await store.write(Put(ROOMS, {"room": "a"}))
        known = await late.pending(10)
        first = await moves.take(pair, first, "rolled_back")
        await other.end()
        second = await moves.announce(pair, move_id="m2", source="a", target="b", data={})
        capture = SqliteCapture(path, move=second)
        await capture.begin()
        await store.write(Put(ROOMS, {"room": "b"}))
        await late.forget(known)
        for act in (late.begin, late.end):
            with pytest.raises(MoveChanged):
                await act()
        assert keys(await capture.pending(10)) == [("rooms", ("b",))]
        await capture.end()
    for each in (late, other, capture):
        await each.close()


async def test_what_other_tools_and_processes_write_is_captured(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    capture = SqliteCapture(path)
    async with SqliteStore.open(path) as store, SqliteStore.open(path) as other:
        await store.write(Put(ROOMS, {"room": "a"}))
        await capture.begin()
        await other.write(Put(ROOMS, {"room": "other"}))
        raw = apsw.Connection(str(path))
        raw.execute("INSERT OR IGNORE INTO rooms (room) VALUES ('raw'), ('a')")
        raw.execute("INSERT OR REPLACE INTO rooms (room, title) VALUES ('raw', 'x')")
        raw.execute("UPDATE rooms SET room = 'renamed' WHERE room = 'a'")
        raw.execute("BEGIN; INSERT INTO rooms (room) VALUES ('undone'); ROLLBACK")
        assert await all_keys(capture) == {
            ("rooms", (name,)) for name in ("other", "raw", "a", "renamed")
        }
        raw.execute("DELETE FROM rooms")
        assert {key for _, (key,) in await all_keys(capture)} == {
            "other", "raw", "a", "renamed"
        }  # fmt: skip
        raw.close()
    await capture.close()


async def test_capturing_changes_no_outcome_of_any_write(tmp_path: Path) -> None:
    """The same sets do the same to a store with triggers and to one without."""
    plain, watched = tmp_path / "plain.db", tmp_path / "watched.db"
    capture = SqliteCapture(watched)
    touched = set()
    async with SqliteStore.open(plain) as one, SqliteStore.open(watched) as other:
        await capture.begin()
        chance = random.Random(5)
        for _ in range(400):
            writes = random_set(chance)
            outcomes: list[tuple[Failure, ...]] = []
            for store in (one, other):
                try:
                    await store.write(*writes)
                    outcomes.append(())
                except ConditionFailed as failed:
                    outcomes.append(failed.failures)
            assert outcomes[0] == outcomes[1]
            if outcomes[0] == ():
                touched |= {(write.table.name, write_key(write)) for write in writes}
        assert await all_keys(capture) <= touched
        puts = [{"room": f"r{number}"} for number in range(1_200)]
        await other.put_many(ROOMS, puts)
        assert {("rooms", (item["room"],)) for item in puts} <= await all_keys(capture)
    await capture.close()


async def test_a_file_that_stays_locked_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    monkeypatch.setattr(sqlite_captures, "BUSY_TIMEOUT_S", 0.05)
    capture = SqliteCapture(path)
    async with SqliteStore.open(path):
        holder = apsw.Connection(str(path))
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process"):
            await capture.begin()
        holder.execute("COMMIT")
        await asyncio.gather(capture.begin(), capture.begin())
        holder.close()
    await capture.close()
