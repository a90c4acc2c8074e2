"""Tables come into being on DynamoDB, and an engine that will not do is refused."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.engines import new_address, remove_tables
from tidings.config import DynamoAddress
from tidings.engines import open_engine
from tidings.errors import Conflict, NotFound, Unavailable
from tidings.storage.calls import Calls
from tidings.storage.definitions import Throughput, creation, terraform
from tidings.storage.interface import Index, Put, Table
from tidings.storage.provision import create, look, require
from tidings.storage.tables import RECEIPTS, SECRETS, TABLES

PETS = Table(
    "pets",
    "owner",
    "pet",
    {"owner": str, "pet": str, "name": str, "weight": float, "age": int, "expires_at": int},
    (
        Index("by_weight", "owner", "weight", local=True, projected=("name", "age")),
        Index("by_name", "name", "pet", projected=()),
    ),
    expires="expires_at",
)


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    async with Calls.open(new_address()) as calls:
        yield calls


@pytest.fixture
async def address() -> AsyncIterator[DynamoAddress]:
    address = new_address()
    yield address
    await remove_tables(address, [PETS, SECRETS])


async def test_what_is_missing_is_made_once(calls: Calls, address: DynamoAddress) -> None:
    with pytest.raises(NotFound, match=f"pets.*tidings tables create --store .*{address.prefix}"):
        await require(calls, address, tables=[PETS])
    assert await create(calls, address, tables=[PETS]) == [f"{address.prefix}.pets"]
    await require(calls, address, tables=[PETS])
    assert await create(calls, address, tables=[PETS]) == []
    described = await calls.call("DescribeTable", {"TableName": f"{address.prefix}.pets"})
    assert described["Table"]["BillingModeSummary"] == {"BillingMode": "PAY_PER_REQUEST"}
    told = await calls.call("DescribeTimeToLive", {"TableName": f"{address.prefix}.pets"})
    assert told["TimeToLiveDescription"] == {
        "TimeToLiveStatus": "ENABLED",
        "AttributeName": "expires_at",
    }


async def test_capacity_can_be_provisioned(calls: Calls, address: DynamoAddress) -> None:
    await create(calls, address, throughput=Throughput(7, 8), tables=[PETS])
    described = await calls.call("DescribeTable", {"TableName": f"{address.prefix}.pets"})
    for place in (described["Table"], *described["Table"]["GlobalSecondaryIndexes"]):
        units = place["ProvisionedThroughput"]
        assert (units["ReadCapacityUnits"], units["WriteCapacityUnits"]) == (7, 8)


async def test_a_global_index_is_added_later(calls: Calls, address: DynamoAddress) -> None:
    older = msgspec.structs.replace(PETS, indexes=PETS.indexes[:1], expires=None)
    await create(calls, address, tables=[older])
    with pytest.raises(NotFound, match=r"pets\.by_name"):
        await require(calls, address, tables=[PETS])
    assert await create(calls, address, tables=[PETS]) == [f"{address.prefix}.pets.by_name"]
    await require(calls, address, tables=[PETS])
    await require(calls, address, tables=[older])  # older code goes on


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(PETS, sort=None, indexes=PETS.indexes[1:]),
        msgspec.structs.replace(PETS, indexes=PETS.indexes[1:]),
        msgspec.structs.replace(PETS, fields={**PETS.fields, "pet": int}),
        msgspec.structs.replace(
            PETS, indexes=(PETS.indexes[0], msgspec.structs.replace(PETS.indexes[1], sort="owner"))
        ),
        msgspec.structs.replace(
            PETS, indexes=(msgspec.structs.replace(PETS.indexes[0], projected=()), PETS.indexes[1])
        ),
    ],
    ids=["no sort key", "no local index", "another type", "another index", "another projection"],
)
async def test_tables_of_another_shape_are_refused(
    calls: Calls, address: DynamoAddress, other: Table
) -> None:
    await create(calls, address, tables=[other])
    with pytest.raises(Conflict, match="pets"):
        await require(calls, address, tables=[PETS])
    with pytest.raises(Conflict, match="pets"):
        await create(calls, address, tables=[PETS])


# -- engines that will not do


@asynccontextmanager
async def _engine(
    answer: Callable[[str], tuple[int, dict[str, Any]]],
) -> AsyncIterator[tuple[DynamoAddress, list[str]]]:
    """An engine that gives those answers to actions, and what it was asked."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        action = request.headers["X-Amz-Target"].partition(".")[2]
        asked.append(action)
        status, body = answer(action)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/", handle)
    async with TestServer(app) as server:
        yield DynamoAddress("us-east-1", endpoint=str(server.make_url("/"))), asked


def _without_transactions(action: str) -> tuple[int, dict[str, Any]]:
    if action == "TransactWriteItems":
        return 400, {"__type": "com.amazon.coral.service#UnknownOperationException"}
    return 400, {"__type": "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException"}


