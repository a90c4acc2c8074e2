"""A store around a store that fails now and then, to practise on what an engine does at its limits.

A fault is handled here by the same policy that handles it in calls to DynamoDB: it is tried again
after a pause until the call's time is over. What was applied when an answer was lost is not applied
again, as by a request's token.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from tidings.storage.faults import Fault, Profile
from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    ConditionFailed,
    Item,
    Key,
    Page,
    Position,
    Store,
    Table,
    Write,
)
from tidings.storage.retries import Kind, Retries, RetryPolicy

BULK_ITEMS_MAX = 25
"""Items of `put_many` that fail together, as in BatchWriteItem."""

_UNANSWERED = frozenset({Fault.RESET, Fault.HANG, Fault.LOST_ANSWER, Fault.SLOW})
_APPLIED = frozenset({Fault.LOST_ANSWER, Fault.SLOW})

T = TypeVar("T")


class FaultyStore:
    """A `Store` whose calls fail as the profile says, and are then repeated as the policy says.

    Raises Unavailable where the policy gives a call up: a write may then have been applied or not.
    `on_fault` hears each fault with the table that it happened to.
    """

    def __init__(
        self,
        store: Store,
        profile: Profile,
        policy: RetryPolicy,
        *,
        on_fault: Callable[[str, Fault], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._profile = profile
        self._policy = policy
        self._on_fault = on_fault
        self._chance = chance

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        return await self._read(
            "get", table, lambda: self._store.get(table, key, consistent=consistent)
        )

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`."""
        return await self._read(
            "get_many", table, lambda: self._store.get_many(table, keys, consistent=consistent)
        )

    async def query(
        self,
        table: Table,
        partition: Any,
        *,
        index: str | None = None,
        low: Any = None,
        high: Any = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
        consistent: bool = True,
    ) -> Page:
        """See `Store.query`."""
        return await self._read(
            "query",
            table,
            lambda: self._store.query(
                table,
                partition,
                index=index,
                low=low,
                high=high,
                prefix=prefix,
                reverse=reverse,
                limit=limit,
                after=after,
                consistent=consistent,
            ),
        )

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`."""
        return await self._read(
            "scan",
            table,
            lambda: self._store.scan(
                table, segment=segment, segments=segments, limit=limit, after=after
            ),
        )

    async def write(self, *writes: Write) -> None:
        """See `Store.write`. A set fails by that of its tables which fails most."""
        tables = {write.table.name for write in writes}
        await self._call("write", tables, lambda: self._store.write(*writes), is_write=True)

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`."""
        remaining = iter(items)
        while chunk := list(islice(remaining, BULK_ITEMS_MAX)):
            put = partial(self._store.put_many, table, chunk)
            await self._call("put_many", (table.name,), put, is_write=True)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    async def _read(self, action: str, table: Table, read: Callable[[], Awaitable[T]]) -> T:
        return await self._call(action, (table.name,), read, is_write=False)

    async def _call(
        self,
        action: str,
        tables: Collection[str],
        perform: Callable[[], Awaitable[T]],
        *,
        is_write: bool,
    ) -> T:
        retries = self._policy.begin(action)
        lost_answers: list[T] = []
        while True:
            fault = await self._suffer(retries, tables, is_write=is_write)
            if fault is None:
                return lost_answers[0] if lost_answers else await perform()
            if fault in _APPLIED and is_write and not lost_answers:
                # A condition that fails is looked at again with the next attempt.
                with suppress(ConditionFailed):
                    lost_answers.append(await perform())
            await retries.again(_kind(fault, is_write=is_write))

    async def _suffer(
        self, retries: Retries, tables: Collection[str], *, is_write: bool
    ) -> Fault | None:
        """The fault of an attempt, after the time that it takes; None for one that gets through."""
        if not tables:
            return None
        table = self._profile.worst(tables)
        fault = self._profile.draw(table, self._chance(), is_write=is_write)
        if fault is None:
            return None
        if self._on_fault is not None:
            self._on_fault(table, fault)
        if fault not in (Fault.HANG, Fault.SLOW):
            return fault
        delay_s = timeout_s = retries.attempt_timeout_s
        if fault is Fault.SLOW:
            delay_s = self._profile.rates(table).slow_s * self._chance()
        await self._policy.sleep(min(delay_s, timeout_s))
        return None if delay_s < timeout_s else fault


def _kind(fault: Fault, *, is_write: bool) -> Kind:
    """What it looks like to the caller."""
    if fault in _UNANSWERED and is_write:
        return Kind.LOST_ANSWER
    return Kind.HANG if fault is Fault.SLOW else Kind(fault)
