"""Rooms over HTTP: making and changing them, who is in them, inbox, badge, queue and mute."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.api.conftest import Answer, Site
from tests.stores import BOTH_STORES

STORES = BOTH_STORES
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Company(msgspec.Struct, frozen=True):
    """Two managers, an admin, and two customers, each with a session."""

    site: Site
    key: str
    mia: str
    max: str
    ada: str
    cleo: str
    carl: str

    async def make(self, token: str, **body: Any) -> Answer:
        return await self.site.call("POST", "/v1/rooms", token, body)

    async def room(self, token: str, **body: Any) -> str:
        """The id of a new room."""
        made = await self.make(token, **body)
        assert made.status == 201, made
        room_id: str = made.json["id"]
        return room_id

    async def get(self, path: str, token: str) -> Any:
        answer = await self.site.call("GET", path, token)
        assert answer.status == 200, answer
        return answer.json

    async def ids(self, path: str, token: str) -> list[str]:
        """The rooms of a list or an inbox, page by page of two."""
        found, cursor = [], ""
        while True:
            joint = "&" if "?" in path else "?"
            page = await self.get(f"{path}{joint}limit=2{cursor}", token)
            assert len(page["items"]) <= 2
            found += [item.get("room_id", item.get("id")) for item in page["items"]]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    async def post(self, room_id: str, token: str, client_id: str, text: str = "Hello") -> None:
        body = {"client_id": client_id, "text": text}
        answer = await self.site.call("POST", f"/v1/rooms/{room_id}/messages", token, body)
        assert answer.status == 201, answer

    async def patch(self, room_id: str, token: str, **body: Any) -> Answer:
        return await self.site.call("PATCH", f"/v1/rooms/{room_id}", token, body)

    async def unread(self, token: str) -> int:
        unread: int = (await self.get("/v1/badge", token))["unread"]
        return unread

    async def row(self, room_id: str, token: str) -> Any:
        """The room's row of an inbox; None where there is none."""
        rows = (await self.get("/v1/inbox?limit=500", token))["items"]
        return next((row for row in rows if row["room_id"] == room_id), None)


@pytest.fixture
async def company(site: Site) -> Company:
    people = [
        ("mia", "manager"),
        ("max", "manager"),
        ("ada", "admin"),
        ("cleo", "customer"),
        ("carl", "customer"),
    ]
    return Company(site, await site.key(), *[await site.user(*each) for each in people])


# --- making ------------------------------------------------------------------------------------


async def test_a_direct_room_is_made_once_per_pair(company: Company) -> None:
    first = await company.make(company.mia, kind="direct", member_ids=["max"])
    assert first.status == 201
    for token, others in ((company.max, ["mia"]), (company.key, ["max", "mia"])):
        again = await company.make(token, kind="direct", member_ids=others)
        assert (again.status, again.json["id"]) == (200, first.json["id"])
    for others in ([], ["mia"], ["max", "ada"]):
        answer = await company.make(company.mia, kind="direct", member_ids=others)
        assert (answer.status, answer.fields) == (400, ["member_ids"])


async def test_a_new_room_is_empty_and_its_founders_did_not_join(company: Company) -> None:
    made = await company.make(company.mia, kind="group", title="Plans", member_ids=["max"])
    assert made.status == 201
    room = made.json
    assert TIME.fullmatch(room["created_at"])
    assert (room["kind"], room["title"], room["head"], room["scope"], room["history"]) == (
        "group",
        "Plans",
        0,
        "private",
        "full",
    )
    assert await company.get(f"/v1/rooms/{room['id']}", company.max) == room
    assert (await company.get(f"/v1/rooms/{room['id']}/messages", company.max))["items"] == []
    members = (await company.get(f"/v1/rooms/{room['id']}/members", company.max))["items"]
    assert [(each["user_id"], each["name"], each["joined_seq"]) for each in members] == [
        ("max", "Max", 0),
        ("mia", "Mia", 0),
    ]


async def test_only_an_api_key_chooses_an_id_and_once(company: Company) -> None:
    first = await company.make(company.key, kind="group", id="plans", member_ids=["mia"])
    again = await company.make(company.key, kind="group", id="plans", title="x", member_ids=["max"])
    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    other = await company.make(company.key, kind="support", id="plans", member_ids=["cleo"])
    assert (other.status, other.json["code"]) == (409, "conflict")
    assert (await company.make(company.mia, kind="group", id="mine")).status == 403


