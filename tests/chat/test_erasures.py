"""Erasure takes what a user wrote from every room, and moves no sequence and no count."""

from __future__ import annotations

import asyncio

import pytest

from tests.chat.company import CLEO, KEY, MAX, MIA, Company
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.chat import erasures
from tidings.chat.commands import Command
from tidings.errors import Unavailable
from tidings.storage.tables import ENTRIES, INBOXES, RECEIPTS, USERS

STORES = EVERY_STORE


SECRET = "My number is 555 0199"
AFTER_S = erasures.LATE_MS / 1000 + 1


async def fill(acme: Company) -> None:
    crowd = [f"u{number:03}" for number in range(30)]
    await acme.add_users(dict.fromkeys(crowd, "customer"))
    await acme.open("support", "cleo", "max", id="desk")
    await acme.open("group", "cleo", "max", *crowd, id="hall")
    await acme.open("group", "cleo", "max", "mia", id="former")
    for room_id in ("desk", "hall", "former"):
        for number in range(45):
            await acme.say(CLEO, room_id, f"{SECRET}, extension {number}")
        await acme.say(MAX, room_id, "Thank you")
        await acme.say(CLEO, room_id, SECRET)
    await acme.rooms.remove_member(CLEO, "former", "cleo")


async def at_rest(acme: Company) -> None:
    """Return when the large room's members are at its head."""
    async with asyncio.timeout(60):
        while (view := await acme.chat.commits.look("acme", "hall")) is None or (
            view.room is not None and view.room.is_fanning
        ):
            await asyncio.sleep(0.01)


async def texts(acme: Company) -> list[str]:
    found = []
    for table, field in ((ENTRIES, "text"), (INBOXES, "preview")):
        after = None
        while True:
            page = await acme.store.scan(table, after=after)
            found += [item[field] for item in page.items if item.get(field)]
            after = page.after
            if after is None:
                break
    return found


async def test_everything_goes_and_no_count_moves(acme: Company) -> None:
    await fill(acme)
    await at_rest(acme)
    badges = [await acme.inboxes.badge(caller) for caller in (MAX, MIA)]
    heads = [(await acme.rooms.get(KEY, room)).head for room in ("desk", "hall", "former")]
    await acme.people.users.delete(KEY, "cleo", erase=True)
    assert await acme.chat.erasures.run() == 0  # not for good yet
    await at_rest(acme)
    assert not [text for text in await texts(acme) if SECRET in text]
    assert "Thank you" in await texts(acme)
    receipts = await acme.store.scan(RECEIPTS)
    assert not [item for item in receipts.items if item["receipt"].startswith("cleo#")]
    after = [await acme.inboxes.badge(caller) for caller in (MAX, MIA)]
    assert [badge.unread for badge in after] == [badge.unread for badge in badges]
    assert heads == [(await acme.rooms.get(KEY, room)).head for room in ("desk", "hall", "former")]
    entries = (await acme.messages.list(MAX, "desk", after=0, limit=500)).items
    assert {entry.type for entry in entries if entry.sender_id == "cleo"} == {"text"}
    acme.clock.forward(AFTER_S)
    assert await acme.chat.erasures.run() == 1
    assert await acme.chat.erasures.run() == 0
    assert (await acme.audit()).ok


async def test_what_was_on_its_way_goes_too(acme: Company) -> None:
    await acme.open("support", "cleo", "max", id="desk")
    body = wire.PostMessage(client_id="late", text=SECRET)
    await acme.people.users.delete(KEY, "cleo", erase=True)
    assert await acme.chat.erasures.run() == 0
    await acme.messages.post(CLEO, "desk", body)  # by a node that has not heard of it
    assert [text for text in await texts(acme) if SECRET in text]
    acme.clock.forward(AFTER_S)
    assert await acme.chat.erasures.run() == 1
    assert not [text for text in await texts(acme) if SECRET in text]


async def test_an_erasure_goes_on_where_it_was_broken_off(
    acme: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(acme)
    await at_rest(acme)
    await acme.people.users.delete(KEY, "cleo", erase=True)
    submit = acme.chat.commits.submit
    left = 3

    def fail_soon(workspace: str, room_id: str, command: Command) -> asyncio.Future[object]:
        nonlocal left
        left -= 1
        if left < 0:
            raise Unavailable
        return submit(workspace, room_id, command)

    with monkeypatch.context() as patched:
        patched.setattr(acme.chat.commits, "submit", fail_soon)
        with pytest.raises(Unavailable):
            await acme.chat.erasures.run()
    assert [text for text in await texts(acme) if SECRET in text]
    acme.clock.forward(AFTER_S)
    assert await acme.chat.erasures.run() == 1
    await at_rest(acme)
    assert not [text for text in await texts(acme) if SECRET in text]


async def test_a_started_chat_erases_by_itself(
    acme: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasures, "LOOK_PAUSE_S", 0.01)
    await acme.open("group", "cleo", "max", id="team")
    await acme.say(CLEO, "team", SECRET)
    await acme.chat.start()
    await acme.people.users.delete(KEY, "cleo", erase=True)
    await acme.chat.erase("acme", "cleo")
    acme.clock.forward(AFTER_S)
    async with asyncio.timeout(60):
        while (await acme.store.query(USERS, "acme", index="by_erasing", consistent=False)).items:
            await asyncio.sleep(0.01)
    assert not [text for text in await texts(acme) if SECRET in text]
    user = await acme.people.users.get(KEY, "cleo")
    assert user == wire.User(
        id="cleo",
        name=user.name,
        role="customer",
        email=None,
        attributes={},
        is_deactivated=True,
        is_online=False,
        created_at=user.created_at,
    )
    assert user.name != "Cleo"
