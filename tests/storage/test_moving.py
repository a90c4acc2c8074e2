"""A store that may be moved keeps the contract: at rest, while guarded, and while it is moved."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.storage import moved
from tests.storage.contract import SetClock, StoreContract, room, scan_all
from tests.storage.machine import StoreMachine
from tests.storage.moved import LOOK_S, SOURCE, TARGET, Mover, files, open_moving, opening
from tests.storage.suspending import HeldStore
from tidings.clock import Clock
from tidings.errors import Conflict, Unavailable
from tidings.storage import moves, standing
from tidings.storage.interface import SET_ITEMS_MAX, Put, Store
from tidings.storage.moves import Pair
from tidings.storage.moving import MovingStore
from tidings.storage.sqlite import SqliteStore
from tidings.storage.standing import Stack
from tidings.storage.tables import ROOMS


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    moved.hurry(monkeypatch)


class TestAtRest(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        store = await open_moving(files(tmp_path), clock)
        yield store
        await store.close()


class TestGuarded(StoreContract):
    """With more guards than one, as on a network store."""

    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock, slots=3)
            await mover.begin()
            yield store
            await store.close()


class TestSwitchedTo(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock)
            await mover.begin()
            await mover.switch()
            yield store
            await store.close()


class TestToAndFro(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path, clock: SetClock) -> AsyncIterator[Store]:
        async with Mover.open(files(tmp_path)) as mover:
            store = await open_moving(files(tmp_path), clock)
            moving = asyncio.create_task(mover.to_and_fro())
            yield store
            assert not moving.done() or moving.result()
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            await store.close()


class MovedEngine:
    """Two files between which the store is moved; it is left and opened again by one address."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())

    async def open(self, clock: Clock) -> Store:
        return await open_moving(files(self.folder), clock)

    async def crash(self, store: Store) -> None:
        """Its rows stay; the files are those that the next one opens."""
        assert isinstance(store, MovingStore)
        await store.close()

    def remove(self) -> None:
        shutil.rmtree(self.folder)


class MovingMachine(StoreMachine):
    new_engine = MovedEngine

    def __init__(self) -> None:
        super().__init__()
        assert isinstance(self.engine, MovedEngine)
        self.stack = AsyncExitStack()
        coming = self.stack.enter_async_context(Mover.open(files(self.engine.folder)))
        self.mover = self.run(coming)

    @rule()
    def move_on(self) -> None:
        """Begin, switch, or switch back, at whatever point things are."""
        move = self.run(moves.read(self.mover.pair))
        self.run(self.mover.begin() if move is None or move.is_over else self.mover.switch())

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        super().teardown()


def test_a_moving_store_is_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    moved.hurry(monkeypatch)
    run_state_machine_as_test(
        MovingMachine, settings=settings(max_examples=8, stateful_step_count=25, deadline=None)
    )


# -- what is particular to it


@pytest.fixture
async def mover(tmp_path: Path) -> AsyncIterator[Mover]:
    async with Mover.open(files(tmp_path)) as mover:
        yield mover


@pytest.fixture
async def store(tmp_path: Path, clock: SetClock) -> AsyncIterator[MovingStore]:
    store = await open_moving(files(tmp_path), clock)
    yield store
    await store.close()


async def test_which_addresses_serve(tmp_path: Path, mover: Mover, clock: SetClock) -> None:
    """The source's until the move is finished, the target's once it is switched to."""

    async def serves(url: str) -> bool:
        try:
            store = await MovingStore.open(url, opening(files(tmp_path), clock))
        except Conflict as refused:
            return (TARGET if url == SOURCE else SOURCE) not in refused.detail
        await store.write(Put(ROOMS, room(2, title=url)))
        await store.close()
        return True

    assert await serves(SOURCE)
    await mover.begin(known=0)
    assert (await serves(SOURCE), await serves(TARGET)) == (True, False)
    await mover.switch()
    assert (await serves(SOURCE), await serves(TARGET)) == (True, True)
    assert await mover.pair.source.get(ROOMS, ("acme#room_2",)) != room(2, title=TARGET)
    await mover.switch()
    assert (await serves(SOURCE), await serves(TARGET)) == (True, False)
    await mover.begin(known=0)
    await mover.switch()
    await moves.take(mover.pair, await mover.move(), "finished")
    assert (await serves(SOURCE), await serves(TARGET)) == (False, True)