async def test_a_customer_opens_support_rooms_of_their_own_only(company: Company) -> None:
    made = await company.make(company.cleo, kind="support")
    assert made.status == 201
    assert (made.json["status"], made.json["assignee_id"]) == ("open", None)
    members = await company.get(f"/v1/rooms/{made.json['id']}/members", company.cleo)
    assert [each["user_id"] for each in members["items"]] == ["cleo"]
    for body in (
        {"kind": "support", "member_ids": ["carl"]},
        {"kind": "support", "id": "mine"},
        {"kind": "group", "member_ids": ["carl"]},
        {"kind": "direct", "member_ids": ["mia"]},
    ):
        assert (await company.make(company.cleo, **body)).status == 403, body
    assert (await company.site.call("GET", "/v1/rooms", company.cleo)).status == 403
    assert (await company.site.call("GET", "/v1/queue", company.cleo)).status == 403


async def test_notes_about_a_customers_room_are_for_managers(company: Company) -> None:
    support = await company.room(company.cleo, kind="support")
    notes = await company.room(company.mia, kind="group", about=support, member_ids=["max"])
    assert (await company.get(f"/v1/rooms/{notes}", company.max))["about"] == support
    for body, field in (
        ({"about": support, "member_ids": ["cleo"]}, "member_ids"),
        ({"about": support, "scope": "public"}, "scope"),
        ({"about": notes}, "about"),
        ({"about": "nowhere"}, "about"),
    ):
        answer = await company.make(company.mia, kind="group", **body)
        assert (answer.status, answer.fields) == (400, [field]), body
    added = await company.site.call(
        "POST", f"/v1/rooms/{notes}/members", company.mia, {"user_id": "cleo"}
    )
    assert added.status == 400


# --- seeing and listing ------------------------------------------------------------------------


async def test_lists_are_newest_first_and_page_without_gaps(company: Company) -> None:
    support = [await company.room(company.cleo, kind="support") for _ in range(5)]
    public = [
        await company.room(company.mia, kind="group", scope="public", title=f"{n}")
        for n in range(3)
    ]
    await company.room(company.mia, kind="group", title="private")
    assert sorted(await company.ids("/v1/rooms?kind=support", company.max)) == sorted(support)
    assert sorted(await company.ids("/v1/rooms?kind=group", company.max)) == sorted(public)
    assert sorted(await company.ids("/v1/rooms", company.key)) == sorted(support + public)
    assert (await company.site.call("GET", "/v1/rooms?kind=direct", company.mia)).status == 400


async def test_support_rooms_are_found_by_status_and_assignee(company: Company) -> None:
    waiting, mine, closed = [await company.room(company.cleo, kind="support") for _ in range(3)]
    assert (await company.patch(mine, company.mia, assignee_id="mia")).status == 200
    assert (await company.patch(closed, company.mia, status="closed")).status == 200
    for query, found in (
        ("status=closed", {closed}),
        ("status=open", {waiting, mine}),
        ("assignee_id=me", {mine}),
        ("assignee_id=mia", {mine}),
        ("assignee_id=none", {waiting, closed}),
        ("assignee_id=none&status=open", {waiting}),
        ("assignee_id=max", set()),
        ("tag=vip", set()),
    ):
        ids = await company.ids(f"/v1/rooms?kind=support&{query}", company.mia)
        assert set(ids) == found, query


async def test_lists_say_what_was_said_last_also_to_managers_who_are_no_members(
    company: Company,
) -> None:
    quiet, waiting = [await company.room(company.cleo, kind="support") for _ in range(2)]
    await company.post(waiting, company.cleo, "one", "Is it lost?")
    found = (await company.site.call("GET", "/v1/rooms?kind=support", company.max)).json["items"]
    rooms = {room["id"]: room for room in found}
    log = await company.site.call("GET", f"/v1/rooms/{waiting}/messages", company.max)
    assert rooms[waiting]["preview"] == "Is it lost?"
    assert [user["name"] for user in rooms[waiting]["with"]] == ["Cleo"]
    assert rooms[waiting]["updated_at"] == log.json["items"][-1]["created_at"]
    assert (rooms[quiet]["preview"], rooms[quiet]["updated_at"]) == (
        None,
        rooms[quiet]["created_at"],
    )


