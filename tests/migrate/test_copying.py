"""Copying a store that is in use: in the end both are equal, whoever died, slept or was not heard.

The stores are embedded ones, reached over ways that take their time; `test_copying_pairs` is about
the kinds of stores.
"""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.migrate.copies import Someone, contents, fill, write_at_random
from tests.storage.suspending import Action, DistantStore, HeldStore, SuspendingStore, Way
from tidings.errors import Unavailable
from tidings.migrate import copying
from tidings.migrate.comparing import Comparison
from tidings.migrate.copying import Backfill, Follow
from tidings.migrate.lanes import Stale, clear, open_gate, progress, read_gate, retire, rows
from tidings.migrate.sets import CopyRefused
from tidings.migrate.sqlite_captures import SqliteCapture
from tidings.storage.interface import ConditionFailed, Delete, Put, Store, Table, Update, Write
from tidings.storage.pacing import Pace
from tidings.storage.sqlite import RANGE_BYTES, SqliteStore
from tidings.storage.tables import ENTRIES, RECEIPTS, ROOMS, TABLES

NAME = "mv_1#copy"
FOLLOWING = "mv_1#out#2"


class Stage:
    """Two stores, the first of which is captured."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "source.db"
        self.source = SqliteStore.open(self.path)
        self.destination = SqliteStore.open(folder / "destination.db")
        self.capture = SqliteCapture(self.path)

    def backfill(self, worker: Someone, destination: Store | None = None) -> Backfill:
        """One that does not wait for long."""
        return Backfill(
            self.source,
            destination or self.destination,
            name=NAME,
            worker=worker,
            pace=Pace(None),
            trouble_s_max=20.0,
        )

    def follow(self, worker: Someone, destination: Store | None = None) -> Follow:
        """One that does not wait for long."""
        return Follow(
            self.source,
            destination or self.destination,
            self.capture,
            name=FOLLOWING,
            worker=worker,
            pace=Pace(None),
            trouble_s_max=20.0,
        )

    async def are_equal(self) -> bool:
        """Whether both hold the same."""
        return await contents(self.source) == await contents(self.destination)

    async def close(self) -> None:
        """Let go of everything."""
        await self.capture.close()
        await self.source.close()
        await self.destination.close()


@pytest.fixture(autouse=True, scope="module")
def impatience() -> Iterator[None]:
    """What is repeated is repeated soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "LOOK_S", 0.01)
        patch.setattr(copying, "TROUBLE_PAUSES_S", (0.001, 0.01, 0.05))
        yield


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.close()


async def test_a_whole_store_arrives_as_it_is(stage: Stage) -> None:
    await fill(stage.source, rooms=40, entries=60)
    await stage.source.put_many(
        RECEIPTS, [{"room": "old", "receipt": f"{n}", "expires_at": 7} for n in range(2_000)]
    )
    backfill = stage.backfill(Someone())
    await backfill.run()
    assert await stage.are_equal()
    assert await stage.destination.get(RECEIPTS, ("old", "1")) is None
    done = await backfill.progress()
    assert done.is_done
    assert done.items == 40 * 62
    assert done.size_bytes > 40 * 62 * 20
    assert done.units == 0, "an embedded store has no price"
    await backfill.run()
    assert (await backfill.progress()).items == done.items


async def test_memory_is_bounded_by_pages_and_not_by_the_store(stage: Stage) -> None:
    """40 MB of items, of which LANES_AT_ONCE pages and what SQLite is given of them are held."""
    for room in range(40):
        large = [{"room": f"r{room:02}", "seq": seq, "text": "x" * 100_000} for seq in range(10)]
        await stage.source.put_many(ENTRIES, large)
    tracemalloc.start()
    try:
        await stage.backfill(Someone()).run()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < copying.LANES_AT_ONCE * (RANGE_BYTES + 100_000) * 2
    assert (await stage.backfill(Someone()).progress()).size_bytes > 40_000_000


async def test_several_share_the_work(stage: Stage) -> None:
    await fill(stage.source, rooms=600, entries=4)
    crew = [
        stage.backfill(Someone(name), SuspendingStore(stage.destination, seed))
        for seed, name in enumerate(("one", "two", "three"))
    ]
    await asyncio.gather(*(backfill.run() for backfill in crew))
    assert await stage.are_equal()
    assert (await crew[0].progress()).items == 600 * 6, "nothing was copied twice"
    holders = {row["holder"] for row in (await rows(stage.destination, NAME)).values()}
    assert holders == {"one", "two", "three"}


