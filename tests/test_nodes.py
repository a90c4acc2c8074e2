"""Several nodes on one store lose nothing, miss nothing and do nothing twice, whatever happens.

Each node is a `tidings serve` of its own; everybody else knows the address of a load balancer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.cluster_scene import (
    CALL_S,
    PEOPLE,
    Office,
    check_audit,
    fanned_out,
    make_key,
    make_users,
    open_store,
)
from tests.engines import dynamo_tables, store_url
from tests.node_processes import Balancer, Node, running_nodes
from tests.redis_server import RedisServer, needs_redis, running_redis
from tidings.client import Client, Unauthorized
from tidings.cluster.leases import LEASE_S
from tidings.delivery.connections import CloseCode
from tidings.storage.interface import Item, Store, Table
from tidings.storage.tables import BADGES, FANOUTS, LEASES
from tidings.wire import LIST_LIMIT_MAX

pytestmark = [pytest.mark.slow, needs_redis]

KILLS = 5
KILL_EVERY_S = (1.0, 2.5)
AWAY_S = 3.0
"""How long the bus is gone, or hangs."""
FROZEN_S = LEASE_S + 2
"""Long enough for others to take over all that the node does."""
REVOKED_S = 5.0
"""By then a revoked session is refused everywhere: the contract says so."""
CROWD = [f"member{number}" for number in range(1_000)]
MESSAGES = 3
TAKEN_OVER_S = 40.0
ONLINE_S = 15.0
"""By then each node knows who is online, also where others have died."""


@pytest.fixture
async def store() -> AsyncIterator[str]:
    """The address of new tables."""
    async with dynamo_tables() as address:
        yield store_url(address)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """The server behind the bus."""
    async with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def bus(redis: RedisServer) -> str:
    """The address of a bus that works."""
    return redis.url


async def everything(store: Store, table: Table) -> list[Item]:
    """All items of a table."""
    page = await store.scan(table)
    items = [*page.items]
    while page.after is not None:
        page = await store.scan(table, after=page.after)
        items += page.items
    return items


class Site:
    """Nodes, the address before them, and the office that works there."""

    def __init__(self, nodes: list[Node], office: Office) -> None:
        self.nodes = nodes
        self.office = office


async def know_who_is_online(node: Node, office: Office) -> None:
    """Wait until a node counts those as online who have a device, wherever it is connected."""
    async with Client(node.url, office.key.token) as client, asyncio.timeout(ONLINE_S):
        while True:
            online = await client.users(online=True, limit=LIST_LIMIT_MAX)
            if {user.id for user in online.items} == set(PEOPLE):
                return
            await asyncio.sleep(0.2)


@asynccontextmanager
async def open_site(
    count: int, store: str, bus: str, folder: Path, *, seed: int
) -> AsyncIterator[Site]:
    """The office with all its devices on that many nodes; on leaving everything is checked."""
    print(f"seed {seed}")
    async with running_nodes(count, store, folder, bus=bus) as nodes, AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(Balancer([n.port for n in nodes]).opened())
        client = Client(balancer.url, await make_key(store), deadline_s=CALL_S)
        key = await stack.enter_async_context(client)
        office = Office(store, key, random.Random(seed))
        await office.found()
        async with office.watched(balancer.url):
            yield Site(nodes, office)
            await office.check()
            for node in nodes:
                await know_who_is_online(node, office)
        print(f"done {dict(office.done)}; failed {office.failures}")
    for node in nodes:
        assert not node.faults(), node.faults()[:3]


async def test_nodes_are_killed_again_and_again(store: str, bus: str, tmp_path: Path) -> None:
    async with open_site(3, store, bus, tmp_path, seed=1) as site:
        dice = site.office.dice
        async with site.office.at_work():
            for _ in range(KILLS):
                await asyncio.sleep(dice.uniform(*KILL_EVERY_S))
                node = dice.choice(site.nodes)
                await node.kill()
                await node.start()


async def test_the_bus_goes_and_comes(store: str, redis: RedisServer, tmp_path: Path) -> None:
    """Nobody has to come back for it, and what is said meanwhile arrives a little later."""
    async with open_site(2, store, redis.url, tmp_path, seed=2) as site:
        async with site.office.at_work():
            await asyncio.sleep(1)
            await redis.stop()
            await asyncio.sleep(AWAY_S)
            await redis.start()
            await asyncio.sleep(1)
            redis.freeze()
            await asyncio.sleep(AWAY_S)
            redis.wake()
            await asyncio.sleep(1)
            await redis.stop()
        await site.office.check()
        await redis.start()
        assert not site.office.failures
        assert {watch.device.connections for watch in site.office.watches} == {1}


async def test_a_frozen_node_wakes_up(store: str, bus: str, tmp_path: Path) -> None:
    """Others have taken over its work, and it finds out."""
    async with open_site(2, store, bus, tmp_path, seed=3) as site, site.office.at_work():
        await asyncio.sleep(2)
        site.nodes[0].freeze()
        await asyncio.sleep(FROZEN_S)
        site.nodes[0].thaw()
        await asyncio.sleep(2)
        async with open_store(store) as engine:
            fences = [item["fence"] for item in await everything(engine, LEASES)]
        assert max(fences) > 1, "nothing was taken over"


async def test_nodes_are_restarted_one_after_the_other(
    store: str, bus: str, tmp_path: Path
) -> None:
    """A new version comes in: nobody's call fails, and devices only come back."""
    async with open_site(3, store, bus, tmp_path, seed=4) as site:
        async with site.office.at_work():
            for node in site.nodes:
                await asyncio.sleep(1)
                await node.restart()
        site.office.failures.pop("leave", None)  # which the client never makes again
        assert not site.office.failures
        assert [node.exit_codes for node in site.nodes] == [[0]] * 3
        assert all(watch.device.connections <= 4 for watch in site.office.watches)