async def test_what_may_not_be_seen_looks_like_what_is_not_there(company: Company) -> None:
    hidden = await company.room(company.mia, kind="group", member_ids=["ada"])
    foreign = await company.room(company.carl, kind="support")
    for token, room_id in ((company.max, hidden), (company.cleo, foreign), (company.cleo, hidden)):
        for path in ("", "/members", "/messages"):
            seen = await company.site.call("GET", f"/v1/rooms/{room_id}{path}", token)
            missing = await company.site.call("GET", f"/v1/rooms/nowhere{path}", token)
            assert seen.status == missing.status == 404
            assert seen.json == missing.json
    assert (await company.site.call("GET", f"/v1/rooms/{foreign}", company.max)).status == 200


# --- changing ----------------------------------------------------------------------------------


async def test_a_patch_changes_what_it_names_and_null_removes(company: Company) -> None:
    room = await company.room(company.mia, kind="group", title="Old")
    assert (await company.patch(room, company.mia, title="New")).json["title"] == "New"
    changed = (await company.patch(room, company.mia, scope="public")).json
    assert (changed["title"], changed["scope"]) == ("New", "public")
    assert (await company.patch(room, company.mia, title=None)).json["title"] is None
    assert (await company.patch(room, company.mia)).status == 200
    answer = await company.patch(room, company.mia, status="open", snoozed_until=None)
    assert (answer.status, answer.fields) == (400, ["status", "snoozed_until"])


async def test_who_is_assigned_becomes_a_member(company: Company) -> None:
    room = await company.room(company.cleo, kind="support")
    await company.post(room, company.cleo, "c1")
    taken = await company.patch(room, company.mia, assignee_id="max")
    assert (taken.status, taken.json["assignee_id"]) == (200, "max")
    assert await company.row(room, company.max) is not None
    assert await company.row(room, company.mia) is None
    await company.post(room, company.cleo, "c2")
    assert await company.unread(company.max) == 1
    for nobody in ("cleo", "nobody"):
        answer = await company.patch(room, company.mia, assignee_id=nobody)
        assert (answer.status, answer.fields) == (400, ["assignee_id"])
    freed = await company.patch(room, company.mia, assignee_id=None)
    assert freed.json["assignee_id"] is None
    assert (await company.patch(room, company.cleo, status="closed")).status == 403


async def test_a_manager_who_posts_in_a_support_room_becomes_a_member(company: Company) -> None:
    room = await company.room(company.cleo, kind="support")
    await company.post(room, company.cleo, "c1")
    await company.post(room, company.mia, "m1")
    await company.post(room, company.cleo, "c2")
    assert await company.unread(company.mia) == 1
    assert await company.unread(company.cleo) == 1


async def test_a_snoozed_room_names_the_time_and_wakes_when_the_customer_writes(
    company: Company,
) -> None:
    room = await company.room(company.cleo, kind="support")
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    snoozed = await company.patch(room, company.mia, snoozed_until=later)
    assert (snoozed.json["status"], snoozed.json["snoozed_until"]) == ("snoozed", later)
    past = await company.patch(room, company.mia, snoozed_until="2020-01-01T00:00:00.000Z")
    assert (past.status, past.fields) == (400, ["snoozed_until"])
    await company.post(room, company.cleo, "c1")
    woken = await company.get(f"/v1/rooms/{room}", company.mia)
    assert (woken["status"], woken["snoozed_until"]) == ("open", None)


async def test_the_queue_counts_what_waits_unassigned(company: Company) -> None:
    async def queue() -> tuple[int, int]:
        answer = await company.get("/v1/queue", company.mia)
        return answer["open"], answer["snoozed"]

    assert await queue() == (0, 0)
    rooms = [await company.room(company.cleo, kind="support") for _ in range(3)]
    assert await queue() == (3, 0)
    await company.patch(rooms[0], company.mia, assignee_id="mia")
    await company.patch(rooms[1], company.mia, status="snoozed")
    assert await queue() == (1, 1)
    await company.patch(rooms[2], company.mia, status="closed")
    assert await queue() == (0, 1)
    assert (await company.site.call("GET", "/v1/queue", company.key)).status == 403


# --- members -----------------------------------------------------------------------------------


