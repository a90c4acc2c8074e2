"""Replies: typed values to HTTP, problems among them, and the headers that every reply carries."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from aiohttp import web

from tidings import wire
from tidings.api.exchanges import EXCHANGE, Exchange
from tidings.errors import RateLimited, TidingsError, Unauthorized, Unavailable
from tidings.problems import problem_of

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
PREFLIGHT_AGE_S = 600
"""How long a browser may remember the answer to a preflight."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Server": "tidings",
}
EXPOSED_HEADERS = (
    "RateLimit, RateLimit-Policy, Retry-After, Tidings-Cost, Tidings-Cost-Source, X-Request-Id"
)
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, traceparent"

_encode = msgspec.json.Encoder().encode


def json_reply(reply: Any, status: int) -> web.Response:
    """A value as JSON; None as a reply without a body."""
    if reply is None:
        return web.Response(status=status)
    return web.Response(body=_encode(reply), status=status, headers={"Content-Type": JSON})


def problem_reply(problem: wire.Problem) -> web.Response:
    """A problem as RFC 9457 writes it."""
    return web.Response(
        body=_encode(problem), status=problem.status, headers={"Content-Type": PROBLEM_JSON}
    )


def error_reply(error: TidingsError) -> web.Response:
    """The error as a problem, with the headers of its kind."""
    response = problem_reply(problem_of(error))
    if isinstance(error, RateLimited | Unavailable):
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def preflight_reply(methods: str) -> web.Response:
    """The answer to a browser that asks what another origin's page may do (Fetch standard)."""
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": str(PREFLIGHT_AGE_S),
        },
    )


async def complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every reply carries, just before its head is sent, streams included.

    Any origin may read `/v1`: a caller is known by a header that a page has to hold, never by
    what a browser sends on its own, so there is nothing for another site to borrow. Which sites
    may open sessions with a publishable key is checked where sessions are opened.
    """
    exchange = request[EXCHANGE]
    exchange.prepared = response
    headers = response.headers
    headers.update(SECURITY_HEADERS)
    headers["Content-Security-Policy"] = exchange.content_security_policy
    headers["X-Request-Id"] = exchange.request_id
    if request.path.startswith("/v1/"):
        headers["Tidings-Cost"] = cost_text(exchange)
        headers["Tidings-Cost-Source"] = exchange.cost_source
        headers.setdefault("Cache-Control", "no-store")
        if "Origin" in request.headers:
            headers["Access-Control-Allow-Origin"] = "*"
            headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    if exchange.standing is not None:
        headers["RateLimit-Policy"] = exchange.standing.policy
        headers["RateLimit"] = exchange.standing.text


def cost_text(exchange: Exchange) -> str:
    """The price of a request so far, in DynamoDB read and write units."""
    return f"r={exchange.meter.read_units:g}, w={exchange.meter.write_units:g}"
