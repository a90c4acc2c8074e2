"""The operations page in a real browser: nothing before the key, and then what the nodes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.browsing import CHROMIUM, opened_house

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as the Debian package has it"),
]

RATE_SHOWN = """() => [...document.querySelectorAll('.plot')].some((plot) =>
    plot.querySelector('h2').textContent === 'Messages'
    && parseFloat(plot.querySelector('.now').textContent) > 0
    && plot.querySelector('.curve').getAttribute('points').split(' ').length >= 2)"""


async def test_the_operator_sees_messages_as_they_come(tmp_path: Path) -> None:
    async with opened_house(tmp_path) as house, house.context() as context:
        await house.person("ann")
        room = await house.server.create_room("group", members=["ann"])
        page = await context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"{house.node.url}/ops")
        assert not await page.is_visible("#board")

        await page.fill("#key", await house.token("ann"))
        await page.press("#key", "Enter")
        await page.wait_for_function("() => document.querySelector('#refusal').textContent")
        assert not await page.is_visible("#board")

        await page.fill("#key", house.operator_key)
        await page.press("#key", "Enter")
        await page.wait_for_selector("#nodes tr")
        seen = False
        for number in range(200):
            await house.server.post_message(room.id, f"number {number}", as_user="ann")
            seen = bool(await page.evaluate(RATE_SHOWN)) if number % 5 == 4 else False
            if seen:
                break
            await page.wait_for_timeout(50)
        assert seen
        assert await page.locator("#nodes tr").count() == 1
        assert "$" in await page.inner_text("#source")

        await page.click("#leave")
        assert not await page.is_visible("#board")
        await page.reload()
        assert not await page.is_visible("#board")
        assert complaints == []
