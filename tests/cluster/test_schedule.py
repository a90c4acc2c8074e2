"""What is due is done by one node, once, and nothing is lost with a node that dies."""

from __future__ import annotations

import asyncio

from tests.cluster.conftest import Machine, Machines
from tests.stores import EVERY_STORE
from tidings.cluster.leases import LEASE_S
from tidings.cluster.schedule import SHARDS, WORKED_TOGETHER_MAX, plan_due, plan_undue
from tidings.errors import Unavailable
from tidings.storage.interface import Absent, ConditionFailed, Put
from tidings.storage.tables import SCHEDULE, SECRETS

STORES = EVERY_STORE


KIND = "ring"


class Bells:
    """Work that leaves a mark in the same transaction that takes the item away."""

    def __init__(self, machine: Machine) -> None:
        self._store = machine.store
        self.heard: list[str] = []
        self.is_failing = False
        machine.schedule.on(KIND, self.ring)

    async def ring(self, subject: str, due_ms: int) -> bool:
        if self.is_failing:
            raise Unavailable
        mark = Put(SECRETS, {"name": f"{subject}@{due_ms}"}, when=(Absent(),))
        try:
            await self._store.write(mark, plan_undue(KIND, subject, due_ms))
        except ConditionFailed:
            return False
        self.heard.append(subject)
        return True


async def items(machines: Machines) -> list[str]:
    return sorted(item["subject"] for item in (await machines.store.scan(SCHEDULE)).items)


async def test_what_is_due_is_done_in_time_and_once(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    bells = [Bells(a), Bells(b)]
    now = machines.clock()
    subjects = [f"room-{number}" for number in range(3 * SHARDS * WORKED_TOGETHER_MAX)]
    for number, subject in enumerate(subjects):
        await machines.store.write(plan_due(KIND, subject, now + number % 3, number))
    await machines.store.write(plan_due(KIND, "later", now + 60_000, 1))
    await machines.store.write(plan_due(KIND, "never", now + 60_000, 1))
    await machines.store.write(plan_undue(KIND, "never", now + 60_000))
    assert await a.schedule.run() == sum(number % 3 == 0 for number in range(len(subjects)))
    machines.pass_time(1)
    await asyncio.gather(a.schedule.run(), b.schedule.run())
    assert sorted(bells[0].heard + bells[1].heard) == sorted(subjects)
    assert await items(machines) == ["later"]
    machines.pass_time(60)
    await asyncio.gather(a.schedule.run(), b.schedule.run())
    machines.pass_time(60)
    await asyncio.gather(a.schedule.run(), b.schedule.run())
    assert sorted(bells[0].heard + bells[1].heard) == sorted([*subjects, "later"])
    assert await items(machines) == []


async def test_a_late_item_does_nothing_and_goes(machines: Machines) -> None:
    a = machines.add()
    bells = Bells(a)
    now = machines.clock()
    for _ in range(2):  # the second is what a delayed copy would be
        await machines.store.write(plan_due(KIND, "room", now, 1))
        await a.schedule.run()
    assert bells.heard == ["room"]
    assert await items(machines) == []


async def test_another_node_goes_on_where_one_stopped(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    first, second = Bells(a), Bells(b)
    await a.schedule.run()  # it has the leases
    assert await b.schedule.run() == 0
    for number in range(20):
        await machines.store.write(plan_due(KIND, f"room-{number}", machines.clock(), 1))
    first.is_failing = True
    await a.schedule.run()
    assert len(await items(machines)) == 20
    assert await b.schedule.run() == 0  # they are a's as long as it moves
    machines.pass_time(LEASE_S)
    await b.schedule.run()
    assert len(second.heard) == 20
    first.is_failing = False
    await a.schedule.run()  # it was only frozen
    assert first.heard == []
    assert await items(machines) == []


async def test_one_that_fails_holds_up_no_other(machines: Machines) -> None:
    a = machines.add()
    heard: list[str] = []

    async def ring(subject: str, due_ms: int) -> bool:
        if subject.startswith("bad"):
            raise Unavailable
        heard.append(subject)
        return False

    a.schedule.on(KIND, ring)
    for number in range(40):
        await machines.store.write(plan_due(KIND, f"bad-{number}", machines.clock(), 1))
        await machines.store.write(plan_due(KIND, f"good-{number}", machines.clock() + 1, 1))
    machines.pass_time(1)
    await a.schedule.run()
    assert len(heard) == 40
    assert len(await items(machines)) == 40


async def test_items_of_a_newer_version_stay(machines: Machines) -> None:
    a = machines.add()
    await machines.store.write(plan_due("of the future", "room", machines.clock(), 1))
    await a.schedule.run()
    assert await items(machines) == ["room"]
