"""Several nodes in one process, on one store, with a clock that tests turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.people.clocks import FakeClock
from tests.stores import StoreKind, open_store
from tidings.cluster.cluster import Cluster
from tidings.errors import Unavailable
from tidings.ids import IdMaker
from tidings.storage.interface import Store, Write


class Way:
    """One node's way to the store: it can be cut, and something can happen before a write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_cut = False
        self.before_write: Callable[[], Awaitable[None]] | None = None

    async def write(self, *writes: Write) -> None:
        if self.is_cut:
            raise Unavailable("the store does not answer")
        if self.before_write is not None:
            await self.before_write()
        await self._store.write(*writes)

    def __getattr__(self, name: str) -> object:
        if self.is_cut:
            raise Unavailable("the store does not answer")
        return getattr(self._store, name)


class Machine:
    """One node: its parts, its own monotonic clock and its way to the store."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.now_s = 1_000.0
        self.way = Way(store)
        self.store: Store = self.way  # type: ignore[assignment]
        self.cluster = Cluster(
            self.store, clock, IdMaker(clock), version="1.2", monotonic=lambda: self.now_s
        )
        self.nodes = self.cluster.nodes
        self.leases = self.cluster.leases
        self.schedule = self.cluster.schedule

    @property
    def seen(self) -> set[str]:
        """Ids of the nodes that it believes in."""
        return {node.node_id for node in self.nodes.live}


class Machines:
    """Nodes of one service, whose time goes on together."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.all: list[Machine] = []

    def add(self) -> Machine:
        made = Machine(self.store, self.clock)
        self.all.append(made)
        return made

    def pass_time(self, seconds: float) -> None:
        """Time goes by on every machine, and nothing else happens."""
        self.clock.forward(seconds)
        for machine in self.all:
            machine.now_s += seconds

    async def beat(self, *living: Machine, seconds: int = 1) -> None:
        """As many seconds, in each of which these nodes write their rows and then look."""
        for _ in range(seconds):
            self.pass_time(1.0)
            for machine in living:
                await machine.nodes.beat()
            for machine in living:
                await machine.nodes.look()


@pytest.fixture
async def machines(tmp_path: Path, store_kind: StoreKind) -> AsyncIterator[Machines]:
    clock = FakeClock()
    async with open_store(store_kind, tmp_path, clock) as store:
        yield Machines(store, clock)
