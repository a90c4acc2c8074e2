"""On the whole service: old state + updates = fresh fetch, whatever happens in between.

Devices come and go by socket, stream and poll, lose frames, read slowly and poll twice at once;
the devices of `tidings.client` sit behind a network that cuts; people post, edit, delete, react,
read on another device, mute, leave and join, in small rooms and in one that fans out; and the
service is stopped and killed in the middle.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from tests.client.proxy import CuttingProxy
from tests.command_line import lasting_port, run_tidings, running_service
from tests.delivery.doors import HttpDevice
from tests.delivery.visits import Visit, visiting
from tests.redis_server import needs_redis, running_redis
from tidings import wire
from tidings.app import listening, open_app
from tidings.client import Client, ClientError, Device, Way
from tidings.client import device as client_device
from tidings.client import state as client_state
from tidings.client.frames import BadgeUpdate, EntryUpdate, ReadUpdate, Received, RoomUpdate
from tidings.client.ways import Line, open_socket, open_stream
from tidings.config import LOCAL_BUS, Settings
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import FANOUTS

USERS = [f"user{number}" for number in range(5)]
CROWD = [f"guest{number}" for number in range(27)]
"""Members of the large room who have no devices."""
BASE, LARGE = "base", "large"
"""The room that nobody leaves, and the one that fans out."""
ROOMS = [BASE, "full", "since", LARGE]
WAYS: tuple[Way, ...] = ("websocket", "events", "poll")
LOSS = 0.04
"""How many of the commits told to a device of the client are lost."""
DEADLINE_S = 60.0

# A connection that is cut while it is being made may be left to the collector of garbage, and one
# that is made while the service stops, as a bare socket.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed transport:ResourceWarning", "ignore:unclosed <socket:ResourceWarning"
)


class Place(Protocol):
    """A service at the same addresses for ever, though not without pauses."""

    @property
    def url(self) -> str:
        """An address of it."""
        ...

    async def key(self) -> str:
        """A new API key."""
        ...

    async def restart(self) -> None:
        """End the service and start another one on the same store."""
        ...


class OwnPlace:
    """A service within the test's process, so that its limits can be made small."""

    def __init__(self, store: Path, port: int, bus: str = LOCAL_BUS) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._settings = Settings(store=f"sqlite:///{store}", bus=bus, rate_limit="off", log="off")
        self._port = port
        self._running = AsyncExitStack()

    async def start(self) -> None:
        self._service = await self._running.enter_async_context(open_app(self._settings))
        await self._running.enter_async_context(listening(self._service, "127.0.0.1", self._port))

    async def key(self) -> str:
        people = self._service.people
        workspace = await people.workspaces.default(None)
        _, key = await people.credentials.create_key(workspace.id, "test")
        return key

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        await self._running.aclose()


class TwoPlaces:
    """Two nodes of one service: whoever asks for an address gets the one or the other."""

    def __init__(self, store: Path, bus: str) -> None:
        self._places = [OwnPlace(store, lasting_port(), bus) for _ in range(2)]
        self._turns = cycle(self._places)

    @property
    def url(self) -> str:
        return next(self._turns).url

    async def start(self) -> None:
        for place in self._places:
            await place.start()

    async def key(self) -> str:
        return await self._places[0].key()

    async def restart(self) -> None:
        await next(self._turns).restart()

    async def stop(self) -> None:
        for place in self._places:
            await place.stop()


class ProcessPlace:
    """A service in another process, which is killed every other time."""

    def __init__(self, store: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = (f"sqlite:///{store}", "--port", str(port), "--rate-limit", "off")
        self._running = running_service(*self._arguments)
        self._restarts = 0

    async def start(self) -> None:
        self._running = running_service(*self._arguments)
        self._service = await asyncio.to_thread(self._running.__enter__)

    async def key(self) -> str:
        command = ("keys", "create", "--store", self._arguments[0])
        return (await asyncio.to_thread(run_tidings, *command)).last_line

    async def restart(self) -> None:
        self._restarts += 1
        if self._restarts % 2:
            self._service.process.kill()
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._running.__exit__, None, None, None)


class Loss:
    """How much is lost now, and was so far."""

    def __init__(self) -> None:
        self.chance = LOSS
        self.count = 0


class LossyLine:
    """A connection of the client's on which whole commits are lost."""

    def __init__(self, line: Line, dice: random.Random, loss: Loss) -> None:
        self.can_send = line.can_send
        self.send = line.send
        self._line = line
        self._dice = dice
        self._loss = loss
        self._version: int | None = None
        self._is_losing = False

    async def frames(self) -> AsyncIterator[list[Received]]:
        async for frames in self._line.frames():
            yield [frame for frame in frames if not self._loses(frame)]

    def _loses(self, frame: Received) -> bool:
        if not isinstance(frame, EntryUpdate | ReadUpdate | BadgeUpdate | RoomUpdate):
            return False
        if frame.version != self._version:
            self._version = frame.version
            self._is_losing = self._dice.random() < self._loss.chance
        self._loss.count += self._is_losing
        return self._is_losing


