"""Going over from Redis to Tidings: nothing is lost or doubled, whoever fails or sleeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.conversations.scene import AT_MS, Served, connected, mapped, served
from tests.importing.redis_scene import imported
from tests.redis_server import RedisServer, needs_redis, running_redis
from tidings.client import Client
from tidings.conversations import (
    Away,
    Message,
    MovingConversations,
    RedisConversations,
    Stages,
    TidingsConversations,
    compare,
    mend,
)
from tidings.conversations.stages import WrongStage
from tidings.importing import redis_source

pytestmark = needs_redis

SETTLED_S = 60.0
PEOPLE = [f"p{number}" for number in range(8)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    async with connected(server.url) as redis:
        yield redis


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as site:
        yield site


def moving(redis: Redis, client: Client) -> MovingConversations:
    return MovingConversations(RedisConversations(redis, mapped()), TidingsConversations(client))


def message(sender: str, receiver: str, number: int) -> Message:
    return Message(sender, receiver, f"m{number}", AT_MS + number * 1000, f"text {number}")


async def settled(lists: MovingConversations) -> None:
    """Return once nothing waits in the journal."""
    async with asyncio.timeout(SETTLED_S):
        while await lists.stages.journal.lag():
            lists.copier.wake()
            await asyncio.sleep(0.02)


async def act(lists: MovingConversations, dice: random.Random, numbers: range) -> None:
    """Somebody does something, one thing after the other."""
    for number in numbers:
        one, other = dice.sample(PEOPLE, 2)
        match dice.randrange(6):
            case 0:
                await lists.read(one, other)
            case 1:
                await lists.mute(one, other, muted=dice.random() < 0.5)
            case 2:
                await lists.remove(one, other)
            case _:
                await lists.touch(message(one, other, number))


async def differences(lists: MovingConversations) -> list[str]:
    found = []
    for owner in PEOPLE:
        found += await compare(lists.old, lists.new, owner)
    return [f"{each.owner} {each.opponent}: {each.reason}" for each in found]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_done_while_lists_are_imported_is_there_once(
    tmp_path: Path, server: RedisServer, redis: Redis, site: Served, seed: int
) -> None:
    dice = random.Random(seed)
    async with moving(redis, site.client) as lists:
        await act(lists, dice, range(100))
        await lists.stages.change("noted")
        await act(lists, dice, range(100, 150))
        is_over = asyncio.Event()

        async def go_on() -> None:
            for number in range(150, 450):
                await act(lists, dice, range(number, number + 1))
                if is_over.is_set():
                    return

        acting = asyncio.create_task(go_on())
        report = await imported(tmp_path, server.url, is_noted=True)
        await lists.stages.change("both")
        await asyncio.sleep(0.2)
        is_over.set()
        await acting
        await settled(lists)
        assert report.operations_seen >= 50
        assert await differences(lists) == []
        assert (await lists.stages.journal.lost(), await lists.stages.journal.refused()) == (0, [])


@pytest.mark.parametrize("seed", range(3))
async def test_lists_keep_their_order_though_conversations_are_read_one_after_the_other(
    tmp_path: Path,
    server: RedisServer,
    redis: Redis,
    site: Served,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = random.Random(seed)
    read = redis_source.RedisSource._read
    numbers = iter(range(1000, 100_000))

    async def read_and_act(self: Any, given: Any) -> Any:
        found = await read(self, given)
        for _ in range(5):
            number = next(numbers)
            await act(lists, dice, range(number, number + 1))
        return found

    monkeypatch.setattr(redis_source, "LISTS_TOGETHER", 1)
    monkeypatch.setattr(redis_source.RedisSource, "_read", read_and_act)
    async with moving(redis, site.client) as lists:
        await act(lists, dice, range(100))
        await lists.stages.change("noted")
        report = await imported(tmp_path, server.url, is_noted=True)
        assert report.operations_seen > 0
        await act(lists, dice, range(200_000, 200_020))
        await lists.stages.change("both")
        await settled(lists)
        assert await differences(lists) == []


async def test_what_tidings_can_not_take_waits_in_its_order(
    tmp_path: Path, server: RedisServer, redis: Redis
) -> None:
    stages = Stages(redis)
    async with served(tmp_path) as site, moving(redis, site.client) as lists:
        for stage in ("noted", "both"):
            await stages.change(stage)
        await lists.touch(message("p0", "p1", 0))
        await settled(lists)
        url, key = str(site.client.url), site.client.token
    async with Client(url, key, deadline_s=1) as nobody, moving(redis, nobody) as lists:
        for number in range(1, 40):
            await lists.touch(message(f"p{number % 8}", f"p{(number + 1) % 8}", number))
        await lists.remove("p1", "p0")
        assert await stages.journal.lag() == 40
        assert (await lists.count("p1"), await lists.count("p2")) == (1, 2)
    async with served(tmp_path) as site, moving(redis, site.client) as lists:
        await settled(lists)
        assert await differences(lists) == []


async def test_a_process_that_slept_through_the_switch_goes_on_in_tidings(
    redis: Redis, site: Served
) -> None:
    async with AsyncExitStack() as stack:
        busy = await stack.enter_async_context(moving(redis, site.client))
        asleep = moving(redis, site.client)  # copies nothing, and does not look
        for stage in ("noted", "both"):
            await busy.stages.change(stage)
        await asleep.touch(message("p0", "p1", 1))
        assert (await asleep.stages.now()).name == "both"
        await busy.stages.change("tidings")
        await busy.touch(message("p2", "p1", 2))
        before = await redis.zcard("convs:p1")
        await asleep.touch(message("p3", "p1", 3))
        assert await redis.zcard("convs:p1") == before == 1
        for lists in (busy, asleep):
            assert [line.opponent for line in (await lists.list("p1")).items] == ["p3", "p2", "p0"]
        with pytest.raises(WrongStage):
            await busy.stages.change("redis")


async def test_the_last_stage_needs_no_redis(
    server: RedisServer, redis: Redis, site: Served
) -> None:
    async with moving(redis, site.client) as lists:
        for stage in ("noted", "both", "tidings"):
            await lists.stages.change(stage)
        await lists.touch(message("p0", "p1", 1))
        await server.stop()
        await lists.touch(message("p0", "p1", 2))
        assert await lists.count("p1") == 1


async def test_redis_away_is_said_and_nothing_is_made_up(
    server: RedisServer, redis: Redis, site: Served
) -> None:
    async with moving(redis, site.client) as lists:
        await server.stop()
        with pytest.raises(Away):
            await lists.touch(message("p0", "p1", 1))
        with pytest.raises(Away):
            await lists.list("p0")


async def test_what_tidings_refuses_is_kept_and_holds_nobody_up(redis: Redis, site: Served) -> None:
    async with moving(redis, site.client) as lists:
        for stage in ("noted", "both"):
            await lists.stages.change(stage)
        await lists.touch(message("p0", "p1", 1))
        changed = Message("p0", "p1", "m1", AT_MS, "the same id, another text")
        await lists.touch(changed)
        await lists.touch(message("p0", "p1", 2))
        await settled(lists)
        ((operation, reason),) = await lists.stages.journal.refused()
        assert getattr(operation, "message", None) == changed
        assert "idempotency_mismatch" in reason
        line = await lists.new.get("p1", "p0")
        assert line is not None
        assert line.unread == 2


async def test_lists_that_differ_are_found_and_mended(redis: Redis, site: Served) -> None:
    async with moving(redis, site.client) as lists:
        for stage in ("noted", "both"):
            await lists.stages.change(stage, shadow=1.0)
        for number in range(4):
            await lists.touch(message(f"p{number}", "p7", number))
        await settled(lists)
        await lists.old.touch(message("p5", "p7", 10))  # past the journal
        await lists.old.touch(message("p1", "p7", 11))
        await lists.old.mute("p7", "p2", muted=True)
        await lists.old.remove("p7", "p3")
        await lists.list("p7")
        async with asyncio.timeout(10):
            while not lists.compared:
                await asyncio.sleep(0.02)
        assert lists.differing == 1
        found = {each.opponent: each.reason for each in lists.differences}
        assert found == {"p5": "missing", "p1": "unread", "p2": "muted", "p3": "extra"}
        for opponent in found:
            await mend(lists.old, lists.new, "p7", opponent, filler="-")
        assert {each.reason for each in await compare(lists.old, lists.new, "p7")} <= {"order"}
        assert await lists.new.count("p7") == 4


@asynccontextmanager
async def one_after_the_other(redis: Redis, client: Client) -> AsyncIterator[MovingConversations]:
    async with moving(redis, client) as one, moving(redis, client):
        yield one


async def test_one_process_copies_at_a_time_and_another_takes_over(
    redis: Redis, site: Served
) -> None:
    lease = Stages(redis).journal.lease(0.5)
    assert await lease.acquire(blocking=False)  # of a process that has died
    async with one_after_the_other(redis, site.client) as lists:
        for stage in ("noted", "both"):
            await lists.stages.change(stage)
        await act(lists, random.Random(7), range(60))
        await settled(lists)
        assert await differences(lists) == []
