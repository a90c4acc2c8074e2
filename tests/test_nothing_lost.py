"""What was acknowledged is there after `kill -9` and after power cuts, and nothing needs repair."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import apsw
import msgspec
import pytest

from tests.chat.test_commits import WORKSPACE, Now, World
from tests.command_line import clean_environment, run_tidings, running_service
from tests.storage.powercut import PowerCutFiles
from tidings.chat import commands
from tidings.chat.audit import audit
from tidings.storage import sqlite
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, room_key

KILLS = 30
CUTS = 21
CUTS_IN_PROCESS = 20
LIVES_BETWEEN_CHECKS = 12
LIFE_S = (0.02, 0.7)
IMPORT_LIFE_S = (0.0, 0.8)
POWERCUT_MODULE = "tests.storage.powercut_tidings"

CROWD = [f"u{number}" for number in range(2_000)]
ROOMS = {"crowd": CROWD, "team": CROWD[:20], "trio": CROWD[:3]}
FOUNDERS = CROWD[100:300]
READERS = CROWD[:3]
SENDERS = CROWD[:12]
SENDERS_MAX = 6
IN_FLIGHT = 6
PAUSE_S_MAX = 0.02
"""Senders rest a little, so that the checks of what they sent take no longer than the test."""
REQUEST_S = 60.0
SETTLE_S = 60.0
BUSY_MS = 5_000
PAGE = 500
CHANNEL = "shop"
IMPORTED_LINES = 2_000
IMPORTED_NICKS = 40


class Message(msgspec.Struct, frozen=True):
    """A message that somebody sends until it is acknowledged."""

    room_id: str
    sender_id: str
    client_id: str
    text: str


class Ledger:
    """What was acknowledged, and what has no answer yet and is sent again in the next life."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.entries: dict[tuple[str, int], tuple[str | None, str | None, str | None]] = {}
        self.heads: Counter[str] = Counter()
        self.unanswered: dict[str, Message] = {}
        self.again: deque[Message] = deque()
        self.marks: Counter[tuple[str, str]] = Counter()
        self.founded: dict[str, bool] = {}
        self.sent = 0
        self.sent_again = 0

    def next_message(self, sender_id: str) -> Message:
        """One without an answer from an earlier life, else a new one."""
        if self.again:
            self.sent_again += 1
            return self.again.popleft()
        self.sent += 1
        (room_id,) = self.chance.choices(list(ROOMS), [2, 3, 4])
        if sender_id not in ROOMS[room_id]:
            room_id = "crowd"
        text = f"{self.sent} " + "x" * self.chance.choice([0, 10, 100, 3_000])
        message = Message(room_id, sender_id, f"c{self.sent}", text)
        self.unanswered[message.client_id] = message
        return message

    def take(self, entry: dict[str, Any]) -> None:
        """An entry that was acknowledged or delivered: at its place there is never another."""
        place = entry["room_id"], entry["seq"]
        said = entry["sender_id"], entry["client_id"], entry["text"]
        assert self.entries.setdefault(place, said) == said
        self.heads[place[0]] = max(self.heads[place[0]], place[1])
        if entry["client_id"] in self.unanswered:
            message = self.unanswered.pop(entry["client_id"])
            assert said == (message.sender_id, message.client_id, message.text)

    def mark(self, room_id: str, user_id: str, seq: int) -> None:
        """A read mark that was acknowledged: it never goes back."""
        assert seq >= self.marks[room_id, user_id]
        self.marks[room_id, user_id] = seq

    def begin(self) -> None:
        """A new life of the service: what had no answer goes first."""
        self.again = deque(self.unanswered.values())


