"""Rooms: made once, listed in order, changed as their kind allows, with the right members."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.chat.company import ADA, CARL, CLEO, KEY, MAX, MIA, ROBO, Company
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.chat.commands import FOUNDERS_INLINE_MAX
from tidings.clock import rfc3339
from tidings.errors import Conflict, Forbidden, NotFound, ValidationFailed
from tidings.people.callers import Caller

STORES = EVERY_STORE


def new(kind: wire.RoomKind, *member_ids: str, **fields: Any) -> wire.CreateRoom:
    return wire.CreateRoom(kind=kind, member_ids=list(member_ids), **fields)


async def every_room(acme: Company, caller: Caller, limit: int, **filters: Any) -> list[str]:
    wanted = {"kind": None, "status": None, "assignee_id": None, "tag": None} | filters
    found: list[str] = []
    cursor = None
    while True:
        page = await acme.rooms.list(caller, **wanted, limit=limit, cursor=cursor)
        assert len(page.items) <= limit
        found += [room.id for room in page.items]
        cursor = page.next
        if cursor is None:
            return found


async def test_the_direct_room_of_a_pair_is_made_once(acme: Company) -> None:
    first, is_new = await acme.rooms.create(MAX, new("direct", "mia"))
    again, is_new_again = await acme.rooms.create(MIA, new("direct", "max"))
    by_key, _ = await acme.rooms.create(KEY, new("direct", "mia", "max"))
    assert (is_new, is_new_again) == (True, False)
    assert first.id == again.id == by_key.id
    for body in (new("direct"), new("direct", "mia", "ada"), new("direct", "max")):
        with pytest.raises(ValidationFailed):
            await acme.rooms.create(MAX, body)


async def test_both_of_a_pair_may_ask_at_one_time(acme: Company) -> None:
    made = await asyncio.gather(
        *(acme.rooms.create(MAX, new("direct", "mia")) for _ in range(5)),
        *(acme.rooms.create(MIA, new("direct", "max")) for _ in range(5)),
    )
    assert len({room.id for room, _ in made}) == 1
    assert sum(is_new for _, is_new in made) == 1


async def test_a_keys_own_id_is_one_room(acme: Company) -> None:
    room, is_new = await acme.rooms.create(KEY, new("group", "max", id="team", title="Team"))
    again, is_new_again = await acme.rooms.create(KEY, new("group", "mia", id="team", title="T"))
    assert (is_new, is_new_again) == (True, False)
    assert again == room
    assert (room.scope, room.member_count, room.created_by) == ("private", 1, None)
    with pytest.raises(Conflict):
        await acme.rooms.create(KEY, new("support", "cleo", id="team"))


async def test_a_customer_opens_a_support_room_of_their_own(acme: Company) -> None:
    room, _ = await acme.rooms.create(CLEO, new("support"))
    assert (room.status, room.assignee_id, room.customer_id) == ("open", None, "cleo")
    assert room.member_count == 1
    assert await acme.rooms.queue(MAX) == wire.Queue(1, 0)
    for refused in (CLEO, ROBO):
        with pytest.raises(Forbidden):
            await acme.rooms.queue(refused)


async def test_a_visitor_is_stored_when_they_open_a_room(acme: Company) -> None:
    visitor = Caller("acme", "session", "ses_v", "visitor", "customer", "ses_v")
    room, _ = await acme.rooms.create(visitor, new("support"))
    await acme.say(visitor, room.id, "Hello")
    assert (await acme.people.users.get(KEY, "visitor")).role == "customer"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (new("group", "nobody", "max"), {"member_ids"}),
        (new("support", "max"), {"member_ids"}),
        (new("support", "cleo", "carl"), {"member_ids"}),
        (new("support", "cleo", scope="public"), {"scope"}),
        (new("direct", "max", "mia", title="Us", id="us"), {"title", "id"}),
        (new("direct", "max", "mia", scope="private", about="x"), {"scope", "about"}),
        (new("group", "max", about="nowhere"), {"about"}),
        (new("group", "max", about="desk", scope="public"), {"scope"}),
        (new("group", "max", "cleo", about="desk"), {"member_ids"}),
        (new("group", "max", about="team"), {"about"}),
    ],
)
async def test_what_does_not_go_together_is_refused_by_field(
    acme: Company, body: wire.CreateRoom, fields: set[str]
) -> None:
    await acme.open("support", "cleo", id="desk")
    await acme.open("group", "max", id="team")
    with pytest.raises(ValidationFailed) as refused:
        await acme.rooms.create(KEY, body)
    assert {error.field for error in refused.value.errors} == fields


async def test_deactivated_users_found_nothing(acme: Company) -> None:
    await acme.people.users.delete(KEY, "mia")
    with pytest.raises(ValidationFailed, match="mia"):
        await acme.rooms.create(MAX, new("group", "mia"))


async def test_a_large_room_has_all_its_founders_when_it_is_made(acme: Company) -> None:
    crowd = [f"u{number:03}" for number in range(3 * FOUNDERS_INLINE_MAX)]
    await acme.add_users(dict.fromkeys(crowd, "customer"))
    room = await acme.open("group", *crowd)
    assert room.member_count == len(crowd)
    found: list[str] = []
    cursor = None
    while True:
        page = await acme.rooms.members(KEY, room.id, limit=40, cursor=cursor)
        found += [member.user_id for member in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert found == crowd
    last = Caller("acme", "session", "s", crowd[-1], "customer", "s")
    await acme.say(last, room.id, "I am in")


async def test_rooms_are_listed_newest_activity_first_whatever_the_page(acme: Company) -> None:
    desks = [
        (await acme.open("support", "cleo", id=f"desk-{number:02}")).id for number in range(14)
    ]
    await acme.open("group", "max", id="lounge", scope="public")
    await acme.open("group", "max", id="secret")
    expected = desks.copy()
    for number in (3, 11, 7):
        acme.clock.forward(60)
        await acme.say(CLEO, desks[number], "Anybody there?")
        expected.remove(desks[number])
        expected.insert(0, desks[number])
    ties = expected[3:]
    expected[3:] = sorted(ties, reverse=True)
    for limit in (1, 2, 3, 5, 14, 50):
        assert await every_room(acme, MAX, limit, kind="support") == expected
        assert await every_room(acme, KEY, limit, kind="group") == ["lounge"]
        assert set(await every_room(acme, ADA, limit)) == {*expected, "lounge"}
    for refused in (CLEO, ROBO):
        with pytest.raises(Forbidden):
            await every_room(acme, refused, 5)


async def test_activity_between_pages_hides_no_other_room(acme: Company) -> None:
    desks = [
        (await acme.open("support", "cleo", id=f"desk-{number:02}")).id for number in range(20)
    ]
    wanted: dict[str, Any] = {"kind": "support", "status": None, "assignee_id": None, "tag": None}
    seen: list[str] = []
    cursor = None
    while True:
        page = await acme.rooms.list(MAX, **wanted, limit=3, cursor=cursor)
        seen += [room.id for room in page.items]
        cursor = page.next
        if cursor is None:
            break
        rest = [desk for desk in desks if desk not in seen]
        if rest:  # it moves to the top, which was read already
            acme.clock.forward(60)
            await acme.say(CLEO, rest[0], "Me first")
            desks.remove(rest[0])
    assert len(seen) == len(set(seen))
    assert set(desks) <= set(seen)


async def test_lists_are_filtered(acme: Company) -> None:
    for number in range(6):
        await acme.open("support", "cleo", id=f"desk-{number}")
    await acme.rooms.patch(MAX, "desk-1", wire.PatchRoom(assignee_id="max"))
    await acme.rooms.patch(MAX, "desk-2", wire.PatchRoom(assignee_id="mia"))
    await acme.rooms.patch(MAX, "desk-3", wire.PatchRoom(status="closed"))
    await acme.rooms.patch(MAX, "desk-4", wire.PatchRoom(status="snoozed"))
    unassigned = {"desk-0", "desk-3", "desk-4", "desk-5"}
    for limit in (1, 2, 10):
        assert await every_room(acme, MAX, limit, assignee_id="me") == ["desk-1"]
        assert await every_room(acme, MAX, limit, assignee_id="mia") == ["desk-2"]
        assert set(await every_room(acme, MAX, limit, assignee_id="none")) == unassigned
        assert await every_room(acme, MAX, limit, status="closed") == ["desk-3"]
        assert await every_room(acme, MAX, limit, kind="support", tag="vip") == []
        no_one, is_open = "none", "open"
        both = await every_room(acme, MAX, limit, status=is_open, assignee_id=no_one)
        assert set(both) == {"desk-0", "desk-5"}
    assert await acme.rooms.queue(MAX) == wire.Queue(2, 1)
    for wrong in ({"kind": "direct"}, {"kind": "group", "status": "open"}):
        with pytest.raises(ValidationFailed):
            await every_room(acme, MAX, 5, **wrong)
    with pytest.raises(ValidationFailed):
        await every_room(acme, KEY, 5, assignee_id="me")
    with pytest.raises(ValidationFailed):
        await acme.rooms.list(
            MAX, kind="support", status=None, assignee_id=None, tag=None, limit=5, cursor="made-up"
        )


async def test_a_room_is_changed_as_its_kind_allows(acme: Company) -> None:
    team = await acme.open("group", "max", title="Team")
    desk = await acme.open("support", "cleo")
    pair = await acme.open("direct", "max", "mia")
    changed = await acme.rooms.patch(MAX, team.id, wire.PatchRoom(title="Crew", scope="public"))
    assert (changed.title, changed.scope) == ("Crew", "public")
    assert (await acme.rooms.patch(MAX, team.id, wire.PatchRoom(title=None))).title is None
    for room, body in (
        (team, wire.PatchRoom(status="closed")),
        (team, wire.PatchRoom(assignee_id="max")),
        (desk, wire.PatchRoom(scope="public")),
        (pair, wire.PatchRoom(title="Us")),
        (desk, wire.PatchRoom(assignee_id="cleo")),
        (desk, wire.PatchRoom(assignee_id="robo")),
        (desk, wire.PatchRoom(snoozed_until="tomorrow")),
        (desk, wire.PatchRoom(snoozed_until="2026-01-01T00:00:00")),
        (desk, wire.PatchRoom(snoozed_until=rfc3339(acme.clock()))),
        (desk, wire.PatchRoom(status="closed", snoozed_until=rfc3339(acme.clock() + 60_000))),
    ):
        with pytest.raises(ValidationFailed) as refused:
            await acme.rooms.patch(MAX, room.id, body)
        assert refused.value.errors
    with pytest.raises(Forbidden):
        await acme.rooms.patch(CLEO, desk.id, wire.PatchRoom(status="closed"))
    with pytest.raises(NotFound):
        await acme.rooms.patch(ADA, pair.id, wire.PatchRoom(title="Them"))


async def test_who_is_assigned_becomes_a_member_and_leaving_ends_it(acme: Company) -> None:
    desk = await acme.open("support", "cleo")
    changed = await acme.rooms.patch(MAX, desk.id, wire.PatchRoom(assignee_id="mia"))
    assert (changed.assignee_id, changed.member_count) == ("mia", 2)
    assert await acme.rooms.queue(MAX) == wire.Queue(0, 0)
    await acme.rooms.remove_member(MIA, desk.id, "mia")
    left = await acme.rooms.get(MAX, desk.id)
    assert (left.assignee_id, left.member_count) == (None, 1)
    assert await acme.rooms.queue(MAX) == wire.Queue(1, 0)


async def test_a_snoozed_room_opens_in_time(acme: Company) -> None:
    soon, later = await acme.open("support", "cleo"), await acme.open("support", "carl")
    for room, minutes in ((soon, 1), (later, 10)):
        until = rfc3339(acme.clock() + minutes * 60_000)
        asleep = await acme.rooms.patch(MAX, room.id, wire.PatchRoom(snoozed_until=until))
        assert (asleep.status, asleep.snoozed_until) == ("snoozed", until)
    assert await acme.chat.cluster.schedule.run() == 0
    acme.clock.forward(61)
    assert await acme.chat.cluster.schedule.run() == 1
    woken = await acme.rooms.get(MAX, soon.id)
    assert (woken.status, woken.snoozed_until) == ("open", None)
    assert (await acme.rooms.get(MAX, later.id)).status == "snoozed"
    await acme.say(CARL, later.id, "Still waiting")
    reopened = await acme.rooms.get(MAX, later.id)
    assert (reopened.status, reopened.snoozed_until) == ("open", None)


async def test_managers_are_told_when_the_queue_changes(
    acme: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.chat.waiting.QUEUE_PAUSE_S", 0.0)
    room, _ = await acme.rooms.create(CLEO, new("support"))

    async def told(count: int) -> None:
        async with asyncio.timeout(60):
            while not acme.signals or acme.signals[-1][1].get("open") != count:
                await asyncio.sleep(0)

    await told(1)
    assert acme.signals[-1][0] == {"manager", "admin"}
    await acme.rooms.patch(MAX, room.id, wire.PatchRoom(assignee_id="max"))
    await told(0)
    signals = len(acme.signals)
    await acme.say(CLEO, room.id, "Thanks")
    await acme.open("group", "max")
    assert len(acme.signals) == signals


async def test_members_come_and_go(acme: Company) -> None:
    team = await acme.open("group", "max", "cleo", scope="public")
    body = wire.AddMember(user_id="mia", user_ids=["carl", "max", "mia"], role="owner")
    added = await acme.rooms.add_members(MAX, team.id, body)
    assert {member.user_id: member.role for member in added.items} == {
        "mia": "owner",
        "carl": "owner",
        "max": "member",
    }
    assert (await acme.rooms.get(ADA, team.id)).member_count == 4
    joined = await acme.rooms.add_members(ADA, team.id, wire.AddMember(user_id="ada"))
    assert [member.name for member in joined.items] == ["Ada"]
    await acme.rooms.remove_member(CARL, team.id, "carl")
    with pytest.raises(NotFound):
        await acme.rooms.get(CARL, team.id)
    with pytest.raises(NotFound):
        await acme.rooms.remove_member(MAX, team.id, "carl")
    with pytest.raises(Forbidden):
        await acme.rooms.remove_member(CLEO, team.id, "max")
    with pytest.raises(Forbidden):
        await acme.rooms.add_members(CLEO, team.id, wire.AddMember(user_id="carl"))
    for wrong in (wire.AddMember(), wire.AddMember(user_ids=["mia", "nobody"])):
        with pytest.raises(ValidationFailed):
            await acme.rooms.add_members(MAX, team.id, wrong)


async def test_some_rooms_keep_strangers_out(acme: Company) -> None:
    pair = await acme.open("direct", "max", "cleo")
    desk = await acme.open("support", "cleo", "max")
    notes = await acme.open("group", "max", about=desk.id)
    with pytest.raises(Conflict):
        await acme.rooms.add_members(MAX, pair.id, wire.AddMember(user_id="mia"))
    with pytest.raises(Conflict):
        await acme.rooms.remove_member(CLEO, desk.id, "cleo")
    for room in (desk, notes):
        with pytest.raises(ValidationFailed):
            await acme.rooms.add_members(MAX, room.id, wire.AddMember(user_id="carl"))
    with pytest.raises(ValidationFailed):
        await acme.rooms.patch(MAX, notes.id, wire.PatchRoom(scope="public"))


async def test_leaving_takes_the_unread_off_the_total(acme: Company) -> None:
    team = await acme.open("group", "max", "mia")
    for _ in range(3):
        await acme.say(MIA, team.id, "News", mentions=["max"])
    assert (await acme.inboxes.badge(MAX)).unread == 3
    await acme.rooms.remove_member(MAX, team.id, "max")
    badge = await acme.inboxes.badge(MAX)
    assert (badge.unread, badge.mentions) == (0, 0)


async def test_a_muted_room_counts_for_itself_alone(acme: Company) -> None:
    team = await acme.open("group", "max", "mia")
    await acme.say(MIA, team.id, "One")
    item = await acme.rooms.mute(MAX, team.id, True)
    assert (item.unread, item.muted) == (1, True)
    assert (await acme.inboxes.badge(MAX)).unread == 0
    await acme.rooms.mute(MAX, team.id, False)
    assert (await acme.inboxes.badge(MAX)).unread == 1
    with pytest.raises(Forbidden):
        await acme.rooms.mute(KEY, team.id, True)
    with pytest.raises(NotFound):
        await acme.rooms.mute(ADA, team.id, True)


async def test_the_others_are_told_who_is_typing(acme: Company) -> None:
    team = await acme.open("group", "max", "mia", "cleo")
    desk = await acme.open("support", "cleo")
    await acme.rooms.typing(MAX, team.id)
    frame = {"type": "typing", "room_id": team.id, "user_id": "max"}
    assert acme.signals.pop() == ({"mia", "cleo"}, frame)
    await acme.rooms.typing(MAX, desk.id)
    assert acme.signals.pop()[0] == {"cleo"}
    with pytest.raises(NotFound):
        await acme.rooms.typing(CARL, team.id)
    with pytest.raises(Forbidden):
        await acme.rooms.typing(KEY, team.id)


async def test_typing_in_a_large_room_is_told_to_its_members(acme: Company) -> None:
    crowd = [f"u{number:03}" for number in range(40)]
    await acme.add_users(dict.fromkeys(crowd, "customer"))
    room = await acme.open("group", "max", *crowd)
    await acme.rooms.typing(MAX, room.id)
    assert acme.signals.pop()[0] == set(crowd)


async def test_another_workspace_is_not_there(acme: Company) -> None:
    room = await acme.open("group", "max", scope="public")
    for caller in (MAX, ADA, KEY):
        with pytest.raises(NotFound):
            await acme.rooms.get(msgspec.structs.replace(caller, workspace="other"), room.id)
