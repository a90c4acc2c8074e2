"""The inbox in a real browser on the demo's workspace; a picture of each state of the page.

Pictures go to `build/pictures`, which git ignores: they are there to be looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Page, expect

from tests.web.browsing import CHROMIUM
from tests.web.office import PHONE, Office, opened_office
from tidings.client import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]

PICTURES = Path(__file__).parents[2] / "build" / "pictures"
HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>'
LONG_NAME = "Wolfeschlegelsteinhausenbergerdorff " * 5


async def picture(page: Page, name: str) -> None:
    """Keep what the page looks like."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"inbox-{name}.png")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    async with opened_office(tmp_path_factory.mktemp("office") / "demo") as opened:
        yield opened


async def test_a_link_signs_in_and_leaves_no_token(office: Office) -> None:
    async with office.page("ines") as page:
        assert "token" not in page.url
        await expect(page.locator(".account")).to_contain_text("Inês Carvalho")
        await expect(page.locator('.folders a[href="#/queue"] .count')).to_have_text("2")
        await expect(page.locator(".row")).to_have_count(2)
        await picture(page, "queue")
        await page.reload()
        await expect(page.locator(".row")).to_have_count(2)


async def test_who_may_not_come_in_is_told(office: Office) -> None:
    async with office.page(None) as page:
        await picture(page, "entrance")
        await page.fill("#token", "ts_nothing")
        await page.press("#token", "Enter")
        await expect(page.locator("#refusal")).to_contain_text("not valid")
        await page.fill("#token", office.credentials.tokens["hannah"])
        await page.press("#token", "Enter")
        await expect(page.locator("#refusal")).to_contain_text("customer")


async def test_a_manager_takes_and_answers(office: Office) -> None:
    async with office.page("tomasz") as page, office.client("chloe") as chloe:
        await page.click('.folders a[href="#/queue"]')
        await page.click(".row:has-text('Chloé')")
        await expect(page.locator(".scroller")).to_contain_text("KW1-0417-2286")
        await page.click("button[data-act=take]")
        await expect(page.locator("aside")).to_contain_text("Tomasz Wilk")
        await page.fill(".composer textarea", "Bonjour Chloé, of course there is.")
        await page.press(".composer textarea", "Enter")
        await expect(page.locator(".entry.own:not(.waiting)")).to_contain_text("of course there is")
        await expect(page.locator(".mark")).to_have_text("Sent")
        await chloe.read("support-chloe", (await chloe.messages("support-chloe", limit=1)).head)
        await expect(page.locator(".mark")).to_have_text("Read")
        await chloe.post_message("support-chloe", HOSTILE)
        await expect(page.locator(".entry").last).to_contain_text("onerror")
        assert await page.locator(".entry img").count() == 0
        await picture(page, "conversation")
        await page.keyboard.press("Escape")
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_attribute("aria-label", "React")
        await page.keyboard.press("e")
        await expect(page.locator(".head")).to_contain_text("Closed")
        await page.keyboard.press("e")
        await expect(page.locator(".head")).to_contain_text("Open")


async def test_messages_are_edited_answered_and_reacted_to(office: Office) -> None:
    async with office.page("ines", color_scheme="dark") as page:
        await page.click('.folders a[href="#/rooms"]')
        await page.click(".row:has-text('The counter')")
        await expect(page.locator(".scroller")).to_contain_text("Who told you?!")
        field = page.locator(".composer textarea")
        await field.fill("@Pri")
        await page.locator(".completion li").first.wait_for()
        await picture(page, "mention")
        await field.press("Enter")
        await field.press_sequentially("see https://kettlewright.example/returns please")
        await field.press("Enter")
        own = page.locator(".entry.own", has_text="see https").last
        await expect(own.locator(".mention")).to_have_text("@Priya Raman")
        await expect(own.locator(".text a")).to_have_attribute(
            "href", "https://kettlewright.example/returns"
        )
        await field.press("ArrowUp")
        await field.fill("@Priya Raman never mind")
        await field.press("Enter")
        await expect(page.locator(".entry", has_text="never mind")).to_contain_text("edited")
        entry = page.locator(".entry", has_text="Who told you")
        await entry.hover()
        await entry.get_by_label("React", exact=True).click()
        await entry.get_by_label("🎉").click()
        await expect(entry.locator(".reaction")).to_contain_text("🎉")
        await entry.hover()
        await entry.get_by_label("Reply", exact=True).click()
        await field.fill("A little bird.")
        await field.press("Enter")
        await expect(page.locator(".entry.own").last.locator(".quote")).to_contain_text("Who told")
        await picture(page, "room-dark")


