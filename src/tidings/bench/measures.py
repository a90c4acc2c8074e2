"""The rows of the speed table: each measure starts its own service and returns its figures."""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from tidings.bench.doors import STORE_SMALL_ENTRIES, Door, Options, Stores, opened
from tidings.bench.figures import Figure, Say, number, percentile
from tidings.bench.filling import Pair
from tidings.bench.loads import Load, Tally
from tidings.bench.machines import disk_write_s
from tidings.bench.profiles import profiled
from tidings.bench.services import Service, python_on_service_core, running
from tidings.bench.sockets import FastHttp, FastSocket

PAIRS = 100
IN_FLIGHT = 8
CHAT_PER_S = 12_000
BARE_STORE_SHARE = 0.4
ROOM_MEMBERS = 50
ROOM_SENDERS = 10
DELIVERIES_PER_S = 60_000
HISTORY_ENTRIES = 300
HISTORY_MS = 2.0
BADGE_RATIO = 1.2
STORE_RATIO = 1.5
CONNECTION_KIB = 40.0
START_S = 1.0

WARM_UP_S = 2.0
CALLS = 400
"""Timed calls of a run, where single calls are timed."""
WARM_UP_CALLS = 50
POSTS_PER_TURN = 20
"""Posts to one store before it is the other's turn."""
STARTS_PER_RUN = 3
OPENING_AT_ONCE = 50
IDLE_S = 3.0
FLOOR_DEADLINE_S = 120.0
FILES_PER_CONNECTION = 1.2


class Window(msgspec.Struct, frozen=True):
    """One measured stretch of a load."""

    delivered_per_s: float
    sent_per_s: float
    service_share: float
    """Of one core."""
    load_share: float
    updates_per_frame: float


async def windows(load: Load, service: Service, options: Options) -> list[Window]:
    """Run the load, measure `runs` stretches of it, and check that nothing was lost."""
    tally = load.tally
    found = []
    load.start()
    await asyncio.sleep(WARM_UP_S)
    for _ in range(options.runs):
        before = msgspec.structs.replace(tally)
        service_s, own_s = service.processor_s, time.process_time()
        started = time.perf_counter()
        await asyncio.sleep(options.seconds)
        elapsed_s = time.perf_counter() - started
        delivered = tally.delivered - before.delivered
        frames = max(1, tally.frames - before.frames)
        found.append(
            Window(
                delivered_per_s=delivered / elapsed_s,
                sent_per_s=(tally.acknowledged - before.acknowledged) / elapsed_s,
                service_share=(service.processor_s - service_s) / elapsed_s,
                load_share=(time.process_time() - own_s) / elapsed_s,
                updates_per_frame=(delivered + tally.acknowledged - before.acknowledged) / frames,
            )
        )
    await load.settle()
    return found


def _shares(found: Sequence[Window]) -> str:
    service = statistics.median(window.service_share for window in found)
    own = statistics.median(window.load_share for window in found)
    return f"service {service:.0%} of its core, load generator {own:.0%} of its own"


async def chat(options: Options, say: Say) -> list[Figure]:
    """100 one-to-one rooms, 200 connections, 8 in flight each."""
    tally = Tally()
    async with opened(options, "chat") as door:
        users = [f"chat-{number}" for number in range(2 * PAIRS)]
        await door.people(users)
        pairs = [(users[number], users[number + 1]) for number in range(0, 2 * PAIRS, 2)]
        made = await door.each(
            "/v1/rooms", [{"kind": "direct", "member_ids": list(pair)} for pair in pairs]
        )
        rooms = [
            [await door.sender(tally, str(room["id"]), user, in_flight=IN_FLIGHT) for user in pair]
            for pair, room in zip(pairs, made, strict=True)
        ]
        load = Load(rooms, tally)
        badge = await FastHttp.open(door.service.url)
        token = (await door.sessions(users[:1]))[0]
        before = int(str((await badge.json("GET", "/v1/badge", token))["version"]))
        say("chat: sending")
        async with profiled(options, door.service, "chat", say):
            found = await windows(load, door.service, options)
        after = int(str((await badge.json("GET", "/v1/badge", token))["version"]))
        in_room = sum(sender.sent for sender in rooms[0])
        folded = max(1, round(in_room / (after - before)))
        badge.close()
        load.close()
    say(f"chat: what the bare store does with {folded} messages in a commit")
    bare = await bare_store_per_s(options, folded)
    per_s = tuple(window.delivered_per_s for window in found)
    figures = [
        Figure(
            "durable, delivered messages/s (100 one-to-one rooms, 200 sockets, 8 in flight)",
            per_s,
            "/s",
            CHAT_PER_S,
            f"at least {CHAT_PER_S:,}/s",
            is_most=False,
            floor="" if bare is None else f"bare store {number(bare)}/s",
            notes=f"{tally.sent:,} messages, each delivered once and in order; "
            f"{folded} messages in a commit; {_shares(found)}; "
            f"{statistics.median(w.updates_per_frame for w in found):.1f} updates in a frame",
        )
    ]
    if bare is not None:
        figures.append(
            Figure(
                "the same ÷ the bare store with the same writes",
                tuple(value / bare for value in per_s),
                "",
                BARE_STORE_SHARE,
                f"at least {BARE_STORE_SHARE}",
                is_most=False,
                floor=f"{number(bare)}/s",
            )
        )
    return figures