async def test_a_step_that_one_store_was_not_told(
    tmp_path: Path, mover: Mover, clock: SetClock
) -> None:
    """The source was switched away from, and the target has yet to hear of it."""
    await mover.begin(known=0)
    sealed = await moves.seal(mover.pair, await mover.move())
    await mover.carry(sealed)
    await moves.decide(Pair(mover.pair.source, None), sealed)
    row = await moves.read_row(mover.pair.target)
    assert row is not None
    assert row.decides == "source"
    for url in (SOURCE, TARGET):
        store = await MovingStore.open(url, opening(files(tmp_path), clock))
        books = await store.books()
        assert books is not None
        assert (books[0].stage, books[0].decides) == ("switched", "target")
        await store.close()


async def test_a_seal_whose_mover_died_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, mover: Mover, store: MovingStore
) -> None:
    monkeypatch.setattr("tidings.storage.standing.SEAL_MAX_S", 0.2)
    await mover.begin()
    await moves.seal(mover.pair, await mover.move())
    await store.write(Put(ROOMS, room()))
    assert (await mover.move()).stage == "following"
    assert await mover.pair.source.get(ROOMS, ("acme#room_1",)) == room()


async def test_a_switch_whose_mover_died_is_completed(
    monkeypatch: pytest.MonkeyPatch, mover: Mover, store: MovingStore
) -> None:
    monkeypatch.setattr("tidings.storage.standing.SWITCH_MAX_S", 0.2)
    await mover.begin()
    await moves.decide(mover.pair, await moves.seal(mover.pair, await mover.move()))
    await store.write(Put(ROOMS, room()))
    assert (await mover.move()).stage == "settled"
    assert await mover.pair.target.get(ROOMS, ("acme#room_1",)) == room()


async def test_nobody_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, mover: Mover, store: MovingStore
) -> None:
    monkeypatch.setattr("tidings.storage.moving.HELD_MAX_S", 0.1)
    await mover.begin()
    await moves.seal(mover.pair, await mover.move())
    with pytest.raises(Unavailable):
        await store.write(Put(ROOMS, room()))
    assert await store.get(ROOMS, ("acme#room_1",)) is None


async def test_a_move_to_where_it_can_not_get(
    tmp_path: Path, mover: Mover, clock: SetClock
) -> None:
    """It works on at the source, and tells that it had better not be switched."""
    there = opening(files(tmp_path), clock)

    @asynccontextmanager
    async def without_target(url: str) -> AsyncIterator[Stack]:
        if url == TARGET:
            raise Unavailable("no way there")
        async with there(url) as stack:
            yield stack

    store = await MovingStore.open(SOURCE, without_target)
    await mover.begin()
    await store.write(Put(ROOMS, room()))
    await store.close()
    store = await MovingStore.open(SOURCE, without_target)
    books = await store.books()
    assert books is not None
    with pytest.raises(Unavailable):
        await books[1].target.close()
    while not any("problem" in each.data for each in await moves.processes(mover.pair.source)):
        await asyncio.sleep(LOOK_S)
    await store.close()


