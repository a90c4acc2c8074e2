"""An office at work while its store is moved: workers that can be killed, calls that are timed."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.cluster_scene import CALL_S, RECENT, Office, make_key
from tests.command_line import Outcome, clean_environment
from tests.node_processes import Balancer, Node, running_nodes
from tidings.chat.audit import audit
from tidings.client import Client, ClientError, Conflict, Problem
from tidings.config import Settings
from tidings.engines import open_engine
from tidings.migrate.commands import look
from tidings.migrate.plans import COPIED_TABLES
from tidings.storage import moves
from tidings.storage.interface import Store, Table
from tidings.storage.moves import Move

T = TypeVar("T")

PAUSE_S = (1.0, 3.0)
"""A steady load that leaves the machine to the rest: all of it runs on one."""
COMMAND_S = 90.0
STAGE_S = 90.0
END_S = 30.0
LOOK_S = 0.1
TOLD_S = 10.0
"""By then workers have told that nothing waits, and whoever is dead is not heeded any more."""
ANSWERED_S = 5.0
"""By then a call that failed has succeeded, unless a frozen node has it."""


class MovedOffice(Office):
    """Also edits, and notes how long each call took that was made again."""

    def __init__(self, store: str, key: Client, dice: random.Random) -> None:
        super().__init__(store, key, dice)
        self.pause_s = PAUSE_S
        self.retried: list[tuple[str, float, float]] = []
        """What was asked for, when it first failed and when it succeeded."""

    async def _insist(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        failed_at: float | None = None
        while True:
            try:
                reply = await call()
            except ClientError as error:
                if isinstance(error, Problem) and not error.is_passing:
                    raise
                self.failures[name].append(error)
                failed_at = failed_at or time.monotonic()
                await asyncio.sleep(LOOK_S)
            else:
                self.done[name] += 1
                if failed_at is not None:
                    self.retried.append((name, failed_at, time.monotonic()))
                return reply

    async def _change(self) -> None:
        """Edit a message, or what any office changes."""
        if self.dice.random() < 0.5:
            await super()._change()
            return
        watch = self.dice.choice(self.watches)
        room_id = self._any_room(watch.user_id)
        own = [e for e in watch.told[room_id][-RECENT:] if e.sender_id == watch.user_id]
        messages = [entry.seq for entry in own if entry.type == "text"]
        if messages:
            seq, text = self.dice.choice(messages), f"edited {self.dice.random()}"
            with suppress(Conflict):  # it was deleted meanwhile
                call = partial(watch.client.edit_message, room_id, seq, text)
                await self._insist("edit", call)

    def move_to(self, store: str) -> None:
        """Look behind the nodes there from now on."""
        self._store = store


class Worker:
    """Somebody who works at a move: by `tidings migrate work`, but for the first time."""

    def __init__(self, log: Path, store: str, *first: str) -> None:
        self._log = log
        self._again = ("work", "--store", store)
        self._arguments = first or self._again
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start a process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tidings", "migrate", *self._arguments),
                stdout=log,
                stderr=log,
                env=clean_environment(),
            )
        self._arguments = self._again

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.returncode is None

    @property
    def was_started(self) -> bool:
        """Whether there ever was one."""
        return self._process is not None

    async def kill(self) -> None:
        """End the process as a crash does."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def ended(self) -> int:
        """How the process ended by itself."""
        assert self._process is not None
        async with asyncio.timeout(END_S):
            return await self._process.wait()

    async def close(self) -> None:
        """End the process as ctrl-C does, if it is there."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            await self.ended()
        except TimeoutError:
            await self.kill()
            raise

    @property
    def said(self) -> str:
        """All that its processes said."""
        return self._log.read_text() if self._log.exists() else ""


class Site(msgspec.Struct):
    """The office, the nodes that serve it, and the folder where everything of it is."""

    office: MovedOffice
    nodes: list[Node]
    folder: Path

    @asynccontextmanager
    async def working(
        self, source: str, target: str, budget: str, budget_later: str
    ) -> AsyncIterator[list[Worker]]:
        """Two workers at a new move, and one that comes with another budget once it is started; on
        leaving none of them is left."""
        start = ("start", "--store", source, "--to", target, "--budget", budget)
        later = ("work", "--store", source, "--budget", budget_later)
        workers = [
            Worker(self.folder / "starter.log", source, *start),
            Worker(self.folder / "worker.log", source),
            Worker(self.folder / "latecomer.log", source, *later),
        ]
        try:
            await workers[0].start()
            await until(source, "preparing", "copying")
            await workers[1].start()
            yield workers
        except BaseException:
            print(*[worker.said[-2_000:] for worker in workers], sep="\n--\n")
            raise
        finally:
            for worker in workers:
                await worker.close()


@asynccontextmanager
async def open_site(store: str, folder: Path, dice: random.Random) -> AsyncIterator[Site]:
    """The office with all its devices on two nodes; on leaving everything is checked."""
    async with running_nodes(2, store, folder) as nodes, AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(Balancer([n.port for n in nodes]).opened())
        client = Client(balancer.url, await make_key(store), deadline_s=CALL_S)
        key = await stack.enter_async_context(client)
        office = MovedOffice(store, key, dice)
        await office.found()
        async with office.watched(balancer.url):
            yield Site(office, nodes, folder)
            await office.check()
        print(f"done {dict(office.done)}; failed {dict(office.failures)}")
    for node in nodes:
        assert not node.faults(), node.faults()[:3]


async def migrate(*arguments: str) -> Outcome:
    """Run one of the commands, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tidings", "migrate", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment() | {"COLUMNS": "100"},
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Outcome(process.returncode, output.decode(), errors.decode())


