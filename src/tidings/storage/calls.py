"""Calls to DynamoDB, each signed, sent and repeated until it has an answer or its time is over.

One call is one request of the DynamoDB API (`DynamoDB_20120810`), as JSON both ways. All its
attempts have the same body, to the byte, and so the same ClientRequestToken. What a write did whose
answer was lost is known only through such a token or through its conditions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from types import TracebackType
from typing import Any, Literal, TypeAlias

import aiohttp
import msgspec
import structlog
from aiohttp.payload import TOO_LARGE_BYTES_BODY
from yarl import URL

from tidings.config import DynamoAddress
from tidings.errors import Unavailable
from tidings.storage.credentials import Credentials, Keys
from tidings.storage.retries import Kind, Retries, RetryPolicy
from tidings.storage.signatures import Signer

CONNECTIONS_MAX = 128
"""Attempts under way at once; further ones wait for their turn."""
CALLS_WAITING_MAX = 5_000
"""Calls that may wait or be under way; further ones are refused."""
CONNECT_TIMEOUT_S = 0.8
"""For a new connection; less than an attempt, so that one which was never made is known as such."""
IDLE_CONNECTION_S = 20.0
NAMES_LIFE_S = 30
"""How long an address from DNS is used; AWS changes them often."""
SKEW_S_MAX = 60.0
"""How far our clock may be from the server's before it is corrected, should a signature be refused;
AWS takes five minutes."""

Api: TypeAlias = Literal["tables", "streams"]
"""Which of its two interfaces is called."""

_APIS: Mapping[Api, str] = {"tables": "DynamoDB_20120810", "streams": "DynamoDBStreams_20120810"}
_READS = ("Get", "BatchGet", "Query", "Scan", "TransactGet", "Describe", "List")
_CONFLICTS = frozenset(
    {"TransactionConflict", "TransactionConflictException", "ReplicatedWriteConflictException"}
)
_THROTTLES = frozenset(
    {
        "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ThrottlingError",
        "ThrottlingException",
    }
)
_SIGNATURES = frozenset(
    {
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Refused(Exception):
    """A definitive no; sending the same again would change nothing.

    `code` is the error's name without its namespace. `reasons` has one entry for each write of a
    cancelled transaction, in order, and one for a single write whose condition failed: `Code`, and
    `Item` as it is stored where the request asked for it. With `is_outcome_open` an earlier attempt
    of the same call may have been applied: a condition of a write without a token may then have
    failed because of ourselves.
    """

    def __init__(self, code: str, message: str, reasons: Sequence[Mapping[str, Any]] = ()) -> None:
        self.code = code
        self.message = message
        self.reasons = [dict(reason) for reason in reasons]
        self.is_outcome_open = False
        super().__init__(code, message)


class _Answer(msgspec.Struct, frozen=True):
    status: int
    server_time: str | None
    """The Date header."""
    content: bytes


class Calls:
    """Calls to one DynamoDB. Safe for any number of tasks of one event loop.

    Needs the running loop only from the first call on.
    """

    def __init__(self, address: DynamoAddress, policy: RetryPolicy, api: Api = "tables") -> None:
        self.policy = policy
        self._api = _APIS[api]
        self._url = endpoint(address, api)
        self._signer = Signer(address.region, host_header(self._url), self._url.raw_path)
        self._credentials = Credentials(is_local=not address.is_aws)
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)
        self._waiting = 0
        self._is_closed = False
        self._clock_ahead_s = 0.0

    @classmethod
    def open(
        cls,
        address: DynamoAddress,
        *,
        on_retry: Callable[[Kind], None] | None = None,
        policy: RetryPolicy | None = None,
        api: Api = "tables",
    ) -> Calls:
        """Calls to the engine at that address, which nothing connects to yet."""
        return cls(address, policy or RetryPolicy(on_retry=on_retry), api)

    async def __aenter__(self) -> Calls:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections; calls under way fail. Closing twice is fine."""
        self._is_closed = True
        self._credentials.close()
        if self._session is not None:
            await self._session.close()

    async def call(self, action: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request such as `GetItem`. A value of bytes is sent as base64.

        Raises Refused; Unavailable within the policy's deadline where there was no answer, or
        credentials are missing or refused. A write may then have been applied or not.
        """
        if self._waiting >= CALLS_WAITING_MAX:
            raise Unavailable("Too many calls wait for the store.")
        self._waiting += 1
        try:
            return await self._call(action, _encode(payload))
        finally:
            self._waiting -= 1

    async def _call(self, action: str, body: bytes) -> dict[str, Any]:
        is_write = not action.startswith(_READS)
        retries = self.policy.begin(action)
        while True:
            keys = await self._within(retries, self._credentials.keys())
            try:
                answer = await self._attempt(retries, keys, action, body)
                if answer.status == 200:
                    return _decode(answer.content)
            except (aiohttp.ClientError, msgspec.DecodeError, OSError) as error:
                kind = break_kind(error, is_write=is_write)
            else:
                refusal = read_refusal(answer.status, answer.content)
                found = refusal_kind(answer.status, refusal)
                if found is Kind.SIGNATURE:
                    await self._correct(retries, keys, answer, refusal)
                elif found is None:
                    refusal.is_outcome_open = is_write and retries.is_outcome_open
                    raise refusal
                kind = found
            await retries.again(kind)

    async def _attempt(self, retries: Retries, keys: Keys, action: str, body: bytes) -> _Answer:
        async with self._slot(retries) as session:
            moment = datetime.fromtimestamp(time.time() - self._clock_ahead_s, UTC)
            headers = self._signer.headers(keys, f"{self._api}.{action}", body, moment)
            # A body that is larger than this would hold up the loop, were it sent at one go.
            data = BytesIO(body) if len(body) > TOO_LARGE_BYTES_BODY else body
            async with (
                asyncio.timeout(retries.attempt_timeout_s),
                session.post(self._url, data=data, headers=headers) as response,
            ):
                content = await response.read()
                return _Answer(response.status, response.headers.get("date"), content)

    @asynccontextmanager
    async def _slot(self, retries: Retries) -> AsyncIterator[aiohttp.ClientSession]:
        """A connection's turn. Waiting for it takes from the call's time, not the attempt's."""
        await self._within(retries, self._slots.acquire())
        try:
            if self._is_closed:
                raise Unavailable("The store is closed.")
            if self._session is None:
                self._session = _make_session()
            yield self._session
        finally:
            self._slots.release()

    async def _within(self, retries: Retries, waited_for: Any) -> Any:
        try:
            async with asyncio.timeout(retries.remaining_s):
                return await waited_for
        except TimeoutError as error:
            raise Unavailable("The store has too much to do.") from error

    async def _correct(
        self, retries: Retries, keys: Keys, answer: _Answer, refusal: Refused
    ) -> None:
        """Correct the clock or the keys, once a call. Raises Unavailable where that is no use."""
        ahead_s = _clock_ahead_s(answer.server_time)
        if not retries.failed_by(Kind.SIGNATURE):
            if ahead_s is not None and abs(ahead_s - self._clock_ahead_s) > SKEW_S_MAX:
                _log.warning("clock_corrected", ahead_s=round(ahead_s))
                self._clock_ahead_s = ahead_s
                return
            if await self._within(retries, self._credentials.renew(keys)):
                return
        _log.error("store_refuses_credentials", code=refusal.code, detail=refusal.message)
        raise Unavailable("The store refuses our credentials.") from refusal


def endpoint(address: DynamoAddress, api: Api = "tables") -> URL:
    """Where requests for that address go; AWS has hosts of their own for streams."""
    start = "streams." if api == "streams" else ""
    if address.endpoint is not None:
        url = URL(address.endpoint)
        host = url.host or ""
        return url.with_host(start + host) if start and host.startswith("dynamodb.") else url
    suffix = "amazonaws.com.cn" if address.region.startswith("cn-") else "amazonaws.com"
    return URL(f"https://{start}dynamodb.{address.region}.{suffix}/")


def host_header(url: URL) -> str:
    """The value that the Host header of a request to there has."""
    host = url.host_port_subcomponent
    assert host is not None, "an endpoint has a host"
    return host


def break_kind(error: Exception, *, is_write: bool) -> Kind:
    """What it means that an attempt ended without an answer that can be read."""
    match error:
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return Kind.UNREACHABLE
        case msgspec.DecodeError():
            return Kind.SERVER_ERROR
        case _ if is_write:
            return Kind.LOST_ANSWER
        case TimeoutError():
            return Kind.HANG
        case _:
            return Kind.RESET


def read_refusal(status: int, content: bytes) -> Refused:
    """The error that an answer holds; one that is not DynamoDB's is named by its status."""
    try:
        error = _decode(content)
    except msgspec.DecodeError:
        return Refused(f"HTTP{status}", "The answer is not DynamoDB's.")
    code = str(error.get("__type", f"HTTP{status}")).rpartition("#")[2]
    message = str(error.get("message") or error.get("Message") or "")
    reasons = error.get("CancellationReasons") or []
    if code == "ConditionalCheckFailedException":
        reason = {"Code": "ConditionalCheckFailed"}
        reasons = [reason | {"Item": error["Item"]} if "Item" in error else reason]
    return Refused(code, message, reasons)


def refusal_kind(status: int, refusal: Refused) -> Kind | None:
    """Why it is worth another attempt, or None for a definitive no.

    A cancelled transaction is one where a condition failed, whatever else happened to it.
    """
    codes = {refusal.code}
    if refusal.code == "TransactionCanceledException":
        codes = {str(reason.get("Code")) for reason in refusal.reasons} - {"None"}
        if not codes <= _CONFLICTS | _THROTTLES:
            return None
    if codes & _CONFLICTS:
        return Kind.CONFLICT
    if codes & _THROTTLES:
        return Kind.THROTTLE
    if refusal.code == "TransactionInProgressException":
        return Kind.IN_PROGRESS
    if refusal.code in _SIGNATURES or refusal.code == "AccessDeniedException":
        return Kind.SIGNATURE
    return Kind.SERVER_ERROR if status >= 500 else None


def _clock_ahead_s(server_time: str | None) -> float | None:
    """How far our clock is ahead of a server's."""
    if server_time is None:
        return None
    try:
        return time.time() - parsedate_to_datetime(server_time).timestamp()
    except ValueError:
        return None


def _make_session() -> aiohttp.ClientSession:
    # The slots limit how many connections there are, so nobody waits for one within an attempt.
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=NAMES_LIFE_S, keepalive_timeout=IDLE_CONNECTION_S
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        headers={"accept-encoding": "identity"},
    )
