"""Inboxes: newest activity first, filtered, exact in their totals, and nothing of others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.company import CARL, CLEO, KEY, MAX, MIA, Company
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.errors import Forbidden, NotFound, ValidationFailed
from tidings.people.callers import Caller

STORES = EVERY_STORE


async def inbox(acme: Company, caller: Caller, limit: int = 3, **filters: Any) -> list[str]:
    wanted = {"status": None, "kind": None, "unread": False} | filters
    found: list[str] = []
    cursor = None
    while True:
        page = await acme.inboxes.list(caller, **wanted, limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        found += [item.room_id for item in page.items]
        cursor = page.next
        if cursor is None:
            return found


async def test_the_newest_activity_comes_first(acme: Company) -> None:
    rooms = [(await acme.open("group", "max", "mia", id=f"r{n}")).id for n in range(8)]
    for number in (2, 5, 2, 0):
        await acme.say(MIA, rooms[number], "News")
    expected = ["r0", "r2", "r5", "r7", "r6", "r4", "r3", "r1"]
    for limit in (1, 3, 4, 8, 20):
        assert await inbox(acme, MAX, limit) == expected
    await acme.rooms.remove_member(MAX, "r5", "max")
    assert "r5" not in await inbox(acme, MAX)
    assert "r5" in await inbox(acme, MIA)
    assert await inbox(acme, CARL) == []


async def test_the_inbox_is_filtered(acme: Company) -> None:
    await acme.open("group", "max", "mia", id="team")
    pair = await acme.open("direct", "max", "mia")
    for number in range(4):
        await acme.open("support", "cleo", "max", id=f"desk-{number}")
    await acme.rooms.patch(MAX, "desk-1", wire.PatchRoom(status="closed"))
    for limit in (1, 2, 50):
        assert await inbox(acme, MAX, limit, kind="direct") == [pair.id]
        assert set(await inbox(acme, MAX, limit, status="open")) == {"desk-0", "desk-2", "desk-3"}
        assert await inbox(acme, MAX, limit, status="closed") == ["desk-1"]
        assert await inbox(acme, MAX, limit, status="closed", kind="group") == []


async def test_rooms_with_something_unread(acme: Company) -> None:
    for number in range(7):
        await acme.open("group", "max", "mia", id=f"r{number}")
    for number in (1, 3, 5, 4, 1):
        await acme.say(MIA, f"r{number}", "News")
    await acme.messages.read(MAX, "r3", 1)
    for limit in (1, 2, 3, 10):
        assert await inbox(acme, MAX, limit, unread=True) == ["r1", "r4", "r5"]
        assert await inbox(acme, MIA, limit, unread=True) == []
    assert await inbox(acme, MAX, unread=True, kind="direct") == []


async def test_many_unread_rooms_come_in_windows(
    acme: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.chat.inboxes.PAGE_ITEMS_MAX", 3)
    for number in range(8):
        await acme.open("group", "max", "mia", id=f"r{number}")
        await acme.say(MIA, f"r{number}", "News")
    for limit in (1, 2, 3, 5):
        found = await inbox(acme, MAX, limit, unread=True)
        assert found == [f"r{number}" for number in range(7, -1, -1)]


async def test_an_item_shows_what_its_reader_may_know(acme: Company) -> None:
    desk = await acme.open("support", "cleo", title="Order 7")
    await acme.rooms.patch(MAX, desk.id, wire.PatchRoom(assignee_id="max"))
    said = await acme.say(CLEO, desk.id, "x" * 500)
    item = await acme.inboxes.item("acme", "max", desk.id)
    assert (item.title, item.unread, item.head) == ("Order 7", 1, said.seq)
    assert (item.status, item.assignee_id, item.preview) == ("open", "max", "x" * 120)
    assert [(user.id, user.name, user.role) for user in item.with_] == [
        ("cleo", "Cleo", "customer")
    ]
    theirs = await acme.inboxes.item("acme", "cleo", desk.id)
    assert theirs.with_ == [wire.User(id="max", name="Max")]
    assert theirs.unread == 0
    pair = await acme.open("direct", "max", "mia")
    (other,) = (await acme.inboxes.item("acme", "mia", pair.id)).with_
    assert other.id == "max"
    with pytest.raises(NotFound):
        await acme.inboxes.item("acme", "carl", desk.id)


async def test_only_sessions_have_an_inbox(acme: Company) -> None:
    with pytest.raises(Forbidden):
        await inbox(acme, KEY)
    with pytest.raises(Forbidden):
        await acme.inboxes.badge(KEY)
    await acme.open("group", "max", id="a")
    await acme.open("group", "max", id="b")
    wanted: dict[str, Any] = {"status": None, "kind": None, "unread": False, "limit": 1}
    cursor = (await acme.inboxes.list(MAX, **wanted, cursor=None)).next
    with pytest.raises(ValidationFailed):
        await acme.inboxes.list(MIA, **wanted, cursor=cursor)


async def test_totals_count_all_rooms(acme: Company) -> None:
    assert await acme.inboxes.badge(MAX) == wire.Badge(0, 0, 0)
    for room_id in ("a", "b"):
        await acme.open("group", "max", "mia", id=room_id)
        await acme.say(MIA, room_id, "News", mentions=["max"])
    badge = await acme.inboxes.badge(MAX)
    assert (badge.unread, badge.mentions, badge.version) == (2, 2, 4)


async def test_companions_are_those_of_small_rooms(acme: Company) -> None:
    crowd = [f"u{number:03}" for number in range(40)]
    await acme.add_users(dict.fromkeys(crowd, "customer"))
    await acme.open("group", "max", *crowd)
    await acme.open("group", "max", "mia", "robo")
    await acme.open("direct", "max", "cleo")
    await acme.open("group", "max", "carl", id="left")
    await acme.rooms.remove_member(MAX, "left", "max")
    assert set(await acme.inboxes.companions("acme", "max")) == {"mia", "robo", "cleo"}
    assert await acme.inboxes.companions("acme", "carl") == []


async def test_who_shares_a_room(acme: Company) -> None:
    await acme.open("group", "max", "cleo", id="team")
    shares = acme.chat.shares_room
    assert await shares("acme", "cleo", "max")
    assert not await shares("acme", "cleo", "carl")
    assert not await shares("other", "cleo", "max")
    await acme.rooms.remove_member(MAX, "team", "max")
    assert not await shares("acme", "cleo", "max")
    assert not await shares("acme", "max", "cleo")


async def test_a_former_member_has_no_row_of_the_room(acme: Company) -> None:
    await acme.open("group", "max", "cleo", id="team")
    await acme.rooms.remove_member(CLEO, "team", "cleo")
    item = await acme.inboxes.item("acme", "cleo", "team")
    assert (item.left, item.unread, item.preview) == (True, 0, None)
