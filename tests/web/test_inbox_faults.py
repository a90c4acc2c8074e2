"""The inbox where devices, the service and the network come and go.

Nothing is lost, nothing comes twice, and the badge is what the service counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page, expect

from tests.web.browsing import CHROMIUM, DEADLINE_S, House, opened_house
from tests.web.test_widget import say, shop, visit
from tidings.client import Client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]

BUBBLES = ".item[data-seq] .bubble"
TEXTS = ".entry:not(.waiting) .text"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with opened_house(tmp_path_factory.mktemp("house")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def network(house: House) -> Iterator[None]:
    """Each test leaves it as it should be, also one that fails."""
    yield
    house.network.mend()


async def inbox(house: House, context: BrowserContext, user_id: str) -> Page:
    """A new device of the user."""
    page = await context.new_page()
    await page.goto(f"{house.network.url}/#token={await house.token(user_id)}")
    await expect(page.locator(".folders")).to_be_visible()
    await expect(page.locator(".connection")).to_be_hidden()
    return page


async def write(page: Page, text: str) -> None:
    """Write in the inbox, without waiting."""
    await page.fill(".composer textarea", text)
    await page.press(".composer textarea", "Enter")


async def until_badges_are_right(client: Client, *pages: Page) -> None:
    """Return once each page says in its title and its badge what the service counts."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            unread = (await client.badge()).unread
            shown = [
                (await page.title(), await page.locator(".brand .badge").text_content())
                for page in pages
            ]
            if all(
                title.startswith(f"({unread}) ") == (unread > 0) and text == str(unread)
                for title, text in shown
            ):
                return
            await asyncio.sleep(0.05)


async def test_three_devices_of_a_manager_stay_in_step(house: House) -> None:
    mara, cleo = await house.person("mara"), await house.person("cleo", "customer")
    await house.person("ned")
    team = await house.server.create_room("group", title="Everybody", members=["mara", "ned"])
    ned = house.server.as_session(await house.token("ned"))
    asked = await cleo.create_room("support", title="A lid")
    await cleo.post_message(asked.id, "Which lid fits?")
    async with house.context() as one, house.context() as two, house.context() as three:
        pages = [await inbox(house, context, "mara") for context in (one, two, three)]
        first, second, third = pages
        for page in pages:
            await expect(page.locator(".row", has_text="cleo")).to_have_count(1)
        await first.click(".row")
        await first.click("button[data-act=take]")
        await expect(first.locator(".head")).to_contain_text("Assigned to Person mara")
        for page in (second, third):
            await expect(page.locator(".row")).to_have_count(0)
            await page.click('.folders a[href="#/mine"]')
            await expect(page.locator(".row")).to_contain_text("Which lid fits?")
        await first.goto(f"{house.network.url}/#/rooms")
        await cleo.post_message(asked.id, "The large one?")
        for number in range(3):
            await ned.post_message(team.id, f"line {number}")
        for page in pages:
            await expect(page).to_have_title("(4) Tidings")
        await until_badges_are_right(mara, *pages)
        await second.click(".row")
        await expect(second.locator(TEXTS)).to_have_text(["Which lid fits?", "The large one?"])
        for page in (first, third):
            await expect(page).to_have_title("(3) Tidings")
        await write(second, "Yes, the large one.")
        await third.click(".row")
        await expect(third.locator(TEXTS).last).to_have_text("Yes, the large one.")
        await third.keyboard.press("Escape")
        await third.keyboard.press("e")
        await expect(second.locator(".head")).to_contain_text("Closed")
        await first.click(".row:has-text('Everybody')")
        await expect(first.locator(TEXTS)).to_have_count(3)
        for page in pages:
            await expect(page.locator(".brand .badge")).to_be_hidden()
        await until_badges_are_right(mara, *pages)


