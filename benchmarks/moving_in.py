"""How fast a PostgreSQL database moves in, and whether all of it arrives, while it is written to.

    python -m benchmarks.moving_in [--chats 20000] [--messages 1000000]
    python -m benchmarks.moving_in --budget 400 --messages 4000 --chats 400 [--latency 0.02]

The first imports into the embedded store by the command line, with an application that goes on
writing until the importer has caught up; then it compares every message and every count, and puts
the same rows into another store in bulk. With `--budget` it imports into a DynamoDB emulator, and
measures the units of each window of ten seconds; with `--latency` into an embedded store each of
whose calls takes so many seconds longer instead, so that no emulator is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg

from tests.engines import dynamo_store
from tests.importing.scene import Scene
from tests.importing.shop import Shop
from tests.postgres_server import running_postgres
from tidings.chat.audit import audit
from tidings.clock import system_clock
from tidings.importing.quarantine import Quarantine
from tidings.storage.interface import Item, Page, Store, Table, Write
from tidings.storage.paced import PacedStore
from tidings.storage.pacing import WINDOW_S, Pace
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MEMBERS, RECEIPTS, ROOMS, USERS

PUT_TOGETHER = 100_000
TABLES = (ENTRIES, RECEIPTS, ROOMS, MEMBERS, INBOXES, BADGES, USERS)
PEOPLE = 5_000
WAIT_S = 3_600


class Writer(threading.Thread):
    """The old application: posts, reads and edits, about a hundred times a second."""

    def __init__(self, url: str, chats: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._chats = chats
        self._is_over = threading.Event()
        self.steps = 0

    def run(self) -> None:
        chance = random.Random(1)
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._is_over.wait(0.005):
                chat = chance.randrange(1, self._chats + 1)
                rows = connection.execute(
                    "SELECT person_id, (SELECT max(id) FROM messages m WHERE m.chat_id = p.chat_id)"
                    " FROM participants p WHERE chat_id = %s",
                    (chat,),
                ).fetchall()
                person, newest = chance.choice(rows)
                if chance.random() < 0.7:
                    connection.execute(
                        "INSERT INTO messages (chat_id, sender_id, body) VALUES (%s, %s, %s)",
                        (chat, person, f"written meanwhile {self.steps}"),
                    )
                elif chance.random() < 0.7:
                    connection.execute(
                        "UPDATE participants SET last_read_id = %s"
                        " WHERE chat_id = %s AND person_id = %s",
                        (newest, chat, person),
                    )
                else:
                    connection.execute(
                        "UPDATE messages SET body = body || '!', edited_at = now() WHERE id = %s",
                        (newest,),
                    )
                self.steps += 1

    def stop(self) -> None:
        """End, with the step that is under way."""
        self._is_over.set()
        self.join()


class Import:
    """`tidings import postgres` in a process of its own, watched."""

    def __init__(self, shop: Shop, store: Path, *options: str) -> None:
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tidings", "import", "postgres", str(shop.mapping_path),
             "--from", shop.url, "--store", f"sqlite:///{store}", "--json",
             "--quarantine", str(store.with_suffix(".jsonl")), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.rss_max_mib = 0.0
        self.cpu_s = 0.0
        """Processor time, from its start on."""

    def until(self, text: str) -> str:
        """The line of its notes that has the text."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._look()
            print(f"  {time.monotonic() - self._started_s:6.1f} s  {line.rstrip()}", flush=True)
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}")

    def end(self, *, is_asked: bool) -> dict[str, Any]:
        """What it reports."""
        if is_asked:
            self._process.send_signal(signal.SIGINT)
        output, errors = self._process.communicate(timeout=WAIT_S)
        assert self._process.returncode == 0, errors
        answer: dict[str, Any] = json.loads(output)
        return answer

    def _look(self) -> None:
        stat = Path(f"/proc/{self._process.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            self.cpu_s = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{self._process.pid}/status")
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("VmHWM"):
                self.rss_max_mib = int(line.split()[1]) / 1024


async def embedded(folder: Path, chats: int, messages: int) -> None:
    """Into the embedded store, with everything compared."""
    with running_postgres({"shared_buffers": "512MB", "work_mem": "64MB"}) as server:
        shop = Shop(server, "shop", folder)
        shop.create()
        shop.fill(chats, messages, people=PEOPLE)
        print(f"{messages:,} messages in {chats:,} chats", flush=True)
        writer = Writer(shop.url, chats)
        writer.start()
        path = folder / "moved.db"
        first = Import(shop, path, "--follow")
        loaded = first.until("loaded").split()
        load_cpu_s = first.cpu_s
        first.until("caught up")
        writer.stop()
        first.end(is_asked=True)
        last = Import(shop, path, "--until-caught-up")
        last.until("caught up")
        outcome = last.end(is_asked=False)
        print(f"written meanwhile: {writer.steps:,} changes", flush=True)
        print(f"memory of the importer at most: {first.rss_max_mib:.0f} MiB", flush=True)
        print(f"counts: {outcome['counts']}, odd: {outcome['report']['odd']}", flush=True)
        async with SqliteStore.open(path) as store:
            await compare(shop, store)
            cpu_s = time.process_time()
            seconds, rows = await put_again(store, folder / "bulk.db")
            cpu_s = time.process_time() - cpu_s
        load_s = float(loaded[4])
        print(f"the same {rows:,} rows by put_many: {seconds:.1f} s; the load: {load_s:.1f} s")
        print(f"speed of the load: {seconds / load_s:.2f} of put_many's")
        print(
            f"processor time: {cpu_s:.1f} s, with reading them; the importer's: {load_cpu_s:.1f} s"
        )


