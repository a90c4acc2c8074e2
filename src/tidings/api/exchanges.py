"""What is noted about one request while it is answered: for its headers, its log line, metrics."""

from __future__ import annotations

import re
import secrets
import time

from aiohttp import web

from tidings.people.callers import Caller
from tidings.people.limits import Standing
from tidings.storage.metered import CostSource, Meter

_traceparent = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_NO_TRACE = "0" * 32


class Exchange:
    """One request and its reply."""

    __slots__ = (
        "caller",
        "content_security_policy",
        "cost_source",
        "is_stream",
        "meter",
        "prepared",
        "request_id",
        "route",
        "standing",
        "started_s",
        "trace_id",
    )

    def __init__(self, traceparent: str | None, meter: Meter, cost_source: CostSource) -> None:
        self.started_s = time.perf_counter()
        self.request_id = secrets.token_hex(8)
        self.trace_id = read_trace_id(traceparent) or secrets.token_hex(16)
        self.meter = meter
        self.cost_source = cost_source
        self.route = "(none)"
        """The template of the route: paths hold ids, and are not logged."""
        self.caller: Caller | None = None
        self.standing: Standing | None = None
        self.is_stream = False
        self.prepared: web.StreamResponse | None = None
        """The reply, once its head was sent."""
        self.content_security_policy = "default-src 'none'; frame-ancestors 'none'"

    @property
    def duration_s(self) -> float:
        """Seconds since the request was read."""
        return time.perf_counter() - self.started_s


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)


def read_trace_id(traceparent: str | None) -> str | None:
    """The trace of a W3C `traceparent` header; None where there is none or it is not valid.

    Later versions of the header may say more after the part that is read here.
    """
    if traceparent is None:
        return None
    match = _traceparent.match(traceparent)
    if match is None or match[1] == _NO_TRACE:
        return None
    if len(traceparent) > match.end() and (
        traceparent.startswith("00") or traceparent[match.end()] != "-"
    ):
        return None
    return match[1]
