"""The inbox's service worker in a real browser: offline, after a deploy, and pushed to.

No push service is reachable from here: pushes are delivered by the browser's debugging protocol, as
one would hand them over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import BrowserContext, CDPSession, Page, Response, expect

from tests.delivery.push_service import Browser
from tests.web.browsing import CHROMIUM, DEADLINE_S, House, opened_house
from tidings import wire
from tidings.web.assets import assets, page, version, worker

SHELL_BYTES_MAX = 2_000_000
"""As the worker says."""
KEPT = """async () => {
    const kept = [];
    for (const name of await caches.keys())
        for (const {url} of await (await caches.open(name)).keys()) kept.push(url);
    return kept;
}"""
NOTICES = """async () => {
    const registration = await navigator.serviceWorker.ready;
    const read = () => registration.getNotifications();
    const shown = await navigator.locks.request("tidings:notices", read);
    return shown.map(({title, body, tag}) => [title, body, tag]).sort();
}"""
HAS_STORED = """async (text) => {
    const answered = (request) => new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
    for (const {name} of await indexedDB.databases()) {
        const database = await answered(indexedDB.open(name));
        try {
            const stores = [...database.objectStoreNames];
            const reading = database.transaction(stores);
            const all = (name) => answered(reading.objectStore(name).getAll());
            if (JSON.stringify(await Promise.all(stores.map(all))).includes(text)) return true;
        } finally {
            database.close();
        }
    }
    return false;
}"""
pytestmark = pytest.mark.asyncio(loop_scope="module")
in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]


async def test_the_worker_names_all_that_the_page_needs() -> None:
    text = worker().body.decode()
    kept = [path for path in assets() if path.startswith(("client/", "inbox/"))]
    assert all(f'"assets/{version()}/{path}"' in text for path in kept)
    assert not any(name in text for name in ("{shell}", "{assets}", "{files}"))
    size = sum(len(assets()[path].body) for path in kept) + len(page("inbox/inbox.html").body)
    assert size < SHELL_BYTES_MAX / 2, "and a margin"
    assert f"SHELL_BYTES_MAX = {SHELL_BYTES_MAX:_}" in text


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder: Path = tmp_path_factory.mktemp("house")
    async with opened_house(folder) as opened:
        yield opened


async def inbox(house: House, context: BrowserContext, user_id: str) -> Page:
    """The inbox, signed in, once its worker keeps the page."""
    tab = await context.new_page()
    await tab.goto(f"{house.network.url}/#token={await house.token(user_id)}")
    await tab.wait_for_selector(".folders")
    await tab.evaluate("() => navigator.serviceWorker.ready.then(() => null)")
    await tab.wait_for_function("() => navigator.serviceWorker.controller !== null")
    return tab


async def soon(found: Any, wanted: Any) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while (now := await found()) != wanted:
        assert time.monotonic() < end_s, now
        await asyncio.sleep(0.05)


async def stored(tab: Page, text: str) -> None:
    """Return once the browser keeps it: what is shown is stored a moment later."""

    async def found() -> Any:
        return await tab.evaluate(HAS_STORED, text)

    await soon(found, True)


class TestWorker:
    """One service and one browser for all of them."""

    pytestmark = in_a_browser

    async def test_the_page_opens_offline_with_its_history(self, house: House) -> None:
        ann, bob = await house.person("ann"), await house.person("bob")
        room = (await bob.create_room("direct", members=["ann"])).id
        await bob.post_message(room, "before the tunnel")
        async with house.context() as context:
            tab = await inbox(house, context, "ann")
            await tab.goto(f"{house.network.url}/#/direct/{room}")
            await expect(tab.locator(".entry .text")).to_have_text(["before the tunnel"])
            await stored(tab, '"text":"before the tunnel"')
            house.network.go_away()
            await tab.reload()
            await expect(tab.locator(".scroller")).to_contain_text("before the tunnel")
            await tab.fill(".composer textarea", "in the tunnel")
            await tab.press(".composer textarea", "Enter")
            await expect(tab.locator(".entry.waiting")).to_contain_text("in the tunnel")
            await tab.reload()
            await expect(tab.locator(".entry.waiting")).to_contain_text("in the tunnel")
            house.network.mend()
            await expect(tab.locator(".entry.own:not(.waiting)")).to_contain_text("in the tunnel")
            log = (await ann.messages(room)).items
            assert [entry.text for entry in log] == ["before the tunnel", "in the tunnel"]
            kept = await tab.evaluate(KEPT)
            known = {f"{house.network.url}/assets/{version()}/" + path for path in assets()}
            assert f"{house.network.url}/" in kept
            assert set(kept) - known == {f"{house.network.url}/"}

    async def test_the_queue_is_there_offline_as_it_was(self, house: House) -> None:
        cleo, yan = await house.person("cleo", "customer"), await house.person("yan", "customer")
        room = (await cleo.create_room("support", title="A lid")).id
        await cleo.post_message(room, "Is it lost?")
        await house.person("eve")
        async with house.context() as context:
            tab = await inbox(house, context, "eve")
            await expect(tab.locator(".row")).to_have_count(1)
            await stored(tab, '"preview":"Is it lost?"')
            house.network.go_away()
            await tab.reload()
            await expect(tab.locator(".row .name")).to_have_text(["Person cleo"])
            await expect(tab.locator(".row .preview")).to_have_text(["Is it lost?"])
            await expect(tab.locator(".foot")).to_contain_text("Try again")
            await house.server.patch_room(room, wire.PatchRoom(status="closed"))
            await yan.create_room("support", title="A box")
            house.network.mend()
            await expect(tab.locator(".row .name")).to_have_text(["Person yan"])

    async def test_what_is_pushed_is_shown_read_and_opened(self, house: House) -> None:
        await house.person("cat")
        bob = await house.person("bob")
        room = (await bob.create_room("direct", members=["cat"])).id
        await bob.post_message(room, "hello")
        async with house.context(permissions=["notifications"]) as context:
            tab = await inbox(house, context, "cat")
            elsewhere = await context.new_page()
            await elsewhere.goto(f"{house.network.url}/docs")
            push = await pusher(house, context, elsewhere)
            await tab.close()
            said = {"type": "entry", "room_id": room, "seq": 1, "sender_id": "bob"}
            said |= {"sender_name": "Person bob", "preview": "hello", "total": total(1, 5)}

            async def shown() -> Any:
                return await elsewhere.evaluate(NOTICES)

            await push({"type": "badge", "total": total(4, 3)})
            await soon(shown, [["Tidings", "4 unread", "tidings:badge"]])
            await push(said)
            await soon(shown, [["Person bob", "hello", f"tidings:{room}"]])
            await push(said | {"preview": "an older one", "total": total(1, 4)})
            await push(said | {"preview": "more", "total": total(2, 7)})
            await soon(shown, [["Person bob", "more", f"tidings:{room}"]])
            await push(said | {"room_id": "room_2", "preview": None, "total": total(3, 8)})
            other = ["Person bob", "New message", "tidings:room_2"]
            await soon(shown, sorted([["Person bob", "more", f"tidings:{room}"], other]))
            await push({"type": "read", "room_id": room, "total": total(1, 6)})  # it comes late
            await push({"type": "read", "room_id": "room_2", "total": total(2, 9)})
            await soon(shown, [["Person bob", "more", f"tidings:{room}"]])
            await push({"type": "badge", "total": total(0, 12)})
            await soon(shown, [])
            await push(said | {"total": total(1, 13)})
            await soon(shown, [["Person bob", "hello", f"tidings:{room}"]])
            [at_work] = context.service_workers
            await elsewhere.goto(await at_work.evaluate(CLICK, room))
            await expect(elsewhere.locator(".entry .text")).to_have_text(["hello"])
            await soon(shown, [])  # it was read
            await elsewhere.goto(f"{house.network.url}/#/mine")
            await expect(elsewhere.locator(".entry")).to_have_count(0)
            await at_work.evaluate(CLICK, room)
            await expect(elsewhere.locator(".entry .text")).to_have_text(["hello"])

    async def test_the_switch_for_notices_subscribes_this_device(self, house: House) -> None:
        eve = await house.person("eve")
        device = Browser("eve", "https://push.invalid/eve")
        async with house.context(permissions=["notifications"]) as context:
            await context.add_init_script(f"({SUBSCRIPTIONS})({json.dumps(device.subscription)})")

            async def answered(method: str, work: Awaitable[Any]) -> Any:
                def is_it(reply: Response) -> bool:
                    return reply.request.method == method and reply.url.endswith("/push")

                async with context.expect_event("response", is_it) as reply:
                    result = await work
                assert (await reply.value).status == 204
                return result

            async def switch(text: str) -> None:
                await tab.keyboard.press("Control+k")
                await tab.keyboard.type(text)
                await tab.keyboard.press("Enter")

            tab = await answered("PUT", inbox(house, context, "eve"))
            assert await tab.evaluate("() => asked()") == {
                "userVisibleOnly": True,
                "applicationServerKey": await eve.push_key(),
            }
            await answered("DELETE", switch("Turn notifications off"))
            assert await tab.evaluate("() => asked()") is None
            await answered("PUT", switch("Turn notifications on"))
            await tab.reload()
            assert await tab.evaluate("() => localStorage.ended") == "1"
            await tab.close()
            await house.person("fay")  # nobody signed out: what is pushed to eve is not fay's
            tab = await answered("PUT", inbox(house, context, "fay"))
            assert await tab.evaluate("() => localStorage.ended") == "2"

    async def test_signing_out_leaves_nothing(self, house: House) -> None:
        await house.person("dan")
        async with house.context() as context:
            tab = await inbox(house, context, "dan")
            assert await tab.evaluate(KEPT)
            await tab.keyboard.press("Control+k")
            await tab.keyboard.type("Sign out")
            await tab.keyboard.press("Enter")
            await expect(tab.locator("#token")).to_be_visible()

            async def left() -> Any:
                registrations = "() => navigator.serviceWorker.getRegistrations()"
                return [
                    len(await tab.evaluate(KEPT)),
                    await tab.evaluate(f"{registrations}.then((all) => all.length)"),
                ]

            await soon(left, [0, 0])

    async def test_after_a_deploy_nothing_old_is_shown_or_kept(self, house: House) -> None:
        async with deployed("one") as site, house.context() as context:
            tab = await context.new_page()
            await tab.goto(site.url)
            await tab.evaluate("() => navigator.serviceWorker.register('sw.js').then(() => null)")
            await tab.wait_for_function("() => navigator.serviceWorker.controller !== null")
            site.release = "two"
            await tab.reload()
            assert await tab.locator("h1").text_content() == "page of two"
            await soon(lambda: tab.evaluate("() => caches.keys()"), ["tidings:shell:two"])
            site.is_down = True
            await tab.reload()
            assert await tab.locator("h1").text_content() == "page of two"
            assert (
                await tab.evaluate("() => import('/assets/two/a.js').then(({is}) => is)") == "two"
            )
            site.is_down, site.release, site.is_torn = False, "three", True
            await tab.reload()  # a file of it is of another release still: what is whole stays
            assert await tab.locator("h1").text_content() == "page of three"
            await site.asked_for_files.wait()
            assert await tab.evaluate("() => caches.match('/').then((page) => page.text())") == (
                "<h1>page of two</h1><p>assets/two/</p>"
            )


# No push service can be asked here: one that gives everybody the same subscription.
SUBSCRIPTIONS = """(kept) => {
    window.asked = () => JSON.parse(localStorage.asked ?? "null");
    const unsubscribe = async () => {
        localStorage.removeItem("asked");
        localStorage.ended = Number(localStorage.ended ?? 0) + 1;
    };
    const subscription = {toJSON: () => kept, unsubscribe};
    PushManager.prototype.subscribe = async (options) => {
        localStorage.asked = JSON.stringify(options);
        return subscription;
    };
    PushManager.prototype.getSubscription = async () => asked() && subscription;
}"""
CLICK = """(room_id) => new Promise((resolve) => {
    // A browser lets only real clicks open and focus windows.
    clients.openWindow = resolve;
    WindowClient.prototype.focus = resolve;
    const notification = {close() {}, data: {room_id}};
    dispatchEvent(Object.assign(new ExtendableEvent("notificationclick"), {notification}));
})"""


def total(unread: int, at_version: int) -> dict[str, int]:
    return {"unread": unread, "mentions": 0, "version": at_version}


async def pusher(house: House, context: BrowserContext, tab: Page) -> Any:
    """What delivers pushes to the inbox's worker."""
    protocol: CDPSession = await context.new_cdp_session(tab)
    known: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(event: dict[str, Any]) -> None:
        for registration in event["registrations"]:
            if not known.done() and registration["scopeURL"] == f"{house.network.url}/":
                known.set_result(registration["registrationId"])

    protocol.on("ServiceWorker.workerRegistrationUpdated", note)
    await protocol.send("ServiceWorker.enable")

    async def push(body: dict[str, Any]) -> None:
        message = {
            "origin": house.network.url,
            "registrationId": await known,
            "data": json.dumps(body),
        }
        await protocol.send("ServiceWorker.deliverPushMessage", message)

    return push


class Site:
    """A service of one release and then another, with the real worker."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.is_down = self.is_torn = False
        self.asked_for_files = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if self.is_down:
            return web.Response(status=503)
        release = self.release
        if request.path == "/sw.js":
            text = (files("tidings.web") / "sw.js").read_text("utf-8").replace("{shell}", release)
            text = text.replace("{assets}", f"assets/{release}")
            text = text.replace("{files}", json.dumps([f"assets/{release}/a.js"]))
            return web.Response(text=text, content_type="text/javascript")
        if request.path == "/":
            text = f"<h1>page of {release}</h1><p>assets/{release}/</p>"
            return web.Response(text=text, content_type="text/html")
        self.asked_for_files.set()
        if self.is_torn:
            return web.Response(status=404)
        return web.Response(text=f"export const is = '{release}'", content_type="text/javascript")


@asynccontextmanager
async def deployed(release: str) -> AsyncIterator[Site]:
    site = Site(release)
    application = web.Application()
    application.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield site
    finally:
        await runner.cleanup()
