"""A SIMULATION of two things that AWS does and engines on one machine do not, as a proxy.

Requests take a round trip longer; and transactions that overlap on an item with one in flight are
refused, as the DynamoDB API Reference says under `TransactionCanceledException` and
`TransactionConflictException`:

- `TransactWriteItems` while another `TransactWriteItems` has one of its items in flight,
- `TransactGetItems` while a write, in a transaction or not, has one of its items in flight,
- `PutItem`, `UpdateItem`, `DeleteItem` while a `TransactWriteItems` has the item in flight,
- a `TransactWriteItems` with the token of one in flight (`TransactionInProgressException`).

A round trip is a little network and mostly DynamoDB's own time. An item is in flight for that time
and for what the engine takes, but not on the network. Everything else passes as it is.

Run as a process of its own it prints its port, and answers `POST /begin`, `POST /end` and
`POST /counts` (what went through between the two) besides the requests of DynamoDB.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from benchmarks.ledger import Ledger, Tables
from benchmarks.plain_way import PLAIN_TABLES
from tidings.storage.interface import Key, Table
from tidings.storage.tables import TABLES

NETWORK_S = 0.001
"""What a request takes longer on its way there and back."""
SERVICE_S = 0.004
"""What it takes longer at DynamoDB, with its items in flight. Two phases of a transaction there
take some 5 to 10 ms; a local engine is done in one or two."""
ENGINE_CONNECTIONS_MAX = 256
ENGINE_TIMEOUT_S = 120.0
RECORDED_MAX = 200_000
"""Requests that are kept until they are counted; a run that needs more is refused."""
HOTTEST_MAX = 5
"""Partitions that are told."""
_JSON = "application/x-amz-json-1.0"
_EXCEPTION = "com.amazonaws.dynamodb.v20120810#"
_CONFLICT = "Transaction is ongoing for the item"

Place = tuple[str, Key]
"""An item: the name of its table, and its key."""


class Counts(msgspec.Struct):
    """What went through between two moments."""

    requests: dict[str, int]
    """By action; what was refused by the proxy included."""
    conflicts: int
    """Requests that were refused because of others in flight."""
    condition_failures: int
    table_units: int
    """Write units of tables, by the published rules; conflicts are not charged."""
    index_units: int
    """Write units of indexes, counted once."""
    hottest: list[tuple[str, float]]
    """Partitions that took most units, as (table and key, units): a local index shares its
    table's partition, and global ones are left out."""
    processor_s: float
    """Processor time of this process."""


class _Mark(msgspec.Struct):
    """Where the counters stood at a moment."""

    requests: Counter[str]
    conflicts: int
    condition_failures: int
    recorded: int
    processor_s: float


class InFlight:
    """Which items are being written, and what may not start meanwhile."""

    def __init__(self) -> None:
        self._transactions: set[Place] = set()
        self._plain: Counter[Place] = Counter()
        self._tokens: set[str] = set()

    def conflicting(self, action: str, places: Sequence[Place]) -> list[bool]:
        """For each item, whether a request of this action can't have it now."""
        if action == "TransactGetItems":
            return [place in self._transactions or self._plain[place] > 0 for place in places]
        return [place in self._transactions for place in places]

    def has_token(self, token: str | None) -> bool:
        """Whether the transaction with this token is in flight."""
        return token in self._tokens

    def enter(self, action: str, places: Sequence[Place], token: str | None) -> None:
        """The request goes to the engine."""
        if action == "TransactWriteItems":
            self._transactions.update(places)
            if token is not None:
                self._tokens.add(token)
        elif action != "TransactGetItems":
            self._plain.update(places)

    def leave(self, action: str, places: Sequence[Place], token: str | None) -> None:
        """The engine has answered, or never will."""
        if action == "TransactWriteItems":
            self._transactions.difference_update(places)
            self._tokens.discard(token or "")
        elif action != "TransactGetItems":
            self._plain.subtract(places)
            for place in places:
                if not self._plain[place]:
                    del self._plain[place]


