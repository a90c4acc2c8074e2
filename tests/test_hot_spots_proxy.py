"""The proxy of the benchmark of hot spots refuses what AWS would, delays, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from benchmarks.aws_like_proxy import AwsLikeProxy, Counts
from benchmarks.tidings_way import TidingsWay
from tests.engines import dynamo_tables
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Index, Table
from tidings.storage.metered import MeteredStore, metering
from tidings.storage.tables import TABLES

ROWS = Table(
    name="rows",
    partition="owner",
    sort="name",
    fields={"owner": str, "name": str, "count": int, "text": str, "rank": int},
    indexes=(Index("by_rank", "owner", "rank", local=True, projected=()),),
)
CANCELLED = "Transaction cancelled, please refer cancellation reasons for specific reasons"
ONGOING = "Transaction is ongoing for the item"


class HeldEngine:
    """An engine that answers a request when it is told to."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[tuple[str, asyncio.Future[tuple[int, Any]]]] = asyncio.Queue()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        answer: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        await self.arrived.put((request.headers["X-Amz-Target"].rpartition(".")[2], answer))
        status, body = await answer
        return web.Response(status=status, body=msgspec.json.encode(body))

    async def release(self, status: int = 200, **body: Any) -> str:
        """Answer the request that came first; its action."""
        action, answer = await self.arrived.get()
        answer.set_result((status, body))
        return action


class Scene:
    """A client, the proxy, and the held engine behind it."""

    def __init__(self, engine: HeldEngine, session: aiohttp.ClientSession, url: str) -> None:
        self.engine = engine
        self._session = session
        self._url = url

    async def call(self, action: str, payload: dict[str, Any]) -> tuple[int, Any]:
        headers = {"X-Amz-Target": f"DynamoDB_20120810.{action}"}
        async with self._session.post(
            self._url, data=msgspec.json.encode(payload), headers=headers
        ) as response:
            return response.status, msgspec.json.decode(await response.read())

    @asynccontextmanager
    async def in_flight(self, action: str, payload: dict[str, Any]) -> AsyncIterator[None]:
        """The request is at the engine inside, and answered on leaving."""
        calling = asyncio.create_task(self.call(action, payload))
        arrived = await self.engine.arrived.get()
        yield
        arrived[1].set_result((200, {}))
        assert (await calling)[0] == 200

    async def passes(self, action: str, payload: dict[str, Any]) -> None:
        """The request gets to the engine and back."""
        calling = asyncio.create_task(self.call(action, payload))
        assert await self.engine.release() == action
        assert (await calling)[0] == 200

    async def ask(self, what: str) -> bytes:
        async with self._session.post(f"{self._url}/{what}") as response:
            return await response.read()

    async def counts(self) -> Counts:
        await self.ask("end")
        return msgspec.json.decode(await self.ask("counts"), type=Counts)


@asynccontextmanager
async def opened(*, network_s: float = 0.0, service_s: float = 0.0) -> AsyncIterator[Scene]:
    engine = HeldEngine()
    runner = web.ServerRunner(web.Server(engine.handle))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        proxy = AwsLikeProxy(url, [ROWS], network_s=network_s, service_s=service_s)
        async with aiohttp.ClientSession() as session, proxy.listening() as proxied:
            yield Scene(engine, session, proxied)
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[Scene]:
    async with opened() as made:
        yield made


def key(name: str) -> dict[str, Any]:
    return {"owner": {"S": "ann"}, "name": {"S": name}}


def put(name: str, **fields: Any) -> dict[str, Any]:
    return {"TableName": "test.rows", "Item": key(name) | fields}


def add(name: str) -> dict[str, Any]:
    return {
        "TableName": "test.rows",
        "Key": key(name),
        "UpdateExpression": "SET #t = :text ADD #c :one",
        "ExpressionAttributeNames": {"#t": "text", "#c": "count"},
        "ExpressionAttributeValues": {":one": {"N": "1"}, ":text": {"S": "new"}},
    }


def writing(*names: str, token: str | None = None) -> dict[str, Any]:
    """A transaction that updates these items."""
    payload: dict[str, Any] = {"TransactItems": [{"Update": add(name)} for name in names]}
    return payload | ({"ClientRequestToken": token} if token else {})


def reading(*names: str) -> dict[str, Any]:
    """A transaction that reads these items."""
    gets = [{"Get": {"TableName": "test.rows", "Key": key(name)}} for name in names]
    return {"TransactItems": gets}


async def test_a_transaction_that_shares_an_item_with_one_in_flight_is_cancelled(
    scene: Scene,
) -> None:
    async with scene.in_flight("TransactWriteItems", writing("a", "b")):
        await scene.passes("TransactWriteItems", writing("c", "d"))
        status, answer = await scene.call("TransactWriteItems", writing("x", "b"))
        assert status == 400
        assert answer == {
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "Message": f"{CANCELLED} [None, TransactionConflict]",
            "CancellationReasons": [
                {"Code": "None"},
                {"Code": "TransactionConflict", "Message": ONGOING},
            ],
        }
    await scene.passes("TransactWriteItems", writing("x", "b"))


