"""The widget in a real browser, on the page of a site that does not make it easy."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from PIL import Image
from playwright.async_api import BrowserContext, Page, expect

from tests.web.browsing import CHROMIUM, DEADLINE_S, JWT_SECRET, House, opened_house
from tidings.cli.parts import open_parts
from tidings.client import Client
from tidings.client.files import upload
from tidings.web.assets import assets, page

FOLDER = Path(__file__).parent
SCREENSHOTS = FOLDER.parent.parent / "screenshots"
BYTES_MAX = 40_000
POLICY = (
    "default-src 'none'; script-src {service}; connect-src {service} {sockets}; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
WATCH = """
    window.violations = [];
    addEventListener("securitypolicyviolation", ({violatedDirective, blockedURI}) =>
        violations.push(`${violatedDirective} ${blockedURI}`));
"""
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'

browser_test = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]


def test_all_of_it_is_small() -> None:
    parts = [asset for path, asset in assets().items() if path.startswith("widget/")]
    assert len(parts) >= 5
    assert sum(len(part.body) for part in (*parts, page("widget.js"))) < BYTES_MAX


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder: Path = tmp_path_factory.mktemp("house")
    SCREENSHOTS.mkdir(exist_ok=True)
    async with opened_house(folder) as opened:
        yield opened


@pytest.fixture
def network(house: House) -> Iterator[None]:
    """Each test leaves it as it should be, also one that fails."""
    yield
    house.network.mend()


@asynccontextmanager
async def shop(house: House, **data: str) -> AsyncIterator[str]:
    """The address of a site that has the widget, with these data attributes."""
    attributes = {"key": house.publishable_key, "locale": "en"} | data
    service = house.network.url
    text = (FOLDER / "shop.html").read_text()
    text = text.replace("{service}", service).replace(
        "{attributes}", " ".join(f'data-{name}="{value}"' for name, value in attributes.items())
    )
    policy = POLICY.format(service=service, sockets=service.replace("http", "ws"))

    async def reply(request: web.Request) -> web.Response:
        is_style = request.path.endswith(".css")
        return web.Response(
            text=(FOLDER / "shop.css").read_text() if is_style else text,
            content_type="text/css" if is_style else "text/html",
            headers={"Content-Security-Policy": policy},
        )

    application = web.Application()
    application.router.add_get("/{path:.*}", reply)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def visit(context: BrowserContext, address: str) -> Page:
    """A tab on that page, the widget on it."""
    tab = await context.new_page()
    tab.set_default_timeout(DEADLINE_S * 1000)
    await tab.add_init_script(WATCH)
    await tab.goto(address)
    await expect(tab.locator(".launcher")).to_be_visible()
    return tab


async def say(tab: Page, text: str) -> None:
    await tab.locator("textarea").fill(text)
    await tab.locator("textarea").press("Enter")


async def until_shown(tab: Page, *texts: str) -> None:
    """Return once these messages are shown, acknowledged, and no others."""
    await expect(tab.locator(".item[data-seq] .bubble")).to_have_text(list(texts))


async def new_room(manager: Client, text: str) -> str:
    """The room that the customer opened whose newest message that is."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for room in (await manager.rooms(kind="support")).items:
                entries = (await manager.messages(room.id)).items
                if entries and entries[-1].text == text:
                    return room.id
            await asyncio.sleep(0.05)


async def own_texts(manager: Client, room_id: str) -> list[str | None]:
    entries = (await manager.messages(room_id, limit=500)).items
    return [entry.text for entry in entries if entry.type == "text"]


async def allow(house: House, origin: str) -> None:
    """Return once pages of this origin alone may open sessions."""
    async with open_parts(house.node.store) as parts:
        workspace = await parts.workspaces.default(None)
        await parts.workspaces.update(workspace.id, allowed_origins=[origin])
    body = {"publishable_key": house.publishable_key}
    tried = {"https://elsewhere.example": 201, "https://nowhere.example": 403}
    if "elsewhere" not in origin:
        tried["https://elsewhere.example"] = 403
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as http:
        for each, status in tried.items():
            while True:
                async with http.post(
                    f"{house.node.url}/v1/sessions", json=body, headers={"Origin": each}
                ) as reply:
                    if reply.status == status:
                        break
                await asyncio.sleep(0.1)


def picture() -> bytes:
    with BytesIO() as file:
        Image.linear_gradient("L").resize((320, 200)).convert("RGB").save(file, "PNG")
        return file.getvalue()