async def test_who_slept_in_a_write_before_any_move_was_begun_does_not_acknowledge_it(
    tmp_path: Path, mover: Mover, clock: SetClock
) -> None:
    """It had no guard, and reaches the source when that decides no more."""
    held: list[HeldStore] = []
    slept_s = 0.0

    @asynccontextmanager
    async def slow(url: str) -> AsyncIterator[Stack]:
        async with SqliteStore.open(tmp_path / f"{url[-6:]}.db", clock=clock) as engine:
            held.append(HeldStore(engine))
            yield Stack(held[-1], engine, slots=1)

    store = await MovingStore.open(SOURCE, slow, boottime=lambda: standing.boottime() + slept_s)
    with held[0].holding("request", "write", ROOMS) as write:
        writing = asyncio.create_task(store.write(Put(ROOMS, room())))
        await write.is_there.wait()
        slept_s = 3600.0
        await mover.begin(known=0)
        await mover.switch(patience_s=0.1)
    with pytest.raises(Unavailable):
        await writing
    assert await store.get(ROOMS, ("acme#room_1",)) is None
    await store.close()


async def test_who_was_taken_for_dead_registers_again(
    monkeypatch: pytest.MonkeyPatch, mover: Mover, store: MovingStore
) -> None:
    """Also if it does nothing but read; and what it writes meanwhile is not lost."""
    monkeypatch.setattr("tidings.storage.standing.BEAT_INTERVAL_S", 0.05)
    source = mover.pair.source
    await mover.begin()
    (process,) = await moves.processes(source)
    await moves.forget_dead(source, process)
    await store.write(Put(ROOMS, room()))
    (process,) = await moves.processes(source)
    await moves.forget_dead(source, process)
    while not await moves.processes(source):
        await asyncio.sleep(LOOK_S)


async def test_a_scan_does_not_go_on_in_another_store(mover: Mover, store: MovingStore) -> None:
    await store.put_many(ROOMS, [room(number) for number in range(9)])
    await mover.begin()
    page = await store.scan(ROOMS, limit=4)
    assert page.after is not None
    await mover.switch()
    with pytest.raises(Unavailable, match="begins anew"):
        await store.scan(ROOMS, limit=4, after=page.after)
    assert len(await scan_all(store, ROOMS)) == 9


async def test_a_snapshot_is_of_the_store_that_decides(mover: Mover, store: MovingStore) -> None:
    await mover.begin()
    await mover.switch()
    await store.write(Put(ROOMS, room()))
    async with store.snapshot() as then:
        await store.write(Put(ROOMS, room(2)))
        assert len(await scan_all(then, ROOMS)) == 1
    assert store.engine is not mover.pair.target


async def test_bulk_under_a_move(mover: Mover, store: MovingStore) -> None:
    """More than one set takes, and the last of equal keys stays."""
    await mover.begin()
    items = [room(number) for number in range(250)] + [room(7, title="last")]
    await store.put_many(ROOMS, items)
    found = {item["room"]: item for item in await scan_all(store, ROOMS)}
    assert len(found) == 250
    assert found["acme#room_7"]["title"] == "last"
    with pytest.raises(ValueError, match="at most"):
        await store.write(*(Put(ROOMS, room(number)) for number in range(SET_ITEMS_MAX + 1)))


async def test_shadow_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mover: Mover, clock: SetClock
) -> None:
    """What differs only because it was not carried over yet does not count."""
    monkeypatch.setattr("tidings.storage.shadows.PAUSES_S", (0.0, 0.05, 0.1))
    heard: list[bool] = []
    got = asyncio.Event()

    def hear(is_same: bool) -> None:
        heard.append(is_same)
        got.set()

    store = await MovingStore.open(SOURCE, opening(files(tmp_path), clock), on_shadow=hear)
    move = await mover.begin()
    await store.get(ROOMS, ("acme#room_1",))
    await moves.amend(mover.pair, move, data={"shadow": 1.0})
    while (books := await store.books()) is None or not books[0].data:
        await asyncio.sleep(LOOK_S)
    await store.write(Put(ROOMS, room()))
    assert await store.get(ROOMS, ("acme#room_1",)) == room()
    await mover.carry(move)
    await got.wait()
    assert heard == [True]
    got.clear()
    await mover.pair.target.write(Put(ROOMS, room(title="odd")))
    page = await store.query(ROOMS, "acme#room_1")
    assert page.items == [room()]
    await got.wait()
    assert heard == [True, False]
    await store.close()
