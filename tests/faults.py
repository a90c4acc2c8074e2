"""A proxy between the DynamoDB engine and its server that lets calls fail as DynamoDB's can.

No engine that can be had here throttles, reports a conflict or loses an answer after a commit. The
proxy does, at the rates of a profile. It is honest: what it forwards is really done, and what it
refuses or drops before is not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from tidings.config import DynamoAddress
from tidings.storage.faults import Fault, Profile

LATE_S = 1.3
"""When a request that hung arrives after all: after the caller gave up and asked again."""
BODY_BYTES_MAX = 32 * 1024**2

_NAMESPACE = "com.amazonaws.dynamodb.v20120810#"
_TRANSACTIONS = ("TransactWriteItems", "TransactGetItems")
_WRITES = ("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems")
_READS = ("GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems")
_THROTTLES = ("ProvisionedThroughputExceededException", "ThrottlingException")
_THROTTLE_REASONS = ("ProvisionedThroughputExceeded", "ThrottlingError")
_CONFLICT_REASONS = ("TransactionConflict",)
_FORWARDED_HEADERS = ("content-type", "authorization")


class Request(msgspec.Struct, frozen=True):
    """One attempt that came in."""

    action: str
    headers: dict[str, str]
    body: bytes
    payload: dict[str, Any]

    @property
    def operations(self) -> list[dict[str, Any]]:
        """What a transaction has one reason for each of."""
        items = self.payload.get("TransactItems") or []
        return [operation for item in items for operation in item.values()]

    def tables(self, prefix: str) -> set[str]:
        """The tables that it names, as they are declared."""
        names = {operation["TableName"] for operation in self.operations}
        names |= set(self.payload.get("RequestItems", ()))
        names |= {self.payload["TableName"]} if "TableName" in self.payload else set()
        return {name.removeprefix(f"{prefix}.") for name in names}


class FaultProxy:
    """Passes calls on to a DynamoDB, as long as `profile` lets it.

    `profile` may be exchanged at any time; None lets everything through. With `forgets_tokens` the
    server never sees a ClientRequestToken, as if each attempt came after the token's life.
    """

    def __init__(self, server: DynamoAddress, *, seed: int = 1) -> None:
        assert server.endpoint is not None
        self._server = server
        self._random = random.Random(seed)
        self._late: set[asyncio.Task[web.Response]] = set()
        self._http: aiohttp.ClientSession
        self.address = server
        self.profile: Profile | None = None
        self.forgets_tokens = False
        self.requests: Counter[str] = Counter()
        """Attempts that came in, by action."""
        self.injected: Counter[Fault] = Counter()
        self.reused_tokens: set[str] = set()
        """Tokens that came with more than one body."""
        self._bodies: dict[str, bytes] = {}

    @property
    def writes(self) -> int:
        """Attempts to write that came in."""
        return sum(self.requests[action] for action in _WRITES)

    async def answer(self, incoming: web.Request) -> web.StreamResponse:
        """Forward a request, or let it fail."""
        body = await incoming.read()
        target = incoming.headers["x-amz-target"]
        request = Request(
            action=target.rpartition(".")[2],
            headers={
                name: value
                for name, value in incoming.headers.items()
                if name.lower() in _FORWARDED_HEADERS or name.lower().startswith("x-amz-")
            },
            body=body,
            payload=msgspec.json.decode(body),
        )
        self.requests[request.action] += 1
        token = request.payload.get("ClientRequestToken")
        if token is not None and self._bodies.setdefault(token, body) != body:
            self.reused_tokens.add(token)
        fault = self._draw(request)
        if fault is None:
            return await self._forward(request)
        self.injected[fault] += 1
        return await self._fail(fault, request, incoming)

    def _draw(self, request: Request) -> Fault | None:
        tables = request.tables(self._server.prefix)
        if self.profile is None or request.action not in (*_WRITES, *_READS) or not tables:
            return None
        worst = self.profile.worst(tables)
        is_write = request.action in _WRITES
        fault = self.profile.draw(worst, self._random.random(), is_write=is_write)
        # Bulk writes are no transactions, and meet none.
        return None if fault is Fault.CONFLICT and request.action == "BatchWriteItem" else fault

    async def _fail(
        self, fault: Fault, request: Request, incoming: web.Request
    ) -> web.StreamResponse:
        is_write = request.action in _WRITES
        match fault:
            case Fault.CONFLICT:
                return self._refuse(request, ("TransactionConflictException",), _CONFLICT_REASONS)
            case Fault.THROTTLE:
                if "RequestItems" in request.payload and self._random.random() < 0.5:
                    return self._leave_unprocessed(request)
                return self._refuse(request, _THROTTLES, _THROTTLE_REASONS)
            case Fault.SERVER_ERROR:
                if is_write and self._random.random() < 0.5:
                    await self._forward(request)
                return _error(500, "InternalServerError")
            case Fault.RESET:
                return _break(incoming)
            case Fault.HANG:
                await self._hang(request)
            case Fault.LOST_ANSWER:
                await self._forward(request)
                return _break(incoming)
        raise AssertionError(f"the proxy can't do this: {fault}")

    async def _hang(self, request: Request) -> None:
        """Answer nothing. The request never arrives, or at once, or when it is given up."""
        match self._random.randrange(3):
            case 0:
                await self._forward(request)
            case 1:
                task = asyncio.ensure_future(self._forward_late(request))
                self._late.add(task)
                task.add_done_callback(self._late.discard)
        await asyncio.Event().wait()  # ends when the caller goes away

    async def _forward_late(self, request: Request) -> web.Response:
        await asyncio.sleep(LATE_S)
        return await self._forward(request)

    async def _forward(self, request: Request) -> web.Response:
        body = request.body
        if self.forgets_tokens and "ClientRequestToken" in request.payload:
            left = {k: v for k, v in request.payload.items() if k != "ClientRequestToken"}
            body = msgspec.json.encode(left)
        assert self._server.endpoint is not None
        async with self._http.post(
            self._server.endpoint, data=body, headers=request.headers
        ) as answer:
            return web.Response(
                status=answer.status,
                body=await answer.read(),
                headers={"content-type": answer.headers["content-type"]},
            )

    def _refuse(
        self, request: Request, codes: tuple[str, ...], reasons: tuple[str, ...]
    ) -> web.Response:
        """Refuse a call by one of the codes, a transaction by a reason for one of its items."""
        if request.action not in _TRANSACTIONS:
            return _error(400, self._random.choice(codes))
        given = [{"Code": "None"} for _ in request.operations]
        self._random.choice(given)["Code"] = self._random.choice(reasons)
        return _error(400, "TransactionCanceledException", CancellationReasons=given)

    def _leave_unprocessed(self, request: Request) -> web.Response:
        """Do nothing of a bulk call, and say so as DynamoDB does."""
        asked = request.payload["RequestItems"]
        if request.action == "BatchWriteItem":
            return web.json_response({"UnprocessedItems": asked})
        return web.json_response({"Responses": {}, "UnprocessedKeys": asked})

    async def settled(self) -> None:
        """Wait until everything that is late has arrived."""
        await asyncio.gather(*self._late)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FaultProxy]:
        """Listen on this machine; `address` is then the way through."""
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_post("/", self.answer)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.address = msgspec.structs.replace(self._server, endpoint=url)
            async with aiohttp.ClientSession() as self._http:
                yield self
                await self.settled()
            assert not self.reused_tokens
        finally:
            await runner.cleanup()


def _break(incoming: web.Request) -> web.Response:
    """Cut the connection, so that nothing is answered."""
    assert incoming.transport is not None
    incoming.transport.abort()
    return web.Response()


def _error(status: int, code: str, **fields: Any) -> web.Response:
    body: Mapping[str, Any] = {"__type": _NAMESPACE + code, "message": "On purpose."} | fields
    return web.json_response(body, status=status, content_type="application/x-amz-json-1.0")
