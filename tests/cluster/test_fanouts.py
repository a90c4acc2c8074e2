"""Large rooms on several nodes: one runs a fan-out, another finishes it, nothing is told twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.api.conftest import soon
from tests.chat.test_commits import WORKSPACE, World
from tests.cluster.conftest import Machine, Machines
from tests.stores import EVERY_STORE
from tidings.chat import commands, fanouts
from tidings.chat.audit import audit
from tidings.chat.commits import Commits
from tidings.cluster.nodes import NODE_SILENT_S
from tidings.storage.interface import Item, Key, Store, Table, Write
from tidings.storage.tables import FANOUTS, INBOXES, room_key, user_key

STORES = EVERY_STORE


MEMBERS = 120
BIG = room_key(WORKSPACE, "big")


class Holding:
    """A store that holds back what it is told to, until it is let go."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.holds_read: Callable[[Table], bool] = lambda table: False
        self.holds_write: Callable[[Sequence[Write]], bool] = lambda writes: False
        self.is_holding = asyncio.Event()
        self.go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        found = await self._store.get(table, key, consistent=consistent)
        if self.holds_read(table):
            await self._hold()
        return found

    async def write(self, *writes: Write) -> None:
        if self.holds_write(writes):
            await self._hold()
        await self._store.write(*writes)

    async def _hold(self) -> None:
        self.is_holding.set()
        await self.go.wait()


class Site:
    """The chat of one node."""

    def __init__(self, machines: Machines) -> None:
        self.machine: Machine = machines.add()
        self.store = Holding(self.machine.store)
        self.world = World(machines.store, machines.clock)
        held: Any = self.store
        self.commits = Commits(held, machines.clock, self.world.publish, self.machine.nodes)
        self.world.commits = self.commits

    @property
    def node_id(self) -> str:
        return self.machine.nodes.node_id


@asynccontextmanager
async def sites(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Site, Site, list[str]]]:
    """Two nodes that see each other, and a large room at rest."""
    monkeypatch.setattr(fanouts, "WATCH_INTERVAL_S", 0.01)
    monkeypatch.setattr(fanouts, "FOUNDING_LOOK_S", 0.01)
    a, b = Site(machines), Site(machines)
    people = await a.world.people(MEMBERS)
    await machines.beat(a.machine, b.machine)
    await a.world.room("big", people)
    await a.world.settle()
    await b.commits.start()
    try:
        yield a, b, people
    finally:
        a.store.go.set()
        b.store.go.set()
        await a.commits.stop()
        await b.commits.stop()
    report = await audit(machines.store, clock=machines.clock)
    assert report.ok, report.broken[:5]
    told = Counter[tuple[str, int]]()
    for site in (a, b):
        for user_id, versions in site.world.versions.items():
            told.update((user_id, version) for version in versions)
    assert set(told.values()) == {1}, "one version of a user was told by two nodes"


async def holder(machines: Machines) -> str | None:
    item = await machines.store.get(FANOUTS, (BIG,))
    return None if item is None else item["node_id"]


async def rest(machines: Machines) -> None:
    """Return when no fan-out is open."""

    async def is_closed() -> bool:
        return not (await machines.store.scan(FANOUTS)).items

    await soon(is_closed)


async def previews(machines: Machines, people: Sequence[str]) -> set[str | None]:
    keys = [(user_key(WORKSPACE, user), "big") for user in people]
    rows = await machines.store.get_many(INBOXES, keys)
    return {None if row is None else row.get("preview") for row in rows}


def is_chunk(writes: Sequence[Write]) -> bool:
    return all(write.table is not FANOUTS for write in writes) and len(writes) > 50