async def bare_store_per_s(options: Options, folded: int) -> float | None:
    """Messages/s of the store alone, on the service's core; None outside of a checkout."""
    if options.checkout is None:
        return None
    code = (
        "import asyncio\n"
        "from benchmarks.bare_store import bare_store\n"
        f"for _ in range({options.runs}):\n"
        f"    print(asyncio.run(bare_store(rounds={max(10, 200 // folded)}, folded={folded})))\n"
    )
    printed = await python_on_service_core(
        code,
        folder=options.checkout,
        scratch=options.folder,
        is_pinned=options.is_pinned,
        deadline_s=FLOOR_DEADLINE_S,
    )
    return statistics.median(float(line) for line in printed.split())


async def latency(options: Options, say: Say) -> list[Figure]:
    """One sender, one in flight: from the send to the arrival at the other."""
    tally = Tally()
    values: list[float] = []
    disk: list[float] = [disk_write_s(options.folder)]
    p99: list[float] = []
    async with opened(options, "latency") as door:
        await door.people(["one", "two"])
        room = await door.post("/v1/rooms", {"kind": "direct", "member_ids": ["one", "two"]})
        room_id = str(room["id"])
        one, two = [await door.sender(tally, room_id, user, in_flight=0) for user in ("one", "two")]
        load = Load([[one, two]], tally)
        for _ in range(options.runs):
            say("latency: one message at a time")
            taken: list[float] = []
            for call in range(WARM_UP_CALLS + CALLS):
                two.on_delivery = asyncio.get_running_loop().create_future()
                started = time.perf_counter()
                one.send_one()
                async with asyncio.timeout(10):
                    arrived = await two.on_delivery
                if call >= WARM_UP_CALLS:
                    taken.append(arrived - started)
            values.append(statistics.median(taken) * 1000)
            p99.append(percentile(taken, 0.99) * 1000)
            disk.append(disk_write_s(options.folder))
        await load.settle()
        load.close()
    disk_ms = statistics.median(disk) * 1000
    target = 3 * disk_ms + 1
    return [
        Figure(
            "send → received by the other, p50",
            tuple(values),
            "ms",
            target,
            f"at most {target:.2f} ms",
            is_most=True,
            floor=f"4 KiB write + fdatasync {disk_ms:.2f} ms",
            notes=f"p99 {statistics.median(p99):.2f} ms; the target is 3 × the disk's write + 1 ms",
        )
    ]


async def room(options: Options, say: Say) -> list[Figure]:
    """One room, 50 members online, 10 of them sending, 8 in flight each."""
    tally = Tally()
    async with opened(options, "room") as door:
        users = [f"member-{number}" for number in range(ROOM_MEMBERS)]
        await door.people(users)
        body: dict[str, object] = {"kind": "group", "title": "All", "member_ids": users}
        room_id = str((await door.post("/v1/rooms", body))["id"])
        senders = [
            await door.sender(
                tally, room_id, user, in_flight=IN_FLIGHT if number < ROOM_SENDERS else 0
            )
            for number, user in enumerate(users)
        ]
        load = Load([senders], tally)
        say("room: sending")
        async with profiled(options, door.service, "room", say):
            found = await windows(load, door.service, options)
        load.close()
    return [
        Figure(
            "deliveries/s in one room (50 online, 10 senders, 8 in flight)",
            tuple(window.delivered_per_s for window in found),
            "/s",
            DELIVERIES_PER_S,
            f"at least {DELIVERIES_PER_S:,}/s",
            is_most=False,
            notes=f"{statistics.median(w.sent_per_s for w in found):,.0f} messages/s; "
            f"own messages not counted; {_shares(found)}; "
            f"{statistics.median(w.updates_per_frame for w in found):.1f} updates in a frame",
        )
    ]


async def _timed(call: Callable[[], Awaitable[float]], calls: int = CALLS) -> list[float]:
    for _ in range(WARM_UP_CALLS):
        await call()
    return [await call() for _ in range(calls)]