async def has_budget(store: str, budget: str) -> None:
    """Wait until the workers at a move know of that budget."""
    async with open_engine(Settings(store=store).store_address) as engine:
        async with asyncio.timeout(STAGE_S):
            while True:
                move = await moves.read_row(engine)
                if move is not None and move.data.get("budget") == float(budget):
                    return
                await asyncio.sleep(LOOK_S)


async def until(store: str, *stages: str) -> Move:
    """Wait until the newest move is in one of the stages, as that store has it."""
    async with open_engine(Settings(store=store).store_address) as engine:
        move = None
        try:
            async with asyncio.timeout(STAGE_S):
                while (move := await moves.read_row(engine)) is None or move.stage not in stages:
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            raise AssertionError(f"waiting for {stages}: {move}") from error
        return move


async def _contents(store: Store, table: Table) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    page = await store.scan(table)
    while True:
        found |= {table.key(item): item for item in page.items}
        if page.after is None:
            return found
        page = await store.scan(table, after=page.after)


async def check_both(source: str, target: str) -> None:
    """At rest: every item of both stores is soon the same and nothing is said to wait, and every
    invariant holds in each. Nobody writes any more."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(open_engine(Settings(store=url).store_address))
            for url in (source, target)
        ]
        until_s = time.monotonic() + STAGE_S
        while differing := await _differing(*stores):
            assert time.monotonic() < until_s, differing
            await asyncio.sleep(LOOK_S)
        async with asyncio.timeout(TOLD_S):
            while (await look(Settings(store=target).store_address)).lag:
                await asyncio.sleep(LOOK_S)
        for store in stores:
            report = await audit(store)
            assert report.ok, report.broken[:5]


async def _differing(here: Store, there: Store) -> list[tuple[str, Any]]:
    """Some of the items that are not the same."""
    for table in COPIED_TABLES:
        mine, theirs = [await _contents(store, table) for store in (here, there)]
        if differing := [key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)]:
            return [(table.name, key) for key in differing[:5]]
    return []


def check_answered(office: MovedOffice, frozen: list[tuple[float, float]]) -> None:
    """No call failed beyond a retry within ANSWERED_S, but those that a frozen node had."""
    for name, failed_at, succeeded_at in office.retried:
        is_frozen = any(failed_at < until and succeeded_at > since for since, until in frozen)
        assert is_frozen or succeeded_at - failed_at < ANSWERED_S, (name, succeeded_at - failed_at)
