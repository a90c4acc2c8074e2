"""The README's pictures. `python -m tests.web.pictures` takes them anew, in some two minutes.

The demo's workspace stands at a fixed hour of a fixed day, so that a second run differs in little
but the measured curves of the operations page. Wants Debian's chromium, fonts-inter, fonts-noto-cjk
and fonts-noto-color-emoji.
"""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from PIL import Image, ImageDraw
from playwright.async_api import (
    Browser,
    Locator,
    Page,
    ViewportSize,
    async_playwright,
    expect,
)

from tests.web.browsing import ARGUMENTS, CHROMIUM
from tidings import logs
from tidings.api.pages import SAMPLE_SHOP
from tidings.api.sections import SECTIONS
from tidings.app import listening, open_app
from tidings.client import Client
from tidings.client.files import upload
from tidings.config import Settings
from tidings.demo import Credentials, fill, new_credentials

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
BYTES_MAX = 150_000
START_S = datetime(2026, 9, 16, 14, 40, tzinfo=UTC).timestamp()
TIME_ZONE = "Europe/Lisbon"
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 760}
GAP = 32
FONTS = ("Inter", "Noto Sans CJK KR", "Noto Color Emoji")
FONT_RULES = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include>/etc/fonts/fonts.conf</include>
  <match>
    <test name="family"><string>DejaVu Sans</string></test>
    <edit name="family" mode="assign" binding="strong"><string>Inter</string></edit>
  </match>
</fontconfig>
"""
"""Debian's default font gives way to one that is like what other systems have."""

WATCHED_S = 122
"""How long the operations page is looked at: the two minutes that its plots show at least."""
TALKERS = 24
TICK_S = 0.1
MESSAGES_PER_S = 60.0
SWING_S = 23.0


class Studio:
    """A demo in this process whose clock began at the fixed hour, and a browser that shares it."""

    def __init__(
        self, url: str, server: Client, credentials: Credentials, browser: Browser
    ) -> None:
        self.url = url
        self.server = server
        self.credentials = credentials
        self.browser = browser

    def link(self, user_id: str) -> str:
        """The inbox of that person."""
        return f"{self.url}/#token={self.credentials.tokens[user_id]}"

    @asynccontextmanager
    async def page(
        self,
        address: str,
        viewport: ViewportSize = DESKTOP,
        *,
        colours: Literal["light", "dark"] = "light",
        language: str = "en-GB",
        is_mobile: bool = False,
    ) -> AsyncIterator[Page]:
        """A browser of its own at this address."""
        context = await self.browser.new_context(
            viewport=viewport,
            color_scheme=colours,
            locale=language,
            timezone_id=TIME_ZONE,
            reduced_motion="reduce",
            is_mobile=is_mobile,
            has_touch=is_mobile,
        )
        try:
            await context.clock.install(time=studio_clock() / 1000)
            page = await context.new_page()
            await page.goto(address)
            yield page
        finally:
            await context.close()


_begun_s = time.monotonic()


def studio_clock() -> int:
    """The time of the service and the pages, in milliseconds."""
    return round((START_S + time.monotonic() - _begun_s) * 1000)


@asynccontextmanager
async def opened_studio(folder: Path) -> AsyncIterator[Studio]:
    """Everything started; the font that `system-ui` means is the same on every machine."""
    assert CHROMIUM is not None
    rules = folder / "fonts.conf"
    rules.write_text(FONT_RULES)
    settings = Settings(
        store=f"sqlite:///{folder / 'pictures.db'}",
        blobs=f"file:{folder / 'files'}",
        rate_limit="off",
    )
    logs.configure("off", sys.stderr)
    async with (
        open_app(settings, clock=studio_clock, sections=(*SECTIONS, SAMPLE_SHOP)) as service,
        listening(service, "127.0.0.1", 0) as url,
        async_playwright() as playwright,
    ):
        await fill(service.store, studio_clock())
        credentials = await new_credentials(service)
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            env={**os.environ, "FONTCONFIG_FILE": str(rules)},
        )
        try:
            async with Client(url, credentials.api_key) as server:
                yield Studio(url, server, credentials, browser)
        finally:
            await browser.close()


async def taken(page: Page) -> Image.Image:
    """What the page looks like, with its fonts and pictures there."""
    await page.evaluate("() => document.fonts.ready")
    return Image.open(BytesIO(await page.screenshot(animations="disabled", caret="hide")))


def keep(name: str, picture: Image.Image) -> None:
    """Write it with a palette of its own."""
    with BytesIO() as file:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True
        )
        assert file.tell() <= BYTES_MAX, f"{name} has {file.tell()} bytes"
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.png").write_bytes(file.getvalue())
        print(f"{name}.png, {picture.width} × {picture.height}, {file.tell()} bytes")


async def shown(place: Locator, text: str) -> None:
    await expect(place).to_contain_text(text, timeout=15_000)


async def take_inbox(studio: Studio) -> Image.Image:
    """A trade customer writes to whom the conversation belongs; a colleague is there."""
    samuel = studio.server.as_session(studio.credentials.tokens["samuel"])
    async with (
        studio.page(studio.link("tomasz")),
        samuel.live(),
        studio.page(studio.link("ines")) as page,
    ):
        await page.click('.folders a[href="#/open"]')
        await page.click(".row:has-text('Samuel')")
        await shown(page.locator(".scroller"), "invoice")
        await expect(page.locator(".row[aria-current] .badge")).to_have_count(0)
        await samuel.typing("support-samuel")
        await shown(page.locator(".typing"), "Samuel")
        return await taken(page)


