"""Operations over HTTP: health, metrics, and what documents this service."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files

import msgspec
from aiohttp import web
from msgspec import Struct

from tidings import metrics, wire
from tidings.api.endpoints import Call, Callers, Nothing, Section
from tidings.api.exchanges import EXCHANGE
from tidings.clock import rfc3339
from tidings.cluster.nodes import Node
from tidings.errors import NotFound
from tidings.storage.prices import latest_prices

SECTION = Section("Operations", "For those who run the service.")

OPENAPI: web.AppKey[Callable[[], bytes]] = web.AppKey("openapi")
"""Tells the OpenAPI document of the application, as JSON; made when it is first asked for."""

PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; "
    "frame-ancestors 'none'"
)
PAGE_FILES = {"docs.css": "text/css", "docs.js": "text/javascript"}
PAGE_ICON = b"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
  <rect width="32" height="32" rx="8" fill="#0b6b5d"/>
  <path d="M8 11h16M16 11v12" stroke="#fff" stroke-width="3.4" stroke-linecap="round"/>
  <circle cx="24" cy="22" r="3" fill="#f2c14e"/>
</svg>
"""


class Health(Struct, frozen=True):
    """The process is up, or everything it needs is."""

    status: str


class PageFilePath(Struct, frozen=True):
    """A file of the documentation page."""

    file: str


@SECTION.endpoint("GET", "/healthz", callers=Callers.OPEN)
async def get_health(call: Call[Nothing, Nothing, Nothing]) -> Health:
    """Tell that the process is up."""
    return Health("ok")


@SECTION.endpoint("GET", "/readyz", callers=Callers.OPEN)
async def get_readiness(call: Call[Nothing, Nothing, Nothing]) -> Health:
    """Tell whether requests can be served.

    The store answers, and no stop is under way."""
    await call.features.check_ready()
    return Health("ready")


@SECTION.endpoint(
    "GET", "/metrics", callers=Callers.OPERATOR, media_type="text/plain; version=0.0.4"
)
async def get_metrics(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Get the metrics of this process for Prometheus."""
    return web.Response(
        body=call.features.metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE}
    )


@SECTION.endpoint("GET", "/v1/nodes", callers=Callers.OPERATOR)
async def list_nodes(call: Call[Nothing, Nothing, Nothing]) -> wire.NodeList:
    """List the live instances of this service.

    As the one that answers sees them: a new one appears, and one that died disappears, within a few
    seconds."""
    return wire.NodeList([_node(node) for node in call.features.nodes.live])


@SECTION.endpoint("GET", "/v1/operations", callers=Callers.OPERATOR)
async def get_operations(call: Call[Nothing, Nothing, Nothing]) -> wire.Operations:
    """Get what every live node did since it started.

    Counters that only grow, up to each node's last beat, a second ago at most; rates are the
    differences between two replies."""
    prices = latest_prices()
    return wire.Operations(
        at=rfc3339(call.features.clock()),
        nodes=[
            wire.NodeFigures(_node(node), _figures(node.figures))
            for node in call.features.nodes.live
        ],
        commit_bounds_ms=[bound * 1000 for bound in metrics.COMMIT_BUCKETS_S],
        cost_source=call.features.cost_source(),
        prices=wire.UnitPrices(
            currency=prices.currency,
            region=prices.region,
            as_of=prices.as_of.isoformat(),
            read_units_per_million=prices.read_units_per_million,
            write_units_per_million=prices.write_units_per_million,
        ),
    )


@SECTION.endpoint("GET", "/v1/migration", callers=Callers.OPERATOR)
async def get_migration(call: Call[Nothing, Nothing, Nothing]) -> wire.MigrationReply:
    """Tell how far a move to another store is.

    What `tidings migrate status` prints: the stage, what was copied at which rate and price, when
    it is expected to end, and who works at it."""
    return wire.MigrationReply(await call.features.migration())


@SECTION.endpoint("GET", "/openapi.json", callers=Callers.OPEN)
async def get_openapi(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Get this document."""
    return web.Response(
        body=call.request.app[OPENAPI](), headers={"Content-Type": "application/json"}
    )


@SECTION.endpoint("GET", "/docs", callers=Callers.OPEN, media_type="text/html")
async def get_docs(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Browse the documentation and try things out."""
    call.request[EXCHANGE].content_security_policy = PAGE_POLICY
    return _page_file("docs.html", "text/html")


@SECTION.endpoint("GET", "/docs/{file}", callers=Callers.OPEN, media_type="*/*")
async def get_docs_file(call: Call[PageFilePath, Nothing, Nothing]) -> web.Response:
    """Get a file of the documentation page."""
    if call.path.file == "icon.svg":
        return web.Response(body=PAGE_ICON, headers={"Content-Type": "image/svg+xml"})
    media_type = PAGE_FILES.get(call.path.file)
    if media_type is None:
        raise NotFound
    return _page_file(call.path.file, media_type)


def _node(node: Node) -> wire.Node:
    return wire.Node(
        id=node.node_id,
        address=node.address,
        version=node.version,
        started_at=rfc3339(node.started_at),
        is_draining=node.is_draining,
        silent_s=round(node.silent_s, 1),
    )


def _figures(told: dict[str, float | list[float]]) -> wire.Figures | None:
    """What a node told; None where it told nothing, or is of a version that tells other things."""
    try:
        return msgspec.convert(told, wire.Figures)
    except msgspec.ValidationError:
        return None


def _page_file(name: str, media_type: str) -> web.Response:
    return web.Response(
        body=_read(name),
        headers={
            "Content-Type": f"{media_type}; charset=utf-8",
            "Cache-Control": "no-cache",
        },
    )


@cache
def _read(name: str) -> bytes:
    return (files("tidings.api") / name).read_bytes()
