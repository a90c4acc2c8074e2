"""The demo, serving, and a browser that looks at it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from playwright.async_api import Browser, Page, ViewportSize, async_playwright

from tests.command_line import clean_environment
from tests.web.browsing import ARGUMENTS, CHROMIUM
from tidings.client import Client
from tidings.demo import CREDENTIALS_FILE, Credentials

DESKTOP: ViewportSize = {"width": 1360, "height": 850}
PHONE: ViewportSize = {"width": 390, "height": 844}
START_S = 60.0
END_S = 20.0


class Office:
    """The demo, serving, and a browser."""

    def __init__(self, url: str, credentials: Credentials, browser: Browser) -> None:
        self.url = url
        self.credentials = credentials
        self.browser = browser

    def link(self, user_id: str) -> str:
        """As the demo prints it."""
        return f"{self.url}/#token={self.credentials.tokens[user_id]}"

    def client(self, user_id: str) -> Client:
        """Somebody without a browser."""
        return Client(self.url, self.credentials.tokens[user_id])

    @asynccontextmanager
    async def page(
        self, user_id: str | None, *, viewport: ViewportSize = DESKTOP, **options: Any
    ) -> AsyncIterator[Page]:
        """A browser of its own, signed in; no fault may happen on the page."""
        faults: list[str] = []
        context = await self.browser.new_context(
            viewport=viewport, locale=options.pop("locale", "en-GB"), **options
        )
        context.set_default_timeout(15_000)
        page = await context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda said: faults.append(said.text) if "Content Security" in said.text else None,
        )
        try:
            await page.goto(self.url + "/" if user_id is None else self.link(user_id))
            if user_id is not None:
                await page.wait_for_selector(".folders")
            yield page
            assert faults == []
        finally:
            await context.close()


@asynccontextmanager
async def opened_office(folder: Path) -> AsyncIterator[Office]:
    """A demo of its own, which tells its story into the folder."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidings", "demo", "--folder", str(folder), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            url = ""
            while not url:
                line = (await process.stdout.readline()).decode()
                assert line, "the demo ended"
                if line.startswith("listening on "):
                    url = line.split()[-1]
        credentials = msgspec.json.decode(
            (folder / CREDENTIALS_FILE).read_bytes(), type=Credentials
        )
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            yield Office(url, credentials, browser)
            await browser.close()
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), END_S)
