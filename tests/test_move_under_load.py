"""A service is moved to another store and back while it is at work, whatever dies meanwhile.

`TIDINGS_TEST_MOVES=10` does it with ten seeds instead of one.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest

from tests.engines import make_tables, new_address, remove_tables, store_url
from tests.faults import FaultProxy
from tests.moving_scene import (
    Site,
    Worker,
    check_answered,
    check_both,
    has_budget,
    migrate,
    open_site,
    until,
)
from tests.node_processes import Node
from tidings.config import Settings, SqliteAddress
from tidings.storage.faults import Profile, Rates

pytestmark = pytest.mark.slow

SEEDS = range(1, 1 + int(os.environ.get("TIDINGS_TEST_MOVES", "1")))
GIVEN_UP_AT = (
    ("copying", "following", "settled") if "TIDINGS_TEST_MOVES" in os.environ else ("settled",)
)
"""Where a move is given up: the longest way back, and with `TIDINGS_TEST_MOVES` the others, too."""
BUDGET = "300"
"""So small that the first copy takes some seconds."""
BUDGET_LATER = "6000"
"""Enough to keep up with the office."""
LOSS = Profile(Rates(throttle=0.02, server_error=0.01, lost_answer=0.01, reset=0.01))
KILLS = 2
"""In each stage."""
KILL_EVERY_S = (0.3, 3.0)
BUSY_MS = 300
FROZEN_S = 1.0
AT_WORK_S = 2.0
THAWED_S = 3.0
"""By then a node that was frozen has answered, or the client has gone elsewhere."""


@asynccontextmanager
async def lossy_tables() -> AsyncIterator[FaultProxy]:
    """A way to new tables, on which calls are throttled and answers get lost."""
    address = new_address()
    await make_tables(address)
    try:
        async with FaultProxy(address).serving() as proxy:
            yield proxy
    finally:
        await remove_tables(address)


@asynccontextmanager
async def killing(site: Site, workers: Sequence[Worker]) -> AsyncIterator[None]:
    """KILLS times a node or a worker is killed at a random moment, and started again."""

    async def kill() -> None:
        for _ in range(KILLS):
            await asyncio.sleep(site.office.dice.uniform(*KILL_EVERY_S))
            everybody: list[Node | Worker] = [*site.nodes, *workers]
            victim = site.office.dice.choice([each for each in everybody if each.is_running])
            await victim.kill()
            await victim.start()

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        yield


async def ask(*command: str) -> None:
    """Run a command, again where the move was not ready for it or whoever did it was killed."""
    outcome = await migrate(*command)
    assert outcome.code == 0, (command, outcome.errors[-1_000:])


def is_writable(store: str) -> bool:
    """Whether nobody holds the lock of a store that is a file."""
    address = Settings(store=store).store_address
    if not isinstance(address, SqliteAddress):
        return True
    connection = apsw.Connection(str(address.path))
    try:
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("BEGIN IMMEDIATE; ROLLBACK")
    except apsw.BusyError:
        return False
    finally:
        connection.close()
    return True


async def freeze(node: Node, store: str) -> None:
    """Stop a node somewhere; but not where it holds the file of all, as no machine of its own can
    do."""
    while True:
        node.freeze()
        if is_writable(store):
            return
        node.thaw()
        await asyncio.sleep(0.1)


async def freeze_across(node: Node, store: str, *command: str) -> tuple[float, float]:
    """Run a command while a node is frozen, and let that go on some time later."""
    since = time.monotonic()
    await freeze(node, store)
    try:
        await ask(*command)
        await asyncio.sleep(FROZEN_S)
    finally:
        node.thaw()
    return since, time.monotonic() + THAWED_S


async def move(site: Site, proxy: FaultProxy, source: str, target: str) -> None:
    """A whole move under load, which both stores survive alike."""
    site.office.retried.clear()
    proxy.profile = LOSS
    async with site.working(source, target, BUDGET, BUDGET_LATER) as workers:
        async with site.office.at_work():
            async with killing(site, workers):
                await until(source, "following")
            await workers[2].start()
            await has_budget(source, BUDGET_LATER)
            async with killing(site, workers):
                await ask("verify", "--store", source)
            frozen = await freeze_across(site.nodes[0], source, "switch", "--store", source)
            site.office.move_to(target)
            async with killing(site, workers):
                await asyncio.sleep(AT_WORK_S)
        proxy.profile = None
        await site.office.check_promises()
        check_answered(site.office, [frozen])
        await asyncio.gather(*[node.end() for node in site.nodes])
        await check_both(source, target)
        await ask("finish", "--store", target)
        for worker in workers:
            assert await worker.ended() == 0
    for node in site.nodes:
        node.store = target
    await asyncio.gather(*[node.start() for node in site.nodes])


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_move_there_and_back(seed: int, tmp_path: Path) -> None:
    first, last = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "last"))
    async with lossy_tables() as proxy, open_site(first, tmp_path, random.Random(seed)) as site:
        there = store_url(proxy.address)
        await move(site, proxy, first, there)
        refused = await migrate("status", "--store", first)
        assert "finished" in refused.output
        await move(site, proxy, there, last)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", GIVEN_UP_AT)
async def test_a_move_is_given_up(stage: str, seed: int, tmp_path: Path) -> None:
    """Whatever it has come to, nothing is lost, and the old store goes on."""
    source = f"sqlite:///{tmp_path}/first.db"
    async with lossy_tables() as proxy, open_site(source, tmp_path, random.Random(seed)) as site:
        target = store_url(proxy.address)
        proxy.profile = LOSS
        async with (
            site.office.at_work(),
            site.working(source, target, BUDGET, BUDGET_LATER) as workers,
        ):
            async with killing(site, workers):
                await until(source, "copying" if stage == "copying" else "following")
            if stage == "settled":
                await workers[2].start()
                await has_budget(source, BUDGET_LATER)
                async with killing(site, workers):
                    await ask("switch", "--store", source)
            await asyncio.sleep(site.office.dice.random())
            await ask("rollback", "--store", source)
            for worker in [worker for worker in workers if worker.was_started]:
                assert await worker.ended() == 0
            proxy.profile = None
            await asyncio.sleep(AT_WORK_S)
        check_answered(site.office, [])
