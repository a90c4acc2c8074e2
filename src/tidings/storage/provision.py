"""Bringing a service's tables into being on DynamoDB, and refusing an engine that will not do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tidings.config import DynamoAddress
from tidings.errors import Conflict, NotFound, Unavailable
from tidings.storage.calls import Calls, Refused
from tidings.storage.definitions import (
    Throughput,
    creation,
    global_index,
    key_types,
    time_to_live,
)
from tidings.storage.expressions import table_name
from tidings.storage.interface import Table
from tidings.storage.tables import TABLES

READY_LOOKS_MAX = 300
"""Looks at a new table, or at one with a new index, until it is given up."""
READY_LOOK_S = 1.0
"""Between two looks."""
USABLE = frozenset({"ACTIVE", "UPDATING"})
"""What DynamoDB calls tables and indexes that can be used; it updates them while they are."""
TABLES_AT_ONCE_MAX = 8
"""Tables that are looked at or made at the same time; AWS allows 500."""


class Found(msgspec.Struct, frozen=True):
    """What `look` found of one table."""

    table: Table
    is_there: bool
    is_ready: bool
    """Whether it can be used, and so can those of its indexes that are there."""
    lacking: tuple[str, ...] = ()
    """Global indexes that are declared and not there."""


async def require(
    calls: Calls, address: DynamoAddress, *, tables: Sequence[Table] = TABLES
) -> None:
    """Return if a service can run on the tables.

    Raises NotFound where tables or indexes are missing, and says which command makes them;
    Conflict for tables of another shape and for an engine without transactions; Unavailable where
    there is no answer, or tables are not ready.
    """
    found = await look(calls, address, tables=tables)
    missing = [
        *(each.table.name for each in found if not each.is_there),
        *(f"{each.table.name}.{index}" for each in found for index in each.lacking),
    ]
    if missing:
        raise NotFound(
            f"The store lacks {', '.join(missing)}: run `tidings tables create --store"
            f" {address.url}`."
        )
    if waiting := [each.table.name for each in found if not each.is_ready]:
        raise Unavailable(f"Tables are not ready yet: {', '.join(waiting)}.")
    await _require_transactions(calls, address, tables[0])


async def look(
    calls: Calls, address: DynamoAddress, *, tables: Sequence[Table] = TABLES
) -> list[Found]:
    """What there is of the tables. Raises Conflict for one whose keys or indexes differ."""
    turns = asyncio.Semaphore(TABLES_AT_ONCE_MAX)

    async def find(table: Table) -> Found:
        async with turns:
            return await _find(calls, address, table)

    return await asyncio.gather(*map(find, tables))


async def create(
    calls: Calls,
    address: DynamoAddress,
    *,
    throughput: Throughput | None = None,
    tables: Sequence[Table] = TABLES,
) -> list[str]:
    """Make what is missing of tables, global indexes and times to live, and wait until it is ready.

    What exists stays as it is. Returns what was made, by name; running it again makes nothing.
    Raises Conflict for tables of another shape and for an engine without transactions, where it
    makes nothing; Unavailable where there is no answer, or it takes too long.
    """
    await _require_transactions(calls, address, tables[0])
    turns = asyncio.Semaphore(TABLES_AT_ONCE_MAX)

    async def make(found: Found) -> list[str]:
        async with turns:
            return await _make(calls, address, found, throughput)

    made = await asyncio.gather(*map(make, await look(calls, address, tables=tables)))
    return [name for names in made for name in names]


async def _describe(calls: Calls, name: str) -> Mapping[str, Any] | None:
    try:
        answer = await calls.call("DescribeTable", {"TableName": name})
    except Refused as refused:
        if refused.code == "ResourceNotFoundException":
            return None
        raise _translated(refused) from refused
    table: Mapping[str, Any] = answer["Table"]
    return table


async def _find(calls: Calls, address: DynamoAddress, table: Table) -> Found:
    existing = await _describe(calls, table_name(address.prefix, table))
    if existing is None:
        return Found(table, is_there=False, is_ready=False)
    wanted = creation(table, address.prefix)
    _check_same(table, "keys", wanted, existing)
    types = {each["AttributeName"]: each for each in existing["AttributeDefinitions"]}
    for each in wanted["AttributeDefinitions"]:
        if types.get(each["AttributeName"], each) != each:
            raise Conflict(f"The table {table.name} holds {each['AttributeName']} as another type.")
    lacking = []
    for index in table.indexes:
        kind = "LocalSecondaryIndexes" if index.local else "GlobalSecondaryIndexes"
        theirs = {each["IndexName"]: each for each in existing.get(kind) or ()}
        ours = {each["IndexName"]: each for each in wanted[kind]}
        if index.name in theirs:
            _check_same(table, index.name, ours[index.name], theirs[index.name])
        elif index.local:
            raise Conflict(
                f"The table {table.name} was made without its local index {index.name}, which"
                " can't be added later."
            )
        else:
            lacking.append(index.name)
    return Found(table, is_there=True, is_ready=_is_ready(existing), lacking=tuple(lacking))


def _check_same(
    table: Table, place: str, wanted: Mapping[str, Any], existing: Mapping[str, Any]
) -> None:
    if existing["KeySchema"] != wanted["KeySchema"] or not _projects(
        existing.get("Projection"), wanted.get("Projection")
    ):
        raise Conflict(f"The table {table.name} exists, but has other {place} than this version.")


def _projects(existing: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> bool:
    if existing is None or wanted is None:
        return existing == wanted
    return existing["ProjectionType"] == wanted["ProjectionType"] and sorted(
        existing.get("NonKeyAttributes") or ()
    ) == sorted(wanted.get("NonKeyAttributes") or ())


async def _make(
    calls: Calls, address: DynamoAddress, found: Found, throughput: Throughput | None
) -> list[str]:
    table, made = found.table, []
    name = table_name(address.prefix, table)
    try:
        if not found.is_there:
            await _create_table(calls, creation(table, address.prefix, throughput))
            made.append(name)
        if not found.is_ready:
            await _until_ready(calls, name)
        for index in found.lacking:  # DynamoDB makes one at a time
            declared = table.index(index)
            change = {"Create": global_index(table, declared, throughput)}
            types = [
                {"AttributeName": field, "AttributeType": kind}
                for field, kind in key_types(table, [declared])
            ]
            await calls.call(
                "UpdateTable",
                {
                    "TableName": name,
                    "AttributeDefinitions": types,
                    "GlobalSecondaryIndexUpdates": [change],
                },
            )
            made.append(f"{name}.{index}")
            await _until_ready(calls, name)
        await _let_expire(calls, table, address.prefix)
    except Refused as refused:
        raise _translated(refused) from refused
    return made


async def _create_table(calls: Calls, payload: Mapping[str, Any]) -> None:
    try:
        await calls.call("CreateTable", payload)
    except Refused as refused:
        # Another one made it at the same time, or we did, and its answer was lost.
        if refused.code != "ResourceInUseException":
            raise


async def _let_expire(calls: Calls, table: Table, prefix: str) -> None:
    payload = time_to_live(table, prefix)
    if payload is None or await _expires(calls, payload["TableName"]):
        return
    try:
        await calls.call("UpdateTimeToLive", payload)
    except Refused:
        if not await _expires(calls, payload["TableName"]):
            raise
        # Another one did it at the same time, or we did, and its answer was lost.


async def _expires(calls: Calls, name: str) -> bool:
    answer = await calls.call("DescribeTimeToLive", {"TableName": name})
    return answer["TimeToLiveDescription"]["TimeToLiveStatus"] in ("ENABLED", "ENABLING")


async def _until_ready(calls: Calls, name: str) -> None:
    for _ in range(READY_LOOKS_MAX):
        if _is_ready(await _describe(calls, name)):
            return
        await asyncio.sleep(READY_LOOK_S)
    raise Unavailable(f"The table {name} takes long to become ready: run the command again.")


def _is_ready(table: Mapping[str, Any] | None) -> bool:
    if table is None:
        return False
    indexes = table.get("GlobalSecondaryIndexes") or ()
    statuses = {table["TableStatus"], *(index["IndexStatus"] for index in indexes)}
    return statuses <= USABLE


async def _require_transactions(calls: Calls, address: DynamoAddress, table: Table) -> None:
    """Try a transaction that looks for an item that nobody has, and changes nothing."""
    key = {field: {"S": "?"} if kind == "S" else {"N": "0"} for field, kind in key_types(table, ())}
    check = {
        "TableName": table_name(address.prefix, table),
        "Key": key,
        "ConditionExpression": "attribute_not_exists(#partition)",
        "ExpressionAttributeNames": {"#partition": table.partition},
    }
    try:
        await calls.call("TransactWriteItems", {"TransactItems": [{"ConditionCheck": check}]})
    except Refused as refused:
        if refused.code in ("TransactionCanceledException", "ResourceNotFoundException"):
            return  # somebody has the item, or the table is still to be made: transactions work
        raise Conflict(
            "The engine has no transactions, and without them counts and logs would not be exact:"
            f" it refuses TransactWriteItems ({refused.code})."
        ) from refused


def _translated(refused: Refused) -> Unavailable:
    return Unavailable(f"The store refuses this: {refused.code}: {refused.message}")
