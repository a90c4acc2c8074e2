"""Conversation lists from a real Redis while a writer goes on: nothing missing, memory, speed.

    python -m benchmarks.moving_in_redis [--members 1000000] [--budget-members 20000]

The speed is a ratio within one run: lines a second by the import, against the same rows put into
a new store by `put_many` alone. The import is the command itself, in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis

from benchmarks.processes import engine
from tests.conversations.scene import connected, mapped, served
from tests.engines import make_tables
from tests.importing.redis_lists import MAPPING
from tests.redis_server import running_redis
from tidings import logs
from tidings.chat.audit import audit
from tidings.cli.parts import open_parts
from tidings.clock import system_clock
from tidings.config import DynamoAddress
from tidings.conversations import (
    Message,
    MovingConversations,
    RedisConversations,
    Stages,
    TidingsConversations,
)
from tidings.importing.redis import RedisImport
from tidings.importing.redis_oddities import Oddities
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Store, Table
from tidings.storage.pacing import WINDOW_S, Pace, put_units
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    TABLES,
    USERS,
)

LINES_PER_LIST = 50
UNREAD_EVERY = 10
"""One line in so many has something unread: 1 to 3 messages."""
WRITER_PAUSE_S = 0.005
FILLED_TOGETHER = 200
LOOK_S = 0.02
BULK_ITEMS = 5_000

_FILL = """
local people, half = tonumber(ARGV[1]), tonumber(ARGV[2])
for one = tonumber(ARGV[3]), tonumber(ARGV[4]) - 1 do
  for step = 1, half do
    local other = (one + step) % people
    local number = one * half + step
    local at = tonumber(ARGV[5]) + (number * 7919) % 86400000
    local a, b = string.format('u%06d', one), string.format('u%06d', other)
    local unread = 0
    if number % tonumber(ARGV[6]) == 0 then unread = 1 + number % 3 end
    redis.call('ZADD', 'convs:' .. a, at, b)
    redis.call('ZADD', 'convs:' .. b, at, a)
    local id = 'm' .. number
    redis.call('HSET', 'conv:' .. a .. ':' .. b, 'unread', 0, 'last_text', 'See you at ' .. number,
      'last_from', a, 'last_id', id)
    redis.call('HSET', 'conv:' .. b .. ':' .. a, 'unread', unread,
      'last_text', 'See you at ' .. number, 'last_from', a, 'last_id', id)
  end
end
"""
"""Everybody talks with the `half` next ones; every conversation is on two lists."""


class Writer:
    """An application that goes on writing, with the time of its slowest change."""

    def __init__(self, lists: MovingConversations, people: int) -> None:
        self._lists = lists
        self._people = people
        self.changes = 0
        self.slowest_s = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            number = self.changes
            one = (number * 37) % self._people
            other = one + 1 + number % (self._people // 4)
            sender, receiver = f"u{one:06}", f"u{other % self._people:06}"
            started_s = time.monotonic()
            if number % 7 == 3:
                await self._lists.read(sender, receiver)
            elif number % 31 == 5:
                await self._lists.remove(sender, receiver)
            else:
                text = f"live {number}"
                await self._lists.touch(
                    Message(sender, receiver, f"live-{number}", system_clock(), text)
                )
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
            self.changes += 1
            await asyncio.sleep(WRITER_PAUSE_S)


async def fill(redis: Redis, members: int) -> int:
    """Make the lists; how many people there are."""
    people = max(LINES_PER_LIST * 2, members // LINES_PER_LIST)
    commands: Any = redis
    start_ms = system_clock() - 2 * 86_400_000
    for first in range(0, people, FILLED_TOGETHER):
        last = min(first + FILLED_TOGETHER, people)
        await commands.eval(
            _FILL, 0, people, LINES_PER_LIST // 2, first, last, start_ms, UNREAD_EVERY
        )
    return people


class Imported(msgspec.Struct):
    """What the command did, and what it took."""

    report: dict[str, Any]
    took_s: float
    processor_s: float
    memory_mib: float


class Bulk(msgspec.Struct):
    """What `put_many` took alone."""

    rows: int = 0
    took_s: float = 0.0
    processor_s: float = 0.0


async def command(url: str, folder: Path) -> Imported:
    """The import by its command, in a process of its own."""
    mapping = folder / "mapping.toml"
    mapping.write_text(MAPPING)
    started_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidings", "import", "redis", str(mapping), "--json"),
        *("--source", url, "--store", f"sqlite:///{folder}/t.db"),
        stdout=asyncio.subprocess.PIPE,
    )
    most_kib = ticks = 0
    reading = asyncio.create_task(process.communicate())
    while not reading.done():
        status = Path(f"/proc/{process.pid}/status").read_text()
        lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
        most_kib = max([most_kib, *[int(line.split()[1]) for line in lines]])
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks = max(ticks, sum(map(int, times)))
        await asyncio.wait([reading], timeout=LOOK_S)
    output, _ = await reading
    assert process.returncode == 0
    took_s = time.monotonic() - started_s
    return Imported(json.loads(output), took_s, ticks / os.sysconf("SC_CLK_TCK"), most_kib / 1024)


async def bulk_of(folder: Path) -> Bulk:
    """What `put_many` takes for the rows of the folder's store, read in the order of their keys."""
    bulk = Bulk()
    async with (
        SqliteStore.open(folder / "t.db") as source,
        SqliteStore.open(folder / "bulk.db") as target,
    ):
        for table in (ROOMS, MEMBERS, ENTRIES, RECEIPTS, INBOXES, BADGES, USERS):
            items: list[Item] = []
            async for page in pages(source, table):
                items += page
                if len(items) >= BULK_ITEMS:
                    await put(target, table, items, bulk)
                    items = []
            await put(target, table, items, bulk)
    return bulk


