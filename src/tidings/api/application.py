"""The web application: declared endpoints become routes; every request is checked, told, counted.

What happens to a request, in this order: its route is found; its credential is looked up and
counted against its limit; whether such a credential may call the endpoint at all; path, query and
body are decoded; the endpoint runs; the reply is encoded. Whatever goes wrong becomes a problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web

from tidings.api import openapi
from tidings.api.decoding import (
    BODY_BYTES_MAX,
    check_escapes,
    convert,
    parse_query,
    read_body,
    read_token,
)
from tidings.api.endpoints import Call, Callers, Created, Endpoint, Nothing, Section
from tidings.api.exchanges import EXCHANGE, Exchange
from tidings.api.features import Features
from tidings.api.operations import OPENAPI
from tidings.api.replies import (
    complete_headers,
    error_reply,
    json_reply,
    preflight_reply,
    problem_reply,
)
from tidings.errors import Forbidden, NotFound, RateLimited, TidingsError, Unauthorized
from tidings.people.callers import Caller
from tidings.problems import internal_problem
from tidings.storage.metered import metering, unmetered

SAFE_METHODS = frozenset({"GET", "HEAD"})
LOGGED_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_GONE = 499
"""Status in logs and metrics of a request whose client went away before the reply."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger(__name__)


class MethodNotAllowed(TidingsError):
    """The resource is there, but has no such method."""

    code = "method_not_allowed"


class Unfinished:
    """Runs calls that change something to their end, also when their client went away.

    A client that hangs up stops its reads and polls at once; a change goes on, so that whom it
    concerns is told of it.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, call: Awaitable[Any]) -> Any:
        """The call's result."""
        task = asyncio.ensure_future(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_look_at_end)
            raise

    async def wait(self) -> None:
        """Return when all calls have ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _look_at_end(task: asyncio.Task[Any]) -> None:
    """A refusal that nobody waits for any more is no fault; anything else is."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, TidingsError):
        place = "a change whose client went away"
        task.get_loop().call_exception_handler({"message": place, "exception": error})


def make_application(
    features: Features, sections: Sequence[Section], unfinished: Unfinished
) -> web.Application:
    """The web application of one service."""

    @web.middleware
    async def tell(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await _tell(request, handler, features)

    application = web.Application(middlewares=[tell], client_max_size=BODY_BYTES_MAX)
    application.on_response_prepare.append(complete_headers)
    for section in sections:
        for endpoint in section.endpoints:
            handler = _handler(endpoint, features, unfinished)
            application.router.add_route(endpoint.method, endpoint.path, handler)
            if endpoint.method == "GET" and not endpoint.is_stream:
                application.router.add_route("HEAD", endpoint.path, handler)
    document: Callable[[], bytes] = cache(lambda: msgspec.json.encode(openapi.document(sections)))
    application[OPENAPI] = document
    return application


async def _tell(request: web.Request, handler: Handler, features: Features) -> web.StreamResponse:
    """Answer one request whatever happens, and log and count it once."""
    with metering() as meter:
        exchange = Exchange(request.headers.get("traceparent"), meter, features.cost_source())
        request[EXCHANGE] = exchange
        status = CLIENT_GONE
        try:
            response = await _answer(request, handler, exchange, features)
            status = response.status
        finally:
            duration_s = exchange.duration_s
            features.metrics.spent(meter.read_units, meter.write_units)
            features.metrics.request(
                exchange.route, status, None if exchange.is_stream else duration_s
            )
            _log.info(
                "request",
                method=request.method if request.method in LOGGED_METHODS else "other",
                route=exchange.route,
                status=status,
                duration_ms=round(duration_s * 1000, 2),
                caller=exchange.caller and exchange.caller.credential_id,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
                read_units=meter.read_units,
                write_units=meter.write_units,
            )
    return response


async def _answer(
    request: web.Request, handler: Handler, exchange: Exchange, features: Features
) -> web.StreamResponse:
    """The reply of the endpoint, or the problem that it ended with."""
    try:
        return await handler(request)
    except TidingsError as error:
        return exchange.prepared or error_reply(error)
    except web.HTTPMethodNotAllowed as error:
        methods = ", ".join(sorted(error.allowed_methods))
        is_preflight = "Access-Control-Request-Method" in request.headers
        if request.method == "OPTIONS" and is_preflight and request.path.startswith("/v1/"):
            return preflight_reply(methods)
        response = error_reply(MethodNotAllowed())
        response.headers["Allow"] = methods
        return response
    except web.HTTPNotFound:
        return error_reply(NotFound("There is no such resource."))
    except Exception as error:  # noqa: BLE001  # the root of every request
        features.metrics.unexpected(exchange.route)
        _log.error(
            "unexpected", route=exchange.route, request_id=exchange.request_id, exc_info=error
        )
        return exchange.prepared or problem_reply(internal_problem(exchange.request_id))


def _handler(endpoint: Endpoint, features: Features, unfinished: Unfinished) -> Handler:
    """What aiohttp calls for the endpoint's route."""
    decoder = msgspec.json.Decoder(endpoint.body_type)
    runs_to_its_end = endpoint.method not in SAFE_METHODS and not endpoint.is_stream
    (status, *others) = endpoint.replies
    status_known = others[0] if others else status
    is_live = endpoint.is_stream and endpoint.replies[status] is None

    async def handle(request: web.Request) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.route = endpoint.path
        exchange.is_stream = endpoint.is_stream
        credential = await _admit(endpoint, request, exchange, features)
        path = NOTHING
        if endpoint.path_type is not Nothing:
            path = convert(dict(request.match_info), endpoint.path_type, "path")
            check_escapes(request.rel_url.raw_path, "path")
        query = convert(parse_query(request.rel_url.raw_query_string), endpoint.query_type, "query")
        body = await read_body(request, decoder) if endpoint.has_body else NOTHING
        running = endpoint.run(Call(features, request, credential, path, query, body))
        if is_live:  # it has no reply that could tell a price
            with unmetered():
                return cast(web.StreamResponse, await running)
        reply = await (unfinished.run(running) if runs_to_its_end else running)
        if isinstance(reply, web.StreamResponse):
            return reply
        if isinstance(reply, Created):
            return json_reply(reply.reply, status if reply.is_new else status_known)
        return json_reply(reply, status)

    return handle


NOTHING: msgspec.Struct = Nothing()


async def _admit(
    endpoint: Endpoint, request: web.Request, exchange: Exchange, features: Features
) -> Caller | None:
    """Who calls, if they may. Raises Unauthorized, RateLimited, Forbidden."""
    if endpoint.callers in (Callers.OPEN, Callers.LINK):
        return None
    token = read_token(request)
    if token is None:
        if endpoint.callers is Callers.OPTIONAL:
            return None
        raise Unauthorized
    exchange.caller = caller = await features.credentials.authenticate(token)
    try:
        exchange.standing = features.limits.hit(caller)
    except RateLimited:
        exchange.standing = features.limits.standing(caller)
        raise
    _permit(endpoint, caller)
    return caller


def _permit(endpoint: Endpoint, caller: Caller) -> None:
    """Whether such a credential may call the endpoint at all. Raises Forbidden."""
    if (caller.kind == "operator") is not (endpoint.callers is Callers.OPERATOR):
        raise Forbidden("This is for an operator's key." if caller.kind != "operator" else "")
    if caller.kind == "api_key":
        if endpoint.callers is Callers.SESSION or endpoint.scope is None:
            raise Forbidden("An API key has none of this; a session does.")
        if endpoint.scope not in caller.scopes:
            raise Forbidden(f"This needs an API key with the scope {endpoint.scope}.")
