"""Two stores and whoever moves a service between them: the least that a mover has to do."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.storage.contract import scan_all
from tidings.clock import Clock
from tidings.storage import moves
from tidings.storage.interface import Delete, Store, Table
from tidings.storage.moves import Move, Pair
from tidings.storage.moving import MovingStore
from tidings.storage.sqlite import SqliteStore
from tidings.storage.standing import Opening, Stack
from tidings.storage.tables import MOVES, TABLES

SOURCE, TARGET = "sqlite:////source", "sqlite:////target"
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
        self._tables = [table for table in tables if table != MOVES]

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
        while sum(each.epoch >= move.epoch for each in await self.processes()) < known:
            await asyncio.sleep(LOOK_S)
        move = await moves.take(self.pair, move, "copying")
        return await moves.take(self.pair, move, "following")

    async def processes(self) -> list[moves.Process]:
        return await moves.processes(self.pair.at((await self.move()).decides))

    async def switch(self) -> Move:
        """Make the other store decide: the target, or the source again."""
        move = await moves.seal(self.pair, await self.move())
        await self.carry(move)
        move = await moves.decide(self.pair, move)
        while await moves.unconfirmed(self.pair, move):
            await asyncio.sleep(LOOK_S)
        return await moves.settle(self.pair, move)

    async def carry(self, move: Move) -> None:
        """Make the store that does not decide hold what the other does."""
        here, there = self.pair.at(move.decides), self.pair.at(moves.other(move.decides))
        for table in self._tables:
            wanted = {table.key(item): item for item in await scan_all(here, table)}
            found = {table.key(item): item for item in await scan_all(there, table)}
            await there.put_many(table, [i for key, i in wanted.items() if found.get(key) != i])
            for key in found.keys() - wanted.keys():
                await there.write(Delete(table, key))

    async def to_and_fro(self) -> None:
        """Move, move back, and so on, until cancelled."""
        while True:
            await self.begin()
            await self.switch()
            await self.switch()


async def open_moving(open_bare: OpenBare, clock: Clock, slots: int = 1) -> MovingStore:
    """One process that was given the source's address."""
    return await MovingStore.open(SOURCE, opening(open_bare, clock, slots))