async def pages(store: Store, table: Table) -> AsyncIterator[list[Item]]:
    after = None
    while True:
        page = await store.scan(table, limit=PAGE_ITEMS_MAX, after=after)
        yield page.items
        if (after := page.after) is None:
            return


async def put(store: Store, table: Table, items: Sequence[Item], bulk: Bulk) -> None:
    started_s, processor_s = time.monotonic(), time.process_time()
    await store.put_many(table, items)
    bulk.rows += len(items)
    bulk.took_s += time.monotonic() - started_s
    bulk.processor_s += time.process_time() - processor_s


async def differing(redis: Redis, store: Store, workspace: str, people: int) -> tuple[int, int]:
    """Lines compared, and lists that differ in members, order, unread or preview."""
    commands: Any = redis
    lines = wrong = 0
    for number in range(people):
        owner = f"u{number:06}"
        members = [each.decode() for each in await commands.zrevrange(f"convs:{owner}", 0, -1)]
        async with commands.pipeline(transaction=False) as pipe:
            for member in members:
                pipe.hmget(f"conv:{owner}:{member}", "unread", "last_text")
            fields = await pipe.execute()
        expected = [
            (member, int(unread or 0), text.decode())
            for member, (unread, text) in zip(members, fields, strict=True)
        ]
        page = await store.query(INBOXES, f"{workspace}#{owner}", index="by_feed", reverse=True)
        found = [
            (item["peer_id"], item["unread"], item["preview"])
            for item in page.items
            if item.get("hidden_seq") is None or item["counted_seq"] > item["hidden_seq"]
        ]
        lines += len(expected)
        wrong += found != expected
    return lines, wrong


