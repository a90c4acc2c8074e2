"""A customer in the widget on the demo's shop and a manager in the inbox talk with each other."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Download, Locator, Page, expect

from tests.web.browsing import CHROMIUM, DEADLINE_S, JWT_SECRET
from tests.web.office import Office, opened_office
from tidings.cli.parts import open_parts
from tidings.client import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
HARM = "<script>opener.document.title = document.title = 'harmed'</script>"
DRAWING = f'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">{HARM}</svg>'


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    folder = tmp_path_factory.mktemp("office") / "demo"
    async with opened_office(folder) as opened:
        async with open_parts(f"sqlite:///{folder / 'demo.db'}") as parts:
            workspace = await parts.workspaces.default(None)
            await parts.workspaces.update(workspace.id, jwt=("HS256", JWT_SECRET))
        async with Client(opened.url, opened.credentials.api_key) as server:
            await server.create_user(f"Mal {HOSTILE}", "manager", user_id="mal")
            opened.credentials.tokens["mal"] = (await server.create_session("mal")).token
        yield opened


@asynccontextmanager
async def shopping(office: Office) -> AsyncIterator[Page]:
    """The shop with the widget open."""
    async with office.page(None) as page:
        await page.goto(f"{office.url}/shop#{office.credentials.publishable_key}")
        await page.locator(".launcher").click()
        yield page


@asynccontextmanager
async def answering(office: Office, user_id: str) -> AsyncIterator[Page]:
    """The inbox at the customers who wait."""
    async with office.page(user_id) as page:
        await page.locator('.folders a[href="#/queue"]').click()
        await expect(page.locator(".row", has_text="Farid")).to_be_visible()
        yield page


async def say(field: str, page: Page, text: str) -> None:
    await page.locator(field).fill(text)
    await page.locator(field).press("Enter")


async def saved(page: Page, button: Locator) -> None:
    """Return once the file was saved: it is never shown, so nothing in it runs."""
    downloads: asyncio.Queue[Download] = asyncio.Queue()
    page.context.once("page", lambda tab: tab.once("download", downloads.put_nowait))
    page.once("download", downloads.put_nowait)
    await button.click()
    async with asyncio.timeout(DEADLINE_S):
        download = await downloads.get()
    assert await download.failure() is None


COMPOSER = ".composer textarea"
WIDGET = ".panel textarea"


async def test_a_visitor_and_a_manager(office: Office, tmp_path: Path) -> None:
    async with answering(office, "tomasz") as inbox, shopping(office) as shop:
        await expect(inbox.locator(".row")).to_have_count(2)
        await say(WIDGET, shop, "Which lid fits a No. 4 of 1996?")
        await expect(inbox.locator(".row")).to_have_count(3)
        await inbox.locator(".row").first.click()
        await expect(inbox.locator(".scroller")).to_contain_text("Which lid fits")
        await inbox.locator("button[data-act=take]").click()
        await expect(inbox.locator("aside")).to_contain_text("Tomasz Wilk")

        await inbox.locator(COMPOSER).press_sequentially("All of them ")
        await expect(shop.locator(".typing")).to_contain_text("is typing")
        await inbox.locator(COMPOSER).press_sequentially("do.")
        await inbox.locator(COMPOSER).press("Enter")
        await expect(shop.locator(".bubble").last).to_have_text("All of them do.")
        await expect(shop.locator(".who")).to_have_text(["Tomasz Wilk"])

        await shop.locator(WIDGET).press_sequentially("Perf")
        await expect(inbox.locator(".typing")).not_to_be_empty()
        await shop.locator(WIDGET).press_sequentially("ect.")
        await shop.locator(WIDGET).press("Enter")
        await expect(inbox.locator(".entry .text").last).to_have_text("Perfect.")

        await shop.keyboard.press("Escape")
        await say(COMPOSER, inbox, "This one:")
        lid = tmp_path / "lid.png"
        Image.linear_gradient("L").resize((320, 200)).save(lid)
        await inbox.set_input_files("input[type=file]", lid)
        await expect(inbox.locator(".tray li")).to_have_count(1)
        await expect(inbox.locator(".tray progress")).to_have_count(0)
        await inbox.locator(COMPOSER).press("Enter")
        await expect(shop.locator(".count")).to_have_text("2")
        await shop.locator(".launcher").click()
        await expect(shop.locator("canvas")).to_be_visible()
        await expect(shop.locator(".count")).to_be_hidden()

        await shop.set_input_files(".panel input[type=file]", lid)
        await inbox.wait_for_function(
            "() => [...document.querySelectorAll('.picture img')].filter((one) => "
            "one.naturalWidth > 0).length === 2"
        )


async def _jwt_accepted(office: Office, claims: dict[str, object]) -> str:
    """A token for the widget, once the running service knows the workspace's secret."""
    async with asyncio.timeout(DEADLINE_S), Client(office.url) as visitor:
        while True:
            stamp = {"exp": int(time.time()) + 300, "jti": secrets.token_hex(8)}
            token = jwt.encode(claims | stamp, JWT_SECRET, "HS256")
            async with visitor.connections().post(
                f"{office.url}/v1/sessions",
                json={"publishable_key": office.credentials.publishable_key, "jwt": token},
            ) as reply:
                if reply.status == 201:
                    break
            await asyncio.sleep(0.1)
    return jwt.encode(claims | stamp | {"jti": secrets.token_hex(8)}, JWT_SECRET, "HS256")


async def test_hostile_names_texts_and_files_do_nothing(office: Office, tmp_path: Path) -> None:
    name = f"Eve {HOSTILE}"
    token = await _jwt_accepted(office, {"sub": "eve", "name": name})
    files = [tmp_path / f"{HOSTILE.replace('/', '')}.html", tmp_path / "drawing.svg"]
    for file, text in zip(files, (HARM, DRAWING), strict=True):
        file.write_text(text)
    async with answering(office, "mal") as inbox, shopping(office) as shop:
        title = await shop.title()
        await shop.evaluate("(jwt) => tidings('identify', {jwt})", token)
        await say(WIDGET, shop, HOSTILE)
        await inbox.locator(".row", has_text=name).click()
        await expect(inbox.locator(".entry .text").last).to_have_text(HOSTILE)
        await expect(inbox.locator(".head h2")).to_have_text(name)
        await say(COMPOSER, inbox, f"javascript:alert(1) {HOSTILE}")
        await expect(shop.locator(".bubble").last).to_have_text(f"javascript:alert(1) {HOSTILE}")
        await expect(shop.locator(".who")).to_have_text([f"Mal {HOSTILE}"])
        await expect(shop.locator(".bubble a, .bubble img")).to_have_count(0)

        await inbox.set_input_files(".composer input[type=file]", files)
        await expect(inbox.locator(".tray li")).to_have_count(2)
        await expect(inbox.locator(".tray progress")).to_have_count(0)
        await inbox.locator(COMPOSER).press("Enter")
        for page, entry in ((shop, ".bubble .file"), (inbox, ".files .file")):
            await expect(page.locator(entry)).to_have_count(2)
            for number in range(2):
                await saved(page, page.locator(entry).nth(number))
        await expect(inbox.locator("img")).to_have_count(0)
        assert await shop.title() == title
        assert await inbox.title() == f"{name} – Tidings"
