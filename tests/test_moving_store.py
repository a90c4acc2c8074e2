"""Many processes write while a service is moved to and fro: nothing is lost, nothing is done twice.

The processes have stores of their own over the same two files. Whoever moves dies at random, and
processes are frozen in the middle of what they do while the others go on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Any

import pytest

from tests.engines import dynamo_tables
from tests.storage import moved
from tests.storage.contract import SetClock, scan_all
from tests.storage.moved import SOURCE, TARGET, Mover, OpenBare, files
from tests.storage.suspending import SuspendingStore
from tidings.clock import Clock
from tidings.errors import Unavailable
from tidings.storage import moves
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Absent, ConditionFailed, Equals, Put, Store, Table, Update
from tidings.storage.moves import MoveChanged
from tidings.storage.moving import MovingStore
from tidings.storage.sqlite import SqliteStore
from tidings.storage.standing import Stack
from tidings.storage.tables import BADGES, ENTRIES, MOVES

ROOMS_WRITTEN = 3
PROCESSES = 3
PAUSE_S = 0.004
"""Of a process between two writes."""
VIEW_S, SWITCH_S, SEAL_S = 0.15, 0.25, 0.5
"""As in the service, but that everything goes faster."""


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    moved.hurry(monkeypatch)
    monkeypatch.setattr("tidings.storage.standing.VIEW_MAX_S", VIEW_S)
    monkeypatch.setattr("tidings.storage.standing.SEAL_MAX_S", SEAL_S)
    monkeypatch.setattr("tidings.storage.standing.SWITCH_MAX_S", SWITCH_S)


class Freezer:
    """Stops one process at its next call to a store, or before it hears the answer."""

    def __init__(self) -> None:
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def gate(self) -> None:
        await self._thawed.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self._thawed.clear()
        try:
            yield
        finally:
            self._thawed.set()


class FreezableStore(SuspendingStore):
    """An engine whose process may be stopped before a call reaches it, and before its answer."""

    def __init__(self, engine: SqliteStore, freezer: Freezer, seed: int) -> None:
        super().__init__(engine, seed)
        self._freezer = freezer

    async def travel(self, way: Any, action: Any, table: Table | None) -> None:
        await super().travel(way, action, table)
        await self._freezer.gate()


class Process:
    """One process that writes: appends to logs as chat does, with a fence and a receipt."""

    def __init__(self, store: MovingStore, name: str, freezer: Freezer) -> None:
        self.store = store
        self.name = name
        self.freezer = freezer
        self.acknowledged: list[tuple[str, str]] = []
        """(room, client_id) of what the store said was written."""
        self.unknown: list[tuple[str, str]] = []
        self.slowest_s = 0.0

    @classmethod
    @asynccontextmanager
    async def open(
        cls, open_bare: OpenBare, name: str, slots: int, seed: int
    ) -> AsyncIterator[Process]:
        freezer = Freezer()

        @asynccontextmanager
        async def opening(url: str) -> AsyncIterator[Stack]:
            async with open_bare(url, SetClock()) as engine:
                if isinstance(engine, SqliteStore):
                    engine = FreezableStore(engine, freezer, seed)
                yield Stack(engine, engine, slots=slots)

        store = await MovingStore.open(SOURCE, opening)
        yield cls(store, name, freezer)
        await store.close()

    async def write(self, chance: random.Random, until: asyncio.Event) -> None:
        """Append messages one after the other until told to stop."""
        number = 0
        loop = asyncio.get_running_loop()
        while not until.is_set():
            number += 1
            room, client_id = f"room_{chance.randrange(ROOMS_WRITTEN)}", f"{self.name}-{number}"
            began = loop.time()
            try:
                await self._append(room, client_id)
            except Unavailable:
                self.unknown.append((room, client_id))
            else:
                self.acknowledged.append((room, client_id))
            self.slowest_s = max(self.slowest_s, loop.time() - began)
            await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))

    async def _append(self, room: str, client_id: str) -> None:
        while True:
            badge = await self.store.get(BADGES, (room,)) or {}
            head = badge.get("version", 0)
            entry = {"room": room, "seq": head + 1, "client_id": client_id}
            fence = () if head == 0 else (Equals("version", head),)
            with suppress(ConditionFailed):
                await self.store.write(
                    Put(ENTRIES, entry, (Absent(),)),
                    Update(BADGES, (room,), add={"version": 1}, when=fence or (Absent(),)),
                )
                return

    async def check_reads(self, until: asyncio.Event) -> None:
        """What was read once is never again older: heads only grow."""
        heads: dict[str, int] = {}
        while not until.is_set():
            for number in range(ROOMS_WRITTEN):
                room = f"room_{number}"
                with suppress(Unavailable):
                    badge = await self.store.get(BADGES, (room,)) or {}
                    assert badge.get("version", 0) >= heads.get(room, 0)
                    heads[room] = badge.get("version", 0)
            await asyncio.sleep(PAUSE_S)


class World:
    """Processes that write and read all the time, and the two stores as they are."""

    def __init__(self, mover: Mover, processes: Sequence[Process], chance: random.Random) -> None:
        self.mover = mover
        self.processes = processes
        self.chance = chance
        self._until = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, open_bare: OpenBare, seed: int, slots: int = 2) -> AsyncIterator[World]:
        chance = random.Random(seed)
        async with AsyncExitStack() as stack:
            mover = await stack.enter_async_context(Mover.open(open_bare))
            processes = [
                await stack.enter_async_context(
                    Process.open(open_bare, f"p{number}", slots, seed + number)
                )
                for number in range(PROCESSES)
            ]
            yield cls(mover, processes, chance)

    def start(self) -> None:
        for number, process in enumerate(self.processes):
            chance = random.Random(self.chance.random() + number)
            self._tasks.append(asyncio.create_task(process.write(chance, self._until)))
            self._tasks.append(asyncio.create_task(process.check_reads(self._until)))

    async def stop(self) -> None:
        self._until.set()
        await asyncio.gather(*self._tasks)

    async def step(self) -> None:
        """Whatever comes next, by somebody who knows nothing but the record."""
        mover, pair = self.mover, self.mover.pair
        move = await moves.read(pair)
        if move is None or move.is_over:
            await mover.begin(known=PROCESSES)
            return
        match move.stage:
            case "preparing":
                await mover.guarded(move, PROCESSES)
                await moves.take(pair, move, "copying")
            case "copying":
                await moves.take(pair, move, "following")
            case "following" if self.chance.random() < 0.1:
                await moves.take(pair, move, "rolled_back")
            case "following" | "settled":
                await moves.seal(pair, move)
            case "sealed" if self.chance.random() < 0.1:
                await moves.unseal(pair, move)
            case "sealed":
                sealed = await moves.seal(pair, move)
                await mover.carry(sealed)
                await moves.decide(pair, sealed)
            case "switched":
                await mover.settle(move, SWITCH_S)

    async def step_or_die(self) -> None:
        """A step that may be cut short at any await, and leaves what it has written until then."""
        with suppress(TimeoutError, MoveChanged):
            async with asyncio.timeout(self.chance.choice((0.002, 0.01, 0.05, 1.0, 1.0, 1.0))):
                await self.step()

    async def check(self) -> None:
        """All that was acknowledged is in the store that decides, once, and nothing else is."""
        move = await self.mover.move()
        store = self.mover.pair.at(move.decides)
        entries = await scan_all(store, ENTRIES)
        written = [(entry["room"], entry["client_id"]) for entry in entries]
        assert len(written) == len(set(written))
        for room in range(ROOMS_WRITTEN):
            seqs = sorted(e["seq"] for e in entries if e["room"] == f"room_{room}")
            assert seqs == list(range(1, len(seqs) + 1))
            badge = await store.get(BADGES, (f"room_{room}",)) or {}
            assert badge.get("version", 0) == len(seqs)
        acknowledged = {one for process in self.processes for one in process.acknowledged}
        unknown = {one for process in self.processes for one in process.unknown}
        assert acknowledged <= set(written)
        assert set(written) <= acknowledged | unknown


@pytest.mark.parametrize("seed", range(3))
async def test_whoever_moves_dies_at_any_time(tmp_path: Path, seed: int) -> None:
    async with World.open(files(tmp_path), seed) as world:
        world.start()
        for _ in range(3):
            await world.step_or_die()
        await world.stop()
        await world.check()
        assert all(process.acknowledged for process in world.processes)
        assert not any(process.unknown for process in world.processes)


@pytest.mark.parametrize("seed", range(3))
async def test_a_process_is_frozen_across_the_switch(tmp_path: Path, seed: int) -> None:
    """What it had under way is refused by the old store, and done on the new one when it wakes."""
    async with World.open(files(tmp_path), seed) as world:
        world.start()
        for _ in range(3):
            await world.mover.begin(known=PROCESSES)
            for _ in range(2):
                await asyncio.sleep(0.02)
                sleeper = world.chance.choice(world.processes)
                with sleeper.freezer.frozen():
                    await asyncio.sleep(0.01)
                    await world.mover.switch(SWITCH_S)
                    done = len(sleeper.acknowledged)
                    await asyncio.sleep(0.05)
                    assert len(sleeper.acknowledged) == done
        await world.stop()
        await world.check()


@pytest.mark.slow
async def test_to_dynamodb_and_back(tmp_path: Path) -> None:
    """With more sets under way than guards, none of which are shared there."""
    async with dynamo_tables([BADGES, ENTRIES, MOVES]) as address:
        source = files(tmp_path)

        def open_bare(url: str, clock: Clock) -> AbstractAsyncContextManager[Store]:
            if url == TARGET:
                return DynamoStore.open(address, clock=clock, tables=[BADGES, ENTRIES, MOVES])
            return source(url, clock)

        async with World.open(open_bare, seed=1, slots=4) as world:
            world.mover.tables = [ENTRIES, BADGES]
            world.start()
            await world.mover.begin(known=PROCESSES)
            await world.mover.switch()
            rooms = [Put(BADGES, {"user": f"other_{number}"}) for number in range(20)]
            await asyncio.gather(*map(world.processes[0].store.write, rooms))
            await world.mover.switch()
            await world.stop()
            await world.check()
            for room in rooms:
                assert await world.mover.pair.source.get(BADGES, (room.item["user"],)) is not None
            assert not any(process.unknown for process in world.processes)