def lose(monkeypatch: pytest.MonkeyPatch, dice: random.Random) -> Loss:
    """Let the devices of the client lose what they are told."""
    loss = Loss()

    def lossy(open_line: Callable[..., AbstractAsyncContextManager[Line]]) -> Any:
        @asynccontextmanager
        async def opened(
            client: Client, since: str | None, have: Mapping[str, str]
        ) -> AsyncIterator[Line]:
            async with open_line(client, since, have) as line:
                yield LossyLine(line, dice, loss)

        return opened

    monkeypatch.setitem(client_device._OPEN, "websocket", lossy(open_socket))
    monkeypatch.setitem(client_device._OPEN, "events", lossy(open_stream))
    return loss


class Fresh(msgspec.Struct):
    """What somebody who just arrived is told."""

    badge: wire.Badge
    items: dict[str, wire.InboxItem]
    logs: dict[str, dict[int, wire.Entry]]
    joined: dict[str, int]


class Town:
    """The people of one workspace, their rooms, and what they do."""

    def __init__(self, place: Place, key: Client, people: dict[str, Client], store: Path) -> None:
        self.place = place
        self.key = key
        self.people = people
        self.devices: list[tuple[str, Device]] = []
        self.sends: list[asyncio.Task[wire.Entry]] = []
        self.done: Counter[str] = Counter()
        """What was done or happened how often."""
        self._store = store

    async def act(self, dice: random.Random) -> None:
        """One thing that happens; it may fail where the service is away, or have happened."""
        acts: dict[str, Callable[[random.Random, str], Awaitable[object]]] = {
            "post": self._post,
            "send": self._send,
            "burst": self._burst,
            "read": self._read,
            "edit": self._edit,
            "delete": self._delete,
            "react": self._react,
            "mute": self._mute,
            "leave": self._leave,
            "join": self._join,
        }
        (name,) = dice.choices(list(acts), weights=[6, 4, 1, 4, 1, 2, 1, 1, 2, 2])
        with suppress(ClientError):
            await acts[name](dice, dice.choice(ROOMS))
            self.done[name] += 1

    async def _post(self, dice: random.Random, room_id: str) -> object:
        text = f"text {dice.random()}"
        author = dice.choice(USERS)
        mentions = [USERS[0]] if room_id == BASE else []
        return await self.people[author].post_message(room_id, text, mentions=mentions)

    async def _send(self, dice: random.Random, room_id: str) -> None:
        """By a device, which does not give up."""
        _, device = dice.choice(self.devices)
        self.sends.append(asyncio.create_task(device.send(BASE, f"sent {dice.random()}")))

    async def _burst(self, dice: random.Random, room_id: str) -> object:
        authors = [dice.choice(USERS) for _ in range(20)]
        posts = [
            self.key.post_message(room_id, f"burst {dice.random()} " * 20, as_user=author)
            for author in authors
        ]
        return await asyncio.gather(*posts, return_exceptions=True)

    async def _read(self, dice: random.Random, room_id: str) -> object:
        reader = self.people[dice.choice(USERS)]
        head = (await reader.room(room_id)).head
        return await reader.read(room_id, dice.randint(max(0, head - 10), head))

    async def _entry(self, dice: random.Random, room_id: str) -> wire.Entry:
        """One of the newest messages. Raises ClientError where there is none."""
        newest = await self.key.messages(room_id, limit=30)
        texts = [e for e in newest.items if e.type == "text" and e.deleted_at is None]
        if not texts:
            raise ClientError("nothing was said yet")
        return dice.choice(texts)

    async def _edit(self, dice: random.Random, room_id: str) -> object:
        entry = await self._entry(dice, room_id)
        author = self.people[entry.sender_id or ""]
        return await author.edit_message(room_id, entry.seq, f"edited {dice.random()}")

    async def _delete(self, dice: random.Random, room_id: str) -> object:
        entry = await self._entry(dice, room_id)
        return await self.key.delete_message(room_id, entry.seq)

    async def _react(self, dice: random.Random, room_id: str) -> object:
        entry = await self._entry(dice, room_id)
        return await self.people[dice.choice(USERS)].react(room_id, entry.seq, "👍")

    async def _mute(self, dice: random.Random, room_id: str) -> object:
        return await self.people[dice.choice(USERS)].mute(room_id, muted=dice.random() < 0.5)

    async def _leave(self, dice: random.Random, room_id: str) -> None:
        if room_id == BASE:
            raise ClientError("nobody leaves this one")
        await self.key.remove_member(room_id, dice.choice(USERS))

    async def _join(self, dice: random.Random, room_id: str) -> object:
        return await self.key.add_members(room_id, dice.choice(USERS))

    async def rest(self) -> None:
        """Wait until every fan-out is through."""
        store = SqliteStore.open(self._store)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while (await store.scan(FANOUTS)).items:
                    await asyncio.sleep(0.02)
        finally:
            await store.close()

    async def fresh(self, user_id: str) -> Fresh:
        """What the user's new device would fetch; at rest."""
        client = self.people[user_id]
        items = {item.room_id: item async for item in client.inbox_items()}
        joined, logs = {}, {}
        for room_id in items:
            log: list[wire.Entry] = []
            while page := (
                await client.messages(room_id, after=log[-1].seq if log else 0, limit=500)
            ).items:
                log += page
            logs[room_id] = {entry.seq: entry for entry in log}
            members = await client.members(room_id, limit=500)
            [joined[room_id]] = [m.joined_seq for m in members.items if m.user_id == user_id]
        return Fresh(await client.badge(), items, logs, joined)