async def test_what_changes_during_the_copy_follows(stage: Stage) -> None:
    await fill(stage.source, rooms=6, entries=30)
    await stage.capture.begin()
    backfill = stage.backfill(Someone(), SuspendingStore(stage.destination))
    async with SqliteStore.open(stage.path) as other:
        writers = [
            write_at_random(store, random.Random(seed), 150)
            for seed, store in enumerate((stage.source, other, other))
        ]
        copied = asyncio.ensure_future(backfill.run())
        await asyncio.gather(*writers[:2])
        await copied
        follow = stage.follow(Someone())
        await follow.take_over()
        following = asyncio.ensure_future(follow.run())
        await writers[2]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert await follow.drain(5.0)
    assert await stage.are_equal()
    assert await stage.capture.lag() == 0


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_whoever_dies_or_freezes_the_stores_are_equal_in_the_end(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Copiers are cancelled at any await, others take over while they go on, answers are lost."""
    asyncio.run(_attack(random.Random(seed), tmp_path_factory.mktemp("attack")))


class LossyStore(DistantStore):
    """Loses writes on their way, their answers, or delivers them later than it says.

    What is late arrives when the next few writes have arrived.
    """

    def __init__(self, engine: SqliteStore, chance: random.Random) -> None:
        super().__init__(engine)
        self.late: set[asyncio.Task[None]] = set()
        self.is_quiet = False
        self._chance = chance

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """A few turns of the loop."""
        for _ in range(self._chance.randint(0, 3)):
            await asyncio.sleep(0)

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        draw = 1.0 if self.is_quiet else self._chance.random()
        if draw < 0.05:
            raise Unavailable("lost on its way")
        if draw < 0.15:
            self.late.add(asyncio.ensure_future(self._deliver_late(*writes)))
            raise Unavailable("late")
        await super().write(*writes)
        if draw < 0.25:
            raise Unavailable("the answer was lost")

    async def _deliver_late(self, *writes: Write) -> None:
        await asyncio.sleep(self._chance.choice((0.0, 0.002, 0.01)))
        await asyncio.gather(self.engine.write(*writes), return_exceptions=True)


async def _attack(chance: random.Random, folder: Path) -> None:
    stage = Stage(folder)
    lossy = LossyStore(stage.destination, chance)
    await fill(stage.source, rooms=6, entries=40)
    await stage.capture.begin()
    dead: set[str] = set()
    tasks: list[asyncio.Task[None]] = []
    async with SqliteStore.open(stage.path) as other:
        writing = [
            asyncio.ensure_future(write_at_random(store, random.Random(chance.random()), 60))
            for store in (stage.source, other)
        ]
        for number in range(4):
            worker = Someone(f"worker-{number}", dead)
            backfill = stage.backfill(worker, lossy)
            tasks.append(asyncio.ensure_future(backfill.run()))
            await asyncio.sleep(chance.random() * 0.02)
            dead.add(worker.worker_id)  # or so the others think
            if chance.random() < 0.6:
                tasks[-1].cancel()
        await stage.backfill(Someone("last", dead), lossy).run()
        for number in range(4):
            follow = stage.follow(Someone(f"follower-{number}"), lossy)
            tasks.append(asyncio.ensure_future(_follow(follow)))
            await asyncio.sleep(chance.random() * 0.02)
            if chance.random() < 0.6:
                tasks[-1].cancel()
        await asyncio.gather(*writing)
    lossy.is_quiet = True
    while not await _finish(stage.follow(Someone("last"), lossy)):
        pass
    assert await stage.are_equal()
    await retire(stage.destination, FOLLOWING)
    await retire(stage.destination, NAME)
    await stage.destination.write(Put(ROOMS, {"room": "acme#room_1", "title": "of the new store"}))
    now = await contents(stage.destination)
    await asyncio.gather(*lossy.late)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await contents(stage.destination) == now
    await stage.close()


async def _finish(follow: Follow) -> bool:
    """False where one that was slow took over after this one."""
    try:
        await follow.take_over()
        return await follow.drain(10.0)
    except Stale:
        return False


async def _follow(follow: Follow) -> None:
    await follow.trouble.overcome(follow.take_over)
    await follow.run()


async def test_a_frozen_follower_is_refused(stage: Stage) -> None:
    """It read an item, slept, and wakes when a newer version was copied by another."""
    await stage.capture.begin()
    await stage.source.write(Put(ROOMS, {"room": "r", "title": "old"}))
    held = HeldStore(stage.destination)
    frozen = stage.follow(Someone("frozen"), held)
    await frozen.take_over()
    with held.holding("request", "write") as write:
        step = asyncio.ensure_future(frozen.step())
        await write.is_there.wait()
        await stage.source.write(Put(ROOMS, {"room": "r", "title": "new"}))
        follow = stage.follow(Someone("other"))
        await follow.take_over()
        assert await follow.step() == 1
    with pytest.raises(Stale):
        await step
    assert await stage.destination.get(ROOMS, ("r",)) == {"room": "r", "title": "new"}


class LateStore(DistantStore):
    """Says of the next write that it had no answer, and applies it when `arrive` is called."""

    def __init__(self, engine: SqliteStore) -> None:
        super().__init__(engine)
        self.writes: tuple[Any, ...] | None = None
        self.is_losing = False

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """Takes no time."""

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        if self.is_losing:
            self.is_losing = False
            self.writes = writes
            raise Unavailable("no answer")
        await super().write(*writes)

    async def arrive(self) -> None:
        """Apply what was late."""
        assert self.writes is not None
        await self.engine.write(*self.writes)


async def test_what_arrives_late_does_not_undo_what_came_after(stage: Stage) -> None:
    """A write without an answer, which arrives after its copier has written something newer."""
    await stage.capture.begin()
    await stage.source.write(Put(ROOMS, {"room": "r", "title": "old"}))
    late = LateStore(stage.destination)
    follow = stage.follow(Someone(), late)
    await follow.take_over()
    late.is_losing = True
    with pytest.raises(Unavailable):
        await follow.step()
    await stage.source.write(Put(ROOMS, {"room": "r", "title": "new"}))
    assert await follow.step() == 1
    with pytest.raises(ConditionFailed):
        await late.arrive()
    assert await stage.destination.get(ROOMS, ("r",)) == {"room": "r", "title": "new"}


async def test_what_arrives_late_before_the_next_write_is_noticed(stage: Stage) -> None:
    await stage.capture.begin()
    await stage.source.write(Put(ROOMS, {"room": "r", "title": "old"}))
    late = LateStore(stage.destination)
    follow = stage.follow(Someone(), late)
    await follow.take_over()
    late.is_losing = True
    with pytest.raises(Unavailable):
        await follow.step()
    await late.arrive()
    await stage.source.write(Put(ROOMS, {"room": "r", "title": "new"}))
    assert await follow.step() == 1
    assert await stage.destination.get(ROOMS, ("r",)) == {"room": "r", "title": "new"}
    assert await stage.capture.is_drained()


async def test_nothing_passes_a_gate_that_was_closed(stage: Stage) -> None:
    await stage.capture.begin()
    await fill(stage.source, rooms=3, entries=3)
    held = HeldStore(stage.destination)
    backfill = stage.backfill(Someone("asleep"), held)
    await backfill.plan()
    follow = stage.follow(Someone("asleep"), held)
    await follow.take_over()
    with held.holding("request", "write") as claim, held.holding("request", "write") as copy:
        run = asyncio.ensure_future(backfill.run())
        await claim.is_there.wait()
        step = asyncio.ensure_future(follow.step())
        await copy.is_there.wait()
        await retire(stage.destination, NAME)
        await retire(stage.destination, FOLLOWING)
        kept = await contents(stage.destination)
    for sleeper in (run, step):
        with pytest.raises(Stale):
            await sleeper
    assert await contents(stage.destination) == kept
    with pytest.raises(Stale):
        await stage.backfill(Someone("late")).run()
    with pytest.raises(Stale):
        await read_gate(stage.destination, NAME)
    await clear(stage.destination, NAME)
    assert await rows(stage.destination, NAME) == {}
    with pytest.raises(Stale):
        await open_gate(stage.destination, NAME)
    assert not (await progress(stage.destination, NAME)).is_done


async def test_an_item_that_is_refused_is_named_and_what_is_left_can_be_copied(
    stage: Stage, tmp_path: Path
) -> None:
    await fill(stage.source, rooms=5, entries=5)
    untitled = {name: kind for name, kind in ROOMS.fields.items() if name != "title"}
    narrow = [
        msgspec.structs.replace(table, fields=untitled) if table is ROOMS else table
        for table in TABLES
    ]
    await stage.source.write(Put(ROOMS, {"room": "bad", "title": "not there"}))
    async with SqliteStore.open(tmp_path / "narrow.db", tables=narrow) as destination:
        backfill = stage.backfill(Someone(), destination)
        with pytest.raises(CopyRefused, match="'bad' of rooms") as refused:
            await backfill.run()
        assert refused.value.key == ("bad",)
        await stage.source.write(Delete(ROOMS, ("bad",)))
        await backfill.run()
        assert await contents(destination) == await contents(stage.source)


async def test_a_disk_that_is_full_is_waited_for_and_then_told(stage: Stage) -> None:
    await fill(stage.source, rooms=5, entries=200, text="x" * 400)
    destination = stage.destination
    pages = destination._writer.pragma("page_count")
    destination._writer.pragma("max_page_count", pages + 40)
    backfill = stage.backfill(Someone())
    backfill.trouble = copying.Trouble(0.3)
    with pytest.raises(Unavailable, match="disk is full"):
        await backfill.run()
    destination._writer.pragma("max_page_count", 1_000_000)
    await backfill.run()
    assert await stage.are_equal()


async def test_a_comparison_tells_and_mends_what_differs(stage: Stage) -> None:
    await fill(stage.source, rooms=20, entries=20)
    await stage.capture.begin()
    await stage.backfill(Someone()).run()
    follow = stage.follow(Someone())
    await follow.take_over()
    following = asyncio.ensure_future(follow.run())
    report = await Comparison(stage.source, stage.destination, follow).run()
    assert report.is_equal
    assert report.sample == []
    by_table = {table.table: table for table in report.tables}
    assert by_table["entries"].source_items == by_table["entries"].destination_items == 400
    assert by_table["entries"].source_hash == by_table["entries"].destination_hash != 0
    await stage.destination.write(
        Put(ROOMS, {"room": "extra"}),
        Update(ROOMS, ("acme#room_000001",), set={"title": "x"}, add={"head": 1}),
        Delete(ENTRIES, ("acme#room_000002", 3)),
    )
    found = await Comparison(stage.source, stage.destination, None).run()
    assert not found.is_equal
    shown = {str(difference) for difference in found.sample}
    assert shown == {
        "rooms extra: not in the source",
        "rooms acme#room_000001: head, title",
        "entries acme#room_000002#3: not in the destination",
    }
    rooms = next(table for table in found.tables if table.table == "rooms")
    assert (rooms.source_items, rooms.destination_items, rooms.unsettled) == (20, 21, 2)
    assert rooms.source_hash != rooms.destination_hash
    mended = await Comparison(stage.source, stage.destination, follow).run()
    assert mended.is_equal
    assert sum(table.mended for table in mended.tables) == 3
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert await stage.are_equal()


async def test_what_is_being_written_is_no_difference(stage: Stage) -> None:
    await fill(stage.source, rooms=6, entries=40)
    await stage.capture.begin()
    await stage.backfill(Someone()).run()
    follow = stage.follow(Someone(), SuspendingStore(stage.destination))
    await follow.take_over()
    following = asyncio.ensure_future(follow.run())
    async with SqliteStore.open(stage.path) as other:
        writing = asyncio.ensure_future(write_at_random(other, random.Random(3), 400))
        report = await Comparison(stage.source, stage.destination, follow).run()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    assert [table for table in report.tables if table.differences] == []
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_changed_and_changed_back_is_no_difference(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(stage.source, rooms=3, entries=3)
    await stage.capture.begin()
    await stage.backfill(Someone()).run()
    follow = stage.follow(Someone())
    await follow.take_over()
    await stage.destination.write(Put(ROOMS, {"room": "passing"}))
    passes = 0

    async def passed() -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            await stage.destination.write(Delete(ROOMS, ("passing",)))

    monkeypatch.setattr(follow, "passed", passed)
    report = await Comparison(stage.source, stage.destination, follow).run()
    assert [table for table in report.tables if table.differences] == []
    assert report.sample == []
