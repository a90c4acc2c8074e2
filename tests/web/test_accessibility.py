"""Every page as axe-core sees it (WCAG 2.2 AA and good practice): nothing serious, light and dark.

`make test` installs axe-core, pinned by `package-lock.json`, where there is npm. It is put into the
page by the debugger, past the content security policy, and looks into open shadow roots, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.web.browsing import CHROMIUM
from tests.web.office import PHONE, Office, opened_office

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = ("serious", "critical")
RUN = """async (options) => {
    document.querySelectorAll("tidings-widget").forEach((host) => document.body.append(host));
    const {violations, incomplete} = await axe.run(document, options);
    const isUnseen = ({data}) => data?.contrastRatio === 0 && data.messageKey === null;
    const hasUnseen = ({nodes}) => nodes.some(({any}) => any.some(isUnseen));
    return [...violations, ...incomplete.filter(hasUnseen)];
}"""
"""The widget stands beside the page's body, where axe does not find what lies behind a text. A text
with nothing known behind it is a finding, too."""
IN_THE_DARK = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
"""The page is the same in the dark but for its colours."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
    pytest.mark.skipif(not AXE.exists(), reason="needs axe-core, which make test installs by npm"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    async with opened_office(tmp_path_factory.mktemp("office") / "demo") as opened:
        yield opened


def _told(finding: dict[str, Any]) -> str:
    places = [
        f"{node['target']} {node['html'][:160]} {node['any'][:1]}" for node in finding["nodes"]
    ]
    return "\n  ".join((f"{finding['impact']} {finding['id']}: {finding['help']}", *places))


async def check(page: Page, state: str) -> None:
    """Fail with what is wrong on the page as it is now, in light and in dark colours."""
    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(AXE.read_text())
    findings = await page.evaluate(RUN, {})
    await page.emulate_media(color_scheme="dark")
    findings += await page.evaluate(RUN, IN_THE_DARK)
    await page.emulate_media(color_scheme="light")
    grave = [_told(finding) for finding in findings if finding["impact"] in GRAVE]
    assert not grave, f"{state}\n" + "\n".join(grave)


async def test_the_inbox(office: Office) -> None:
    async with office.page(None) as page:
        await page.fill("#token", "ts_nothing")
        await page.press("#token", "Enter")
        await expect(page.locator("#refusal")).to_contain_text("not valid")
        await check(page, "the entrance")
    async with office.page("ines", reduced_motion="reduce") as page:
        await expect(page.locator(".row")).to_have_count(2)
        await check(page, "nothing chosen")
        await page.click('.folders a[href="#/closed"]')
        await check(page, "another list")
        await page.click('.folders a[href="#/rooms"]')
        await page.click(".row:has-text('The counter')")
        await page.locator(".entry").last.hover()
        await check(page, "a room of the team")
        await page.locator(".entry").last.get_by_label("React", exact=True).click()
        await page.fill(".composer textarea", "@Pri")
        await page.locator(".completion li").first.wait_for()
        await check(page, "reactions and mentions are offered")
        await page.goto(f"{office.url}/#/mine/support-samuel")
        await expect(page.locator(".scroller")).to_contain_text("Samuel")
        await check(page, "a customer, with the profile")
        await page.keyboard.press("Escape")
        await page.keyboard.press("Control+k")
        await page.locator(".palette li", has_text="Message Amara").wait_for()
        await check(page, "the palette")
        await page.fill(".palette input", "nothing of that name")
        await check(page, "the palette without a match")
        await page.keyboard.press("Escape")
        await page.click("button[data-act=snooze]")
        await check(page, "when to come back")
        await page.keyboard.press("Escape")
        await page.click("button[data-act=notes]")
        await expect(page.locator(".scroller")).to_contain_text("two weeks late")
        await page.click("button[data-act=find]")
        await page.fill(".find input", "late")
        await check(page, "notes, searched")
        await page.keyboard.press("Escape")
        await page.keyboard.press("Escape")
        await page.keyboard.press("?")
        await check(page, "the keys")
        await page.keyboard.press("Escape")
        await page.context.set_offline(True)
        await page.fill(".composer textarea", "written in a tunnel")
        await page.press(".composer textarea", "Enter")
        await page.locator(".entry.waiting").wait_for()
        await check(page, "offline")


async def test_the_inbox_on_a_phone(office: Office) -> None:
    async with office.page("tomasz", viewport=PHONE, has_touch=True) as page:
        await page.click('.folders a[href="#/mine"]')
        await page.locator(".row").first.wait_for()
        await check(page, "a list")
        await page.click(".row:has-text('Hannah')")
        await expect(page.locator(".scroller")).to_contain_text("bakery")
        await check(page, "a conversation")
        await page.click("button[data-act=details]")
        await expect(page.locator(".details")).to_be_visible()
        await check(page, "the profile")


async def test_the_shop_and_the_widget(office: Office, tmp_path: Path) -> None:
    async with office.page(None) as page:
        await page.goto(f"{office.url}/shop#{office.credentials.publishable_key}")
        await expect(page.locator(".launcher")).to_be_visible()
        await check(page, "closed")
        await page.click(".launcher")
        await expect(page.locator(".welcome")).to_be_visible()
        await check(page, "open")
        await page.fill(
            "textarea", "Which lid fits a kettle of 1996? See https://kettle.example/lid"
        )
        await page.press("textarea", "Enter")
        await expect(page.locator(".item[data-seq]")).to_have_count(1)
        async with office.client("ines") as ines:
            room = (await ines.rooms(kind="support", status="open")).items[0]
            await ines.post_message(room.id, "All of them do.", reply_to=1)
            await ines.post_message(room.id, "Never mind that one.")
            await ines.delete_message(room.id, (await ines.messages(room.id)).items[-1].seq)
        await expect(page.locator(".gone")).to_be_visible()
        manual = tmp_path / "manual.txt"
        manual.write_text("Fill, boil, pour.")
        await page.set_input_files("input[type=file]", manual)
        await expect(page.locator(".file")).to_be_visible()
        await page.context.set_offline(True)
        await page.fill("textarea", "Written in a tunnel")
        await page.press("textarea", "Enter")
        await expect(page.locator(".under", has_text="Sending")).to_be_visible()
        await check(page, "a conversation, offline")


async def test_the_operations_page(office: Office) -> None:
    async with office.page(None) as page:
        await page.goto(f"{office.url}/ops")
        await page.fill("#key", "tk_nothing")
        await page.press("#key", "Enter")
        await expect(page.locator("#refusal")).not_to_be_empty()
        await check(page, "the entrance")
        await page.fill("#key", office.credentials.operator_key)
        await page.press("#key", "Enter")
        await page.locator("#nodes tr").wait_for()
        await check(page, "the board")