class Site:
    """One life of the service, as its clients see it: each goes on until the connection breaks."""

    def __init__(self, ledger: Ledger, http: aiohttp.ClientSession, key: str) -> None:
        self.ledger = ledger
        self.http = http
        self.key = key
        self.tokens: dict[str, str] = {}

    async def call(self, method: str, path: str, token: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.request(method, path, json=body, headers=headers) as response:
            assert response.status in (200, 201), await response.text()
            return await response.json()

    async def make(self) -> None:
        """People and rooms, before anything is killed."""
        for start in range(0, len(CROWD), 100):
            await asyncio.gather(
                *(
                    self.call(
                        "POST",
                        "/v1/users",
                        self.key,
                        {"id": user_id, "role": "manager", "name": user_id},
                    )
                    for user_id in CROWD[start : start + 100]
                )
            )
        for user_id in READERS:
            opened = await self.call("POST", "/v1/sessions", self.key, {"user_id": user_id})
            self.tokens[user_id] = opened["token"]
        for room_id, members in ROOMS.items():
            body = {"id": room_id, "kind": "group", "member_ids": members[:1_000]}
            await self.call("POST", "/v1/rooms", self.key, body)
            if members[1_000:]:
                path = f"/v1/rooms/{room_id}/members"
                await self.call("POST", path, self.key, {"user_ids": members[1_000:]})

    async def send(self, sender_id: str) -> None:
        while True:
            message = self.ledger.next_message(sender_id)
            body = {"client_id": message.client_id, "text": message.text}
            path = f"/v1/rooms/{message.room_id}/messages"
            entry = await self.call("POST", path, self.key, body | {"as_user": message.sender_id})
            self.ledger.take(entry)
            await self.pause()

    async def send_on_socket(self, user_id: str) -> None:
        """Several in flight; what is delivered counts as much as what is acknowledged."""
        headers = {"Authorization": f"Bearer {self.tokens[user_id]}"}
        async with self.http.ws_connect(
            "/v1/ws", headers=headers, protocols=("tidings.v1",), max_msg_size=1 << 24
        ) as socket:

            async def send() -> None:
                message = self.ledger.next_message(user_id)
                if message.sender_id != user_id:
                    self.ledger.again.append(message)
                    return
                await socket.send_json(
                    {
                        "type": "send",
                        "ref": message.client_id,
                        "room_id": message.room_id,
                        "client_id": message.client_id,
                        "text": message.text,
                    }
                )

            for _ in range(IN_FLIGHT):
                await send()
            async for received in socket:
                frame = received.json()
                for update in frame["updates"] if frame["type"] == "batch" else [frame]:
                    assert update["type"] != "error", update
                    if update["type"] in ("ack", "entry"):
                        self.ledger.take(update["entry"])
                    if update["type"] == "ack":
                        await self.pause()
                        await send()

    async def read(self, user_id: str) -> None:
        while True:
            room_id = self.ledger.chance.choice(list(ROOMS))
            head = self.ledger.heads[room_id]
            if head:
                body = {"seq": self.ledger.chance.randint(max(1, head - 50), head)}
                path = f"/v1/rooms/{room_id}/read"
                reply = await self.call("PUT", path, self.tokens[user_id], body)
                self.ledger.mark(room_id, user_id, reply["read_seq"])
            await self.pause()

    async def found(self, room_id: str) -> None:
        """Make a room with more founders than one transaction takes, at some moment."""
        await asyncio.sleep(self.ledger.chance.uniform(0, LIFE_S[1] / 2))
        self.ledger.founded[room_id] = False
        body = {"id": room_id, "kind": "group", "member_ids": FOUNDERS}
        await self.call("POST", "/v1/rooms", self.key, body)
        self.ledger.founded[room_id] = True

    async def pause(self) -> None:
        await asyncio.sleep(self.ledger.chance.uniform(0, PAUSE_S_MAX))

    async def live(self, number: int) -> None:
        """Everybody at once, until the service is gone."""
        self.ledger.begin()
        unsure = [room_id for room_id, is_there in self.ledger.founded.items() if not is_there]

        async def until_gone(work: Any) -> None:
            with suppress(aiohttp.ClientError):
                await work

        async with asyncio.TaskGroup() as group:
            for sender_id in self.ledger.chance.sample(SENDERS, SENDERS_MAX):
                group.create_task(until_gone(self.send(sender_id)))
            for user_id in READERS:
                group.create_task(until_gone(self.read(user_id)))
            group.create_task(until_gone(self.send_on_socket(READERS[0])))
            for room_id in [*unsure, *([f"new{number}"] if number % 4 == 0 else [])]:
                group.create_task(until_gone(self.found(room_id)))

    async def log(self, room_id: str) -> list[Any]:
        """All entries of a room."""
        entries: list[Any] = []
        while True:
            path = f"/v1/rooms/{room_id}/messages?after={len(entries)}&limit={PAGE}"
            reply = await self.call("GET", path, self.key)
            entries += reply["items"]
            if len(entries) >= reply["head"] or not reply["items"]:
                assert len(entries) == reply["head"]
                return entries

    async def check(self) -> None:
        """All that was acknowledged is there, once."""
        found: dict[tuple[str, int], tuple[Any, Any, Any]] = {}
        for room_id in ROOMS:
            entries = await self.log(room_id)
            assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
            sent = [(e["sender_id"], e["client_id"]) for e in entries if e["client_id"]]
            assert len(set(sent)) == len(sent)
            for entry in entries:
                said = entry["sender_id"], entry["client_id"], entry["text"]
                found[room_id, entry["seq"]] = said
        missing = [place for place, said in self.ledger.entries.items() if found.get(place) != said]
        assert not missing, missing[:5]
        for user_id in READERS:
            inbox = await self.call("GET", "/v1/inbox?limit=100", self.tokens[user_id])
            marks = {item["room_id"]: item["read_seq"] for item in inbox["items"]}
            for room_id in ROOMS:
                assert marks[room_id] >= self.ledger.marks[room_id, user_id]
        for room_id in [name for name, is_there in self.ledger.founded.items() if is_there]:
            page = await self.call("GET", f"/v1/rooms/{room_id}/members?limit={PAGE}", self.key)
            assert {member["user_id"] for member in page["items"]} == set(FOUNDERS)


class Crashes:
    """A store whose processes die again and again, and the clients who live on."""

    def __init__(self, path: Path, chance: random.Random, module: str) -> None:
        self.path = path
        self.store = f"sqlite:///{path}"
        self.chance = chance
        self.module = module
        self.ledger = Ledger(chance)
        self.key = run_tidings("keys", "create", "--store", self.store).last_line
        self.tokens: dict[str, str] = {}
        self.log = path.with_name("shop.txt")
        self.lines: list[str] = []
        self.imports_killed = 0
        self.fanouts_cut = 0

    @asynccontextmanager
    async def site(self, url: str) -> AsyncIterator[Site]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S)
        async with aiohttp.ClientSession(url, timeout=timeout) as http:
            site = Site(self.ledger, http, self.key)
            site.tokens = self.tokens
            yield site

    async def begin(self) -> None:
        with running_service(self.store, "--rate-limit", "off") as service:
            async with self.site(service.url) as site:
                await site.make()
                await self.settle()

    async def live_and_die(self, number: int) -> None:
        """One life of the service, killed at a random moment."""
        with running_service(
            self.store, "--rate-limit", "off", "--log", "off", module=self.module
        ) as service:
            async with self.site(service.url) as site:
                living = asyncio.create_task(site.live(number))
                await asyncio.wait([living], timeout=self.chance.uniform(*LIFE_S))
                assert service.process.poll() is None, "the service ended by itself"
                service.process.kill()
                service.process.wait()
                await living
        self.fanouts_cut += self.is_fanning()

    def start_import(self) -> subprocess.Popen[bytes]:
        """Have the log imported, which has grown meanwhile."""
        command = [sys.executable, "-m", self.module, "import", "irc", "--store", self.store]
        with self.log.open("a") as log:
            for number in range(len(self.lines), len(self.lines) + IMPORTED_LINES):
                self.lines.append(f"line {number}")
                time = f"{10 + number // 3_600}:{number // 60 % 60:02}:{number % 60:02}"
                nick = f"nick{number % IMPORTED_NICKS}"
                log.write(f"{CHANNEL} 2020-01-01 [{time}] <{nick}> {self.lines[-1]}\n")
        return subprocess.Popen(
            [*command, str(self.log)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        )

    async def import_and_die(self) -> None:
        """An import, killed at a random moment after the store began to be written."""
        written = self.written_at()
        importing = self.start_import()
        try:
            async with asyncio.timeout(REQUEST_S):
                while self.written_at() == written and importing.poll() is None:
                    await asyncio.sleep(0.005)
            await asyncio.sleep(self.chance.uniform(*IMPORT_LIFE_S))
        finally:
            importing.kill()
            code = importing.wait()
        assert code in (0, -signal.SIGKILL)
        self.imports_killed += code != 0

    def written_at(self) -> int:
        """When the log of the store was last written to."""
        log = self.path.with_name(f"{self.path.name}-wal")
        return log.stat().st_mtime_ns if log.exists() else 0

    async def settle(self) -> None:
        """Wait until every fan-out is finished, also those that a crash left."""
        async with asyncio.timeout(SETTLE_S):
            while self.is_fanning():
                await asyncio.sleep(0.05)

    def is_fanning(self) -> bool:
        """Whether the store holds an unfinished fan-out."""
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_MS)
        try:
            return bool(connection.execute("SELECT 1 FROM fanouts").fetchall())
        finally:
            connection.close()

    async def check(self) -> None:
        """With the power back: a start finishes what was open, and then everything holds."""
        with running_service(self.store, "--rate-limit", "off") as service:
            async with self.site(service.url) as site:
                await self.settle()
                await site.check()
                outcome = await asyncio.to_thread(
                    run_tidings, "audit", "--store", self.store, "--json"
                )
                assert outcome.code == 0, outcome.output[-2_000:] + outcome.errors[-2_000:]
                report = msgspec.json.decode(outcome.output)
                assert (report["ok"], report["broken"]) == (True, [])

    async def finish(self) -> None:
        """Send what has no answer yet, import the log to its end, and check it all."""
        outcome = await asyncio.to_thread(
            run_tidings, "import", "irc", "--store", self.store, "--json", str(self.log)
        )
        assert outcome.code == 0, outcome.errors
        report = msgspec.json.decode(outcome.output)
        assert report["entries_added"] + report["entries_present"] == len(self.lines)
        with running_service(self.store, "--rate-limit", "off") as service:
            async with self.site(service.url) as site:
                entries = await site.log(CHANNEL)
                texts = [entry["text"] for entry in entries if entry["type"] == "text"]
                assert texts == self.lines
                for message in list(self.ledger.unanswered.values()):
                    body = {"client_id": message.client_id, "text": message.text}
                    path = f"/v1/rooms/{message.room_id}/messages"
                    body["as_user"] = message.sender_id
                    self.ledger.take(await site.call("POST", path, self.key, body))
        await self.check()
        senders = [said[1] for said in self.ledger.entries.values() if said[1]]
        assert len(set(senders)) == len(senders) == self.ledger.sent


