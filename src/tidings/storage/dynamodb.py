"""The DynamoDB engine: each operation one call, or as few as DynamoDB's own limits allow.

`docs/decisions/0005-dynamodb-engine.md` tells why, with the measurements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from uuid import uuid4

from tidings.clock import Clock, system_clock
from tidings.config import DynamoAddress
from tidings.errors import Unavailable
from tidings.storage.attributes import Value, can_be_key
from tidings.storage.calls import Calls, Refused
from tidings.storage.consumed import RETURN_CONSUMED, charge_consumed
from tidings.storage.expressions import Payload, TableRequests, is_transaction
from tidings.storage.interface import (
    PAGE_ITEMS_MAX,
    ConditionFailed,
    Failure,
    Item,
    Key,
    Page,
    Position,
    Put,
    Table,
    Write,
)
from tidings.storage.metered import current_meter
from tidings.storage.refusals import (
    check_count,
    check_distinct,
    check_key,
    check_key_count,
    check_sizes,
)
from tidings.storage.retries import Kind, RetryPolicy
from tidings.storage.tables import TABLES

BATCH_KEYS_MAX = 100
"""Keys of one BatchGetItem (DynamoDB's limit)."""
BATCH_PUTS_MAX = 25
"""Items of one BatchWriteItem (DynamoDB's limit)."""
BULK_CALLS_MAX = 8
"""Calls of one `put_many` that are under way at once."""

MARK = "~mark#"
"""Begins the partitions of items that stand for nothing, and which no scan shows: whoever reads a
table's stream knows by them how far it got. No workspace is called that."""

_CONDITION = "ConditionalCheckFailed"
_ILL_FORMED = frozenset(
    {"ValidationException", "ValidationError", "ItemCollectionSizeLimitExceeded"}
)

_Result = TypeVar("_Result")


class DynamoStore:
    """A `Store` in DynamoDB tables, which `tidings.storage.provision` makes.

    Several processes may use the same tables. A cancelled `write` is applied or not, never half,
    and may still be applied a moment later.
    """

    def __init__(
        self, calls: Calls, address: DynamoAddress, *, tables: Sequence[Table], clock: Clock
    ) -> None:
        self.calls = calls
        self._requests = {table.name: TableRequests(table, address.prefix) for table in tables}
        self._names_start = f"{address.prefix}."
        # Emulators tell wrong figures; what is spent there is metered by a store around this one.
        self._is_charged = address.is_aws
        self._clock = clock
        self._under_way = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_closing = False

    @classmethod
    def open(
        cls,
        address: DynamoAddress,
        *,
        clock: Clock = system_clock,
        tables: Sequence[Table] = TABLES,
        on_retry: Callable[[Kind], None] | None = None,
        policy: RetryPolicy | None = None,
    ) -> Self:
        """The store at that address; connects with its first operation.

        `clock` decides what has expired. `on_retry` hears of each failed attempt that is repeated.
        """
        calls = Calls.open(address, on_retry=on_retry, policy=policy)
        return cls(calls, address, tables=tables, clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Store.close`. Each call has a deadline, and so has this."""
        self._is_closing = True
        await self._is_idle.wait()
        await self.calls.close()

    # -- reads

    async def get(self, table: Table, key: Key, *, consistent: bool = True) -> Item | None:
        """See `Store.get`."""
        requests = self._requests_of(table)
        check_key(table, key)
        if not can_be_key(key):
            return None
        payload = {
            "TableName": requests.name,
            "Key": requests.attributes.key(key),
            "ConsistentRead": consistent,
        }
        answer = await self._call("GetItem", payload, "read")
        return self._alive(requests, answer.get("Item"))

    async def get_many(
        self, table: Table, keys: Sequence[Key], *, consistent: bool = True
    ) -> list[Item | None]:
        """See `Store.get_many`; a call for every hundred keys, all at once."""
        requests = self._requests_of(table)
        check_key_count(keys)
        for key in keys:
            check_key(table, key)
        wanted = [key for key in dict.fromkeys(keys) if can_be_key(key)]
        found: dict[Key, Mapping[str, Value]] = {}
        await _all(
            self._get_batch(requests, wanted[at : at + BATCH_KEYS_MAX], found, consistent)
            for at in range(0, len(wanted), BATCH_KEYS_MAX)
        )
        # One that is asked for twice is read twice: what is read belongs to the reader.
        return [self._alive(requests, found.get(key)) for key in keys]

    async def _get_batch(
        self,
        requests: TableRequests,
        keys: Sequence[Key],
        found: dict[Key, Mapping[str, Value]],
        consistent: bool,
    ) -> None:
        """Put what is stored under the keys into `found`."""
        retries = self.calls.policy.begin("BatchGetItem")
        left = [requests.attributes.key(key) for key in keys]
        while left:
            wanted = {"Keys": left, "ConsistentRead": consistent}
            payload: Payload = {"RequestItems": {requests.name: wanted}}
            answer = await self._call("BatchGetItem", payload, "read")
            for values in answer["Responses"].get(requests.name, ()):
                found[requests.attributes.fields(requests.table.key_fields, values)] = values
            unprocessed = answer.get("UnprocessedKeys") or {}
            asked, left = len(left), unprocessed.get(requests.name, {}).get("Keys", [])
            if len(left) < asked:
                retries = self.calls.policy.begin("BatchGetItem")
            else:
                await retries.again(Kind.THROTTLE)

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
        """See `Store.query`; a page also ends after 1 MB."""
        requests = self._requests_of(table)
        payload, order = requests.query(
            partition,
            index=index,
            low=low,
            high=high,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            after=after,
            consistent=consistent,
        )
        if payload is None:
            return Page([], None)
        return await self._page("Query", requests, payload, order, limit)

    async def scan(
        self,
        table: Table,
        *,
        segment: int = 0,
        segments: int = 1,
        limit: int = PAGE_ITEMS_MAX,
        after: Position | None = None,
    ) -> Page:
        """See `Store.scan`; strongly consistent, and a page also ends after 1 MB."""
        requests = self._requests_of(table)
        payload, order = requests.scan(segment=segment, segments=segments, limit=limit, after=after)
        page = await self._page("Scan", requests, payload, order, limit)
        items = [item for item in page.items if not str(item[table.partition]).startswith(MARK)]
        return page if len(items) == len(page.items) else Page(items, page.after)

    async def count(self, table: Table) -> int:
        """About how many items the table holds: AWS counts them every six hours."""
        answer = await self._call(
            "DescribeTable", {"TableName": self._requests_of(table).name}, "read"
        )
        return int(answer["Table"]["ItemCount"])

    async def _page(
        self,
        action: str,
        requests: TableRequests,
        payload: Payload,
        order: tuple[str, ...],
        limit: int,
    ) -> Page:
        """A page of at most `limit` items; the call asks for one more, to know if it is the end."""
        answer = await self._call(action, payload, "read")
        found, last = answer["Items"], answer.get("LastEvaluatedKey")
        if len(found) > limit:
            found = found[:limit]
            last = found[-1]
        items = [item for each in found if (item := self._alive(requests, each)) is not None]
        if last is None or not order:  # a partition without a sort key holds one item at most
            return Page(items, None)
        return Page(items, requests.attributes.fields(order, last))

    def _alive(self, requests: TableRequests, values: Mapping[str, Value] | None) -> Item | None:
        """The item, unless it has expired; DynamoDB deletes those days later."""
        if values is None:
            return None
        item, expires = requests.attributes.read(values), requests.table.expires
        if expires is not None and expires in item and item[expires] <= self._clock() // 1000:
            return None
        return item

    # -- writes

    async def write(self, *writes: Write) -> None:
        """See `Store.write`; one call, whose attempts all have the same payload and token."""
        check_count(writes)
        actions = [self._requests_of(write.table).write(write) for write in writes]
        check_distinct(writes)
        check_sizes(writes)
        if not actions:
            return
        if is_transaction(writes):
            payload: Payload = {
                "TransactItems": [{action: body} for action, body in actions],
                "ClientRequestToken": str(uuid4()),
            }
            action = "TransactWriteItems"
        else:
            ((kind, payload),) = actions
            action = f"{kind}Item"
        try:
            await self._call(action, payload, "write")
        except Refused as refused:
            if failures := self._failures(writes, refused.reasons):
                if refused.is_outcome_open and action != "TransactWriteItems":
                    # Applied and undone by another since, or never applied: nothing tells.
                    raise Unavailable("The store did not say whether it did this.") from refused
                raise ConditionFailed(failures) from refused
            raise _translated(refused) from refused

    def _failures(
        self, writes: Sequence[Write], reasons: Sequence[Mapping[str, Any]]
    ) -> list[Failure]:
        failures = []
        for number, reason in enumerate(reasons):
            if reason["Code"] == _CONDITION:
                stored = reason.get("Item")
                read = self._requests_of(writes[number].table).attributes.read
                failures.append(Failure(number, None if stored is None else read(stored)))
        return failures

    async def put_many(self, table: Table, items: Iterable[Item]) -> None:
        """See `Store.put_many`; of items with the same key the last one stays."""
        requests = self._requests_of(table)
        remaining = iter(items)
        while bulk := [*islice(remaining, BULK_CALLS_MAX * BATCH_PUTS_MAX)]:
            puts: dict[Key, Payload] = {}
            for item in bulk:
                values = requests.attributes.item(item)
                check_sizes((Put(table, item),))
                puts[table.key(item)] = {"PutRequest": {"Item": values}}
            waiting = [*puts.values()]
            await _all(
                self._put_batch(requests, waiting[at : at + BATCH_PUTS_MAX])
                for at in range(0, len(waiting), BATCH_PUTS_MAX)
            )

    async def _put_batch(self, requests: TableRequests, puts: Sequence[Payload]) -> None:
        retries = self.calls.policy.begin("BatchWriteItem")
        while puts:
            payload: Payload = {"RequestItems": {requests.name: puts}}
            answer = await self._call("BatchWriteItem", payload, "write")
            unprocessed = answer.get("UnprocessedItems") or {}
            asked, puts = len(puts), unprocessed.get(requests.name, [])
            if puts and len(puts) < asked:
                retries = self.calls.policy.begin("BatchWriteItem")
            if puts:
                await retries.again(Kind.THROTTLE)

    # -- calls

    def _requests_of(self, table: Table) -> TableRequests:
        try:
            return self._requests[table.name]
        except KeyError:
            raise ValueError(f"the store has no table {table.name!r}") from None

    async def _call(
        self, action: str, payload: Payload, kind: Literal["read", "write"]
    ) -> dict[str, Any]:
        """The answer. Raises Refused for writes; what else is refused is translated."""
        if self._is_closing:
            raise Unavailable("The store is closed.")
        if self._is_charged:
            payload["ReturnConsumedCapacity"] = RETURN_CONSUMED
        self._under_way += 1
        self._is_idle.clear()
        try:
            answer = await self.calls.call(action, payload)
        except Refused as refused:
            if refused.reasons:
                raise
            raise _translated(refused) from refused
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._is_idle.set()
        if self._is_charged:
            charge_consumed(
                current_meter(),
                answer.get("ConsumedCapacity"),
                kind=kind,
                prefix=self._names_start,
            )
        return answer


def _translated(refused: Refused) -> Exception:
    """What the caller hears of a refusal in which no condition failed."""
    codes = {refused.code, *(str(reason["Code"]) for reason in refused.reasons)}
    if codes & _ILL_FORMED:
        details = [refused.message, *(str(reason.get("Message", "")) for reason in refused.reasons)]
        return ValueError(f"no engine takes this: {' '.join(filter(None, details))}")
    if refused.code == "ResourceNotFoundException":
        return Unavailable("The store lacks a table: run `tidings tables create`.")
    return Unavailable(f"The store refuses this: {refused.code}.")


async def _all(coroutines: Iterable[Coroutine[Any, Any, _Result]]) -> None:
    """Run them at once; the first failure ends the others and is raised as it is."""
    waiting = [*coroutines]
    if len(waiting) == 1:
        await waiting[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in waiting:
                group.create_task(coroutine)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