async def test_the_fan_out_of_a_dead_node_is_finished_by_another(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_write = is_chunk
        await a.world.post("big", people[0], "1")
        await a.store.is_holding.wait()
        await a.commits.stop()  # killed: its row stays where it is
        await asyncio.sleep(0.1)
        assert await holder(machines) == a.node_id, "it was taken from a node that lives"
        machines.pass_time(NODE_SILENT_S)
        for _ in range(int(NODE_SILENT_S)):
            await machines.beat(b.machine)
        await rest(machines)
        assert not b.machine.nodes.is_live(a.node_id)
        assert await previews(machines, people) == {"hello"}


async def test_commits_of_another_node_ride_along(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_write = is_chunk
        await a.world.post("big", people[0], "1")
        await a.store.is_holding.wait()
        await asyncio.gather(*(b.world.post("big", people[n], f"b{n}") for n in range(10)))
        assert await holder(machines) == a.node_id
        a.store.go.set()
        await rest(machines)
        view = await b.commits.look(WORKSPACE, "big", [])
        assert view is not None
        assert view.room is not None
        assert view.room.head == 11


async def test_a_holder_that_wakes_up_late_does_no_harm(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_write = is_chunk
        await a.world.post("big", people[0], "1")
        await a.store.is_holding.wait()  # frozen in the middle of a chunk
        for _ in range(int(NODE_SILENT_S) + 2):
            await machines.beat(b.machine)
        await rest(machines)
        await b.world.post("big", people[1], "2")
        a.store.go.set()
        await rest(machines)
        await a.commits.settle()


async def test_a_holder_that_wakes_up_late_brings_no_old_text_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_write = is_chunk
        await a.world.post("big", people[0], "1", text="secret")
        await a.store.is_holding.wait()
        for _ in range(int(NODE_SILENT_S) + 2):
            await machines.beat(b.machine)
        await rest(machines)
        assert await previews(machines, people) == {"secret"}
        await b.commits.submit(WORKSPACE, "big", commands.Erase((1,), machines.clock()))
        await rest(machines)
        a.store.go.set()  # what it had read of the log is older than what it reads of the members
        await a.commits.settle()
        assert await previews(machines, people) == {None}


async def test_founders_let_in_by_another_node(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_read = lambda table: table is FANOUTS
        first = asyncio.create_task(a.world.room("new", people))
        await a.store.is_holding.wait()
        again = asyncio.create_task(b.world.room("new", people))  # the client asks again elsewhere
        await asyncio.sleep(0.05)
        assert not again.done()
        for _ in range(int(NODE_SILENT_S) + 2):
            await machines.beat(b.machine)
        await again
        a.store.holds_read = lambda table: False
        a.store.go.set()
        await first
        await rest(machines)
        view = await b.commits.look(WORKSPACE, "new", people)
        assert view is not None
        assert len(view.participations) == len(people)
        await a.commits.settle()


async def test_a_wake_while_the_store_is_looked_at_is_not_lost(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, _, people):
        monkeypatch.setattr(fanouts, "WATCH_INTERVAL_S", 3_600)
        a.store.holds_read = lambda table: table is FANOUTS
        founded = asyncio.create_task(a.commits.founded(WORKSPACE, "big"))
        await a.store.is_holding.wait()  # it has found no fan-out, and does not know it yet
        a.store.holds_read = lambda table: False
        await a.world.post("big", people[0], "1")
        a.store.go.set()
        await founded
        await rest(machines)


async def test_an_edit_reaches_previews_and_so_does_a_deletion(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        await a.world.post("big", people[0], "1")
        await rest(machines)
        at = machines.clock()
        edit = commands.Edit(people[0], 1, "Good-bye", "ent_e", at)
        await b.commits.submit(WORKSPACE, "big", edit)
        await rest(machines)
        assert await previews(machines, people) == {"Good-bye"}
        await a.commits.submit(WORKSPACE, "big", commands.Remove(people[0], 1, "ent_d", at))
        await rest(machines)
        assert await previews(machines, people) == {None}


@pytest.mark.parametrize("change", ["edit", "erase"])
async def test_a_chunk_under_way_brings_no_old_text_back(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        a.store.holds_write = is_chunk
        await a.world.post("big", people[0], "1", text="secret")
        await a.store.is_holding.wait()
        at = machines.clock()
        command: commands.Command = commands.Erase((1,), at)
        if change == "edit":
            command = commands.Edit(people[0], 1, "open", "ent_e", at)
        await b.commits.submit(WORKSPACE, "big", command)
        a.store.go.set()
        await rest(machines)
        assert await previews(machines, people) == ({"open"} if change == "edit" else {None})


async def test_an_erasure_opens_a_fan_out_for_the_previews(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(machines, monkeypatch) as (a, b, people):
        await a.world.post("big", people[0], "1", text="secret")
        await rest(machines)
        assert await previews(machines, people) == {"secret"}
        await b.commits.submit(WORKSPACE, "big", commands.Erase((1,), machines.clock()))
        await rest(machines)
        assert await previews(machines, people) == {None}