async def test_the_palette_finds_people_and_rooms(office: Office) -> None:
    async with office.page("ines") as page:
        await page.keyboard.press("Control+k")
        await page.locator(".palette li", has_text="Message Amara").wait_for()
        await picture(page, "palette")
        await page.fill(".palette input", "amara message")
        await page.keyboard.press("Enter")
        await expect(page.locator(".head h2")).to_have_text("Amara Okafor")
        await expect(page.locator(".log")).to_contain_text("Nothing was said yet")
        await picture(page, "empty")


async def test_notes_stay_with_the_team(office: Office) -> None:
    async with office.page("ines") as page:
        await page.goto(f"{office.url}/#/mine/support-samuel")
        await page.click("button[data-act=notes]")
        await expect(page.locator(".scroller")).to_contain_text("two weeks late")
        await picture(page, "notes")
        await page.click("button[data-act='notes.back']")
        await expect(page.locator(".head h2")).to_have_text("Samuel Adeyemi")


async def test_a_file_is_attached_and_shown(office: Office, tmp_path: Path) -> None:
    photo = tmp_path / "kettle.png"
    Image.linear_gradient("L").resize((640, 400)).convert("RGB").save(photo)
    async with office.page("amara") as page:
        await page.goto(f"{office.url}/#/rooms/workshop")
        await page.set_input_files("input[type=file]", photo)
        await expect(page.locator(".tray progress")).to_have_count(0)
        await page.fill(".composer textarea", "The gradient of despair")
        await page.press(".composer textarea", "Enter")
        await page.wait_for_function(
            "() => document.querySelector('.picture img')?.naturalWidth > 0"
        )
        await picture(page, "attachment")


async def test_a_phone_shows_one_pane_at_a_time(office: Office) -> None:
    async with office.page("tomasz", viewport=PHONE, has_touch=True, locale="ko-KR") as page:
        await page.click('.folders a[href="#/mine"]')
        await page.locator(".row").first.wait_for()
        await picture(page, "phone-list")
        await page.click(".row:has-text('Hannah')")
        await expect(page.locator(".scroller")).to_contain_text("bakery")
        assert not await page.is_visible(".lists")
        width = await page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        await picture(page, "phone-conversation")
        await page.click("button[data-act=details]")
        await expect(page.locator("aside")).to_contain_text("hannah@mail.example")
        await picture(page, "phone-details")
        await page.click(".closer")
        await page.click(".tool.back")
        assert await page.is_visible(".lists")


async def test_a_long_log_is_read_backwards_in_a_window(office: Office) -> None:
    async with Client(office.url, office.credentials.api_key) as server:
        room = await server.create_room(
            "group", title=LONG_NAME.strip(), members=["jonas", "amara"]
        )
        for start in range(0, 1_000, 100):
            await asyncio.gather(
                *(
                    server.post_message(room.id, f"line {start + n}", as_user="amara")
                    for n in range(100)
                )
            )
    async with office.page("jonas") as page:
        await page.goto(f"{office.url}/#/rooms/{room.id}")
        await page.wait_for_selector(".unread-mark")
        await picture(page, "long-unread")
        scroller = page.locator(".scroller")
        await scroller.evaluate("(element) => element.scrollTo(0, element.scrollHeight)")
        for _ in range(200):
            await scroller.evaluate("(element) => element.scrollTo(0, 0)")
            await page.wait_for_timeout(30)
            assert await page.locator(".entries > li").count() < 500
            if await page.locator('[data-seq="1"]').count():
                break
        await expect(page.locator('[data-seq="1"]')).to_be_attached()
        await picture(page, "long-beginning")
        await page.click(".to-newest")
        await expect(page.locator('[data-seq="1000"]')).to_be_in_viewport()
        await expect(page.locator(".row[aria-current] .badge")).to_have_count(0)


async def test_what_is_written_offline_is_sent_later(office: Office) -> None:
    async with office.page("priya") as page:
        await page.goto(f"{office.url}/#/rooms/website")
        await expect(page.locator(".scroller")).to_contain_text("catalogue")
        await expect(page.locator(".row[aria-current]")).to_contain_text("Agreed")
        await page.context.set_offline(True)
        await page.fill(".composer textarea", "written in a tunnel")
        await page.press(".composer textarea", "Enter")
        await expect(page.locator(".connection")).to_contain_text("Offline")
        await expect(page.locator(".entry.waiting")).to_contain_text("tunnel")
        await picture(page, "offline")
        await page.context.set_offline(False)
        await expect(page.locator(".entry.own:not(.waiting)", has_text="tunnel")).to_have_count(1)
