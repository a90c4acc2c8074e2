"""The log of a room over HTTP: exactly once, in order, and counted by those who have not read."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from tests.api.conftest import Answer, Opening, Site
from tests.stores import BOTH_STORES
from tidings.wire import TEXT_CHARACTERS_MAX

STORES = BOTH_STORES
ENTRY_FIELDS = {
    *("room_id", "seq", "id", "type", "sender_id", "client_id", "text", "blobs", "reply_to"),
    *("mentions", "reactions", "edited_at", "deleted_at", "created_at", "data"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Team(msgspec.Struct, frozen=True):
    """Ada and Bob in the group room `r1`, and Eve who is not in it."""

    site: Site
    key: str
    ada: str
    bob: str
    eve: str

    async def post(self, token: str, client_id: str, text: str = "Hello", **more: Any) -> Answer:
        body = {"client_id": client_id, "text": text, **more}
        return await self.site.call("POST", "/v1/rooms/r1/messages", token, body)

    async def fill(self, count: int, token: str = "") -> None:
        """Messages of Ada's, or of somebody else's."""
        for number in range(1, count + 1):
            assert (await self.post(token or self.ada, f"f{number}", f"{number}")).status == 201

    async def log(self, query: str = "", token: str = "") -> Any:
        answer = await self.site.call("GET", f"/v1/rooms/r1/messages{query}", token or self.ada)
        assert answer.status == 200, answer
        return answer.json

    async def seqs(self, query: str = "") -> list[int]:
        return [entry["seq"] for entry in (await self.log(query))["items"]]

    async def badge(self, token: str) -> tuple[int, int]:
        badge = (await self.site.call("GET", "/v1/badge", token)).json
        return badge["unread"], badge["mentions"]

    async def read(self, token: str, seq: int) -> Answer:
        return await self.site.call("PUT", "/v1/rooms/r1/read", token, {"seq": seq})


@pytest.fixture
async def team(site: Site) -> Team:
    tokens = [await site.user(each) for each in ("ada", "bob", "eve")]
    key = await site.key()
    body = {"id": "r1", "kind": "group", "member_ids": ["ada", "bob"]}
    assert (await site.call("POST", "/v1/rooms", key, body)).status == 201
    return Team(site, key, *tokens)


# --- posting -----------------------------------------------------------------------------------


async def test_an_entry_has_all_its_fields(team: Team) -> None:
    await team.fill(1)
    answer = await team.post(team.ada, "a", "Hi @bob", reply_to=1, mentions=["bob"])
    assert answer.status == 201
    entry = answer.json
    assert entry.keys() == ENTRY_FIELDS
    assert TIME.fullmatch(entry.pop("created_at"))
    assert entry.pop("id")
    assert entry == {
        "room_id": "r1",
        "seq": 2,
        "type": "text",
        "sender_id": "ada",
        "client_id": "a",
        "text": "Hi @bob",
        "blobs": [],
        "reply_to": 1,
        "mentions": ["bob"],
        "reactions": {},
        "edited_at": None,
        "deleted_at": None,
        "data": {},
    }
    assert (await team.log("?after=1"))["items"] == [answer.json]


async def test_the_same_message_again_is_the_first_one(team: Team) -> None:
    first = await team.post(team.ada, "a")
    again = await team.post(team.ada, "a")
    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    assert (await team.log())["head"] == 1
    other = await team.post(team.bob, "a")
    assert (other.status, other.json["seq"]) == (201, 2)


@pytest.mark.parametrize(
    "other", [{"text": "Bye"}, {"reply_to": 1}, {"mentions": ["bob"]}, {"mentions": ["ada"]}]
)
async def test_a_client_id_with_another_body_is_a_mismatch(
    team: Team, other: dict[str, Any]
) -> None:
    await team.fill(1)
    await team.post(team.ada, "a")
    answer = await team.post(team.ada, "a", **other)
    assert (answer.status, answer.json["code"]) == (422, "idempotency_mismatch")
    assert (await team.log())["head"] == 2


@pytest.mark.parametrize("header", ["a", '"a"'])
async def test_the_header_may_stand_for_the_client_id(team: Team, header: str) -> None:
    headers = {"Idempotency-Key": header}
    path = "/v1/rooms/r1/messages"
    first = await team.site.call("POST", path, team.ada, {"text": "Hello"}, headers=headers)
    assert (first.status, first.json["client_id"]) == (201, "a")
    assert (await team.post(team.ada, "a")).status == 200
    both = {"text": "Hello", "client_id": "a"}
    assert (await team.site.call("POST", path, team.ada, both, headers=headers)).status == 200
    disagreeing = {"text": "Hello", "client_id": "b"}
    answer = await team.site.call("POST", path, team.ada, disagreeing, headers=headers)
    assert (answer.status, answer.fields) == (400, ["Idempotency-Key"])
    neither = await team.site.call("POST", path, team.ada, {"text": "Hello"})
    assert (neither.status, neither.fields) == (400, ["client_id"])
    assert (await team.log())["head"] == 1


async def test_a_text_has_its_limit(team: Team) -> None:
    assert (await team.post(team.ada, "a", "é" * TEXT_CHARACTERS_MAX)).status == 201
    answer = await team.post(team.ada, "b", "é" * (TEXT_CHARACTERS_MAX + 1))
    assert (answer.status, answer.json["code"]) == (413, "too_large")


async def test_an_api_key_posts_as_a_member_who_is_named(team: Team) -> None:
    answer = await team.post(team.key, "a", as_user="ada")
    assert (answer.status, answer.json["sender_id"]) == (201, "ada")
    assert (await team.post(team.ada, "a")).status == 200
    assert (await team.post(team.key, "b")).status == 403
    assert (await team.post(team.ada, "b", as_user="ada")).status == 403
    nobody = await team.post(team.key, "b", as_user="nobody")
    assert (nobody.status, nobody.fields) == (400, ["as_user"])
    assert (await team.post(team.key, "b", as_user="eve")).status in (403, 404)


async def test_to_who_is_not_a_member_the_log_does_not_exist(team: Team) -> None:
    await team.fill(1)
    hidden = await team.post(team.eve, "a")
    missing = await team.site.call(
        "POST", "/v1/rooms/r2/messages", team.eve, {"client_id": "a", "text": "Hello"}
    )
    assert hidden.status == missing.status == 404
    assert hidden.json == missing.json
    for method, path in (
        ("GET", "/v1/rooms/r1/messages"),
        ("DELETE", "/v1/rooms/r1/messages/1"),
        ("PUT", "/v1/rooms/r1/messages/1/reactions/a"),
        ("POST", "/v1/rooms/r1/typing"),
    ):
        assert (await team.site.call(method, path, team.eve)).status == 404, path


# --- reading the log ---------------------------------------------------------------------------


async def test_pages_of_a_log(team: Team) -> None:
    assert await team.log() == {"items": [], "head": 0}
    await team.fill(30)
    assert await team.seqs() == [*range(6, 31)]
    assert await team.seqs("?limit=3") == [28, 29, 30]
    assert await team.seqs("?before=10&limit=3") == [7, 8, 9]
    assert await team.seqs("?before=3") == [1, 2]
    assert await team.seqs("?before=1") == []
    assert await team.seqs("?before=1000&limit=2") == [29, 30]
    assert await team.seqs("?after=0&limit=2") == [1, 2]
    assert await team.seqs("?after=28") == [29, 30]
    assert await team.seqs("?after=30") == []
    assert await team.seqs("?after=1000") == []
    assert await team.seqs("?after=5&before=9") == [6, 7, 8]
    assert await team.seqs("?after=5&before=9&limit=2") == [6, 7]
    assert (await team.log("?limit=500"))["head"] == 30


async def test_what_a_client_does_not_have(team: Team) -> None:
    await team.fill(12)
    assert await team.seqs("?have=") == [*range(1, 13)]
    assert await team.seqs("?have=1-12") == []
    assert await team.seqs("?have=1-9000") == []
    assert await team.seqs("?have=1-4,6,8-9") == [5, 7, 10, 11, 12]
    assert await team.seqs("?have=8-9,1-4,3-6") == [7, 10, 11, 12]
    assert await team.seqs("?have=2-4&limit=3") == [1, 5, 6]
    assert (await team.log("?have=1-3&limit=1"))["head"] == 12
    for wrong in ("4-2", "0", "0-3", "a", "1-", "-3", "1,,2", "1;2", "1.5"):
        answer = await team.site.call("GET", f"/v1/rooms/r1/messages?have={wrong}", team.ada)
        assert (answer.status, answer.fields) == (400, ["have"]), wrong


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "before=0", "after=-1", "cursor=a"])
async def test_a_number_out_of_range_is_never_clamped(team: Team, query: str) -> None:
    answer = await team.site.call("GET", f"/v1/rooms/r1/messages?{query}", team.ada)
    assert (answer.status, answer.json["code"]) == (400, "validation_failed")
    assert answer.fields == [query.split("=")[0]]


async def test_history_since_joining_begins_with_the_joined_entry(team: Team) -> None:
    site = team.site
    body = {
        "id": "late",
        "kind": "group",
        "history": "since_join",
        "member_ids": ["ada", "bob"],
    }
    await site.call("POST", "/v1/rooms", team.key, body)
    path = "/v1/rooms/late/messages"
    for number in range(1, 4):
        await site.call("POST", path, team.ada, {"client_id": f"c{number}", "text": "Before"})
    joined = await site.call("POST", "/v1/rooms/late/members", team.ada, {"user_id": "eve"})
    assert joined.status == 201
    await site.call("POST", path, team.ada, {"client_id": "c5", "text": "After"})
    for query in ("", "?after=0", "?have=", "?before=100"):
        page = (await site.call("GET", path + query, team.eve)).json
        seen = [(entry["seq"], entry["type"]) for entry in page["items"]]
        assert (seen, page["head"]) == ([(4, "joined"), (5, "text")], 5), query
    assert (await site.call("GET", path + "?before=4", team.eve)).json["items"] == []
    assert len((await site.call("GET", path, team.bob)).json["items"]) == 5
    early = await site.call("PUT", f"{path}/2/reactions/a", team.eve)
    assert early.status == 404


# --- counting ----------------------------------------------------------------------------------


async def test_messages_count_for_others_until_they_read(team: Team) -> None:
    await team.fill(3)
    await team.post(team.ada, "m", "@bob", mentions=["bob"])
    assert await team.badge(team.ada) == (0, 0)
    assert await team.badge(team.bob) == (4, 1)
    reply = (await team.read(team.bob, 2)).json
    version = reply["total"].pop("version")
    assert reply == {
        "read_seq": 2,
        "unread": 2,
        "mentions": 1,
        "total": {"unread": 2, "mentions": 1},
    }
    assert (await team.site.call("GET", "/v1/badge", team.bob)).json["version"] == version
    back = (await team.read(team.bob, 1)).json
    assert (back["read_seq"], back["unread"], back["total"]["version"]) == (2, 2, version)
    beyond = await team.read(team.bob, 5)
    assert (beyond.status, beyond.fields) == (400, ["seq"])
    assert (await team.read(team.bob, 4)).json["unread"] == 0
    assert await team.badge(team.bob) == (0, 0)


async def test_sending_does_not_imply_reading(team: Team) -> None:
    await team.fill(2)
    await team.post(team.bob, "b")
    assert await team.badge(team.bob) == (2, 0)
    assert await team.badge(team.ada) == (1, 0)


async def test_a_version_rises_by_one_for_every_member_with_every_entry(team: Team) -> None:
    async def versions() -> list[int]:
        answers = [
            await team.site.call("GET", "/v1/badge", token)
            for token in (team.ada, team.bob, team.eve)
        ]
        return [answer.json["version"] for answer in answers]

    ada, bob, eve = await versions()
    await team.fill(3)
    assert await versions() == [ada + 3, bob + 3, eve]
    await team.read(team.bob, 3)
    assert await versions() == [ada + 3, bob + 4, eve]
    await team.read(team.bob, 3)
    await team.post(team.ada, "f1", "1")
    assert await versions() == [ada + 3, bob + 4, eve]


# --- editing, deleting, reacting ---------------------------------------------------------------


async def test_an_edit_is_in_place_and_told_by_an_entry(team: Team) -> None:
    await team.fill(1)
    edited = await team.site.call("PATCH", "/v1/rooms/r1/messages/1", team.ada, {"text": "Better"})
    assert edited.status == 200
    log = await team.log()
    first, notice = log["items"]
    assert (first["text"], first["seq"]) == ("Better", 1)
    assert TIME.fullmatch(first["edited_at"])
    assert (notice["type"], notice["sender_id"], notice["data"]["seq"]) == ("edited", "ada", 1)
    assert log["head"] == 2
    assert await team.badge(team.bob) == (1, 0)
    others = await team.site.call("PATCH", "/v1/rooms/r1/messages/1", team.bob, {"text": "No"})
    assert (others.status, others.json["code"]) == (403, "forbidden")
    again = await team.post(team.ada, "f1", "1")
    assert (again.status, again.json["seq"]) == (200, 1)


async def test_a_delete_leaves_the_place_and_lowers_the_counts_that_held_it(team: Team) -> None:
    await team.fill(2)
    await team.post(team.ada, "m", "@bob", mentions=["bob"])
    assert await team.badge(team.bob) == (3, 1)
    deleted = await team.site.call("DELETE", "/v1/rooms/r1/messages/3", team.ada)
    assert deleted.status == 200
    assert await team.badge(team.bob) == (2, 0)
    log = (await team.log())["items"]
    assert [entry["seq"] for entry in log] == [1, 2, 3, 4]
    assert log[2]["text"] is None
    assert log[2]["type"] == "text"
    assert TIME.fullmatch(log[2]["deleted_at"])
    assert (log[3]["type"], log[3]["data"]["seq"]) == ("deleted", 3)
    await team.read(team.bob, 1)
    await team.site.call("DELETE", "/v1/rooms/r1/messages/1", team.ada)
    assert await team.badge(team.bob) == (1, 0)
    await team.site.call("DELETE", "/v1/rooms/r1/messages/1", team.ada)
    assert await team.badge(team.bob) == (1, 0)
    text = {"text": "Back"}
    answer = await team.site.call("PATCH", "/v1/rooms/r1/messages/1", team.ada, text)
    assert (answer.status, answer.json["code"]) == (409, "conflict")


async def test_only_authors_and_admins_delete(team: Team) -> None:
    await team.fill(2)
    path = "/v1/rooms/r1/messages/{}"
    assert (await team.site.call("DELETE", path.format(1), team.bob)).status == 403
    chief = await team.site.user("max", "admin")
    await team.site.call("POST", "/v1/rooms/r1/members", team.ada, {"user_id": "max"})
    assert (await team.site.call("DELETE", path.format(1), chief)).status == 200
    assert (await team.site.call("DELETE", path.format(9), team.ada)).status == 404


async def test_reactions_come_and_go(team: Team) -> None:
    await team.fill(1)
    path = "/v1/rooms/r1/messages/1/reactions/%F0%9F%91%8D"
    for token in (team.ada, team.bob, team.bob):
        given = await team.site.call("PUT", path, token)
        assert given.status == 200
    entry = (await team.log("?limit=500"))["items"][0]
    assert {name: sorted(users) for name, users in entry["reactions"].items()} == {
        "👍": ["ada", "bob"]
    }
    assert (await team.site.call("DELETE", path, team.ada)).status == 200
    entry = (await team.log("?after=0&limit=1"))["items"][0]
    assert entry["reactions"] == {"👍": ["bob"]}
    await team.site.call("DELETE", path, team.bob)
    assert (await team.log("?after=0&limit=1"))["items"][0]["reactions"] == {}
    assert await team.badge(team.bob) == (1, 0)


async def test_typing_is_told_and_not_stored(team: Team) -> None:
    headers = {"Authorization": f"Bearer {team.bob}"}
    async with team.site.http.ws_connect(f"{team.site.url}/v1/ws", headers=headers) as socket:
        assert (await socket.receive_json())["type"] == "ready"
        answer = await team.site.call("POST", "/v1/rooms/r1/typing", team.ada)
        assert (answer.status, answer.raw) == (202, b"")
        told: dict[str, Any] = {}
        while told.get("type") != "typing":
            frame = await socket.receive_json(timeout=10)
            told = frame["updates"][-1] if frame["type"] == "batch" else frame
        assert (told["room_id"], told["user_id"]) == ("r1", "ada")
    assert (await team.log())["head"] == 0


# --- what every reply tells --------------------------------------------------------------------


async def test_a_message_has_its_price(team: Team) -> None:
    def units(answer: Answer) -> tuple[float, float]:
        match = re.fullmatch(r"r=([0-9.]+), w=([0-9.]+)", answer.headers["Tidings-Cost"])
        assert match is not None
        return float(match[1]), float(match[2])

    small = units(await team.post(team.ada, "a"))
    large = units(await team.post(team.ada, "b", "a" * 8_000))
    again = units(await team.post(team.ada, "a"))
    assert small[1] >= 14  # seven items, doubled by the transaction
    assert large[1] > small[1]
    assert again[1] < small[1]
    page = units(await team.site.call("GET", "/v1/rooms/r1/messages", team.ada))
    assert page[0] > 0
    assert page[1] == 0
    refused = units(await team.post(team.ada, "c", ""))
    assert refused[1] == 0


async def test_a_message_counts_against_the_limit(open_site: Opening) -> None:
    async with open_site(rate_limit="2/second") as site:
        token = await site.user("ada")
        await site.user("bob")
        made = await site.call(
            "POST", "/v1/rooms", token, {"kind": "direct", "member_ids": ["bob"]}
        )
        path = f"/v1/rooms/{made.json['id']}/messages"
        left = []
        for number in range(3):
            body = {"client_id": f"c{number}", "text": "Hello"}
            answer = await site.call("POST", path, token, body)
            assert answer.status == 201
            assert answer.headers["RateLimit-Policy"] == '"session";q=4;w=2'
            match = re.fullmatch(r'"session";r=(\d);t=\d', answer.headers["RateLimit"])
            assert match is not None
            left.append(int(match[1]))
        assert left == [2, 1, 0]
        refused = await site.call("POST", path, token, {"client_id": "d", "text": "Hello"})
        assert (refused.status, refused.json["code"]) == (429, "rate_limited")
        assert int(refused.headers["Retry-After"]) >= 1