def check_visit(visit: Visit, fresh: Fresh) -> None:
    """The device shows what a fresh fetch shows."""
    state = visit.state
    assert state.version == fresh.badge.version
    assert state.total == (fresh.badge.unread, fresh.badge.mentions)
    for room_id, item in fresh.items.items():
        shown, log = state.rooms[room_id], fresh.logs[room_id]
        assert (shown["is_left"], shown["unread"]) == (False, item.unread), room_id
        kept = state.entries.get(room_id, {})
        since = {s: e.text for s, e in log.items() if s >= fresh.joined[room_id]}
        assert {seq: kept.get(seq, "missing") for seq in since} == since, room_id
    for room_id in state.rooms.keys() - fresh.items.keys():
        assert state.rooms[room_id] == {"is_left": True, "unread": 0}, room_id


def check_device(device: Device, fresh: Fresh) -> None:
    """The client's device shows what a fresh fetch shows."""
    total = device.total
    assert (total.unread, total.mentions, total.version) == msgspec.structs.astuple(fresh.badge)
    for room_id, item in fresh.items.items():
        room, log = device.rooms[room_id], fresh.logs[room_id]
        assert not room.left
        assert (room.head, room.unread, room.mentions) == (item.head, item.unread, item.mentions)
        assert room.read_seq >= item.read_seq
        kept = {entry.seq: entry for entry in room.log()}
        differing = [(kept[seq], log[seq]) for seq in kept if log.get(seq, kept[seq]) != kept[seq]]
        assert not differing, (device, room_id, differing)
        wanted = list(log)[-client_state.ENTRIES_KEPT_MAX :]
        assert {seq for seq in wanted if seq >= fresh.joined[room_id]} <= kept.keys(), room_id
    for room_id in device.rooms.keys() - fresh.items.keys():
        room = device.rooms[room_id]
        assert (room.left, room.unread, room.mentions) == (True, 0, 0), room_id


async def refetch(visit: Visit, town: Town) -> None:
    """Fetch again what is known to have changed since it came, as any device does."""
    client = town.people[visit.device.user_id]
    for room_id, seqs in visit.state.changed.items():
        for seq in seqs:
            if visit.state.rooms[room_id]["is_left"] or seq not in visit.state.entries[room_id]:
                continue
            for entry in (await client.messages(room_id, after=seq - 1, limit=1)).items:
                if entry.seq == seq:
                    visit.state.entries[room_id][seq] = entry.text


