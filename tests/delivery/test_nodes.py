"""Delivery over two nodes of one store: whoever commits, and whatever the bus does with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.conftest import DEADLINE_S, Device, Node, Socket
from tests.delivery.ledger import WORKSPACE, Ledger
from tests.delivery.network import Network
from tests.delivery.test_events import Stream, stream
from tests.delivery.test_nothing_missed import ROOMS, STEPS, USERS, act, check
from tests.delivery.visits import Visit, visiting
from tests.redis_server import needs_redis, running_redis
from tidings import wire
from tidings.chat.rows import badge_from_item
from tidings.chat.updates import UserUpdate
from tidings.delivery import mending
from tidings.delivery import redis as redis_bus
from tidings.delivery.bus import Bus
from tidings.delivery.connections import CloseCode
from tidings.delivery.redis import RedisBus
from tidings.delivery.whereabouts import Alone, Peer
from tidings.errors import Conflict, Unavailable
from tidings.metrics import Metrics
from tidings.people.callers import Caller
from tidings.storage.interface import Store
from tidings.storage.tables import BADGES, PRESENCE, user_key


class Cluster:
    """Nodes of one store with one ledger, whose commits are told by one node or another."""

    def __init__(self, store: Store, buses: Sequence[Bus | None], dice: random.Random) -> None:
        self.store = store
        self.dice = dice
        self.teller: int | None = None
        """The node that tells of commits; None: any of them, and NOBODY: none."""
        self.ledger = Ledger(store, self._publish, self._signal)
        self.live = [Alone(f"node_{number}") for number in range(len(buses))]
        self.nodes = [
            Node(store, bus, ledger=self.ledger, peers=View(self, f"node_{number}"))
            for number, bus in enumerate(buses)
        ]

    def _publish(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        if self.teller != NOBODY:
            self._node.hub.publish(workspace, updates)

    def _signal(self, workspace: str, users: Sequence[str], frame: dict[str, object]) -> None:
        self._node.hub.signal(workspace, users, frame)

    @property
    def _node(self) -> Node:
        return self.dice.choice(self.nodes) if self.teller is None else self.nodes[self.teller]

    async def version(self, user_id: str) -> int:
        item = await self.store.get(BADGES, (user_key(WORKSPACE, user_id),))
        return badge_from_item(item).version


NOBODY = -1


class View:
    """What a node of a cluster knows of the others."""

    def __init__(self, cluster: Cluster, node_id: str) -> None:
        self.node_id = node_id
        self._cluster = cluster

    @property
    def live(self) -> Sequence[Peer]:
        return self._cluster.live

    def is_live(self, node_id: str) -> bool:
        return any(one.node_id == node_id for one in self.live)


class Roaming:
    """A session whose every connection is to any of the nodes."""

    def __init__(self, cluster: Cluster, device: Device) -> None:
        self.user_id = device.user_id
        self._dice = cluster.dice
        self._doors = [
            Device(node, device.user_id, device.token, device.caller) for node in cluster.nodes
        ]
        self._nodes = cluster.nodes

    async def connect(self, *, header: bool = True, **auth: Any) -> Socket:
        return await self._dice.choice(self._doors).connect(header=header, **auth)

    async def sync(self, **request: Any) -> wire.SyncReply:
        return await self._dice.choice(self._doors).sync(**request)

    def stream(self, since: str | None) -> AbstractAsyncContextManager[Stream]:
        number = self._dice.randrange(len(self._nodes))
        return stream(self._nodes[number], self._doors[number], since)


@asynccontextmanager
async def clustered(
    store: Store, buses: Sequence[Bus | None], dice: random.Random
) -> AsyncIterator[Cluster]:
    cluster = Cluster(store, buses, dice)
    await cluster.nodes[0].people.workspaces.create("Acme", WORKSPACE)
    async with AsyncExitStack() as stack:
        for node in cluster.nodes:
            await node.start()
            stack.push_async_callback(node.stop)
        yield cluster


async def devices(cluster: Cluster, user_id: str, role: wire.Role = "customer") -> list[Device]:
    """A session of the user at each node."""
    made = await cluster.nodes[0].device(user_id, role)
    return [Device(node, user_id, made.token, made.caller) for node in cluster.nodes]


async def reach(socket: Socket, version: int) -> None:
    """Read all frames that bring the device to the version."""
    while (await socket.next()).get("version", 0) < version:
        pass
    await socket.rest()


async def come_and_go(cluster: Cluster, chance: random.Random) -> None:
    """As on one node: devices end where a fresh read is, and then live updates do it alone."""
    ledger_node = cluster.nodes[0]
    visits = []
    for user in USERS:
        for number in range(2):
            device = Roaming(cluster, await ledger_node.device(user))
            dice = random.Random(f"{chance.random()}{user}{number}")
            visits.append(Visit(device, device.stream, dice, is_lossy=number == 1))
    for visit in visits:
        visit.state.cursor = (await visit.device.sync()).cursor
    for room_id in ROOMS:
        await cluster.ledger.open_room(room_id, *chance.sample(USERS, 4))
    async with visiting(visits):
        for _ in range(STEPS):
            await act(ledger_node, chance)
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
    for visit in visits:
        await visit.settle()
        await check(ledger_node, visit)
    sockets = [
        await visit.device.connect(header=False, since=visit.state.cursor) for visit in visits
    ]
    for visit, socket in zip(visits, sockets, strict=True):
        visit.state.apply(await socket.next("ready"))
    for _ in range(STEPS // 2):
        await act(ledger_node, chance)
        await asyncio.sleep(chance.choice([0, 0, 0.002]))
    for visit, socket in zip(visits, sockets, strict=True):
        version = await cluster.version(visit.device.user_id)
        while visit.state.version < version:
            assert visit.state.apply(await socket.next()), "a live connection has no gap"
        for frame in await socket.rest():
            assert visit.state.apply(frame)
        await check(ledger_node, visit)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.delivery.syncs.REPLY_CHARACTERS_MAX", 400)
    monkeypatch.setattr("tidings.delivery.connections.HELD_UPDATES_MAX", 2)
    monkeypatch.setattr("tidings.delivery.marked.MARKED_ROOMS_MAX", 1)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.delivery.hub.BEAT_S", 0.02)
    monkeypatch.setattr(mending, "GAP_WAIT_S", 0.02)
    monkeypatch.setattr(mending, "SWEEP_S", 0.1)
    monkeypatch.setattr(mending, "QUIET_SWEEP_S", 0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_missed_over_a_bus_that_loses_and_reorders(
    store: Store, request: pytest.FixtureRequest, seed: int
) -> None:
    if seed % 2:
        request.getfixturevalue("narrow")
    chance = random.Random(seed)
    network = Network(seed, loss=0.05, delay_s_max=0.05)
    async with clustered(store, [network.bus(), network.bus()], chance) as cluster:
        await come_and_go(cluster, chance)
    assert network.lost > 10


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(2))
async def test_nothing_is_missed_without_a_bus(store: Store, seed: int) -> None:
    chance = random.Random(seed)
    async with clustered(store, [None, None], chance) as cluster:
        await come_and_go(cluster, chance)


@pytest.mark.slow
@needs_redis
async def test_nothing_is_missed_while_redis_comes_and_goes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.delivery.hub.BEAT_S", 0.05)
    monkeypatch.setattr(mending, "SWEEP_S", 0.2)
    monkeypatch.setattr(redis_bus, "RECONNECT_S_MAX", 0.2)
    chance = random.Random(1)
    async with running_redis(tmp_path) as server:
        buses = [
            RedisBus(server.url, channel="c", node_id=name, metrics=Metrics()) for name in "ab"
        ]

        async def trouble() -> None:
            while True:
                await asyncio.sleep(0.5)
                await server.stop()
                await asyncio.sleep(0.3)
                await server.start()

        async with clustered(store, buses, chance) as cluster:
            task = asyncio.create_task(trouble())
            try:
                await come_and_go(cluster, chance)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@needs_redis
async def test_devices_at_another_node_are_told_by_the_bus(store: Store, tmp_path: Path) -> None:
    async with running_redis(tmp_path) as server:
        buses = [
            RedisBus(server.url, channel="c", node_id=name, metrics=Metrics()) for name in "ab"
        ]
        async with clustered(store, buses, random.Random(0)) as cluster:
            cluster.teller = 0
            _, at_b = await devices(cluster, "bob")
            socket = await at_b.ready()
            at_mia = await (await devices(cluster, "mia", "manager"))[1].ready()
            async with stream(cluster.nodes[1], at_b) as events:
                await events.next()
                await cluster.ledger.open_room("r1", "ann", "bob")
                await reach(socket, 1)
                since = (await at_b.sync()).cursor
                poll = asyncio.create_task(at_b.sync(since=since, wait=30))
                await asyncio.sleep(0.05)
                await cluster.ledger.post("r1", "ann", "hello")
                frame = await socket.next("entry")
                assert (frame["entry"]["text"], frame["unread"], frame["version"]) == (
                    "hello",
                    1,
                    2,
                )
                async with asyncio.timeout(5):
                    reply = await poll
                assert [e.text for room in reply.rooms for e in room.entries] == ["hello"]
                while (await events.next())[1]["type"] != "entry":
                    pass
            await cluster.ledger.typing((await devices(cluster, "ann"))[0].caller, "r1")
            assert (await socket.next("typing"))["user_id"] == "ann"
            hub = cluster.nodes[0].hub
            hub.signal_role(WORKSPACE, ["customer"], {"type": "queue", "open": 3})
            assert (await socket.next("queue"))["open"] == 3
            mark = {"type": "reader", "room_id": "r1", "read_seq": 1}
            hub.signal_apart(
                WORKSPACE, ["bob", "mia"], mark | {"user_id": "ann"}, mark | {"user_id": None}
            )
            assert (await socket.next("reader"))["user_id"] is None
            assert (await at_mia.next("reader"))["user_id"] == "ann"
            hub.on_revoked(WORKSPACE, "bob", at_b.caller.session_id)
            assert await socket.closed() == CloseCode.UNAUTHORIZED


@pytest.mark.usefixtures("hasty")
async def test_what_nobody_told_is_found_by_a_nudge(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "QUIET_SWEEP_S", 1_000.0)
    network = Network(0, loss=0.0, delay_s_max=0.0)
    async with clustered(store, [network.bus(), network.bus()], random.Random(0)) as cluster:
        at_a, at_b = await devices(cluster, "bob")
        sockets = [await at_a.ready(), await at_b.ready()]
        await cluster.ledger.open_room("r1", "ann", "bob")
        for socket in sockets:
            await reach(socket, 1)
        cluster.teller = NOBODY
        await cluster.ledger.post("r1", "ann", "whose answer was lost")
        for socket in sockets:
            assert await socket.rest() == []
        cluster.nodes[0].hub.nudge(WORKSPACE, ["ann", "bob"])
        for socket in sockets:
            frame = await socket.next("sync")
            assert frame["version"] == 2
            assert [e["text"] for e in frame["rooms"][0]["entries"]] == ["whose answer was lost"]
        cluster.teller = 1
        await cluster.ledger.post("r1", "ann", "the next one")
        for socket in sockets:
            assert (await socket.next("entry"))["version"] == 3


@pytest.mark.usefixtures("hasty")
async def test_device_that_can_not_be_mended_is_sent_to_catch_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clustered(store, [None], random.Random(0)) as cluster:
        (bob,) = await devices(cluster, "bob")
        await cluster.ledger.open_room("r1", "ann", "bob")
        socket = await bob.ready()
        cluster.teller = NOBODY

        async def unavailable(*_: object) -> None:
            raise Unavailable

        monkeypatch.setattr(cluster.nodes[0].syncs, "read", unavailable)
        await cluster.ledger.post("r1", "ann", "untold")
        assert await socket.closed() == CloseCode.BEHIND


async def test_newer_poll_at_another_node_ends_an_older_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.delivery.hub.POLL_FRESH_S", 0.05)
    network = Network(0, loss=0.0, delay_s_max=0.0)
    async with clustered(store, [network.bus(), network.bus()], random.Random(0)) as cluster:
        at_a, at_b = await devices(cluster, "bob")
        await at_a.sync()
        older = asyncio.create_task(at_a.sync(wait=60))
        await asyncio.sleep(0.1)
        newer = asyncio.create_task(at_b.sync(wait=60))
        with pytest.raises(Conflict):
            await older
        await cluster.ledger.open_room("r1", "ann", "bob")
        assert [room.room_id for room in (await newer).rooms] == ["r1"]


async def test_two_polls_that_end_at_once_leave_nothing(store: Store) -> None:
    async with clustered(store, [None], random.Random(0)) as cluster:
        (bob,) = await devices(cluster, "bob")
        hub = cluster.nodes[0].hub
        with hub.polling(bob.caller) as older:
            with hub.polling(bob.caller):
                pass
            with pytest.raises(Conflict):
                await older.wait(1)
        with hub.polling(bob.caller) as poll:
            assert not await poll.wait(0.01)


@pytest.mark.usefixtures("hasty")
async def test_poll_at_another_node_wakes_without_a_bus(store: Store) -> None:
    async with clustered(store, [None, None], random.Random(0)) as cluster:
        cluster.teller = 0
        _, at_b = await devices(cluster, "bob")
        await cluster.ledger.open_room("r1", "ann", "bob")
        since = (await at_b.sync()).cursor
        poll = asyncio.create_task(at_b.sync(since=since, wait=60))
        await asyncio.sleep(0.05)
        await cluster.ledger.post("r1", "ann", "hello")
        async with asyncio.timeout(DEADLINE_S):
            reply = await poll
        assert [e.text for room in reply.rooms for e in room.entries] == ["hello"]


KEY = Caller(
    workspace=WORKSPACE, kind="api_key", credential_id="key_test", scopes=frozenset({"users"})
)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await holds():
            await asyncio.sleep(0.01)


async def rows(store: Store) -> list[str]:
    return sorted(item["place"].rsplit("#", 1)[0] for item in (await store.scan(PRESENCE)).items)


@pytest.mark.usefixtures("hasty")
async def test_every_node_knows_who_is_online(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.delivery.presence.OFFLINE_AFTER_S", 0.05)
    async with clustered(store, [None, None], random.Random(0)) as cluster:
        users = [node.people.users for node in cluster.nodes]

        async def online(number: int) -> list[str]:
            found = await users[number].list(KEY, online=True)
            one_by_one = [each for each in people if (await users[number].get(KEY, each)).is_online]
            shown = [user.id for user in found.items]
            return shown if shown == one_by_one else ["not the same yet"]

        people = sorted(f"user{number}" for number in range(30))
        at = {user_id: await devices(cluster, user_id) for user_id in people}
        sockets = {user_id: await at[user_id][0].ready() for user_id in people[::3]}
        again = await at["user0"][1].ready()
        assert await online(0) == people[::3]
        await until(lambda: is_equal(online(1), people[::3]))
        await until(
            lambda: is_equal(
                rows(store), sorted([*(f"{u}#node_0" for u in sockets), "user0#node_1"])
            )
        )
        for number in range(2):
            credentials = cluster.nodes[number].people.credentials
            listed = await credentials.list_sessions(at[people[3]][0].caller)
            assert [each.is_online for each in listed.items] == [True]

        await sockets.pop("user0").close()
        await sockets.pop(people[3]).close()
        left = sorted({*sockets, "user0"})
        for number in range(2):
            await until(lambda: is_equal(online(number), left))  # noqa: B023
        await until(
            lambda: is_equal(
                rows(store), sorted([*(f"{u}#node_0" for u in sockets), "user0#node_1"])
            )
        )

        del cluster.live[0]  # node 0 was killed
        assert await online(1) == ["user0"]
        await again.close()


async def is_equal(awaited: Awaitable[list[str]], wanted: list[str]) -> bool:
    return await awaited == wanted


@pytest.mark.usefixtures("hasty")
async def test_rows_are_written_once_there_are_other_nodes(store: Store) -> None:
    async with clustered(store, [None, None], random.Random(0)) as cluster:
        other = cluster.live.pop()
        bob = (await devices(cluster, "bob"))[0]
        socket = await bob.ready()
        await asyncio.sleep(0.1)
        assert await rows(store) == []
        cluster.live.append(other)
        await until(lambda: is_equal(rows(store), ["bob#node_0"]))
        (row,) = (await store.scan(PRESENCE)).items
        await asyncio.sleep(0.1)
        assert (await store.scan(PRESENCE)).items == [row], "nothing is written while it stays"
        await socket.close()


@pytest.mark.usefixtures("hasty")
async def test_companions_at_other_nodes_are_told_of_presence(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.delivery.presence.OFFLINE_AFTER_S", 0.05)
    network = Network(0, loss=0.0, delay_s_max=0.0)
    async with clustered(store, [network.bus(), network.bus()], random.Random(0)) as cluster:
        await cluster.ledger.open_room("r1", "ann", "bob")
        (_, ann), (bob, _) = await devices(cluster, "ann"), await devices(cluster, "bob")
        at_ann = await ann.ready()

        async def is_told(socket: Socket, user_id: str, *, is_online: bool) -> bool:
            await socket.rest()
            frame = {"type": "presence", "user_id": user_id, "is_online": is_online}
            return frame in socket.presence

        at_bob = await bob.ready()
        await until(lambda: is_told(at_ann, "bob", is_online=True))
        await until(lambda: is_told(at_bob, "ann", is_online=True))
        second = await (await devices(cluster, "bob"))[1].ready()
        await asyncio.sleep(0.1)
        await at_bob.close()
        await asyncio.sleep(0.2)
        assert not await is_told(at_ann, "bob", is_online=False), "a device is left"
        await second.close()
        await until(lambda: is_told(at_ann, "bob", is_online=False))

        at_ann.presence.clear()
        at_bob = await bob.ready()
        await until(lambda: is_told(at_ann, "bob", is_online=True))
        await until(lambda: is_equal(rows(store), ["ann#node_1", "bob#node_0"]))
        del cluster.live[0]
        cluster.nodes[1].hub.on_node_gone("node_0")
        await until(lambda: is_told(at_ann, "bob", is_online=False))
        await at_bob.close()