class AwsLikeProxy:
    """Between a client of DynamoDB and an engine. SIMULATED: see the module."""

    def __init__(
        self,
        engine: str,
        tables: Sequence[Table],
        *,
        network_s: float = NETWORK_S,
        service_s: float = SERVICE_S,
    ) -> None:
        self._engine = engine
        self._tables = Tables(tables)
        self._half_s = network_s / 2
        self._service_s = service_s
        self._in_flight = InFlight()
        self._ledger = Ledger(self._tables)
        self._recorded: list[tuple[str, dict[str, Any], bool]] = []
        self._session: aiohttp.ClientSession | None = None
        self._requests: Counter[str] = Counter()
        self._conflicts = 0
        self._condition_failures = 0
        self._begun = self._ended = self._mark()

    def _mark(self) -> _Mark:
        return _Mark(
            Counter(self._requests),
            self._conflicts,
            self._condition_failures,
            len(self._recorded),
            _processor_s(),
        )

    def begin(self) -> None:
        """Count from here."""
        self._begun = self._mark()

    def end(self) -> None:
        """Count up to here."""
        self._ended = self._mark()

    def counts(self) -> Counts:
        """What went through between the last beginning and the last end, or between two ends.

        Units are worked out here, and not on the way, where it would take time from the run.
        """
        begun, ended = self._begun, self._ended
        assert ended.recorded >= begun.recorded, "counts are asked for after an end"
        ledger = self._ledger
        self._apply(begun.recorded)
        ledger.begin()
        self._apply(ended.recorded - begun.recorded)
        table_units, index_units = ledger.table_units, ledger.index_units
        hottest = ledger.hottest(HOTTEST_MAX)
        self._begun = self._ended = msgspec.structs.replace(ended, recorded=0)
        return Counts(
            dict(ended.requests - begun.requests),
            ended.conflicts - begun.conflicts,
            ended.condition_failures - begun.condition_failures,
            table_units,
            index_units,
            hottest,
            ended.processor_s - begun.processor_s,
        )

    def _apply(self, count: int) -> None:
        for action, payload, is_applied in self._recorded[:count]:
            self._ledger.apply(action, payload, is_applied=is_applied)
        del self._recorded[:count]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve on a free port of this machine; its address."""
        connector = aiohttp.TCPConnector(limit=ENGINE_CONNECTIONS_MAX)
        timeout = aiohttp.ClientTimeout(total=ENGINE_TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None))
            await runner.setup()
            try:
                site = web.TCPSite(runner, "127.0.0.1", 0)
                await site.start()
                yield f"http://127.0.0.1:{runner.addresses[0][1]}"
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        target = request.headers.get("X-Amz-Target")
        if target is None:
            return self._answer(request.path)
        body = await request.read()
        await asyncio.sleep(self._half_s)
        action = target.rpartition(".")[2]
        self._requests[action] += 1
        status, answer = await self._pass(action, body, request.headers)
        await asyncio.sleep(self._half_s)
        return web.Response(status=status, body=answer, content_type=_JSON)

    def _answer(self, path: str) -> web.Response:
        """What the benchmark asks of the proxy itself."""
        answer = b"{}"
        match path:
            case "/begin":
                self.begin()
            case "/end":
                self.end()
            case "/counts":
                answer = msgspec.json.encode(self.counts())
            case _:
                return web.Response(status=404)
        return web.Response(body=answer, content_type="application/json")

    async def _pass(
        self, action: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        payload = msgspec.json.decode(body)
        places = self._places(action, payload)
        token = payload.get("ClientRequestToken")
        if self._in_flight.has_token(token):
            await asyncio.sleep(self._service_s)
            return _refusal("TransactionInProgressException", "The transaction is in progress")
        conflicting = self._in_flight.conflicting(action, places)
        if any(conflicting):
            self._conflicts += 1
            await asyncio.sleep(self._service_s)
            return _conflict(action, conflicting)
        self._in_flight.enter(action, places, token)
        try:
            await asyncio.sleep(self._service_s)
            status, answer = await self._forward(body, headers)
        finally:
            self._in_flight.leave(action, places, token)
        self._record(action, payload, status, answer)
        return status, answer

    async def _forward(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        assert self._session is not None
        kept = {name: headers[name] for name in _FORWARDED if name in headers}
        async with self._session.post(self._engine, data=body, headers=kept) as response:
            return response.status, await response.read()

    def _places(self, action: str, payload: Mapping[str, Any]) -> list[Place]:
        if action == "TransactGetItems":
            return [self._tables.key("Get", part["Get"]) for part in payload["TransactItems"]]
        if action == "BatchWriteItem":
            return []
        return [self._tables.key(kind, part) for kind, part in self._tables.parts(action, payload)]

    def _record(self, action: str, payload: dict[str, Any], status: int, answer: bytes) -> None:
        is_refused = status == 400 and b"ConditionalCheckFailed" in answer
        self._condition_failures += is_refused
        if (status == 200 or is_refused) and self._tables.parts(action, payload):
            if len(self._recorded) >= RECORDED_MAX:
                raise web.HTTPInsufficientStorage(text="too many requests in one run to count")
            self._recorded.append((action, payload, status == 200))


_FORWARDED = (
    "Authorization",
    "Content-Type",
    "X-Amz-Date",
    "X-Amz-Security-Token",
    "X-Amz-Target",
)


def _conflict(action: str, conflicting: Sequence[bool]) -> tuple[int, bytes]:
    if not action.startswith("Transact"):
        return _refusal("TransactionConflictException", _CONFLICT)
    codes = ["TransactionConflict" if each else "None" for each in conflicting]
    reasons = [
        {"Code": code, "Message": _CONFLICT} if code != "None" else {"Code": code} for code in codes
    ]
    return _refusal(
        "TransactionCanceledException",
        "Transaction cancelled, please refer cancellation reasons for specific reasons "
        f"[{', '.join(codes)}]",
        CancellationReasons=reasons,
    )


def _refusal(code: str, message: str, **more: Any) -> tuple[int, bytes]:
    # AWS spells the field of this one exception with a capital.
    field = "Message" if code == "TransactionCanceledException" else "message"
    return 400, msgspec.json.encode({"__type": _EXCEPTION + code, field: message, **more})


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system


async def _serve(engine: str, network_s: float, service_s: float) -> None:
    tables = (*TABLES, *PLAIN_TABLES)
    proxy = AwsLikeProxy(engine, tables, network_s=network_s, service_s=service_s)
    async with proxy.listening() as url:
        print(url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", help="address of the engine")
    parser.add_argument("--network", type=float, default=NETWORK_S, help="seconds")
    parser.add_argument("--service", type=float, default=SERVICE_S, help="seconds")
    options = parser.parse_args()
    uvloop.run(_serve(options.engine, options.network, options.service))