async def test_inbox_and_widget_talk_on_through_kills_absence_and_sleep(house: House) -> None:
    nils, otto = await house.person("nils"), await house.person("otto")
    team = await house.server.create_room("direct", members=["nils", "otto"])
    async with shop(house) as address, house.context() as one, house.context() as two:
        manager, customer = await inbox(house, one, "nils"), await visit(two, address)
        await customer.locator(".launcher").click()
        said = ["Do you deliver on Saturdays?"]
        await say(customer, said[0])
        await manager.locator(".row", has_text=said[0]).click()
        await expect(manager.locator(TEXTS)).to_have_text(said)
        await manager.click("button[data-act=take]")
        await expect(manager.locator(".head")).to_contain_text("Assigned to Person nils")
        room_id = manager.url.rpartition("/")[2]

        async def both(when: str) -> None:
            """Both write where neither may be heard."""
            await say(customer, f"{when}, from the shop")
            await write(manager, f"{when}, from the inbox")

        async def until_all_is_there() -> None:
            """Both show what the log has: each text once, in its order."""
            said.extend(text for text in sent if text not in said)
            await expect(manager.locator(TEXTS)).to_have_count(len(said))
            entries = (await nils.messages(room_id)).items
            log = [entry.text for entry in entries if entry.type == "text" and entry.text]
            assert sorted(log) == sorted(said)
            await expect(manager.locator(TEXTS)).to_have_text(log)
            await expect(customer.locator(BUBBLES)).to_have_text(log)
            await until_badges_are_right(nils, manager)

        sent: list[str] = []
        await both("before")
        sent += ["before, from the shop", "before, from the inbox"]
        await until_all_is_there()

        await house.node.kill()
        await both("killed")
        await house.node.start()
        sent += ["killed, from the shop", "killed, from the inbox"]
        await until_all_is_there()

        house.network.loses_answers = True
        await both("unanswered")
        house.network.go_away()
        await expect(manager.locator(".connection")).to_be_visible()
        await both("away")
        await otto.post_message(team.id, "while you were away")
        house.network.mend()
        for when in ("unanswered", "away"):
            sent += [f"{when}, from the shop", f"{when}, from the inbox"]
        await until_all_is_there()
        assert (await nils.badge()).unread == 1

        tools = await one.new_cdp_session(manager)
        await tools.send("Page.setWebLifecycleState", {"state": "frozen"})
        await say(customer, "asleep, from the shop")
        await otto.post_message(team.id, "while you slept")
        await expect(customer.locator(BUBBLES)).to_have_count(len(said) + 1)
        await tools.send("Page.setWebLifecycleState", {"state": "active"})
        await write(manager, "awake, from the inbox")
        sent += ["asleep, from the shop", "awake, from the inbox"]
        await until_all_is_there()
        assert (await nils.badge()).unread == 2


async def test_a_session_that_ends_takes_nothing_away_that_was_written(house: House) -> None:
    pia = await house.person("pia")
    room = await house.server.create_room("group", title="Signs", members=["pia"])
    session = await house.server.create_session("pia")
    async with house.context() as context:
        page = await context.new_page()
        await page.goto(f"{house.network.url}/#token={session.token}")
        await page.goto(f"{house.network.url}/#/rooms/{room.id}")
        await expect(page.locator(".log")).to_contain_text("Nothing was said yet")
        house.network.go_away()
        await write(page, "written in the dark")
        await expect(page.locator(".entry.waiting")).to_have_count(1)
        await page.fill(".composer textarea", "half a thought")
        await pia.revoke_session(session.session_id)
        house.network.mend()
        await expect(page.locator("#refusal")).to_contain_text("ended")
        await page.fill("#token", await house.token("pia"))
        await page.press("#token", "Enter")
        await expect(page.locator(TEXTS)).to_have_text(["written in the dark"])
        await expect(page.locator(".composer textarea")).to_have_value("half a thought")
        log = (await pia.messages(room.id)).items
        assert [entry.text for entry in log if entry.type == "text"] == ["written in the dark"]