async def test_who_joins_later_starts_with_nothing_unread(company: Company) -> None:
    room = await company.room(company.mia, kind="group", scope="public")
    await company.post(room, company.mia, "m1")
    joining = await company.site.call(
        "POST", f"/v1/rooms/{room}/members", company.max, {"user_id": "max"}
    )
    assert joining.status == 201
    assert [each["user_id"] for each in joining.json["items"]] == ["max"]
    row = await company.row(room, company.max)
    assert (row["unread"], row["head"], row["read_seq"]) == (0, 2, 2)
    log = (await company.get(f"/v1/rooms/{room}/messages", company.max))["items"]
    assert [entry["type"] for entry in log] == ["text", "joined"]
    again = await company.site.call(
        "POST", f"/v1/rooms/{room}/members", company.max, {"user_id": "max"}
    )
    assert again.status == 201
    assert (await company.get(f"/v1/rooms/{room}", company.max))["head"] == 2
    await company.post(room, company.mia, "m2")
    assert await company.unread(company.max) == 1


async def test_a_public_room_may_be_read_but_not_written_by_who_is_not_in_it(
    company: Company,
) -> None:
    room = await company.room(company.mia, kind="group", scope="public")
    await company.post(room, company.mia, "m1")
    log = await company.get(f"/v1/rooms/{room}/messages", company.max)
    assert len(log["items"]) == 1
    body = {"client_id": "x", "text": "Hello"}
    answer = await company.site.call("POST", f"/v1/rooms/{room}/messages", company.max, body)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert await company.unread(company.max) == 0


async def test_leaving_takes_the_unread_off_the_total(company: Company) -> None:
    kept = await company.room(company.mia, kind="group", member_ids=["max"])
    left = await company.room(company.mia, kind="group", member_ids=["max"])
    for number, room in enumerate((kept, left, left)):
        await company.post(room, company.mia, f"m{number}")
    assert await company.unread(company.max) == 3
    before = (await company.get("/v1/badge", company.max))["version"]
    answer = await company.site.call("DELETE", f"/v1/rooms/{left}/members/max", company.max)
    assert (answer.status, answer.raw) == (204, b"")
    badge = await company.get("/v1/badge", company.max)
    assert (badge["unread"], badge["version"]) == (1, before + 1)
    assert await company.row(left, company.max) is None
    assert (await company.site.call("GET", f"/v1/rooms/{left}", company.max)).status == 404
    log = (await company.get(f"/v1/rooms/{left}/messages", company.mia))["items"]
    assert log[-1]["type"] == "left"
    gone = await company.site.call("DELETE", f"/v1/rooms/{left}/members/max", company.mia)
    assert gone.status == 404


async def test_customers_add_nobody_and_direct_rooms_stay_two(company: Company) -> None:
    support = await company.room(company.cleo, kind="support")
    path = f"/v1/rooms/{support}/members"
    assert (await company.site.call("POST", path, company.cleo, {"user_id": "carl"})).status == 403
    second = await company.site.call("POST", path, company.mia, {"user_id": "carl"})
    assert second.status == 400
    direct = await company.room(company.mia, kind="direct", member_ids=["max"])
    path = f"/v1/rooms/{direct}/members"
    for method, target, body in (
        ("POST", path, {"user_id": "ada"}),
        ("DELETE", f"{path}/max", None),
        ("DELETE", f"{path}/mia", None),
    ):
        answer = await company.site.call(method, target, company.mia, body)
        assert (answer.status, answer.json["code"]) == (409, "conflict"), method


async def test_members_of_a_large_room_come_page_by_page(company: Company) -> None:
    ids = [f"u{number:02}" for number in range(30)]
    for user_id in ids:
        body = {"id": user_id, "role": "manager", "name": user_id}
        await company.site.call("POST", "/v1/users", company.key, body)
    made = await company.make(company.mia, kind="group", member_ids=ids)
    assert (made.status, made.json["member_count"]) == (201, 31)
    path = f"/v1/rooms/{made.json['id']}/members"
    first = await company.get(f"{path}?limit=20", company.mia)
    rest = await company.get(f"{path}?limit=20&cursor={first['next']}", company.mia)
    assert rest["next"] is None
    found = [each["user_id"] for each in first["items"] + rest["items"]]
    assert found == sorted([*ids, "mia"])


# --- one's own ---------------------------------------------------------------------------------