async def test_an_engine_without_transactions_is_refused() -> None:
    async with _engine(_without_transactions) as (address, asked):
        with pytest.raises(Conflict, match=r"no transactions.*UnknownOperationException"):
            async with open_engine(address):
                pass
    assert "CreateTable" not in asked


async def test_an_engine_that_may_not_be_asked_is_unavailable() -> None:
    async with _engine(lambda action: (400, {"__type": "AccessDeniedException"})) as (address, _):
        with pytest.raises(Unavailable):
            async with open_engine(address):
                pass


async def test_tables_that_are_not_ready_are_told(calls: Calls, address: DynamoAddress) -> None:
    await create(calls, address, tables=[SECRETS])
    described = await calls.call("DescribeTable", {"TableName": f"{address.prefix}.secrets"})
    described["Table"]["TableStatus"] = "CREATING"
    async with _engine(lambda action: (200, described)) as (engine, _), Calls.open(engine) as other:
        with pytest.raises(Unavailable, match="not ready yet: secrets"):
            await require(other, engine, tables=[SECRETS])


async def test_elsewhere_than_on_aws_tables_are_made_on_opening() -> None:
    address = new_address()
    try:
        with pytest.raises(NotFound, match="tidings tables create"):
            async with open_engine(address, must_exist=True):
                pass
        async with open_engine(address) as store:
            await store.write(Put(SECRETS, {"name": "n", "value": b"v"}))
        async with open_engine(address, must_exist=True) as store:
            assert await store.get(SECRETS, ("n",)) == {"name": "n", "value": b"v"}
    finally:
        await remove_tables(address)


# -- definitions


def test_a_definition_has_what_was_declared() -> None:
    assert creation(PETS, "mine", Throughput(1, 2)) == {
        "TableName": "mine.pets",
        "AttributeDefinitions": [
            {"AttributeName": "owner", "AttributeType": "S"},
            {"AttributeName": "pet", "AttributeType": "S"},
            {"AttributeName": "weight", "AttributeType": "N"},
            {"AttributeName": "name", "AttributeType": "S"},
        ],
        "KeySchema": [
            {"AttributeName": "owner", "KeyType": "HASH"},
            {"AttributeName": "pet", "KeyType": "RANGE"},
        ],
        "BillingMode": "PROVISIONED",
        "ProvisionedThroughput": {"ReadCapacityUnits": 1, "WriteCapacityUnits": 2},
        "LocalSecondaryIndexes": [
            {
                "IndexName": "by_weight",
                "KeySchema": [
                    {"AttributeName": "owner", "KeyType": "HASH"},
                    {"AttributeName": "weight", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["name", "age"]},
            }
        ],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": "by_name",
                "KeySchema": [
                    {"AttributeName": "name", "KeyType": "HASH"},
                    {"AttributeName": "pet", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
                "ProvisionedThroughput": {"ReadCapacityUnits": 1, "WriteCapacityUnits": 2},
            }
        ],
    }


def test_terraform_has_what_was_declared() -> None:
    assert (
        terraform([PETS], "mine")
        == """\
resource "aws_dynamodb_table" "mine_pets" {
  name                        = "mine.pets"
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "owner"
  range_key                   = "pet"
  deletion_protection_enabled = true

  attribute {
    name = "owner"
    type = "S"
  }

  attribute {
    name = "pet"
    type = "S"
  }

  attribute {
    name = "weight"
    type = "N"
  }

  attribute {
    name = "name"
    type = "S"
  }

  local_secondary_index {
    name               = "by_weight"
    range_key          = "weight"
    projection_type    = "INCLUDE"
    non_key_attributes = ["name", "age"]
  }

  global_secondary_index {
    name            = "by_name"
    hash_key        = "name"
    range_key       = "pet"
    projection_type = "KEYS_ONLY"
  }

  ttl {
    attribute_name = "expires_at"
    enabled        = true
  }
}
"""
    )


@pytest.mark.parametrize("throughput", [None, Throughput(10, 20)])
def test_terraform_would_write_it_like_that(throughput: Throughput | None) -> None:
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not installed")
    text = terraform([*TABLES, PETS], "tidings", throughput)
    formatted = subprocess.run(
        [program, "fmt", "-"],
        input=text,
        capture_output=True,
        text=True,
        env={"CHECKPOINT_DISABLE": "1"},
        check=True,
    )
    assert formatted.stdout == text


async def test_looking_at_tables_finds_each(calls: Calls, address: DynamoAddress) -> None:
    await create(calls, address, tables=[SECRETS])
    found = await look(calls, address, tables=[SECRETS, RECEIPTS])
    assert [(each.table.name, each.is_there, each.is_ready) for each in found] == [
        ("secrets", True, True),
        ("receipts", False, False),
    ]
