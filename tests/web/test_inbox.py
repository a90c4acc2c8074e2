"""The inbox in a real browser on the demo's workspace; a picture of each state of the page.

Pictures go to `build/pictures`, which git ignores: they are there to be looked at.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Route, expect

from tests.web.browsing import CHROMIUM
from tests.web.hands import CATALOGUES, GIVE_FILES, NOTICES, asked, choose, picture, write
from tests.web.office import PHONE, Office, opened_office
from tidings import wire
from tidings.client import Client, NotFound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]

HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>'
LONG = 700
"""Messages in a long log: more than may have an element."""
LONG_NAME = "Wolfeschlegelsteinhausenbergerdorff " * 5


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


async def test_the_palette_finds_people_and_rooms_and_does_things(office: Office) -> None:
    async with (
        office.client("amara") as amara,
        office.client("ines") as ines,
        office.page("ines") as page,
    ):
        await page.keyboard.press("Control+k")
        await page.locator(".palette li", has_text="Message Amara").wait_for()
        await picture(page, "palette")
        await page.fill(".palette input", "amara message")
        await page.keyboard.press("Enter")
        await expect(page.locator(".head h2")).to_have_text("Amara Okafor")
        await expect(page.locator(".log")).to_contain_text("Nothing was said yet")
        await picture(page, "empty")
        row = page.locator(".row", has_text="Amara Okafor")
        room_id = page.url.rpartition("/")[2]
        for words in ("mute this", "take it off"):
            await expect(row).to_have_count(1)
            await page.keyboard.press("Control+k")
            await choose(page, words)
        await expect(row).to_have_count(0)
        await amara.post_message(room_id, "Did you look for me?")
        await expect(row.locator(".preview")).to_have_text("Did you look for me?")
        assert (await ines.inbox_row(room_id)).muted


async def test_notes_stay_with_the_team(office: Office) -> None:
    async with office.page("ines") as page:
        await page.goto(f"{office.url}/#/mine/support-samuel")
        await page.click("button[data-act=notes]")
        await expect(page.locator(".scroller")).to_contain_text("two weeks late")
        await picture(page, "notes")
        await page.click("button[data-act='notes.back']")
        await expect(page.locator(".is-notes")).to_have_count(0)
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
        for start in range(0, LONG, 100):
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
        first = "() => Number(document.querySelector('.entries [data-seq]').dataset.seq)"
        while (before := await page.evaluate(first)) > 1:
            await scroller.evaluate("(element) => element.scrollTo(0, 0)")
            await page.wait_for_function(f"(before) => ({first})() < before", arg=before)
            assert await page.locator(".entries > li").count() < 500
        await picture(page, "long-beginning")
        await page.click(".to-newest")
        await expect(page.locator(f'[data-seq="{LONG}"]')).to_be_in_viewport()
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


async def test_the_keyboard_alone_is_enough(office: Office) -> None:
    async with office.client("yuki") as yuki, office.page(None) as page:
        await asked(yuki, "Does the grinder fit into a rucksack?")
        keys = page.keyboard
        await keys.type(office.credentials.tokens["jonas"])
        await keys.press("Enter")
        await page.locator(".row", has_text="Yuki").first.wait_for()
        await keys.press("j")
        await expect(page.locator(".head h2")).to_have_text("Yuki Tanabe")
        await expect(page.locator(".scroller")).to_contain_text("rucksack")
        await keys.press("a")
        await expect(page.locator(".head")).to_contain_text("Assigned to Jonas")
        await expect(page.locator('.folders a[href="#/mine"]')).to_have_attribute(
            "aria-current", "page"
        )
        await keys.press("r")
        await keys.type("It does, without its lid.")
        await keys.press("Enter")
        await expect(page.locator(".entry.own:not(.waiting)")).to_contain_text("its lid")
        await keys.press("Escape")
        await keys.press("e")
        await expect(page.locator(".head")).to_contain_text("Closed")
        await keys.press("?")
        await expect(page.locator("dialog .keys")).to_contain_text("Next conversation")
        await keys.press("Escape")
        await keys.press("Control+k")
        await page.locator(".palette li", has_text="Message Amara").wait_for()
        await keys.type("message amara")
        await keys.press("Enter")
        await expect(page.locator(".head h2")).to_have_text("Amara Okafor")
        await keys.press("Escape")
        await keys.press("Control+k")
        await keys.type("unassigned list")
        await keys.press("Enter")
        await expect(page.locator(".list h2")).to_have_text("Unassigned")
        await keys.press("j")
        await expect(page.locator(".row").first).to_have_attribute("aria-current", "true")
        await keys.press("i")
        await expect(page.locator("aside")).to_be_hidden()
        await keys.press("i")
        await expect(page.locator("aside")).to_be_visible()


async def test_a_conversation_is_given_away_noted_put_off_and_comes_back(office: Office) -> None:
    async with (
        office.page("tomasz") as page,
        office.client("amara") as amara,
        office.client("olivia") as olivia,
    ):
        await page.goto(f"{office.url}/#/mine/support-olivia")
        await page.locator("aside").get_by_role("button", name="Tomasz Wilk").click()
        await choose(page, "amara")
        await expect(page.locator("aside")).to_contain_text("Amara Okafor")
        given = page.locator(".event", has_text="Tomasz Wilk assigned it to Amara Okafor")
        await expect(given).to_have_count(1)
        await page.keyboard.press("s")
        await page.locator(".palette li", has_text="For an hour").wait_for()
        await picture(page, "snooze")
        await page.keyboard.press("Enter")
        await expect(page.locator(".head")).to_contain_text("Snoozed")
        await page.click('.folders a[href="#/snoozed"]')
        await expect(page.locator(".row", has_text="Olivia")).to_have_count(1)
        soon = datetime.now(UTC) + timedelta(seconds=1)
        changes = wire.PatchRoom(snoozed_until=soon.isoformat())
        await amara.patch_room("support-olivia", changes)

        await page.click(".row:has-text('Olivia')")
        await expect(page.locator(".composer textarea")).to_be_focused()
        await page.keyboard.press("Escape")
        await page.keyboard.press("n")
        await choose(page, "begin")
        await expect(page.locator(".is-notes .composer textarea")).to_be_focused()
        await write(page, "She has been patient with us")
        await picture(page, "notes-begun")
        notes = page.url.rpartition("/")[2]
        assert (await amara.messages(notes)).items[-1].text == "She has been patient with us"
        with pytest.raises(NotFound):
            await olivia.messages(notes)
        assert [row.room_id async for row in olivia.inbox_items()] == ["support-olivia"]

        await page.click("button[data-act='notes.back']")
        await expect(page.locator(".is-notes")).to_have_count(0)
        field = page.locator(".composer textarea")
        await field.fill("half a thought")
        await page.keyboard.press("Escape")
        await page.keyboard.press("/")
        await page.keyboard.type("order")
        await expect(page.locator(".find [role=status]")).to_have_text("1 of 1")
        await expect(page.locator(".found")).to_contain_text("Order 48377")
        await picture(page, "find")
        await page.keyboard.press("Escape")
        await expect(page.locator(".event", has_text="is open again")).to_have_count(1)
        await expect(page.locator(".head")).to_contain_text("Open")
        await page.goto(f"{office.url}/#/mine/support-hannah")
        await expect(page.locator(".head h2")).to_have_text("Hannah Brückner")
        await expect(field).to_have_value("")
        await page.goto(f"{office.url}/#/open/support-olivia")
        await expect(field).to_have_value("half a thought")
        await page.reload()
        await expect(field).to_have_value("half a thought")
        await field.fill("")


async def test_new_customers_are_told_to_every_manager_at_once(office: Office) -> None:
    async with (
        office.client("greta") as greta,
        office.page("amara") as amara,
        office.page("priya") as priya,
    ):
        for page in (amara, priya):
            await page.click('.folders a[href="#/queue"]')
            await page.locator(".row").first.wait_for()
        waiting = (await greta.me()).name
        count = int(await amara.locator('a[href="#/queue"] .count').text_content() or 0)
        room = await asked(greta, "Is the shop open on Sunday?")
        for page in (amara, priya):
            row = page.locator(".row").first
            await expect(row).to_contain_text(waiting)
            await expect(row.locator(".preview")).to_have_text("Is the shop open on Sunday?")
            await expect(page.locator('a[href="#/queue"] .count')).to_have_text(str(count + 1))
        await amara.click(".row >> nth=0")
        await amara.click("button[data-act=take]")
        await expect(priya.locator(f'.row[href$="{room}"]')).to_have_count(0)
        await expect(priya.locator('a[href="#/queue"] .count')).to_have_text(str(count))


async def test_faces_have_whole_letters(office: Office) -> None:
    names = {
        "Ada Lovelace": "AL",
        "A\u0301gnes Ke\u0301ri": "A\u0301K",
        "김민준": "김",
        "🧑\u200d🚀x Ro": "🧑\u200d🚀R",
        "e": "E",
        "?!": "·",
    }
    async with office.page("amara") as page:
        drawn = await page.evaluate(
            """async (names) => {
                const [inbox] = [...document.scripts].filter(({src}) => src.endsWith("/inbox.js"));
                const {face} = await import(inbox.src.replace("inbox.js", "faces.js"));
                return names.map((name) => face("id", name).textContent);
            }""",
            list(names),
        )
    assert drawn == list(names.values())


async def test_people_see_who_is_there_and_are_told_while_they_look_away(office: Office) -> None:
    async with (
        office.client("jonas") as jonas,
        office.client("amara") as amara,
        office.page("amara", permissions=["notifications"]) as page,
    ):
        await page.evaluate(NOTICES)
        room = await jonas.create_room("direct", members=["amara"])
        await page.goto(f"{office.url}/#/direct/{room.id}")
        await expect(page.locator(".scroller")).to_contain_text("Descaler arrives")
        async with jonas.live():
            await expect(page.locator(".head")).to_contain_text("Online")
            await jonas.typing(room.id)
            await expect(page.locator(".typing")).to_have_text("Jonas Lindqvist is typing…")
            await picture(page, "typing")
        await page.click('.folders a[href="#/rooms"]')
        await page.evaluate("() => void (window.isLookedAt = false)")
        entry = await jonas.post_message(room.id, "Are you there?")
        shown = "() => notices.filter(({isOpen}) => isOpen).map(({title, body}) => title + body)"
        await page.wait_for_function("() => notices.length > 0")
        assert await page.evaluate(shown) == ["Jonas LindqvistAre you there?"]
        unread = (await amara.badge()).unread
        await expect(page).to_have_title(f"({unread}) Tidings")
        await expect(page.locator(".brand .badge")).to_have_text(str(unread))
        await expect(page.locator("#icon")).to_have_attribute("href", re.compile("icon-unread"))
        await amara.read(room.id, entry.seq)
        await page.wait_for_function("() => notices.every(({isOpen}) => !isOpen)")
        left = (await amara.badge()).unread
        await expect(page).to_have_title(f"({left}) Tidings" if left else "Tidings")
        await page.evaluate("() => void (window.isLookedAt = true)")
        await page.goto(f"{office.url}/#/rooms/counter")
        await expect(page.locator(".unread-mark")).to_be_visible()
        assert await page.locator(".day").count() > 1
        await expect(page.locator('.row[href$="/counter"] .badge')).to_have_count(0)


async def test_files_are_dropped_and_pasted_and_show_how_far_they_are(office: Office) -> None:
    # What passes a service worker may pass by `route`.
    async with office.page("jonas", service_workers="block") as page:
        await page.goto(f"{office.url}/#/rooms/workshop")
        await expect(page.locator(".scroller")).to_contain_text("Blue box")
        arrived = asyncio.Event()

        async def hold(route: Route) -> None:
            await arrived.wait()
            await route.continue_()

        await page.route("**/v1/uploads/**", hold)
        dropped = [["list of seals.csv", "text/csv", 3_000], ["<b>.html", "text/html", 70]]
        conversation = page.locator(".conversation")
        await conversation.evaluate(GIVE_FILES, {"way": "drop", "files": dropped})
        field = page.locator(".composer textarea")
        await field.evaluate(GIVE_FILES, {"way": "paste", "files": [["seal.bin", "", 20]]})
        await expect(page.locator(".tray progress")).to_have_count(3)
        await expect(page.locator(".send")).to_be_disabled()
        await picture(page, "uploading")
        arrived.set()
        await expect(page.locator(".tray progress")).to_have_count(0)
        await page.get_by_label("Remove seal.bin").click()
        await field.press("Enter")
        own = page.locator(".entry.own:not(.waiting)").last
        await expect(own.locator(".file .name")).to_have_text(["list of seals.csv", "<b>.html"])
        await expect(page.locator(".tray li")).to_have_count(0)


async def test_files_are_taken_before_the_room_is_known(office: Office) -> None:
    async with office.page("jonas", service_workers="block") as page:
        answered = asyncio.Event()

        async def hold(route: Route) -> None:
            await answered.wait()
            await route.continue_()

        await page.route(re.compile(r"/v1/rooms(/support-mateo)?(\?|$)"), hold)
        await page.goto(f"{office.url}/#/snoozed/support-mateo")
        files = {"way": "drop", "files": [["list of seals.csv", "text/csv", 3_000]]}
        await page.locator(".conversation").evaluate(GIVE_FILES, files)
        await expect(page.locator(".tray li")).to_have_count(1)
        await expect(page.locator(".head h2")).to_have_count(0)
        answered.set()
        await expect(page.locator(".head h2")).to_have_text("Mateo Ruiz")
        await expect(page.locator(".tray li")).to_have_count(1)


async def test_what_is_refused_stays_until_it_is_tried_again_or_given_up(office: Office) -> None:
    async with (
        Client(office.url, office.credentials.api_key) as server,
        office.page("priya") as page,
    ):
        room = await server.create_room("group", title="For a while", members=["priya", "ines"])
        await page.goto(f"{office.url}/#/rooms/{room.id}")
        await expect(page.locator(".log")).to_contain_text("Nothing was said yet")
        await page.context.set_offline(True)
        for text in ("first", "second"):
            await page.fill(".composer textarea", text)
            await page.press(".composer textarea", "Enter")
        await expect(page.locator(".entry.waiting")).to_have_text(
            [re.compile("first"), re.compile("second")]
        )
        await server.remove_member(room.id, "priya")
        await page.context.set_offline(False)
        refused = page.locator(".entry.refused")
        await expect(refused).to_have_count(2)
        await expect(refused.first).to_contain_text("Not sent")
        await picture(page, "refused")
        await server.add_members(room.id, "priya")
        await refused.first.get_by_role("button", name="Try again").click()
        await expect(page.locator(".entry.own:not(.refused):not(.waiting)")).to_contain_text(
            "first"
        )
        await refused.get_by_role("button", name="Delete").click()
        await expect(refused).to_have_count(0)
        texts = [entry.text for entry in (await server.messages(room.id)).items if entry.text]
        assert texts == ["first"]


async def test_everything_is_said_in_korean_too(office: Office) -> None:
    async with office.page("amara", locale="ko-KR") as page:
        assert await page.evaluate(CATALOGUES) == []
        assert await page.evaluate("() => document.documentElement.lang") == "ko"
        await expect(page.locator(".list h2")).to_have_text("미배정")
        await page.goto(f"{office.url}/#/snoozed/support-mateo")
        await expect(page.locator(".head h2")).to_have_text("Mateo Ruiz")
        await picture(page, "korean")
        await page.keyboard.press("Control+k")
        await choose(page, "english")
        await expect(page.locator(".list h2")).to_have_text("Snoozed")
