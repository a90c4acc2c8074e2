"""Who is there, by beats that move and by nothing else."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.conftest import soon
from tests.cluster.conftest import Machines
from tests.stores import EVERY_STORE
from tidings.cluster import nodes
from tidings.cluster.nodes import NODE_SILENT_S, SERVICE, read_nodes
from tidings.errors import Unavailable
from tidings.storage.tables import NODES

STORES = EVERY_STORE


SILENT_BEATS = int(NODE_SILENT_S) + 1


async def test_nodes_see_each_other(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    a.nodes.announce("10.0.0.7:8080")
    await machines.beat(a, b)
    assert a.seen == b.seen == {a.nodes.node_id, b.nodes.node_id}
    seen = {node.node_id: node for node in b.nodes.live}[a.nodes.node_id]
    assert (seen.address, seen.version, seen.is_draining) == ("10.0.0.7:8080", "1.2", False)
    assert b.nodes.is_live(a.nodes.node_id)
    assert not b.nodes.is_live("node_unheard_of")
    a.nodes.drain()
    await machines.beat(a, b)
    assert {node.node_id for node in b.nodes.live if node.is_draining} == {a.nodes.node_id}


async def test_a_silent_node_is_down_and_its_row_goes(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    gone: list[str] = []
    b.nodes.on_gone.append(gone.append)
    await machines.beat(a, b)
    await machines.beat(b, seconds=SILENT_BEATS - 2)
    assert b.nodes.is_live(a.nodes.node_id)
    assert gone == []
    await machines.beat(b, seconds=2)
    assert b.seen == {b.nodes.node_id}
    assert gone == [a.nodes.node_id]
    assert set(await read_nodes(machines.store)) == {b.nodes.node_id}
    await machines.beat(b, seconds=3)
    assert gone == [a.nodes.node_id]


async def test_a_node_that_moved_after_all_keeps_its_row(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    await machines.beat(a, b)
    await machines.beat(b, seconds=int(NODE_SILENT_S) - 1)
    b.way.before_write = a.nodes.beat  # just before b removes its row
    machines.pass_time(1)
    await b.nodes.look()
    b.way.before_write = None
    assert a.nodes.node_id in await read_nodes(machines.store)
    await machines.beat(a, b)
    assert b.nodes.is_live(a.nodes.node_id)


async def test_a_node_that_wakes_up_is_whole_again(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    await machines.beat(a, b)
    await machines.beat(b, seconds=60)  # a is frozen
    assert b.seen == {b.nodes.node_id}
    await a.nodes.look()  # it does not take the others for dead, nor its removed row for an end
    assert a.seen == {a.nodes.node_id, b.nodes.node_id}
    await machines.beat(a, b)
    assert b.seen == a.seen
    row = await machines.store.get(NODES, (SERVICE, a.nodes.node_id))
    assert row is not None
    assert row["version"] == "1.2"


async def test_the_view_is_believed_while_the_store_does_not_answer(machines: Machines) -> None:
    a, b = machines.add(), machines.add()
    await machines.beat(a, b)
    b.way.is_cut = True
    machines.pass_time(600)
    with pytest.raises(Unavailable):
        await b.nodes.look()
    assert b.nodes.is_live(a.nodes.node_id)
    b.way.is_cut = False
    await b.nodes.look()  # nobody could write meanwhile: that is no silence
    assert b.nodes.is_live(a.nodes.node_id)
    await machines.beat(b, seconds=SILENT_BEATS)
    assert not b.nodes.is_live(a.nodes.node_id)


async def test_a_started_node_beats_by_itself_and_leaves_at_once(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "BEAT_S", 0.01)
    a, b = machines.add(), machines.add()
    await a.nodes.start()
    await b.nodes.start()
    gone: list[str] = []
    b.nodes.on_gone.append(gone.append)
    try:

        async def is_seen() -> bool:
            return a.seen == b.seen == {a.nodes.node_id, b.nodes.node_id}

        await soon(is_seen)
        a.way.is_cut = True  # a beat that fails is made up for by the next
        await asyncio.sleep(0.05)
        a.way.is_cut = False
        before = (await read_nodes(machines.store))[a.nodes.node_id][1]

        async def is_beating() -> bool:
            return (await read_nodes(machines.store))[a.nodes.node_id][1] > before

        await soon(is_beating)
    finally:
        await a.nodes.stop()
        assert set(await read_nodes(machines.store)) == {b.nodes.node_id}

        async def is_gone() -> bool:
            return gone == [a.nodes.node_id] and b.seen == {b.nodes.node_id}

        await soon(is_gone)
        await b.nodes.stop()