async def test_a_plain_write_waits_for_no_other_and_yields_to_transactions(scene: Scene) -> None:
    async with scene.in_flight("TransactWriteItems", writing("a")):
        for action, payload in (
            ("PutItem", put("a")),
            ("UpdateItem", add("a")),
            ("DeleteItem", {"TableName": "test.rows", "Key": key("a")}),
        ):
            status, answer = await scene.call(action, payload)
            assert (status, answer["message"]) == (400, ONGOING)
            assert answer["__type"].endswith("#TransactionConflictException")
        await scene.passes("PutItem", put("b"))
    async with scene.in_flight("PutItem", put("a")):
        await scene.passes("UpdateItem", add("a"))
        await scene.passes("TransactWriteItems", writing("a"))


async def test_a_reading_transaction_yields_to_any_write_and_to_no_read(scene: Scene) -> None:
    for action, payload in (("PutItem", put("a")), ("TransactWriteItems", writing("a"))):
        async with scene.in_flight(action, payload):
            status, answer = await scene.call("TransactGetItems", reading("b", "a"))
            codes = [reason["Code"] for reason in answer["CancellationReasons"]]
            assert (status, codes) == (400, ["None", "TransactionConflict"])
    async with scene.in_flight("TransactGetItems", reading("a")):
        await scene.passes("TransactGetItems", reading("a"))
        await scene.passes("TransactWriteItems", writing("a"))
        await scene.passes("GetItem", {"TableName": "test.rows", "Key": key("a")})


async def test_a_token_in_flight_is_in_progress_and_not_in_conflict(scene: Scene) -> None:
    async with scene.in_flight("TransactWriteItems", writing("a", token="one")):
        status, answer = await scene.call("TransactWriteItems", writing("a", token="one"))
        assert (status, answer["__type"].rpartition("#")[2]) == (
            400,
            "TransactionInProgressException",
        )
    await scene.passes("TransactWriteItems", writing("a", token="one"))


async def test_what_the_engine_refuses_is_passed_on_and_no_longer_in_flight(scene: Scene) -> None:
    calling = asyncio.create_task(scene.call("PutItem", put("a")))
    code = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"
    await scene.engine.release(400, __type=code)
    assert await calling == (400, {"__type": code})
    await scene.passes("TransactGetItems", reading("a"))
    assert (await scene.counts()).condition_failures == 1


async def test_a_round_trip_takes_as_long_as_it_is_said() -> None:
    loop = asyncio.get_running_loop()
    async with opened(network_s=0.05, service_s=0.05) as scene:
        started = loop.time()
        await scene.passes("PutItem", put("a"))
        assert loop.time() - started >= 0.1
        async with scene.in_flight("PutItem", put("a")):
            started = loop.time()
            status, _ = await scene.call("TransactGetItems", reading("a"))
            assert status == 400
            assert loop.time() - started >= 0.1, "a refusal is no faster"


async def test_an_item_is_in_flight_while_the_service_takes_its_time() -> None:
    async with opened(service_s=0.2) as scene:
        first = asyncio.create_task(scene.call("TransactWriteItems", writing("a")))
        while not (await scene.counts()).requests:
            await asyncio.sleep(0)
        status, answer = await scene.call("TransactWriteItems", writing("a"))
        assert (status, answer["CancellationReasons"][0]["Code"]) == (400, "TransactionConflict")
        assert await scene.engine.release() == "TransactWriteItems"
        assert (await first)[0] == 200


async def test_requests_conflicts_and_units_are_counted_between_two_moments(scene: Scene) -> None:
    await scene.passes("PutItem", put("a", text={"S": "x" * 1_500}, rank={"N": "1"}))
    await scene.ask("begin")
    await scene.passes("TransactWriteItems", writing("a", "b"))
    async with scene.in_flight("TransactWriteItems", writing("c")):
        await scene.call("PutItem", put("c"))
    moved = put("a", text={"S": "new"}, rank={"N": "2"})
    await scene.passes("TransactWriteItems", {"TransactItems": [{"Put": moved}]})
    counts = await scene.counts()
    assert counts.requests == {"TransactWriteItems": 3, "PutItem": 1}
    assert counts.conflicts == 1
    # 2 KB of `a` before its text became short, `b`, and `c`, each twice; then `a` again.
    assert counts.table_units == (2 + 1 + 1 + 1) * 2
    assert counts.index_units == 2
    assert counts.hottest == [("rows ann", 12.0)]
    await scene.passes("PutItem", put("z"))
    assert (await scene.counts()).table_units == 1, "of what came since"


@pytest.mark.slow
async def test_units_are_those_of_the_meter() -> None:
    rooms = {"desk-1": ["max", "cleo"], "desk-2": ["max", "carl"]}
    async with dynamo_tables() as address:
        assert address.endpoint is not None
        proxy = AwsLikeProxy(address.endpoint, TABLES, network_s=0.0, service_s=0.0)
        async with proxy.listening() as url:
            proxied = msgspec.structs.replace(address, endpoint=url)
            with metering() as meter:
                async with DynamoStore.open(proxied) as store:
                    way = TidingsWay(MeteredStore(store), "support")
                    await way.open(rooms)
                    proxy.begin()
                    before = meter.write_units_once
                    for number in range(3):
                        sends = [way.send(room, rooms[room][1], f"{number}" * 80) for room in rooms]
                        await asyncio.gather(*sends)
                    await way.send("desk-1", "max", "an answer")
                    await way.settle()
                    assert await way.totals(["max", "cleo", "carl"]) == [6, 1, 0]
                    await way.close()
            proxy.end()
            counts = proxy.counts()
    assert counts.table_units + counts.index_units == meter.write_units_once - before
    assert counts.conflicts == counts.condition_failures == 0
    assert way.raised == 7
