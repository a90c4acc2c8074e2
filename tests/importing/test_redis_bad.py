"""`tidings import redis` where disks are full, servers die and imports are killed: run it again."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from redis.asyncio import Redis

from tests.command_line import clean_environment
from tests.importing.redis_lists import MAPPING, Lists
from tests.importing.redis_scene import WORKSPACE, imported, imported_into
from tests.redis_server import RedisServer, needs_redis, running_redis
from tidings.cli.parts import Parts
from tidings.clock import system_clock
from tidings.errors import Unavailable
from tidings.importing import redis_source
from tidings.importing.private_files import private_file
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import INBOXES, USERS

pytestmark = needs_redis

NOW_MS = system_clock()
LOOK_S = 0.005
KILLED_S_MAX = 60.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def lists(server: RedisServer) -> AsyncIterator[Lists]:
    redis = Redis.from_url(server.url)
    yield Lists(redis)
    await redis.aclose()


async def filled(lists: Lists, people: int) -> None:
    """Everybody talks with the ten who come next; every fifth line has something unread."""
    async with lists.redis.pipeline(transaction=False) as pipe:
        into = Lists(pipe)
        for one in range(people):
            for step in range(1, 11):
                at_ms = NOW_MS - 86_400_000 + (one * 10 + step) * 7919 % 80_000_000
                names = f"p{one:04}", f"p{(one + step) % people:04}"
                await into.pair(*names, at_ms, text=f"text {at_ms}", unread=at_ms % 5 // 4)
        await pipe.execute()


async def require_same(folder: Path, lists: Lists) -> None:
    """Every list is in the store as it is in Redis: members, order, unread and last message."""
    async with SqliteStore.open(folder / "t.db") as store:
        workspace = (await store.scan(USERS, limit=1)).items[0]["workspace"]
        owners = [key.decode().partition(":")[2] for key in await lists.redis.keys("convs:*")]
        for owner in owners:
            user = f"{workspace}#{owner}"
            page = await store.query(INBOXES, user, index="by_feed", reverse=True)
            found = [(row["peer_id"], row["unread"], row["preview"]) for row in page.items]
            members = [
                each.decode() for each in await lists.redis.zrevrange(f"convs:{owner}", 0, -1)
            ]
            async with lists.redis.pipeline(transaction=False) as pipe:
                for member in members:
                    pipe.hmget(f"conv:{owner}:{member}", "unread", "last_text")
                fields = await pipe.execute()
            assert found == [
                (member, int(unread), text.decode())
                for member, (unread, text) in zip(members, fields, strict=True)
            ]


async def test_a_full_disk_stops_the_import_and_leaves_a_way_on(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await filled(lists, 40)
    async with SqliteStore.open(tmp_path / "t.db") as store:
        parts = Parts(store, system_clock)
        made = await parts.workspaces.default("acme")
        store._writer.pragma("max_page_count", store._writer.pragma("page_count") + 40)
        with pytest.raises(Unavailable, match="full"):
            await imported_into(parts, made.id, server.url)
        store._writer.pragma("max_page_count", 1 << 30)
        report = await imported_into(parts, made.id, server.url)
        await parts.close()
    assert (report.members, report.lines_added) == (800, 800)
    await require_same(tmp_path, lists)


async def test_no_room_for_what_waits_on_disk_is_said(
    tmp_path: Path, server: RedisServer, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(lists, 40)

    def tiny(*given: Any) -> apsw.Connection:
        file = private_file(*given)
        file.pragma("max_page_count", 20)
        return file

    with monkeypatch.context() as tight:
        tight.setattr("tidings.importing.redis_staging.private_file", tiny)
        with pytest.raises(Unavailable, match="TMPDIR"):
            await imported(tmp_path, server.url)
    report = await imported(tmp_path, server.url)
    assert report.lines_added == 800
    await require_same(tmp_path, lists)


async def test_a_source_that_dies_and_returns_is_awaited(
    tmp_path: Path, server: RedisServer, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(lists, 100)
    await lists.redis.save()  # it starts with what it had
    read = redis_source.RedisSource._read
    calls = 0

    async def dying(self: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            await server.stop()
            returning.append(asyncio.create_task(server.start()))
        return await read(self, *given)

    returning: list[asyncio.Task[None]] = []
    monkeypatch.setattr(redis_source.RedisSource, "_read", dying)
    report = await imported(tmp_path, server.url)
    await asyncio.gather(*returning)
    await lists.redis.connection_pool.disconnect()
    assert (report.lists, report.members, report.lines_added) == (100, 2_000, 2_000)
    assert calls > 3
    await require_same(tmp_path, lists)


async def test_a_source_that_stays_away_is_said_to(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_source, "PATIENCE_S", 0.3)
    await server.stop()
    with pytest.raises(Unavailable, match=r"Redis was away .* Run the import again"):
        await imported(tmp_path, server.url)


@pytest.mark.slow
async def test_an_import_that_is_killed_is_run_again(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await filled(lists, 200)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(MAPPING)
    arguments = ["import", "redis", str(mapping), "--workspace", WORKSPACE, "--source", server.url]
    dice = random.Random(11)
    killed = 0
    for _ in range(2):
        wanted = dice.randrange(100_000, 2_000_000)  # bytes that it has written by then
        process = subprocess.Popen(
            [sys.executable, "-m", "tidings", *arguments, "--store", f"sqlite:///{tmp_path}/t.db"],
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(KILLED_S_MAX):
                while process.poll() is None and _written(tmp_path) < wanted:
                    await asyncio.sleep(LOOK_S)
        finally:
            process.kill()
        killed += process.wait() < 0
    assert killed
    await imported(tmp_path, server.url)
    await require_same(tmp_path, lists)


def _written(folder: Path) -> int:
    files = [folder / "t.db", folder / "t.db-wal"]
    return sum(file.stat().st_size for file in files if file.exists())