async def compare(shop: Shop, store: Store) -> None:
    """Nothing is missing, and every invariant holds."""
    report = await audit(store)
    assert report.ok, report.broken[:5]
    stored: dict[str, str | None] = {}
    async for item in items_of(store, ENTRIES):
        if item["type"] == "text" and item.get("deleted_at") is None:
            stored[item["client_id"]] = item.get("text")
    with psycopg.connect(shop.url) as connection, connection.cursor("all") as rows:
        rows.execute("SELECT id, body FROM messages WHERE NOT is_deleted")
        count = 0
        for key, body in rows:
            assert stored[f"shop:{key}"] == body, key
            count += 1
    assert count == len(stored)
    print(f"audit clean; {count:,} messages are there, each as it is in the source", flush=True)


async def items_of(store: Store, table: Table) -> Any:
    """All items of a table."""
    after = None
    while True:
        page = await store.scan(table, after=after)
        for item in page.items:
            yield item
        if (after := page.after) is None:
            return


async def put_again(store: Store, path: Path) -> tuple[float, int]:
    """Seconds that put_many takes for all rows of the store into a new one, and how many."""
    seconds, count = 0.0, 0
    async with SqliteStore.open(path) as other:
        for table in TABLES:
            waiting: list[Item] = []
            async for item in items_of(store, table):
                waiting.append(item)
                if len(waiting) == PUT_TOGETHER:
                    seconds += await timed_put(other, table, waiting)
                    count += len(waiting)
                    waiting = []
            seconds += await timed_put(other, table, waiting)
            count += len(waiting)
    return seconds, count


async def timed_put(store: Store, table: Table, items: list[Item]) -> float:
    """Seconds that put_many takes."""
    started_s = time.monotonic()
    await store.put_many(table, items)
    return time.monotonic() - started_s


class Spent(Pace):
    """A pace that remembers when it let how much through."""

    def __init__(self, units_per_s: float) -> None:
        super().__init__(units_per_s)
        self.takings: list[tuple[float, float]] = []

    async def take(self, units: float) -> None:
        await super().take(units)
        self.takings.append((time.monotonic(), units))

    def windows(self) -> Iterator[float]:
        """Units of each window of ten seconds that begins with a taking and is whole."""
        end = self.takings[-1][0]
        for index, (start, _) in enumerate(self.takings):
            if start + WINDOW_S > end:
                return
            yield sum(
                units for at, units in islice(self.takings, index, None) if at < start + WINDOW_S
            )


class Far(SqliteStore):
    """An embedded store that answers as late as a network does, to any number of calls at once."""

    latency_s = 0.0

    async def get(self, *given: Any, **named: Any) -> Item | None:
        """See `Store.get`."""
        await asyncio.sleep(self.latency_s)
        return await super().get(*given, **named)

    async def get_many(self, *given: Any, **named: Any) -> list[Item | None]:
        """See `Store.get_many`."""
        await asyncio.sleep(self.latency_s)
        return await super().get_many(*given, **named)

    async def query(self, *given: Any, **named: Any) -> Page:
        """See `Store.query`."""
        await asyncio.sleep(self.latency_s)
        return await super().query(*given, **named)

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        await asyncio.sleep(self.latency_s)
        await super().write(*writes)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`."""
        await asyncio.sleep(self.latency_s)
        await super().put_many(table, items)


@asynccontextmanager
async def far_store(folder: Path, latency_s: float | None) -> AsyncIterator[Store]:
    """An emulator of DynamoDB, or a store whose latency is known."""
    if latency_s is None:
        async with dynamo_store(system_clock) as store:
            yield store
    else:
        async with Far.open(folder / "far.db") as store:
            store.latency_s = latency_s
            yield store


async def budgeted(
    folder: Path, chats: int, messages: int, budget: float, latency_s: float | None
) -> None:
    """Into a store that is far away, within a budget."""
    with running_postgres() as server:
        shop = Shop(server, "shop", folder)
        shop.create()
        shop.fill(chats, messages, people=4 * chats)
        async with far_store(folder, latency_s) as store:
            pace = Spent(budget)
            place = Scene(PacedStore(store, pace))
            started_s = time.monotonic()
            async with shop.importing(place, Quarantine()) as importing:
                await importing.load()
            seconds = time.monotonic() - started_s
            await place.require_sound()
        windows = list(pace.windows())
        whole = budget * WINDOW_S
        print(f"{messages:,} messages, {pace.taken:,.0f} units in {seconds:.1f} s")
        print(f"windows of 10 s: {min(windows) / whole:.1%} to {max(windows) / whole:.1%}"
              " of the budget")  # fmt: skip
        for second in range(0, int(seconds), int(WINDOW_S)):
            units = sum(
                units for at, units in pace.takings if 0 <= at - started_s - second < WINDOW_S
            )
            print(f"  {second:4} s  {units / whole:6.1%}")
        mean = pace.taken / (pace.takings[-1][0] - pace.takings[0][0]) / budget
        print(f"in the mean {mean:.1%}")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--latency", type=float)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.budget is None:
            asyncio.run(embedded(Path(folder), given.chats, given.messages))
        else:
            asyncio.run(
                budgeted(Path(folder), given.chats, given.messages, given.budget, given.latency)
            )


if __name__ == "__main__":
    main()