async def refused(client: Client) -> None:
    """Wait until the client's calls are."""
    while True:
        try:
            await client.me()
        except Unauthorized:
            return
        await asyncio.sleep(0.1)


async def closed(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    """Wait for the end of a socket; its close code."""
    async for _ in socket:
        pass
    return socket.close_code


async def check_revoked(here: Client, there: Client) -> None:
    """A session of Ann's that is revoked on one node is refused on another, and she is not."""
    own = here.as_session((await here.create_session("ann")).token)
    lost = await here.create_session("ann")
    stolen = there.as_session(lost.token)
    async with stolen.connections().ws_connect(
        f"{stolen.url}/v1/ws", headers=stolen.headers(), protocols=("tidings.v1",)
    ) as socket:
        assert (await socket.receive_json())["type"] == "ready"
        assert (await stolen.me()).id == "ann"
        closing = asyncio.create_task(closed(socket))
        async with asyncio.timeout(REVOKED_S):
            await own.revoke_session(lost.session_id)
            assert await closing == CloseCode.UNAUTHORIZED
            await refused(stolen)
    assert (await own.me()).id == "ann"


async def test_a_revoked_session_is_refused_on_every_node(
    store: str, redis: RedisServer, tmp_path: Path
) -> None:
    """Within seconds, with the bus and without it."""
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(2, store, tmp_path, bus=redis.url))
        token = await make_key(store)
        here, there = [await stack.enter_async_context(Client(node.url, token)) for node in nodes]
        await here.create_user("Ann", "manager", user_id="ann")
        await check_revoked(here, there)
        await redis.stop()
        await check_revoked(here, there)


async def test_what_a_dead_node_left_is_finished_by_another(
    store: str, bus: str, tmp_path: Path
) -> None:
    """A node dies while it brings a thousand members up to the messages it accepted."""
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(running_nodes(2, store, tmp_path, bus=bus))
        token = await make_key(store)
        dying, living = [await stack.enter_async_context(Client(node.url, token)) for node in nodes]
        engine = await stack.enter_async_context(open_store(store))
        await make_users(living, CROWD)
        await living.create_room("group", room_id="crowd", members=CROWD)
        await fanned_out(engine)
        for number in range(MESSAGES):
            await dying.post_message("crowd", f"message {number}", as_user=CROWD[0])
        while not any(item["unread"] for item in await everything(engine, BADGES)):
            await asyncio.sleep(0)
        await nodes[0].kill()
        assert (await engine.scan(FANOUTS)).items, "the node was through already"
        async with asyncio.timeout(TAKEN_OVER_S):
            await fanned_out(engine)
        unread = Counter([item["unread"] for item in await everything(engine, BADGES)])
        assert unread == {MESSAGES: len(CROWD) - 1, 0: 1}
        await check_audit(store)
