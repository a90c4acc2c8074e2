"""What browsers load, open to all: pages, and the client library as native ES modules."""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from tidings.api.endpoints import Call, Callers, Nothing, Section
from tidings.api.exchanges import EXCHANGE
from tidings.api.operations import PAGE_POLICY
from tidings.errors import NotFound
from tidings.web.assets import Asset, assets, entrance, page, version, worker

SECTION = Section(
    "Pages and browser modules",
    "Native ES modules without a build step. A page names the lasting address; the modules behind "
    "it stand under a version that changes with their content, and may be kept for ever.",
)
SAMPLE_SHOP = Section(
    "The sample shop", "A made-up site with the chat for customers; `tidings demo` alone has it."
)

LASTING = "public, max-age=31536000, immutable"
CHECKED = "public, no-cache"
INBOX_POLICY = (
    f"{PAGE_POLICY}; img-src 'self' blob: https:; connect-src 'self' https:; "
    "require-trusted-types-for 'script'; trusted-types tidings-worker"
)
"""Pictures and uploads may be in a bucket of another origin; scripts and styles never are."""

WORKER_POLICY = "default-src 'none'; connect-src 'self'"


class AssetPath(Struct, frozen=True):
    """A file of one version."""

    version: str
    folder: str
    file: str


@SECTION.endpoint("GET", "/client.js", callers=Callers.OPEN, media_type="text/javascript")
async def get_client_module(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Get the client library for browsers.

    `import {connect} from "/client.js"`; pages of other origins may do so too."""
    return _reply(call.request, entrance("client/client.js"), CHECKED)


@SECTION.endpoint("GET", "/", callers=Callers.OPEN, media_type="text/html")
async def get_inbox_page(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Open the team's inbox.

    The page asks who it is, or takes a session's token from its address: `/#token=ts_…`."""
    call.request[EXCHANGE].content_security_policy = INBOX_POLICY
    return _reply(call.request, page("inbox/inbox.html"), CHECKED)


@SECTION.endpoint("GET", "/sw.js", callers=Callers.OPEN, media_type="text/javascript")
async def get_service_worker(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Get the inbox's service worker.

    It keeps the page for when there is no network, and shows what is pushed."""
    call.request[EXCHANGE].content_security_policy = WORKER_POLICY
    return _reply(call.request, worker(), CHECKED)


@SECTION.endpoint("GET", "/ops", callers=Callers.OPEN, media_type="text/html")
async def get_operations_page(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Watch what the service is doing.

    The page asks for an operator's key before it shows anything."""
    call.request[EXCHANGE].content_security_policy = PAGE_POLICY
    return _reply(call.request, page("ops/ops.html"), CHECKED)


@SECTION.endpoint("GET", "/widget.js", callers=Callers.OPEN, media_type="text/javascript")
async def get_widget_script(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Get the chat for customers, for any site.

    `<script src="…/widget.js" data-key="pk_…" async></script>`"""
    return _reply(call.request, page("widget.js"), CHECKED)


@SECTION.endpoint(
    "GET", "/assets/{version}/{folder}/{file}", callers=Callers.OPEN, media_type="*/*"
)
async def get_asset(call: Call[AssetPath, Nothing, Nothing]) -> web.Response:
    """Get a module of one version.

    A page that was loaded before an update is led to the present version."""
    path = f"{call.path.folder}/{call.path.file}"
    asset = assets().get(path)
    if asset is None:
        raise NotFound
    if call.path.version != version():
        address = f"../../{version()}/{path}"
        return web.Response(
            status=307, headers=_shared({"Location": address, "Cache-Control": "no-store"})
        )
    return _reply(call.request, asset, LASTING)


@SAMPLE_SHOP.endpoint("GET", "/shop", callers=Callers.OPEN, media_type="text/html")
async def get_shop_page(call: Call[Nothing, Nothing, Nothing]) -> web.Response:
    """Try the chat for customers on the page of a made-up shop.

    The publishable key stands behind the address, as in `/shop#pk_…`."""
    call.request[EXCHANGE].content_security_policy = PAGE_POLICY
    return _reply(call.request, page("shop/shop.html"), CHECKED)


def _reply(request: web.Request, asset: Asset, caching: str) -> web.Response:
    headers = {"Content-Type": asset.media_type, "Cache-Control": caching, "ETag": asset.tag}
    is_known = any(each.value == asset.tag.strip('"') for each in request.if_none_match or ())
    if is_known:
        del headers["Content-Type"]
        return web.Response(status=304, headers=_shared(headers))
    return web.Response(body=asset.body, headers=_shared(headers))


def _shared(headers: dict[str, str]) -> dict[str, str]:
    """The headers, and those by which pages of other origins may load the file."""
    return headers | {
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