@pytest.mark.slow
async def test_nothing_is_lost_when_processes_are_killed(tmp_path: Path) -> None:
    crashes = Crashes(tmp_path / "tidings.db", random.Random(2), "tidings")
    await crashes.begin()
    for number in range(1, KILLS + 1):
        async with asyncio.TaskGroup() as group:
            if number % 3 == 0:
                group.create_task(crashes.import_and_die())
            group.create_task(crashes.live_and_die(number))
        if number % LIVES_BETWEEN_CHECKS == 0:
            await crashes.check()
    await crashes.finish()
    assert crashes.imports_killed >= 2
    assert crashes.ledger.sent > 10 * KILLS
    assert crashes.ledger.sent_again > 0
    assert crashes.fanouts_cut > 5


@pytest.mark.slow
async def test_nothing_is_lost_when_the_power_is_cut(tmp_path: Path) -> None:
    """Each process writes to a disk that forgets; service and import take turns."""
    crashes = Crashes(tmp_path / "tidings.db", random.Random(3), POWERCUT_MODULE)
    await crashes.begin()
    for number in range(1, CUTS + 1):
        if number % 3 == 0:
            await crashes.import_and_die()
        else:
            await crashes.live_and_die(number)
        if number % LIVES_BETWEEN_CHECKS == 0:
            await crashes.check()
    await crashes.finish()
    assert crashes.imports_killed >= 1
    assert crashes.ledger.sent > 10 * CUTS
    assert crashes.ledger.sent_again > 0
    assert crashes.fanouts_cut > 5


