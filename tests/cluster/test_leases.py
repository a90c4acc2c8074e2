"""One holder at a time, by clocks that are never compared, and a fence that only grows."""

from __future__ import annotations

import pytest

from tests.api.conftest import soon
from tests.cluster.conftest import Machines
from tests.stores import EVERY_STORE
from tidings.cluster import leases
from tidings.cluster.leases import HELD_S, LEASE_BEAT_S, LEASE_S
from tidings.errors import Unavailable
from tidings.storage.tables import LEASES

STORES = EVERY_STORE


async def test_one_node_has_it_and_beats_keep_it(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    held = await a.leases.hold("work")
    assert held is not None
    assert (held.fence, held.is_held) == (1, True)
    for _ in range(20):
        machines.pass_time(LEASE_BEAT_S)
        assert await b.leases.hold("work") is None
        assert await a.leases.hold("work") is held
    assert held.is_held
    assert await b.leases.hold("other") is not None


async def test_one_that_stands_still_is_taken_and_its_holder_knew_before(
    machines: Machines,
) -> None:
    a, b = machines.add(), machines.add()
    held = await a.leases.hold("work")
    assert held is not None
    assert await b.leases.hold("work") is None
    machines.pass_time(HELD_S)
    assert not held.is_held
    assert await b.leases.hold("work") is None
    machines.pass_time(LEASE_S - HELD_S)
    taken = await b.leases.hold("work")
    assert taken is not None
    assert taken.fence == 2
    assert await a.leases.hold("work") is None
    assert not held.is_held


async def test_who_wakes_up_late_takes_nothing_back(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    assert await a.leases.hold("work") is not None
    assert await b.leases.hold("work") is None
    b.now_s += LEASE_S  # a is frozen and sees no time pass
    assert await b.leases.hold("work") is not None
    still = await a.leases.hold("work")
    assert still is not None, "it can't know yet"
    a.now_s += LEASE_BEAT_S  # its next beat finds out
    assert await a.leases.hold("work") is None
    assert not still.is_held
    row = await machines.store.get(LEASES, ("work",))
    assert row is not None
    assert (row["node_id"], row["fence"]) == (b.nodes.node_id, 2)


async def test_of_many_who_want_it_one_gets_it(machines: Machines) -> None:
    nodes = [machines.add() for _ in range(5)]
    for expected in range(1, 4):
        taken = [await each.leases.hold("work") for each in nodes]
        held = [lease for lease in taken if lease is not None]
        assert [lease.fence for lease in held] == [expected]
        machines.pass_time(LEASE_S)


async def test_what_is_released_is_free_at_once_and_fences_go_on(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    held = await a.leases.hold("work")
    await a.leases.release("work")
    assert held is not None
    assert not held.is_held
    taken = await b.leases.hold("work")
    assert taken is not None
    assert taken.fence == 2
    await a.leases.release("work")  # not a's any more
    assert await a.leases.hold("work") is None
    await b.leases.stop()
    again = await a.leases.hold("work")
    assert again is not None
    assert again.fence == 3


async def test_it_runs_out_while_the_store_does_not_answer(machines: Machines) -> None:
    a = machines.add()
    held = await a.leases.hold("work")
    assert held is not None
    a.way.is_cut = True
    machines.pass_time(LEASE_BEAT_S)
    assert await a.leases.hold("work") is held  # the store fails, but it is still a's
    machines.pass_time(HELD_S)
    assert not held.is_held
    with pytest.raises(Unavailable):
        await a.leases.hold("work")
    a.way.is_cut = False
    again = await a.leases.hold("work")  # nobody else can have had it
    assert again is not None
    assert again.fence == 2


async def test_a_started_one_moves_by_itself(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(leases, "LEASE_BEAT_S", 0.01)
    a = machines.add()
    await a.leases.start()
    try:
        assert await a.leases.hold("work") is not None

        async def has_moved() -> bool:
            row = await machines.store.get(LEASES, ("work",))
            return row is not None and row["beat"] > 3

        await soon(has_moved)

    finally:
        await a.leases.stop()
    row = await machines.store.get(LEASES, ("work",))
    assert row is not None
    assert "node_id" not in row