class TestWidget:
    pytestmark = browser_test

    async def test_a_visitor_and_a_manager_talk_on_a_hostile_page(
        self, house: House, network: None
    ) -> None:
        name = f"Ann {HOSTILE}"
        await house.server.create_user(name, "manager", user_id="ann")
        manager = house.server.as_session((await house.server.create_session("ann")).token)
        async with shop(house) as address, house.context() as context:
            tab = await visit(context, address)
            complaints: list[str] = []
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            requests: list[str] = []
            tab.on("request", lambda request: requests.append(request.url))
            assert await tab.evaluate("() => localStorage.length") == 0

            # Nothing but the keyboard, from the first message to the answer
            await tab.keyboard.press("Tab")
            await tab.keyboard.press("Enter")
            await expect(tab.locator("textarea")).to_be_focused()
            await tab.screenshot(path=SCREENSHOTS / "widget-empty.png")
            await tab.keyboard.type(f"Where is my kettle? {HOSTILE}")
            await tab.keyboard.press("Enter")
            question = f"Where is my kettle? {HOSTILE}"
            await until_shown(tab, question)
            await expect(tab.locator(".sent")).to_have_text("Sent")
            for _ in range(12):
                await tab.keyboard.press("Tab")
                assert await tab.evaluate(
                    "() => document.activeElement.shadowRoot?.activeElement.closest('.panel') "
                    "!== null"
                )
            room = await new_room(manager, question)
            await manager.typing(room)
            await tab.keyboard.press("Escape")
            await expect(tab.locator(".launcher")).to_be_focused()
            await expect(tab.locator(".panel")).to_be_hidden()

            await manager.post_message(room, "It left us today.", reply_to=1)
            await manager.post_message(room, "See https://kettle.example/track?n=1.")
            await expect(tab.locator(".count")).to_have_text("2")
            await expect(tab.locator(".launcher")).to_have_attribute(
                "aria-label", "Open chat, 2 unread"
            )
            await tab.reload()
            await expect(tab.locator(".count")).to_have_text("2")
            await tab.locator(".launcher").click()
            await expect(tab.locator(".count")).to_be_hidden()
            answers = (f"{question}It left us today.", "See https://kettle.example/track?n=1.")
            await until_shown(tab, question, *answers)
            await expect(tab.locator(".who")).to_have_text([name])
            await expect(tab.locator(".bubble a")).to_have_attribute(
                "href", "https://kettle.example/track?n=1"
            )
            await manager.typing(room)
            await expect(tab.locator(".typing")).to_contain_text("is typing")

            blob = await upload(
                manager, picture(), "image/png", name="<img src=x onerror=alert()>.png"
            )
            entry = await manager.post_message(room, "The label", blobs=[blob])
            await expect(tab.locator("canvas")).to_be_visible()
            await tab.locator("input[type=file]").set_input_files(
                {"name": "receipt.txt", "mimeType": "text/plain", "buffer": b"two kettles"}
            )
            await expect(tab.locator(".mine .file")).to_have_text("receipt.txt")
            await expect(tab.locator(".sent")).to_have_text("Sent")
            await manager.read(room, (await manager.messages(room, limit=1)).head)
            await expect(tab.locator(".read")).to_have_text("Read")
            await tab.screenshot(path=SCREENSHOTS / "widget.png")
            await manager.edit_message(room, entry.seq, "The parcel's label")
            await expect(tab.locator(".under", has_text="edited")).to_have_count(1)
            await manager.delete_message(room, entry.seq)
            await expect(tab.locator(".gone")).to_have_text("This message was deleted.")

            assert await tab.title() == "A shop"
            assert await tab.evaluate("() => violations") == []
            assert complaints == []
            origins = {"/".join(url.split("/")[:3]) for url in requests}
            assert origins <= {house.network.url, house.node.url, address.rstrip("/")}

    async def test_what_is_written_offline_is_sent_once(self, house: House, network: None) -> None:
        manager = await house.person("ben")
        async with shop(house) as address, house.context() as context:
            tab = await visit(context, address)
            await tab.locator(".launcher").click()
            await say(tab, "first")
            await until_shown(tab, "first")
            room = await new_room(manager, "first")

            house.network.loses_answers = True
            await say(tab, "second")
            async with asyncio.timeout(DEADLINE_S):
                while await own_texts(manager, room) != ["first", "second"]:
                    await asyncio.sleep(0.05)
            house.network.go_away()
            await say(tab, "third")
            await expect(tab.locator(".state")).to_contain_text("No connection")
            await tab.screenshot(path=SCREENSHOTS / "widget-offline.png")
            await tab.close()

            house.network.mend()
            tab = await visit(context, address)
            await tab.locator(".launcher").click()
            await until_shown(tab, "first", "second", "third")
            assert await own_texts(manager, room) == ["first", "second", "third"]

            await house.node.kill()
            await say(tab, "fourth")
            await house.node.start()
            await until_shown(tab, "first", "second", "third", "fourth")
            await manager.post_message(room, "fifth")
            await until_shown(tab, "first", "second", "third", "fourth", "fifth")
            assert (await manager.messages(room, limit=500)).items[-1].text == "fifth"

    async def test_where_sockets_are_blocked_polls_bring_it(
        self, house: House, network: None
    ) -> None:
        manager = await house.person("cem")
        house.network.has_sockets = False
        async with shop(house) as address, house.context() as context:
            tab = await visit(context, address)
            await tab.locator(".launcher").click()
            await say(tab, "by polls")
            room = await new_room(manager, "by polls")
            await manager.post_message(room, "heard")
            await until_shown(tab, "by polls", "heard")

    async def test_a_customer_is_known_by_a_jwt_on_a_phone_in_korean(
        self, house: House, network: None
    ) -> None:
        claims = {"sub": "cleo", "exp": int(time.time()) + 300, "jti": secrets.token_hex(8)}
        token = jwt.encode(claims | {"name": "Cleo"}, JWT_SECRET, "HS256")
        manager = await house.person("dan")
        phone: dict[str, Any] = {
            "viewport": {"width": 390, "height": 780},
            "color_scheme": "dark",
            "has_touch": True,
        }
        async with shop(house, locale="ko") as address, house.context(**phone) as context:
            tab = await visit(context, address)
            await tab.evaluate("(jwt) => tidings('identify', {jwt})", token)
            await tab.evaluate("() => tidings('open')")
            await say(tab, "안녕하세요")
            await until_shown(tab, "안녕하세요")
            room = await new_room(manager, "안녕하세요")
            assert (await manager.room(room)).customer_id == "cleo"
            await manager.post_message(room, "Hello Cleo " + "long" * 60)
            await expect(tab.locator(".bubble")).to_have_count(2)
            await tab.screenshot(path=SCREENSHOTS / "widget-phone-dark.png")
            box = await tab.locator(".panel").bounding_box()
            assert box == {"x": 0, "y": 0, "width": 390, "height": 780}
            await tab.evaluate("() => tidings('reset')")
            await expect(tab.locator(".bubble")).to_have_count(0)
            assert await tab.evaluate("() => localStorage.length") == 0

    async def test_history_is_read_backwards_and_two_tabs_stay_in_step(
        self, house: House, network: None
    ) -> None:
        manager = await house.person("fay")
        async with shop(house) as address, house.context() as context:
            tab = await visit(context, address)
            await tab.locator(".launcher").click()
            await say(tab, "number 1")
            room = await new_room(manager, "number 1")
            texts = [f"number {number}" for number in range(1, 131)]
            for text in texts[1:]:
                await manager.post_message(room, text)
            await until_shown(tab, *texts)

            other = await visit(context, address)
            await other.locator(".launcher").click()
            await expect(other.locator(".bubble")).to_have_count(50)
            while await other.locator(".bubble").count() < len(texts):
                held = other.locator(".bubble").first
                text = await held.inner_text()
                await other.locator(".log").evaluate("(log) => { log.scrollTop = 0; }")
                await expect(other.locator(".bubble").first).not_to_have_text(text)
                await expect(other.get_by_text(text, exact=True)).to_be_in_viewport()
            await until_shown(other, *texts)
            await asyncio.gather(say(tab, "from one tab"), say(other, "from the other"))
            for each in (tab, other):
                await expect(each.locator(".item[data-seq]")).to_have_count(len(texts) + 2)
            assert len(await own_texts(manager, room)) == len(texts) + 2

    async def test_a_visitor_whose_session_ended_begins_anew(
        self, house: House, network: None
    ) -> None:
        manager = await house.person("eva")
        async with shop(house) as address, house.context() as context:
            tab = await visit(context, address)
            await tab.locator(".launcher").click()
            await say(tab, "before")
            room = await new_room(manager, "before")
            customer = (await manager.room(room)).customer_id
            assert customer is not None
            token = await tab.evaluate(
                "() => Object.values(localStorage).map((text) => JSON.parse(text).token)[0]"
            )
            visitor = house.server.as_session(token)
            await visitor.revoke_session((await visitor.sessions()).items[0].session_id)
            await expect(tab.locator(".bubble")).to_have_count(0)
            await say(tab, "after")
            await until_shown(tab, "after")
            assert await new_room(manager, "after") != room

    async def test_only_pages_of_allowed_origins_have_it(self, house: House, network: None) -> None:
        async with shop(house) as address, house.context() as context:
            try:
                await allow(house, "https://elsewhere.example")
                tab = await visit(context, address)
                await tab.locator(".launcher").click()
                await say(tab, "may I?")
                await expect(tab.locator(".state")).to_have_text("The chat is not available here.")
                await expect(tab.locator(".bad")).to_have_text("Not sent.")
                await expect(tab.locator(".bubble")).to_have_text("may I?")
            finally:
                await allow(house, address)
            await tab.reload()
            await tab.locator(".launcher").click()
            await tab.locator(".link", has_text="Try again").click()
            await until_shown(tab, "may I?")
