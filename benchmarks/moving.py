"""How fast a store is copied: as a ratio to what a store takes in bulk, and by a budget of units.

`python -m benchmarks.moving` prints four lines: copying from one embedded store to another one and
the bulk writes of the same items, in the same run; what capturing costs each write; and copying to
a DynamoDB engine on this machine at a budget, with the most that any window of WINDOW_S held.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.processes import engine
from tidings.config import DynamoAddress
from tidings.migrate.comparing import Comparison
from tidings.migrate.copying import Backfill
from tidings.migrate.sqlite_captures import SqliteCapture
from tidings.storage import provision
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Item, Put, Store, Update, Write
from tidings.storage.metered import MeteredStore, metering
from tidings.storage.pacing import WINDOW_S, Pace
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, ROOMS

ENTRIES_PER_ROOM = 50
CHUNK_ITEMS = 5_000
WRITES = 1_000
WRITERS = 10


class Alone:
    """The only worker."""

    worker_id = "benchmark"

    def is_gone(self, worker_id: str) -> bool:
        """Nobody else is there."""
        return True


class Ledger:
    """A store around a metered one that notes when its writes cost what."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.spent: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, *writes: Write) -> None:
        """See `Store.write`."""
        with metering() as meter:
            try:
                await self._store.write(*writes)
            finally:
                self.spent.append((time.monotonic(), meter.write_units))

    def worst_window(self) -> float:
        """The most units in any window of WINDOW_S."""
        worst = total = 0.0
        start = 0
        for moment, units in self.spent:
            total += units
            while self.spent[start][0] <= moment - WINDOW_S:
                total -= self.spent[start][1]
                start += 1
            worst = max(worst, total)
        return worst


def entries(count: int) -> Iterator[Item]:
    """Entries of a usual size."""
    for number in range(count):
        room, seq = divmod(number, ENTRIES_PER_ROOM)
        yield {
            "room": f"acme#room_{room:08}",
            "seq": seq + 1,
            "id": f"ent_{number:012}",
            "type": "text",
            "sender_id": f"usr_{number % 97}",
            "client_id": f"c{number}",
            "text": "Thank you, that has helped a lot. When can we expect it? " * 2,
            "created_at": 1_767_225_600_000 + number,
        }


async def fill(store: Store, count: int) -> float:
    """Put them in bulk; items per second, making them left out."""
    remaining = entries(count)
    took_s = 0.0
    while chunk := [*islice(remaining, CHUNK_ITEMS)]:
        began = time.monotonic()
        await store.put_many(ENTRIES, chunk)
        took_s += time.monotonic() - began
    return count / took_s


async def copy(source: Store, destination: Store, pace: Pace, name: str) -> float:
    """Copy everything; items per second."""
    began = time.monotonic()
    backfill = Backfill(source, destination, name=name, worker=Alone(), pace=pace)
    await backfill.run()
    return (await backfill.progress()).items / (time.monotonic() - began)


async def write_singly(store: Store) -> float:
    """Sets of two writes from a few senders at once; sets per second."""

    async def send(sender: int) -> None:
        for seq in range(WRITES):
            await store.write(
                Put(ENTRIES, {"room": f"writer_{sender}", "seq": seq}),
                Update(ROOMS, (f"writer_{sender}",), add={"head": 1}),
            )

    began = time.monotonic()
    await asyncio.gather(*map(send, range(WRITERS)))
    return WRITERS * WRITES / (time.monotonic() - began)


async def measure_embedded(folder: Path, count: int) -> None:
    """From one file to another, and what triggers cost."""
    async with SqliteStore.open(folder / "source.db") as source:
        bulk = await fill(source, count)
        async with SqliteStore.open(folder / "copy.db") as destination:
            copied = await copy(source, destination, Pace(None), "copy")
            print(
                f"embedded to embedded: {copied:,.0f} items/s; in bulk {bulk:,.0f} items/s;"
                f" ratio {copied / bulk:.2f}"
            )
            began = time.monotonic()
            report = await Comparison(source, destination, None).run()
            assert report.is_equal
            print(f"compared: {2 * count / (time.monotonic() - began):,.0f} items/s of both")
        plain = await write_singly(source)
        capture = SqliteCapture(folder / "source.db")
        await capture.begin()
        captured = await write_singly(source)
        await capture.end()
        await capture.close()
        print(
            f"sets of two writes, {WRITERS} at once: {plain:,.0f}/s, captured {captured:,.0f}/s;"
            f" ratio {captured / plain:.2f}"
        )


async def measure_budget(folder: Path, budget: float, for_s: float) -> None:
    """To an engine that takes much more than the budget."""
    async with (
        engine() as running,
        SqliteStore.open(folder / "paced.db") as source,
    ):
        await fill(source, int(budget * for_s / 2.2))
        address = DynamoAddress("us-east-1", endpoint=running.url)
        async with DynamoStore.open(address) as store:
            await provision.create(store.calls, address)
            pace = Pace(budget)
            ledger = Ledger(MeteredStore(store))
            began = time.monotonic()
            await copy(source, ledger, pace, "copy")
            took_s = time.monotonic() - began
            total = sum(units for _, units in ledger.spent)
            worst = ledger.worst_window()
            print(
                f"to DynamoDB at {budget:,.0f} units/s: {total / took_s:,.0f} units/s"
                f" ({total / took_s / budget:.0%}) for {took_s:.0f} s; worst {WINDOW_S:.0f} s"
                f" {worst:,.0f} units ({worst / WINDOW_S / budget:.0%})"
            )


async def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--budget", type=float, default=500.0)
    parser.add_argument("--for-s", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        await measure_embedded(Path(folder), options.items)
        await measure_budget(Path(folder), options.budget, options.for_s)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory at most {peak_mb:,.0f} MB")


if __name__ == "__main__":
    asyncio.run(main())