async def come_and_go(
    place: Place, store: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, steps: int
) -> Town:
    """Everything at once, then the comparison, then live updates and the comparison again."""
    dice = random.Random(seed)
    loss = lose(monkeypatch, dice)
    async with AsyncExitStack() as stack:
        key = await stack.enter_async_context(Client(place.url, await place.key()))
        people = [*USERS, *CROWD]
        await asyncio.gather(*[key.create_user(one, "manager", user_id=one) for one in people])

        async def session(user_id: str, url: str | None = None) -> Client:
            token = (await key.create_session(user_id)).token
            return await stack.enter_async_context(Client(url or place.url, token))

        town = Town(place, key, {user_id: await session(user_id) for user_id in USERS}, store)
        visits = []
        for user_id in USERS:
            for number in range(2):
                device = HttpDevice(await session(user_id), user_id)
                own_dice = random.Random(f"{seed}{user_id}{number}")
                visit = Visit(device, device.stream, own_dice, is_lossy=number == 1)
                visit.state.cursor = (await device.sync()).cursor
                visits.append(visit)
        proxy = CuttingProxy(int(place.url.rpartition(":")[2]))
        await stack.enter_async_context(proxy.opened())
        for number, way in enumerate(WAYS * 2):
            user_id = USERS[number % len(USERS)]
            client = await session(user_id, proxy.url)
            made = Device(client, way=way, random_0_1=lambda: dice.random() / 20)
            town.devices.append((user_id, await stack.enter_async_context(made)))
        await key.create_room("group", room_id=BASE, members=USERS)
        await key.create_room("group", room_id="full", members=USERS[:3])
        await key.create_room("group", room_id="since", members=USERS[1:4], history="since_join")
        await key.create_room("group", room_id=LARGE, members=USERS[:4] + CROWD)

        async with visiting(visits):
            restart: asyncio.Task[None] | None = None
            for step in range(steps):
                if step % 60 == 40 and (restart is None or restart.done()):
                    restart = asyncio.create_task(place.restart())
                if dice.random() < 0.05:
                    proxy.cut()
                await town.act(dice)
                await asyncio.sleep(dice.choice([0, 0, 0.002, 0.01]))
            if restart is not None:
                await restart
            async with asyncio.timeout(DEADLINE_S):
                sent = await asyncio.gather(*town.sends)

        loss.chance = 0
        await key.post_message(BASE, "all get to know what they missed", as_user=USERS[0])
        await town.rest()
        town.done["stay"] = sum(visit.stays for visit in visits)
        town.done["cut"] = proxy.cuts
        town.done["loss"] = loss.count
        told = {user_id: await town.fresh(user_id) for user_id in USERS}
        for entry in sent:
            assert told[USERS[0]].logs[BASE][entry.seq].client_id == entry.client_id
        for visit in visits:
            await visit.settle()
            await refetch(visit, town)
            check_visit(visit, told[visit.device.user_id])
        await check_devices(town, told)

        monkeypatch.undo()
        # Nobody reads one socket, nor answers its pings, while another's visit is checked.
        monkeypatch.setattr("tidings.delivery.websocket.IDLE_S", 3_600.0)
        sockets = []
        for visit in visits:
            socket = await visit.device.connect(header=False, since=visit.state.cursor)
            visit.state.apply(await socket.next("ready"))
            sockets.append(socket)
        for _ in range(steps // 3):
            await town.act(dice)
        await asyncio.gather(*town.sends)
        await town.rest()
        told = {user_id: await town.fresh(user_id) for user_id in USERS}
        for visit, socket in zip(visits, sockets, strict=True):
            version = told[visit.device.user_id].badge.version
            while visit.state.version < version:  # another node may have told of it
                assert visit.state.apply(await socket.next()), "a live connection has no gap"
            for frame in await socket.rest():
                assert visit.state.apply(frame), "a live connection has no gap"
            await socket.close()
            await refetch(visit, town)
            check_visit(visit, told[visit.device.user_id])
        await check_devices(town, told)
        return town


async def check_devices(town: Town, told: Mapping[str, Fresh]) -> None:
    """All devices of the client come to show what a fresh fetch shows."""
    for user_id, device in town.devices:
        version = told[user_id].badge.version
        await device.until(lambda state: state.version >= version, deadline_s=DEADLINE_S)  # noqa: B023
        await device.settled(deadline_s=DEADLINE_S)
        check_device(device, told[user_id])


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make limits small, so that what happens seldom happens all the time."""
    monkeypatch.setattr("tidings.delivery.syncs.REPLY_CHARACTERS_MAX", 1_000)
    monkeypatch.setattr("tidings.delivery.connections.HELD_UPDATES_MAX", 2)
    monkeypatch.setattr("tidings.delivery.connections.OUTBOX_BYTES_MAX", 2_048)
    monkeypatch.setattr("tidings.delivery.marked.MARKED_ROOMS_MAX", 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_devices_end_where_a_fresh_fetch_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    if seed:
        narrow(monkeypatch)
    store = tmp_path / "tidings.db"
    place = OwnPlace(store, lasting_port())
    await place.start()
    try:
        town = await come_and_go(place, store, monkeypatch, seed=seed, steps=250)
    finally:
        await place.stop()
    assert len(+town.done) == 13, town.done
    assert town.done["stay"] > 50


@pytest.mark.slow
async def test_devices_of_a_service_that_is_killed_miss_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "tidings.db"
    place = ProcessPlace(store, lasting_port())
    await place.start()
    try:
        await come_and_go(place, store, monkeypatch, seed=7, steps=250)
    finally:
        await place.stop()


@pytest.mark.slow
@needs_redis
async def test_devices_of_two_nodes_miss_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "tidings.db"
    async with running_redis(tmp_path) as server:
        place = TwoPlaces(store, server.url)
        await place.start()
        try:
            await come_and_go(place, store, monkeypatch, seed=5, steps=150)
        finally:
            await place.stop()


async def test_devices_miss_nothing_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    store = tmp_path / "tidings.db"
    place = OwnPlace(store, lasting_port())
    await place.start()
    try:
        await come_and_go(place, store, monkeypatch, seed=11, steps=40)
    finally:
        await place.stop()
