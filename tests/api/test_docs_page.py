"""The documentation page in a real browser: it draws everything, and what it sends works."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import Site
from tests.api.trials import TRIALS
from tidings.api.sections import SECTIONS
from tidings.problems import KINDS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE_WIDTH = 390
BROWSER_DEADLINE_S = 60.0
"""A browser's first start on a busy machine takes its time."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]


class Page:
    """One page, driven over the Chrome DevTools Protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self.complaints: list[str] = []

    async def send(self, method: str, **parameters: Any) -> Any:
        """The result of a command; complaints of the page are noted meanwhile."""
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        async with asyncio.timeout(BROWSER_DEADLINE_S):
            while True:
                message = await self._socket.receive_json()
                if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                    self.complaints.append(str(message["params"]))
                if message.get("id") == self._calls:
                    return message["result"]

    async def see(self, expression: str) -> Any:
        """The value of an expression on the page."""
        seen = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in seen, seen
        return seen["result"].get("value")

    async def wait_for(self, expression: str) -> None:
        """Return once the expression is true."""
        async with asyncio.timeout(BROWSER_DEADLINE_S):
            while not await self.see(expression):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def browsing(folder: Path, url: str) -> AsyncIterator[Page]:
    """A browser of its own with one page open."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        "--remote-allow-origins=*",
        f"--user-data-dir={folder}/browser",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        address = None
        async with asyncio.timeout(BROWSER_DEADLINE_S):
            while address is None:
                line = await process.stderr.readline()
                assert line, "the browser did not start"
                address = re.search(rb"ws://([^/]+)/", line)
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://{address[1].decode()}/json/list") as response:
                pages = [each for each in await response.json() if each["type"] == "page"]
            async with http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.send(f"{domain}.enable")
                await page.send("Page.navigate", url=url)
                yield page
    finally:
        process.kill()
        await process.communicate()


async def test_the_page_draws_everything_and_sends_real_requests(
    site: Site, tmp_path: Path
) -> None:
    token = await site.user("ada", "admin")
    async with browsing(tmp_path, f"{site.url}/docs#list_users") as page:
        await page.wait_for("document.querySelectorAll('.endpoint').length > 0")
        cards = await page.see("[...document.querySelectorAll('.endpoint')].map(one => one.id)")
        sections = (*SECTIONS, TRIALS)
        assert cards == [endpoint.name for each in sections for endpoint in each.endpoints]
        for code in KINDS:
            assert await page.see(f"!!document.getElementById('problem-{code}')"), code
        for card in cards:
            await page.see(f"document.getElementById('{card}').open = true")
        await page.wait_for(f"document.querySelectorAll('.try').length === {len(cards)}")

        await page.see(f"document.getElementById('token').value = '{token}'")
        await page.see("document.querySelector('#list_users form').requestSubmit()")
        await page.wait_for(
            "document.querySelector('#list_users .reply').innerText.includes('\"id\": \"ada\"')"
        )
        reply = await page.see("document.querySelector('#list_users .reply').innerText")
        assert reply.startswith("200 OK")
        assert "tidings-cost" in reply

        await page.see("document.querySelector('#open_socket button.main').click()")
        await page.wait_for(
            "document.querySelector('#open_socket pre').innerText.includes('ready')"
        )
        assert token not in await page.see("location.href + JSON.stringify({...localStorage})")

        await page.send(
            "Emulation.setDeviceMetricsOverride",
            width=PHONE_WIDTH,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert await page.see("document.scrollingElement.scrollWidth") <= PHONE_WIDTH
        assert page.complaints == []