async def test_an_inbox_is_newest_first_and_says_with_whom(company: Company) -> None:
    direct = await company.room(company.mia, kind="direct", member_ids=["max"])
    group = await company.room(company.mia, kind="group", title="Plans", member_ids=["max"])
    support = await company.room(company.cleo, kind="support")
    await company.post(support, company.mia, "m1")
    await company.post(direct, company.max, "m2", "Shall we?" + "!" * 200)
    rows = (await company.get("/v1/inbox", company.mia))["items"]
    assert [row["room_id"] for row in rows] == [direct, support, group]
    assert await company.ids("/v1/inbox", company.mia) == [direct, support, group]
    assert (rows[0]["kind"], rows[0]["unread"], rows[0]["mentions"]) == ("direct", 1, 0)
    assert (rows[0]["read_seq"], rows[0]["head"]) == (0, 1)
    assert TIME.fullmatch(rows[0]["updated_at"])
    assert rows[0]["preview"] == ("Shall we?" + "!" * 200)[:120]
    assert [[each["id"] for each in row["with"]] for row in rows] == [["max"], ["cleo"], []]
    assert rows[2]["title"] == "Plans"
    for query, found in (
        ("unread=true", [direct]),
        ("kind=group", [group]),
        ("kind=support", [support]),
        ("status=open", [support]),
        ("status=closed", []),
        ("unread=true&kind=group", []),
    ):
        assert await company.ids(f"/v1/inbox?{query}", company.mia) == found, query
    for path in ("/v1/inbox", "/v1/badge"):
        assert (await company.site.call("GET", path, company.key)).status == 403


async def test_all_unread_rooms_are_paged(company: Company) -> None:
    rooms = [await company.room(company.mia, kind="group", member_ids=["max"]) for _ in range(7)]
    for number, room in enumerate(rooms):
        await company.post(room, company.mia, f"m{number}")
    assert await company.ids("/v1/inbox?unread=true", company.max) == rooms[::-1]


async def test_a_muted_room_counts_for_itself_but_not_in_the_total(company: Company) -> None:
    room = await company.room(company.mia, kind="group", member_ids=["max"])
    await company.post(room, company.mia, "m1")
    path = f"/v1/rooms/{room}/mute"
    muted = await company.site.call("PUT", path, company.max, {"muted": True})
    assert (muted.status, muted.json["muted"], muted.json["unread"]) == (200, True, 1)
    assert await company.unread(company.max) == 0
    await company.post(room, company.mia, "m2")
    assert await company.unread(company.max) == 0
    assert (await company.row(room, company.max))["unread"] == 2
    heard = await company.site.call("PUT", path, company.max, {"muted": False})
    assert heard.json["muted"] is False
    assert await company.unread(company.max) == 2
    assert (await company.site.call("PUT", path, company.key, {"muted": True})).status == 403
    assert (await company.site.call("PUT", path, company.ada, {"muted": True})).status == 404


async def test_a_hidden_room_comes_back_with_what_is_new(company: Company) -> None:
    room = await company.room(company.mia, kind="direct", member_ids=["max"])
    other = await company.room(company.mia, kind="group", member_ids=["max"])
    path = f"/v1/rooms/{room}/hide"
    hidden = await company.site.call("PUT", path, company.max, {"hidden": True})
    assert (hidden.status, hidden.json["hidden"]) == (200, True)
    assert await company.ids("/v1/inbox", company.max) == [other]
    assert await company.ids("/v1/inbox", company.mia) == [other, room]
    shown = await company.site.call("PUT", path, company.max, {"hidden": False})
    assert shown.json["hidden"] is False
    assert await company.ids("/v1/inbox", company.max) == [other, room]
    await company.site.call("PUT", path, company.max, {"hidden": True})
    await company.post(room, company.mia, "m1")
    assert await company.ids("/v1/inbox", company.max) == [room, other]
    await company.site.call("PUT", path, company.max, {"hidden": True})
    assert await company.ids("/v1/inbox?unread=true", company.max) == []
    assert await company.unread(company.max) == 1
    row = await company.get(f"/v1/rooms/{room}/inbox", company.max)
    assert (row["hidden"], row["unread"], row["with"][0]["id"]) == (True, 1, "mia")
    assert (await company.site.call("PUT", path, company.ada, {"hidden": True})).status == 404


async def test_me_has_the_totals_of_the_badge(company: Company) -> None:
    room = await company.room(company.mia, kind="direct", member_ids=["max"])
    await company.post(room, company.mia, "m1")
    me, badge = [await company.get(path, company.max) for path in ("/v1/me", "/v1/badge")]
    assert badge.keys() == {"unread", "mentions", "version"}
    assert (me["id"], me["name"], me["role"]) == ("max", "Max", "manager")
    assert {name: me[name] for name in badge} == badge
    assert badge["unread"] == 1
