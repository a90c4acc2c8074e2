"""What the DynamoDB engine takes for transactions, on an endpoint or on the tests' own engine.

`python -m benchmarks.bare_dynamodb`; `TIDINGS_TEST_DYNAMODB` points it at any other endpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from benchmarks.bare_store import Pair
from tests.engines import dynamo_store
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Absent, Put, Update, Write
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS

SENDERS = 16
"""Transactions under way at once."""
TRANSACTIONS = 1_000


class Speed(msgspec.Struct, frozen=True):
    """How a run went."""

    per_s: float
    processor_ms: float
    """Processor time of this process for one transaction."""


def four_items(number: int) -> tuple[Write, ...]:
    """The smallest message: an entry, the head of its room, and the receiver's two counters."""
    room, user = f"acme#room_{number}", f"acme#usr_{number}"
    return (
        Put(ENTRIES, {"room": room, "seq": 1, "type": "text", "text": "good morning"}, (Absent(),)),
        Update(ROOMS, (room,), {"head": 1}, when=(Absent(),)),
        Update(INBOXES, (user, f"room_{number}"), {"feed": 1}, {"unread": 1}),
        Update(BADGES, (user,), add={"unread": 1, "version": 1}),
    )


async def speed(store: DynamoStore, sets: Sequence[tuple[Write, ...]]) -> Speed:
    """Write all sets, `SENDERS` at a time."""
    waiting = iter(sets)

    async def send() -> None:
        for writes in waiting:
            await store.write(*writes)

    started, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*[send() for _ in range(SENDERS)])
    used, spent_s = time.process_time() - used, time.perf_counter() - started
    return Speed(len(sets) / spent_s, used / len(sets) * 1_000)


async def main() -> None:
    """Print the figures."""
    async with dynamo_store(tables=(BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS)) as store:
        await store.get(ROOMS, ("connected before the clock runs",))
        told = await speed(store, [four_items(number) for number in range(TRANSACTIONS)])
        print(f"four items: {told.per_s:,.0f} transactions/s, {told.processor_ms:.2f} ms each")
        pairs = [Pair.numbered(number) for number in range(TRANSACTIONS)]
        await speed(store, [pair.founding() for pair in pairs])
        for folded in (1, 8):
            told = await speed(store, [pair.messages(folded) for pair in pairs])
            print(
                f"{folded} in a commit: {told.per_s * folded:,.0f} messages/s,"
                f" {told.processor_ms:.2f} ms a commit"
            )


if __name__ == "__main__":
    asyncio.run(main())