async def history(options: Options, say: Say) -> list[Figure]:
    """The 300 latest entries of a room over HTTP."""
    values: list[float] = []
    floors: list[float] = []
    tally = Tally()
    async with opened(options, "history") as door:
        await door.people(["one", "two"])
        made = await door.post("/v1/rooms", {"kind": "direct", "member_ids": ["one", "two"]})
        room_id = str(made["id"])
        senders = [await door.sender(tally, room_id, user, in_flight=0) for user in ("one", "two")]
        load = Load([senders], tally)
        for _ in range(HISTORY_ENTRIES + 100):
            senders[0].send_one()
        await load.settle()
        load.close()
        token = (await door.sessions(["one"]))[0]
        connection = await FastHttp.open(door.service.url)
        path = f"/v1/rooms/{room_id}/messages?limit={HISTORY_ENTRIES}"
        say("history: reading")
        for _ in range(options.runs):
            floors += await _timed(lambda: connection.call("GET", "/healthz", None))
            values.append(
                statistics.median(await _timed(lambda: connection.call("GET", path, token))) * 1000
            )
        size = len(connection.body)
        count = len(msgspec.json.decode(connection.body)["items"])
        if count != HISTORY_ENTRIES:
            raise RuntimeError(f"{count} entries instead of {HISTORY_ENTRIES}")
        connection.close()
    return [
        Figure(
            "300 latest entries of a room over HTTP, p50",
            tuple(values),
            "ms",
            HISTORY_MS,
            f"at most {HISTORY_MS:g} ms",
            is_most=True,
            floor=f"GET /healthz {statistics.median(floors) * 1000:.2f} ms",
            notes=f"{size / 1024:.0f} KiB",
        )
    ]


async def badge(options: Options, say: Say, stores: Stores) -> list[Figure]:
    """The badge of a user with 10,000 rooms against that of one with 10."""
    path, _ = await stores.of(STORE_SMALL_ENTRIES)
    values: list[float] = []
    few_ms: list[float] = []
    async with opened(options, "badge", store=path) as door:
        tokens = await door.sessions(["many", "few"])
        connection = await FastHttp.open(door.service.url)
        say("badge: reading")
        for _ in range(options.runs):
            taken: tuple[list[float], list[float]] = ([], [])
            for call in range(WARM_UP_CALLS + CALLS):
                for token, list_ in zip(tokens, taken, strict=True):
                    elapsed_s = await connection.call("GET", "/v1/badge", token)
                    if call >= WARM_UP_CALLS:
                        list_.append(elapsed_s)
            many, few = map(statistics.median, taken)
            values.append(many / few)
            few_ms.append(few * 1000)
        connection.close()
    return [
        Figure(
            "badge of a user with 10,000 rooms ÷ of one with 10",
            tuple(values),
            "",
            BADGE_RATIO,
            f"at most {BADGE_RATIO}",
            is_most=True,
            floor=f"with 10 rooms {statistics.median(few_ms):.2f} ms",
        )
    ]


class _Poster:
    """Posts one message at a time into rooms all over a store."""

    def __init__(self, door: Door, connection: FastHttp, targets: list[tuple[str, str]]) -> None:
        self.door = door
        self.connection = connection
        self.taken: list[float] = []
        self._targets = targets
        self._posted = 0

    @classmethod
    async def of(cls, door: Door, pairs: Sequence[Pair]) -> _Poster:
        # a stride that visits rooms in an order unlike that in which they were filled
        spread = [pairs[number * 7919 % len(pairs)] for number in range(min(len(pairs), 1_000))]
        users = sorted({pair.user_ids[0] for pair in spread})
        tokens = dict(zip(users, await door.sessions(users), strict=True))
        targets = [(pair.room_id, tokens[pair.user_ids[0]]) for pair in spread]
        return cls(door, await FastHttp.open(door.service.url), targets)

    async def post(self, count: int) -> None:
        for _ in range(count):
            room_id, token = self._targets[self._posted % len(self._targets)]
            self._posted += 1
            body = b'{"client_id":"posted-%d","text":"one more for this store"}' % self._posted
            path = f"/v1/rooms/{room_id}/messages"
            self.taken.append(await self.connection.call("POST", path, token, body))