def test_an_import_ends_with_its_fan_outs(tmp_path: Path) -> None:
    """A service that runs beside it would go on with them only at its next start."""
    crashes = Crashes(tmp_path / "tidings.db", random.Random(4), "tidings")
    assert crashes.start_import().wait(REQUEST_S) == 0
    assert not crashes.is_fanning()


@pytest.fixture
def files() -> Iterator[PowerCutFiles]:
    files = PowerCutFiles("powercut-commits", seed=5)
    yield files
    files.unregister()


class Cut:
    """Commits on a disk that forgets, with what they had acknowledged when the power went."""

    def __init__(self, world: World, chance: random.Random, life: int) -> None:
        self.world = world
        self.chance = chance
        self.life = life
        self.is_over = False
        self.entries: dict[tuple[str, int], str | None] = {}
        self.marks: dict[tuple[str, str], int] = {}

    async def send(self, sender_id: str) -> None:
        number = 0
        while not self.is_over:
            number += 1
            room_id = self.chance.choice(["small", "large"])
            client_id = f"{self.life}-{number}"
            posted = await self.world.post(
                room_id, sender_id, client_id, client_id + "x" * self.chance.choice([0, 2_000])
            )
            entry = posted.entry.entry
            self.entries[room_id, entry.seq] = entry.text

    async def read(self, user_id: str) -> None:
        while not self.is_over:
            room_id = self.chance.choice(["small", "large"])
            head = max((seq for room, seq in self.entries if room == room_id), default=0)
            if head:
                command = commands.Read(user_id, head)
                mark = await self.world.commits.submit(WORKSPACE, room_id, command)
                self.marks[room_id, user_id] = mark.read_seq
            await asyncio.sleep(0)

    async def come_and_go(self, user_id: str) -> None:
        while not self.is_over:
            for kind in (commands.Leave, commands.Join):
                entry_id, at = self.world.ids.new("ent"), self.world.clock()
                command = kind(user_id, user_id, entry_id, at)
                await self.world.commits.submit(WORKSPACE, "large", command)
            await asyncio.sleep(0)