async def move(members: int) -> None:
    """A move of that many lines, on the embedded store, with a writer at work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with running_redis(folder) as server, connected(server.url) as redis:
            people = await fill(redis, members)
            async with open_parts(f"sqlite:///{folder}/t.db", must_exist=False) as parts:
                workspace = (await parts.workspaces.default("acme")).id
            async with connected(server.url) as writing:
                old = RedisConversations(writing, mapped())
                stages = Stages(writing)
                await stages.change("noted")
                async with served(folder) as site:
                    lists = MovingConversations(old, TidingsConversations(site.client))
                    writer, stopping = Writer(lists, people), asyncio.Event()
                    acting = asyncio.create_task(writer.run(stopping))
                    imported = await command(server.url, folder)
                    _print_import(imported, await bulk_of(folder))
                    noted = await stages.journal.lag()
                    caught_s = time.monotonic()
                    async with lists:
                        await stages.change("both")
                        await emptied(stages)
                        caught_s = time.monotonic() - caught_s
                        await asyncio.sleep(1)
                        switched_s = time.monotonic()
                        writer.slowest_s, before_s = 0.0, writer.slowest_s
                        stopping.set()
                        await acting
                        await emptied(stages)
                        lines, wrong = await differing(redis, site.service.store, workspace, people)
                        print(f"compared in {time.monotonic() - switched_s:.1f} s")
                        stopping.clear()
                        acting = asyncio.create_task(writer.run(stopping))
                        await stages.change("tidings")
                        await asyncio.sleep(1)
                        stopping.set()
                        await acting
                    proof = await audit(site.service.store)
    print(f"noted meanwhile, after the import: {noted:,}, caught up in {caught_s:.1f} s")
    print(f"before the switch: {lines:,} lines compared, {wrong} lists differ")
    print(f"writer: {writer.changes:,} changes, slowest {before_s * 1000:.0f} ms, over the switch "
          f"{writer.slowest_s * 1000:.0f} ms")  # fmt: skip
    print(f"audit: {'ok' if proof.ok else proof.broken[:3]}")


def _print_import(done: Imported, bulk: Bulk) -> None:
    report, rows_per_s = done.report, bulk.rows / done.took_s
    speed = report["members"] / done.took_s
    print(f"lines in Redis: {report['members']:,} in {report['lists']:,} lists")
    print(f"import: {done.took_s:.1f} s, {speed:,.0f} lines/s, {rows_per_s:,.0f} rows/s, "
          f"{done.processor_s:.1f} s of a processor")  # fmt: skip
    print(f"put_many alone: {bulk.took_s:.1f} s for {bulk.rows:,} rows, "
          f"{bulk.rows / bulk.took_s:,.0f} rows/s, "
          f"{bulk.processor_s:.1f} s of a processor")  # fmt: skip
    print(f"put_many ÷ import: {bulk.took_s / done.took_s:.2f} of the time (at least 0.5), "
          f"{bulk.processor_s / done.processor_s:.2f} of the processor's")  # fmt: skip
    print(f"memory of the import: {done.memory_mib:.0f} MiB (below 300)")
    print(f"unread: {report['unread_in_source']:,} in Redis, {report['unread_carried']:,} carried")
    sys.stdout.flush()


async def emptied(stages: Stages) -> None:
    while await stages.journal.lag():
        await asyncio.sleep(LOOK_S)


class Watched:
    """A store that remembers when how many units were put."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.puts: deque[tuple[float, float]] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        puts = list(items)
        units = sum(put_units(table, item, transactional=False) for item in puts)
        self.puts.append((time.monotonic(), units))
        await self._store.put_many(table, puts)

    def most_in_window(self) -> float:
        """Units of the fullest WINDOW_S."""
        most = total = 0.0
        window: deque[tuple[float, float]] = deque()
        for at_s, units in self.puts:
            window.append((at_s, units))
            total += units
            while window[0][0] <= at_s - WINDOW_S:
                total -= window.popleft()[1]
            most = max(most, total)
        return most


@asynccontextmanager
async def ministack_store() -> AsyncIterator[DynamoAddress]:
    async with engine() as running:
        address = DynamoAddress("us-east-1", endpoint=running.url, prefix="moving")
        await make_tables(address, TABLES)
        yield address


async def budgeted(members: int, units_per_s: float) -> None:
    """An import into ministack at a budget."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            running_redis(folder) as server,
            connected(server.url) as redis,
            ministack_store() as address,
        ):
            await fill(redis, members)
            async with open_parts(address.url, must_exist=True) as parts:
                watched = Watched(parts.store)
                workspace = await parts.workspaces.default("acme")
                importing = RedisImport(
                    watched,
                    parts.chat,
                    workspace.id,
                    mapped(),
                    Oddities(),
                    clock=system_clock,
                    pace=Pace(units_per_s),
                    price=lambda table, item: put_units(table, item, transactional=False),
                )
                await importing.run(redis)
    took_s = watched.puts[-1][0] - watched.puts[0][0]
    total = sum(units for _, units in watched.puts)
    print(f"into ministack at {units_per_s:,.0f} units/s: {total:,.0f} units in {took_s:.1f} s, "
          f"{total / took_s / units_per_s:.1%} of the budget; fullest {WINDOW_S:.0f} s "
          f"{watched.most_in_window() / WINDOW_S / units_per_s:.1%}")  # fmt: skip


def main(
    members: Annotated[int, typer.Option()] = 1_000_000,
    budget_members: Annotated[int, typer.Option()] = 8_000,
    budget: Annotated[float, typer.Option()] = 1_000,
) -> None:
    """Measure both."""
    logs.configure_command()
    if members:
        asyncio.run(move(members))
    if budget_members:
        asyncio.run(budgeted(budget_members, budget))
    print(
        f"memory of the benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB"
    )


if __name__ == "__main__":
    typer.run(main)