async def take_inbox_in_the_dark(studio: Studio) -> Image.Image:
    async with studio.page(studio.link("ines"), colours="dark") as page:
        await page.click('.folders a[href="#/rooms"]')
        await page.click(".row:has-text('The counter')")
        await shown(page.locator(".scroller"), "Who told you?!")
        await page.fill(".composer textarea", "@pri")
        await page.locator(".completion li").first.wait_for()
        return await taken(page)


async def take_phone(studio: Studio) -> Image.Image:
    """The list and a conversation side by side, in Korean."""
    link = studio.link("tomasz")
    async with studio.page(link, PHONE, language="ko-KR", is_mobile=True) as page:
        await page.tap('.folders a[href="#/open"]')
        await shown(page.locator(".rows"), "Farid")
        before = await taken(page)
        await page.tap(".row:has-text('Hannah')")
        await shown(page.locator(".scroller"), "bakery")
        after = await taken(page)
    both = Image.new("RGB", (before.width + GAP + after.width, before.height), "white")
    both.paste(before, (0, 0))
    both.paste(after, (before.width + GAP, 0))
    return both


async def take_widget(studio: Studio) -> Image.Image:
    """A visitor of the shop, and the answer."""
    address = f"{studio.url}/shop#{studio.credentials.publishable_key}"
    async with studio.page(address) as page:
        await page.click(".launcher")
        await page.fill(
            "textarea", "Hello! Which lid fits a No. 4 of 1996? Mine has lost its knob."
        )
        await page.press("textarea", "Enter")
        await expect(page.locator(".item[data-seq]")).to_have_count(1)
        amara = studio.server.as_session(studio.credentials.tokens["amara"])
        [room] = (await amara.rooms(kind="support", status="open", limit=1)).items
        blob_id = await upload(amara, drawn_lid(), "image/png", name="lid.png")
        await amara.post_message(room.id, "All of ours since 1994 do. This one:")
        await amara.post_message(room.id, None, blobs=[blob_id])
        await page.locator("canvas").wait_for()
        await page.fill("textarea", "Perfect, I'll take two.")
        await page.press("textarea", "Enter")
        await expect(page.locator(".item[data-seq]")).to_have_count(4)
        await amara.typing(room.id)
        await shown(page.locator(".typing"), "Amara")
        return await taken(page)


def drawn_lid() -> bytes:
    """A spare lid, as the shop draws it."""
    picture = Image.new("RGB", (640, 360), "#f1e6d6")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((290, 70, 350, 130), fill="#2a241c")
    pen.rectangle((308, 110, 332, 160), fill="#2a241c")
    pen.pieslice((110, 130, 530, 430), 180, 360, fill="#b4571f")
    pen.rounded_rectangle((90, 272, 550, 300), 14, fill="#8f4418")
    with BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


async def take_operations(studio: Studio) -> Image.Image:
    """Two minutes of talk in a workspace of its own, seen by the operator."""
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(studio.page(f"{studio.url}/ops"))
        await page.fill("#key", studio.credentials.operator_key)
        await page.press("#key", "Enter")
        await page.locator("#nodes tr").wait_for()
        async with asyncio.TaskGroup() as group:
            talk = group.create_task(_talk(studio))
            await asyncio.sleep(WATCHED_S)
            talk.cancel()
        return await taken(page)


async def _talk(studio: Studio) -> None:
    """Many talk, now more and now less of them."""
    people = [f"talker-{number}" for number in range(TALKERS)]
    async with AsyncExitStack() as stack:
        tokens = []
        for person in people:
            await studio.server.create_user(person, "manager", user_id=person)
            tokens.append((await studio.server.create_session(person)).token)
        rooms = [
            await studio.server.create_room("direct", members=[one, other])
            for one, other in zip(people[::2], people[1::2], strict=True)
        ]
        devices = [
            await stack.enter_async_context(studio.server.as_session(token).live())
            for token in tokens
        ]
        number = 0
        for tick in range(round(WATCHED_S / TICK_S) + 1):
            rate = 1 + 0.6 * math.sin(tick * TICK_S / SWING_S * 2 * math.pi)
            number += round(rate * MESSAGES_PER_S * TICK_S)
            await asyncio.gather(
                *(
                    devices[(number + n) % TALKERS].send(
                        rooms[(number + n) % TALKERS // 2].id, f"message {number + n}"
                    )
                    for n in range(round(rate * MESSAGES_PER_S * TICK_S))
                )
            )
            await asyncio.sleep(TICK_S)


TAKEN = {
    "inbox": take_inbox,
    "inbox-dark": take_inbox_in_the_dark,
    "phone": take_phone,
    "widget": take_widget,
    "operations": take_operations,
}


async def take(names: Sequence[str]) -> None:
    """The pictures of these names."""
    with TemporaryDirectory() as folder:
        async with opened_studio(Path(folder)) as studio:
            for name in names:
                keep(name, await TAKEN[name](studio))


def main() -> None:
    """Check for the fonts, then take the pictures that were named, or all."""
    there = subprocess.run(["fc-list"], capture_output=True, text=True, check=True).stdout
    missing = [name for name in FONTS if name not in there]
    if missing or CHROMIUM is None:
        raise SystemExit(f"missing: {', '.join(missing) or 'chromium'}")
    asyncio.run(take(sys.argv[1:] or list(TAKEN)))


if __name__ == "__main__":
    main()