async def life_and_cut(
    files: PowerCutFiles, chance: random.Random, path: Path, left: Path, life: int
) -> Cut:
    """Some work on the store, and a power cut amid it; what was acknowledged before the cut."""
    kept: list[Cut] = []
    loop, is_cut = asyncio.get_running_loop(), asyncio.Event()
    async with SqliteStore.open(path, clock=Now(), vfs=files.name) as store:
        world = World(store, Now())
        await world.commits.start()
        cut = Cut(world, chance, life)

        def at_cut() -> None:
            then = Cut(world, chance, life)
            then.entries, then.marks = dict(cut.entries), dict(cut.marks)
            files.cut(path, left)
            kept.append(then)
            loop.call_soon_threadsafe(is_cut.set)

        files.cut_after(chance.randrange(1, 800), at_cut)
        async with asyncio.TaskGroup() as group:
            for user_id in CROWD[:4]:
                group.create_task(cut.send(user_id))
            group.create_task(cut.read(CROWD[1]))
            group.create_task(cut.come_and_go(CROWD[60]))
            await is_cut.wait()
            cut.is_over = True
        await world.commits.stop()
    return kept[0]


async def check_left(path: Path, cut: Cut) -> None:
    """With the power back: what was acknowledged is there, and the fan-outs finish."""
    async with SqliteStore.open(path, clock=Now()) as store:
        for (room_id, seq), text in cut.entries.items():
            entry = await store.get(ENTRIES, (room_key(WORKSPACE, room_id), seq))
            assert entry is not None
            assert entry["text"] == text
        world = World(store, Now())
        await world.commits.start()
        await world.settle()
        for (room_id, user_id), seq in cut.marks.items():
            view = await world.commits.look(WORKSPACE, room_id, [user_id])
            assert view is not None
            assert view.participations[user_id].read_seq >= seq
        await world.commits.stop()
        report = await audit(store, clock=world.clock)
        assert report.ok, report.broken[:5]


async def cut_and_check(
    files: PowerCutFiles, chance: random.Random, folder: Path, cuts: int
) -> None:
    path = folder / "0.db"
    async with SqliteStore.open(path, clock=Now()) as store:
        world = World(store, Now())
        people = await world.people(120)
        await world.room("small", people[:4])
        await world.room("large", people)
        await world.commits.stop()
    acknowledged = 0
    for life in range(1, cuts + 1):
        left = folder / f"{life}.db"
        cut = await life_and_cut(files, chance, path, left, life)
        await check_left(left, cut)
        acknowledged += len(cut.entries)
        path = left
    assert acknowledged > cuts


async def test_commits_outlive_power_cuts(files: PowerCutFiles, tmp_path: Path) -> None:
    await cut_and_check(files, random.Random(7), tmp_path, 2)


@pytest.mark.slow
async def test_commits_outlive_many_power_cuts(
    files: PowerCutFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 60)  # so that cuts meet checkpoints
    await cut_and_check(files, random.Random(11), tmp_path, CUTS_IN_PROCESS)
