"""Two stores and whoever moves a service between them: the least that a mover has to do."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.storage.contract import scan_all
from tidings.clock import Clock
from tidings.storage import moves
from tidings.storage.interface import (
    SET_ITEMS_MAX,
    Check,
    Delete,
    Equals,
    Put,
    Store,
    Table,
    Update,
    Write,
)
from tidings.storage.moves import Move, MoveChanged, Pair
from tidings.storage.moving import MovingStore
from tidings.storage.sqlite import SqliteStore
from tidings.storage.standing import Opening, Stack
from tidings.storage.tables import MOVES, TABLES

SOURCE, TARGET = "sqlite:////source", "sqlite:////target"
LANE = ("lanes", "test")
LOOK_S = 0.01
"""How often a mover looks whether everybody has confirmed."""

OpenBare = Callable[[str, Clock], AbstractAsyncContextManager[Store]]
"""Opens one of the two stores, bare, by the address that the record has of it."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes look soon, for tests in which they see what there is to see anyway."""
    monkeypatch.setattr("tidings.storage.standing.LOOK_INTERVAL_S", LOOK_S)
    monkeypatch.setattr("tidings.storage.standing.HELD_LOOK_INTERVAL_S", LOOK_S)
    monkeypatch.setattr("tidings.storage.moving.HELD_LOOK_INTERVAL_S", LOOK_S)


def files(folder: Path) -> OpenBare:
    """Both stores are files."""

    def open_bare(url: str, clock: Clock) -> AbstractAsyncContextManager[Store]:
        return SqliteStore.open(folder / f"{url.rpartition('/')[2]}.db", clock=clock)

    return open_bare


def opening(open_bare: OpenBare, clock: Clock, slots: int = 1) -> Opening:
    """How a `MovingStore` opens the stores."""

    @asynccontextmanager
    async def open_stack(url: str) -> AsyncIterator[Stack]:
        async with open_bare(url, clock) as engine:
            yield Stack(engine, engine, slots=slots)

    return open_stack


class Mover:
    """Moves a service to and fro. Its own stores have a clock by which nothing ever expires."""

    def __init__(self, pair: Pair, tables: Sequence[Table] = TABLES) -> None:
        self.pair = pair
        self.tables = [table for table in tables if table != MOVES]

    @classmethod
    @asynccontextmanager
    async def open(
        cls, open_bare: OpenBare, tables: Sequence[Table] = TABLES
    ) -> AsyncIterator[Mover]:
        async with open_bare(SOURCE, lambda: 0) as source, open_bare(TARGET, lambda: 0) as target:
            yield cls(Pair(source, target), tables)

    async def move(self) -> Move:
        """The record as it is."""
        move = await moves.read(self.pair)
        assert move is not None
        return move

    async def begin(self, known: int = 1) -> Move:
        """Announce a move, wait until so many processes guard, and go on until it follows."""
        move = await moves.announce(
            self.pair, move_id=secrets.token_hex(4), source=SOURCE, target=TARGET, data={}
        )
        await self.guarded(move, known)
        move = await moves.take(self.pair, move, "copying")
        return await moves.take(self.pair, move, "following")

    async def guarded(self, move: Move, known: int) -> None:
        """Wait until so many processes guard: it takes the place of PREPARE_S."""
        while True:
            processes = await moves.processes(self.pair.source)
            if sum(process.epoch >= move.epoch for process in processes) >= known:
                return
            await asyncio.sleep(LOOK_S)

    async def switch(self, patience_s: float = 10.0) -> Move:
        """Make the other store decide: the target, or the source again."""
        while True:
            with suppress(MoveChanged):  # somebody took the seal away, for it took too long
                move = await moves.seal(self.pair, await self.move())
                await self.carry(move)
                return await self.settle(await moves.decide(self.pair, move), patience_s)

    async def settle(self, move: Move, patience_s: float) -> Move:
        """Wait until everybody has confirmed the switch, but not longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while await moves.unconfirmed(self.pair, move):
                    await asyncio.sleep(LOOK_S)
        return await moves.settle(self.pair, move)

    async def carry(self, move: Move) -> None:
        """Make the store that does not decide hold what the other does.

        A mover that died in it may still have writes under way there: they are fenced off.
        """
        here, there = self.pair.at(move.decides), self.pair.at(moves.other(move.decides))
        await there.write(Update(MOVES, LANE, add={"fence": 1}))
        lane = await there.get(MOVES, LANE)
        assert lane is not None
        fence = Check(MOVES, LANE, (Equals("fence", lane["fence"]),))
        for table in self.tables:
            wanted = {table.key(item): item for item in await scan_all(here, table)}
            found = {table.key(item): item for item in await scan_all(there, table)}
            changes: list[Write] = [
                Put(table, item) for key, item in wanted.items() if found.get(key) != item
            ]
            changes += [Delete(table, key) for key in found.keys() - wanted.keys()]
            for start in range(0, len(changes), SET_ITEMS_MAX):
                await there.write(*changes[start : start + SET_ITEMS_MAX], fence)

    async def to_and_fro(self) -> None:
        """Move, move back, and so on, until cancelled."""
        while True:
            await self.begin()
            await self.switch()
            await self.switch()


async def open_moving(open_bare: OpenBare, clock: Clock, slots: int = 1) -> MovingStore:
    """One process that was given the source's address."""
    return await MovingStore.open(SOURCE, opening(open_bare, clock, slots))
