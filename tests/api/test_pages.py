"""What browsers load: named by content, kept for ever, open to pages of other origins."""

from __future__ import annotations

import posixpath
import re

from tests.api.conftest import Site
from tidings.web.assets import assets, version


async def test_the_lasting_address_leads_to_the_present_version(site: Site) -> None:
    answer = await site.call("GET", "/client.js")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["Cache-Control"] == "public, no-cache"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    found = re.search(rb'from "\.(/assets/[^"]+)"', answer.raw)
    assert found is not None
    module = await site.call("GET", found[1].decode())
    assert (module.status, module.raw) == (200, assets()["client/client.js"].body)
    again = await site.call("GET", "/client.js", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.raw) == (304, b"")


async def test_modules_are_kept_for_ever_and_run_as_nothing_else(site: Site) -> None:
    for path, asset in assets().items():
        answer = await site.call("GET", f"/assets/{version()}/{path}")
        assert (answer.status, answer.raw) == (200, asset.body)
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        known = {"If-None-Match": answer.headers["ETag"]}
        again = await site.call("GET", f"/assets/{version()}/{path}", headers=known)
        assert (again.status, again.raw) == (304, b"")


async def test_another_version_leads_to_the_present_one(site: Site) -> None:
    address = f"{site.url}/assets/0123456789abcdef/client/client.js"
    async with site.http.get(address, allow_redirects=False) as reply:
        assert reply.status == 307
        assert reply.headers["Cache-Control"] == "no-store"
    async with site.http.get(address) as reply:
        assert str(reply.url).endswith(f"/assets/{version()}/client/client.js")


async def test_nothing_else_is_served(site: Site) -> None:
    for path in (
        "/shop",
        f"/assets/{version()}/client/none.js",
        f"/assets/{version()}/other/client.js",
        f"/assets/{version()}/client/..%2Fassets.py",
        f"/assets/{version()}/client/%2e%2e",
        f"/assets/{version()}/..%2F..%2Fapi/docs.js",
    ):
        assert (await site.call("GET", path)).status == 404, path


def test_every_import_leads_to_a_module() -> None:
    for path, asset in assets().items():
        folder = path.partition("/")[0]
        for name in re.findall(rb'(?:from |import\()"\./([^"]+)"', asset.body):
            assert f"{folder}/{name.decode()}" in assets(), (path, name)


async def test_the_inbox_names_all_its_modules_at_once(site: Site) -> None:
    text = (await site.call("GET", "/")).raw.decode()
    preloaded = re.findall(r'rel="modulepreload" href="assets/[0-9a-f]+/([^"]+)"', text)
    assert "inbox/inbox.js" in preloaded
    assert len(set(preloaded)) == len(preloaded)
    for path in preloaded:
        for name in re.findall(rb'from "(\.[^"]+)"', assets()[path].body):
            assert posixpath.normpath(f"{posixpath.dirname(path)}/{name.decode()}") in preloaded
