"""Calls to DynamoDB against a peer that answers as it is told, and what each failure leads to."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tidings.config import DynamoAddress
from tidings.errors import Unavailable
from tidings.storage import calls
from tidings.storage.calls import Calls, Refused, endpoint
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import ConditionFailed, Delete, Exists, Update
from tidings.storage.retries import ATTEMPT_TIMEOUTS_S, CALL_DEADLINE_S, Kind, RetryPolicy
from tidings.storage.tables import ROOMS

NAMESPACE = "com.amazonaws.dynamodb.v20120810#"
WRITE = {
    "TransactItems": [{"Put": {"TableName": "t.rooms", "Item": {"room": {"S": "a secret room"}}}}],
    "ClientRequestToken": "0123456789abcdef",
}
FEW = 4

Reply: TypeAlias = Callable[[web.Request], web.Response | None]
"""None breaks the connection."""


def ok(_: web.Request) -> web.Response:
    return web.json_response({"Item": {"n": {"N": "1"}}})


def error(code: str, status: int = 400, **fields: Any) -> Reply:
    body = {"__type": NAMESPACE + code, "message": f"about {code}"} | fields
    return lambda _: web.json_response(body, status=status)


def cancelled(*codes: str) -> Reply:
    return error("TransactionCanceledException", CancellationReasons=[{"Code": c} for c in codes])


def reset(_: web.Request) -> None:
    return None


class Peer:
    """An HTTP server that gives its replies in order, and `ok` when it has none left."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.hangs = 0
        """How many requests at the start get no answer at all."""
        self.delay_s = 0.0
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.address: DynamoAddress
        self.calls: Calls
        self.retried: list[Kind] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.bodies.append(await request.read())
        if len(self.requests) <= self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)
        reply = (self.replies.pop(0) if self.replies else ok)(request)
        if reply is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return reply


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[str]:
    application = web.Application(client_max_size=16 * 1024**2)
    application.router.add_post("/", peer.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _no_keys_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What this machine has of AWS's settings stays out of the tests."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    async with serving(peer) as url:
        peer.address = DynamoAddress("eu-west-1", "t", url)
        async with Calls.open(peer.address, on_retry=peer.retried.append) as peer.calls:
            yield peer


async def test_a_call_is_signed_and_its_answer_parsed(peer: Peer) -> None:
    assert await peer.calls.call("GetItem", {"Key": {"b": {"B": b"\x00\x01"}}}) == {
        "Item": {"n": {"N": "1"}}
    }
    assert msgspec.json.decode(peer.bodies[0]) == {"Key": {"b": {"B": "AAE="}}}
    headers = peer.requests[0].headers
    assert headers["X-Amz-Target"] == "DynamoDB_20120810.GetItem"
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=local/")
    assert headers["Host"] in peer.requests[0].url.human_repr()


@pytest.mark.parametrize(
    ("action", "reply", "kind"),
    [
        ("TransactWriteItems", cancelled("None", "TransactionConflict"), Kind.CONFLICT),
        ("TransactWriteItems", cancelled("ThrottlingError", "TransactionConflict"), Kind.CONFLICT),
        ("PutItem", error("TransactionConflictException"), Kind.CONFLICT),
        ("UpdateItem", error("ReplicatedWriteConflictException"), Kind.CONFLICT),
        ("TransactWriteItems", cancelled("None", "ThrottlingError"), Kind.THROTTLE),
        ("TransactWriteItems", cancelled("ProvisionedThroughputExceeded"), Kind.THROTTLE),
        ("Query", error("ProvisionedThroughputExceededException"), Kind.THROTTLE),
        ("Query", error("ThrottlingException"), Kind.THROTTLE),
        ("PutItem", error("RequestLimitExceeded"), Kind.THROTTLE),
        ("TransactWriteItems", error("TransactionInProgressException"), Kind.IN_PROGRESS),
        ("PutItem", error("InternalServerError", 500), Kind.SERVER_ERROR),
        ("GetItem", lambda _: web.Response(status=503, text="upstream"), Kind.SERVER_ERROR),
        ("GetItem", lambda _: web.Response(text="<html>"), Kind.SERVER_ERROR),
        ("GetItem", reset, Kind.RESET),
        ("PutItem", reset, Kind.LOST_ANSWER),
        ("TransactWriteItems", reset, Kind.LOST_ANSWER),
    ],
)
async def test_what_may_go_better_is_tried_again(
    peer: Peer, action: str, reply: Reply, kind: Kind
) -> None:
    peer.replies = [reply, reply]
    with capture_logs() as logs:
        await peer.calls.call(action, WRITE)
    assert peer.retried == [kind, kind]
    assert len(set(peer.bodies)) == 1
    assert [line["kind"] for line in logs] == [kind.value] * 2
    assert "secret" not in str(logs)


@pytest.mark.parametrize(
    "reply",
    [
        cancelled("None", "ConditionalCheckFailed"),
        cancelled("TransactionConflict", "ConditionalCheckFailed"),
        cancelled("ValidationError", "ThrottlingError"),
        cancelled("ItemCollectionSizeLimitExceeded"),
        error("ConditionalCheckFailedException"),
        error("IdempotentParameterMismatchException"),
        error("ValidationException"),
        error("ResourceNotFoundException"),
        error("UnknownOperationException"),
    ],
)
async def test_a_definitive_no_is_told_at_once(peer: Peer, reply: Reply) -> None:
    peer.replies = [reply]
    with pytest.raises(Refused) as refused:
        await peer.calls.call("TransactWriteItems", WRITE)
    assert len(peer.requests) == 1
    assert not refused.value.is_outcome_open
    assert refused.value.code.isalnum()
    assert refused.value.message == f"about {refused.value.code}"


async def test_the_reasons_of_a_single_write_read_like_a_transactions(peer: Peer) -> None:
    item = {"room": {"S": "r"}}
    code = "ConditionalCheckFailed"
    peer.replies = [
        error(f"{code}Exception", Item=item),
        error(f"{code}Exception"),
        error("TransactionCanceledException", CancellationReasons=[{"Code": code, "Item": item}]),
    ]
    reasons = []
    for _ in range(3):
        with pytest.raises(Refused) as refused:
            await peer.calls.call("PutItem", {})
        reasons.append(refused.value.reasons)
    assert reasons == [[{"Code": code, "Item": item}], [{"Code": code}], reasons[0]]


@pytest.mark.parametrize(
    ("first", "is_open"),
    [
        (reset, True),
        (error("InternalServerError", 500), True),
        (error("TransactionInProgressException"), True),
        (error("ThrottlingException"), False),
        (error("TransactionConflictException"), False),
    ],
)
async def test_a_refusal_says_whether_we_may_have_caused_it(
    peer: Peer, first: Reply, is_open: bool
) -> None:
    for action, expected in (("PutItem", is_open), ("GetItem", False)):
        peer.replies = [first, error("ConditionalCheckFailedException")]
        with pytest.raises(Refused) as refused:
            await peer.calls.call(action, WRITE)
        assert refused.value.is_outcome_open is expected


async def test_a_write_that_may_have_been_applied_is_not_said_to_have_failed(peer: Peer) -> None:
    async with DynamoStore.open(peer.address) as store:
        # Its second attempt would do the same again, so it goes without a token: the answer to the
        # first was lost, and by the second somebody has removed the item.
        peer.replies = [reset, error("ConditionalCheckFailedException")]
        with pytest.raises(Unavailable):
            await store.write(Update(ROOMS, ("a#r",), {"head": 1}, when=(Exists(),)))
        peer.replies = [error("ThrottlingException"), error("ConditionalCheckFailedException")]
        with pytest.raises(ConditionFailed):
            await store.write(Update(ROOMS, ("a#r",), {"head": 1}, when=(Exists(),)))
        # A token makes the second attempt tell what became of the first.
        peer.replies = [reset, cancelled("ConditionalCheckFailed")]
        with pytest.raises(ConditionFailed):
            await store.write(Delete(ROOMS, ("a#r",), when=(Exists(),)))


@pytest.mark.parametrize(
    ("action", "kind"), [("GetItem", Kind.HANG), ("TransactWriteItems", Kind.LOST_ANSWER)]
)
async def test_a_hang_is_cut_short_and_tried_again(peer: Peer, action: str, kind: Kind) -> None:
    peer.hangs = 1
    await peer.calls.call(action, WRITE)
    assert peer.retried == [kind]
    assert len(set(peer.bodies)) == 1


async def test_who_never_answers_is_given_up_within_the_deadline(peer: Peer) -> None:
    peer.hangs = 100
    began_s = time.monotonic()
    async with Calls.open(peer.address, policy=RetryPolicy(deadline_s=1.5)) as hurried:
        answers = await asyncio.gather(
            *(hurried.call("PutItem", WRITE) for _ in range(20)), return_exceptions=True
        )
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert time.monotonic() - began_s < CALL_DEADLINE_S


async def test_nobody_there_is_known_as_such() -> None:
    now_s = 0.0
    retried: list[Kind] = []

    async def sleep(pause_s: float) -> None:
        nonlocal now_s
        now_s += pause_s

    # The longest pauses end with as much time left as a connection may take.
    policy = RetryPolicy(
        deadline_s=2.5,
        on_retry=retried.append,
        chance=lambda: 1.0,
        monotonic=lambda: now_s,
        sleep=sleep,
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with Calls.open(DynamoAddress("eu-west-1", "t", url), policy=policy) as calls:
            with pytest.raises(Unavailable, match="unreachable"):
                await calls.call("PutItem", WRITE)
    assert set(retried) == {Kind.UNREACHABLE}


@pytest.fixture
async def narrow(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Calls]:
    """Calls over so few connections that a busy machine answers all of them well in time."""
    monkeypatch.setattr(calls, "CONNECTIONS_MAX", FEW)
    async with Calls.open(peer.address, on_retry=peer.retried.append) as opened:
        yield opened


async def test_waiting_for_a_connection_is_not_a_lost_answer(peer: Peer, narrow: Calls) -> None:
    peer.delay_s = 0.15
    count = 8 * FEW
    assert peer.delay_s * count / FEW > ATTEMPT_TIMEOUTS_S[0]
    await asyncio.gather(*(narrow.call("PutItem", WRITE) for _ in range(count)))
    assert peer.retried == []
    assert len(peer.requests) == count


async def test_too_many_waiting_calls_are_refused_at_once(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALLS_WAITING_MAX", 3)
    peer.hangs = 1
    waiting = [asyncio.ensure_future(peer.calls.call("GetItem", {})) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many"):
        await peer.calls.call("GetItem", {})
    await asyncio.gather(*waiting)


async def test_a_large_body_arrives_whole_with_each_attempt(peer: Peer) -> None:
    peer.replies = [reset]
    payload = {"RequestItems": "x" * 10_000_000}
    await peer.calls.call("BatchWriteItem", payload)
    assert [msgspec.json.decode(body) for body in peer.bodies] == [payload, payload]
    assert int(peer.requests[1].headers["Content-Length"]) == len(peer.bodies[1])


async def test_a_cancelled_call_leaves_nothing_behind(peer: Peer, narrow: Calls) -> None:
    peer.hangs = FEW
    hanging = [asyncio.ensure_future(narrow.call("PutItem", WRITE)) for _ in range(FEW)]
    while len(peer.requests) < FEW:
        await asyncio.sleep(0.01)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    await asyncio.gather(*(narrow.call("PutItem", WRITE) for _ in range(FEW)))
    assert peer.retried == []


async def test_closed_calls_are_refused(peer: Peer) -> None:
    await peer.calls.call("GetItem", {})
    await peer.calls.close()
    await peer.calls.close()
    with pytest.raises(Unavailable, match="closed"):
        await peer.calls.call("GetItem", {})


# --- clock and keys ------------------------------------------------------------------------------


def strict_about_time(ahead_s: float) -> Reply:
    """A server whose clock shows that much later than ours, and that takes five minutes."""

    def reply(request: web.Request) -> web.Response:
        now = datetime.fromtimestamp(time.time() + ahead_s, UTC)
        signed = datetime.strptime(request.headers["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        if abs((now - signed).total_seconds()) < 300:
            return ok(request)
        response = error("InvalidSignatureException")(request)
        assert response is not None
        response.headers["Date"] = format_datetime(now, usegmt=True)
        return response

    return reply


@pytest.mark.parametrize("ahead_s", [-7_200.0, 400.0])
async def test_a_clock_that_is_wrong_is_corrected_once(peer: Peer, ahead_s: float) -> None:
    peer.replies = [strict_about_time(ahead_s)] * 3
    await peer.calls.call("GetItem", {})
    assert peer.retried == [Kind.SIGNATURE]
    await peer.calls.call("GetItem", {})
    assert len(peer.requests) == 3


@pytest.mark.parametrize("code", ["InvalidSignatureException", "AccessDeniedException"])
async def test_keys_that_are_refused_are_not_tried_for_ever(peer: Peer, code: str) -> None:
    peer.replies = [error(code)] * 10
    with pytest.raises(Unavailable, match="refuses our credentials") as unavailable:
        await peer.calls.call("GetItem", {})
    assert len(peer.requests) == 1
    assert isinstance(unavailable.value.__cause__, Refused)


async def test_keys_that_expired_are_replaced_during_the_call(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expect_new(request: web.Request) -> web.Response | None:
        is_new = "Credential=new/" in request.headers["Authorization"]
        return ok(request) if is_new else error("ExpiredTokenException")(request)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    await peer.calls.call("GetItem", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new")
    peer.replies = [expect_new] * 21
    await asyncio.gather(*(peer.calls.call("GetItem", {}) for _ in range(10)))
    assert "Credential=new/" in peer.requests[-1].headers["Authorization"]
    assert len(peer.requests) == 21


@pytest.mark.parametrize(
    ("address", "url", "at_aws"),
    [
        (DynamoAddress("eu-west-1"), "https://dynamodb.eu-west-1.amazonaws.com/", True),
        (DynamoAddress("cn-north-1"), "https://dynamodb.cn-north-1.amazonaws.com.cn/", True),
        (
            DynamoAddress("eu-west-1", endpoint="https://vpce-1.dynamodb.vpce.amazonaws.com"),
            "https://vpce-1.dynamodb.vpce.amazonaws.com",
            True,
        ),
        (DynamoAddress("x", endpoint="http://127.0.0.1:8000"), "http://127.0.0.1:8000", False),
        (DynamoAddress("x", endpoint="http://notamazonaws.com"), "http://notamazonaws.com", False),
    ],
)
def test_where_calls_go(address: DynamoAddress, url: str, at_aws: bool) -> None:
    assert str(endpoint(address)) == url
    assert address.is_aws is at_aws


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (DynamoAddress("eu-west-1"), "https://streams.dynamodb.eu-west-1.amazonaws.com/"),
        (
            DynamoAddress("x", endpoint="https://dynamodb.eu-west-2.amazonaws.com"),
            "https://streams.dynamodb.eu-west-2.amazonaws.com",
        ),
        (DynamoAddress("x", endpoint="http://127.0.0.1:8000"), "http://127.0.0.1:8000"),
    ],
)
def test_where_calls_about_streams_go(address: DynamoAddress, url: str) -> None:
    assert str(endpoint(address, "streams")) == url