async def store(options: Options, say: Say, stores: Stores) -> list[Figure]:
    """A post into a large store against one into a small store, turn by turn."""
    small_path, small_pairs = await stores.of(STORE_SMALL_ENTRIES)
    large_path, large_pairs = await stores.of(options.entries)
    values: list[float] = []
    small_ms: list[float] = []
    large_ms: list[float] = []
    async with (
        opened(options, "small", store=small_path) as small_door,
        opened(options, "large", store=large_path) as large_door,
    ):
        small = await _Poster.of(small_door, small_pairs)
        large = await _Poster.of(large_door, large_pairs)
        for poster in (small, large):
            await poster.post(WARM_UP_CALLS)
        say("store: posting into both, turn by turn")
        for _ in range(options.runs):
            small.taken.clear()
            large.taken.clear()
            for _ in range(CALLS // POSTS_PER_TURN):
                await small.post(POSTS_PER_TURN)
                await large.post(POSTS_PER_TURN)
            small_ms.append(statistics.median(small.taken) * 1000)
            large_ms.append(statistics.median(large.taken) * 1000)
            values.append(large_ms[-1] / small_ms[-1])
        small.connection.close()
        large.connection.close()
    disk_ms = disk_write_s(options.folder) * 1000
    size_gib = large_path.stat().st_size / 2**30
    return [
        Figure(
            f"a post into a store of {options.entries:,} entries ÷ of {STORE_SMALL_ENTRIES:,}",
            tuple(values),
            "",
            STORE_RATIO,
            f"at most {STORE_RATIO}",
            is_most=True,
            floor=f"4 KiB write + fdatasync {disk_ms:.2f} ms",
            notes=f"p50 {statistics.median(large_ms):.2f} ms against "
            f"{statistics.median(small_ms):.2f} ms; the large store has {size_gib:.1f} GiB",
        )
    ]


async def memory(options: Options, say: Say) -> list[Figure]:
    """Idle WebSocket connections, the state of their sessions included."""
    count = options.connections
    files = int(count * FILES_PER_CONNECTION) + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))
    async with opened(options, "memory") as door:
        users = [f"idle-{number}" for number in range(count)]
        say(f"memory: making {count:,} users")
        await door.people(users)
        for socket in await _idle_sockets(door, users[:100]):
            socket.close()
        await asyncio.sleep(IDLE_S)
        before = door.service.memory_bytes
        say(f"memory: opening {count:,} connections")
        sockets = await _idle_sockets(door, users)
        await asyncio.sleep(IDLE_S)
        after = door.service.memory_bytes
        lost = sum(socket.lost.done() for socket in sockets)
        if lost:
            raise RuntimeError(f"{lost} of {count} connections were lost")
        for socket in sockets:
            socket.close()
    return [
        Figure(
            f"memory per idle WebSocket connection, {count:,} of them",
            ((after - before) / count / 1024,),
            "KiB",
            CONNECTION_KIB,
            f"at most {CONNECTION_KIB:g} KiB",
            is_most=True,
            floor=f"{before / 2**20:.0f} MiB before the first",
        )
    ]


async def _idle_sockets(door: Door, users: Sequence[str]) -> list[FastSocket]:
    tokens = await door.sessions(users)
    sockets: list[FastSocket] = []
    for start in range(0, len(tokens), OPENING_AT_ONCE):
        some = tokens[start : start + OPENING_AT_ONCE]
        sockets += await asyncio.gather(
            *[FastSocket.open(door.service.url, token, lambda _: None) for token in some]
        )
    return sockets


async def start(options: Options, say: Say) -> list[Figure]:
    """From making the process to the first answered request, on a store that does not exist.

    A first start, which compiles the modules, is left out.
    """
    values: list[float] = []
    floors: list[float] = []
    for number_ in range(1 + options.runs * STARTS_PER_RUN):
        say("start: starting")
        path = options.folder / f"start-{number_}.db"
        async with running(path, is_pinned=options.is_pinned) as service:
            connection = await FastHttp.open(service.url)
            await connection.call("GET", "/readyz", None)
            values.append(time.perf_counter() - service.started_at)
            connection.close()
        started = time.perf_counter()
        await python_on_service_core(
            "import aiohttp.web, apsw, msgspec, uvloop",
            folder=Path(sys.prefix),
            scratch=options.folder,
            is_pinned=options.is_pinned,
            deadline_s=FLOOR_DEADLINE_S,
        )
        floors.append(time.perf_counter() - started)
    floor_s = statistics.median(floors[1:])
    return [
        Figure(
            "start to first answered request, empty store",
            tuple(values[1:]),
            "s",
            START_S,
            f"at most {START_S:g} s",
            is_most=True,
            floor=f"Python with aiohttp, apsw, msgspec, uvloop {floor_s:.2f} s",
        )
    ]


NAMES = ("chat", "latency", "room", "history", "badge", "store", "memory", "start")


async def measure(name: str, options: Options, say: Say, stores: Stores) -> list[Figure]:
    """The figures of one row."""
    if name == "badge":
        return await badge(options, say, stores)
    if name == "store":
        return await store(options, say, stores)
    alone = {
        "chat": chat,
        "latency": latency,
        "room": room,
        "history": history,
        "memory": memory,
        "start": start,
    }
    return await alone[name](options, say)
