"""Bad input gets a clear problem: nothing breaks, nothing is stored, and the next call works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Answer, Site, open_site, site, store_url
from tests.command_line import run_tidings, running_service
from tidings.api.decoding import BODY_BYTES_MAX
from tidings.delivery.websocket import INBOUND_BYTES_MAX
from tidings.storage.tables import LEASES, NODES, TABLES
from tidings.web.assets import version

__all__ = ["open_site", "site", "store_url"]

JSON = {"Content-Type": "application/json"}
PROBLEM = "application/problem+json"
TIMEOUT_S = 60.0
STREAMS = frozenset({"/v1/ws", "/v1/events"})
"""They answer for as long as they like; their frames are tested below."""
CASES_MIN = 2_000
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MODES = tuple(GenerationMode)
OVERWRITTEN = (ParameterLocation.PATH, ParameterLocation.HEADER)
"""What is wrong there may have been put right before the call."""


# --- generated from the document ---------------------------------------------------------------


class Target(msgspec.Struct, frozen=True):
    """A service in another process, with something in it that generated calls can hit."""

    url: str
    tokens: dict[str, str]
    operator: str
    known: dict[str, list[Any]]
    """Values of path parameters that exist."""


def post(url: str, token: str, body: Any) -> Any:
    """The reply to a call that has to succeed."""
    response = requests.post(
        url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S
    )
    assert response.ok, response.text
    return response.json()


@contextmanager
def filled_service(folder: Path) -> Iterator[Target]:
    """A service whose callers see a few rooms with a few messages."""
    store = f"sqlite:///{folder}/bad.db"
    key = run_tidings("keys", "create", "--store", store).last_line
    operator = run_tidings("keys", "create", "--operator", "--store", store).last_line
    with running_service(store, "--rate-limit", "off") as service:
        url = service.url
        tokens = {"key": key}
        for user_id, role in (
            ("ada", "admin"),
            ("mel", "manager"),
            ("cai", "customer"),
            ("vic", "customer"),
            ("vin", "manager"),
        ):
            post(f"{url}/v1/users", key, {"id": user_id, "role": role, "name": user_id.title()})
        for user_id in ("ada", "cai"):
            opened = post(f"{url}/v1/sessions", key, {"user_id": user_id})
            tokens[user_id] = opened["token"]
        team = ["ada", "mel", "vin"]
        rooms = [
            {"id": "team", "kind": "group", "scope": "public", "member_ids": team},
            {"id": "help", "kind": "support", "member_ids": ["cai", "ada"]},
            {"id": "past", "kind": "group", "history": "since_join", "member_ids": [*team, "cai"]},
        ]
        for room in rooms:
            post(f"{url}/v1/rooms", key, room)
            for number in range(1, 4):
                message = {"client_id": f"m{number}", "text": "Hello", "as_user": "ada"}
                post(f"{url}/v1/rooms/{room['id']}/messages", key, message)
        known: dict[str, list[Any]] = {
            "room_id": [room["id"] for room in rooms],
            "user_id": ["vic", "vin"],
            "seq": [1, 2, 3, 4],
            "emoji": ["👍", "a"],
            "file": ["docs.css", "docs.js", "client.js"],
            "version": [version()],
            "folder": ["client"],
        }
        yield Target(url, tokens, operator, known)


def generated_calls(target: Target, examples: int, random_seed: int) -> int:
    """Make calls of every operation as each caller, right and wrong ones; how many were made."""
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    http = requests.Session()
    tokens = st.sampled_from([*target.tokens.values(), target.operator, ""])
    count = 0

    def call(case: schemathesis.Case[Any], token: str, hits: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        case.path_parameters.update(
            {name: value for name, value in hits.items() if value is not None}
        )
        wait_no_longer(case)
        assert case.meta is not None
        is_as_generated = not any(
            case.meta.components[place].mode is GenerationMode.NEGATIVE
            for place in OVERWRITTEN
            if place in case.meta.components
        )
        given = {"Authorization": f"Bearer {token}"} if token else {}
        response = case.call(session=http, headers=given, timeout=TIMEOUT_S)
        assert response.status_code < 500, case.as_curl_command()
        if response.status_code >= 400:
            assert response.headers["content-type"] == [PROBLEM]
            if case.method != "HEAD":
                problem = response.json()
                assert problem["status"] == response.status_code
                assert problem["code"]
        checks = CHECKS
        if response.status_code < 400 and is_as_generated:
            checks = [*CHECKS, negative_data_rejection]
        case.validate_response(response, checks=checks)

    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if operation.path in STREAMS:
            continue
        cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in MODES))
        hits = st.fixed_dictionaries(
            {
                each.name: st.one_of(st.none(), st.sampled_from(target.known[each.name]))
                for each in operation.path_parameters
                if each.name in target.known
            }
        )
        limited = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        limited(seed(random_seed)(given(cases, tokens, hits)(call)))()

    metrics = http.get(
        f"{target.url}/metrics",
        headers={"Authorization": f"Bearer {target.operator}"},
        timeout=TIMEOUT_S,
    )
    assert metrics.ok
    assert "\ntidings_errors_total{" not in metrics.text
    http.close()
    return count


def wait_no_longer(case: schemathesis.Case[Any]) -> None:
    """Polls that would be in order answer at once."""
    if not case.path.startswith("/v1/sync"):
        return
    if case.method == "GET":
        case.query = {**(case.query or {}), "wait": 0}
    elif isinstance(case.body, dict) and case.body.get("wait"):
        case.body["wait"] = 0 if isinstance(case.body["wait"], int | float) else "soon"


@pytest.mark.slow
def test_no_generated_call_breaks_the_service(tmp_path: Path) -> None:
    with filled_service(tmp_path) as target:
        assert generated_calls(target, examples=72, random_seed=1) >= CASES_MIN
    audit = run_tidings("audit", "--json", "--store", f"sqlite:///{tmp_path}/bad.db")
    assert audit.code == 0, audit.output


def test_few_generated_calls_break_nothing(tmp_path: Path) -> None:
    with filled_service(tmp_path) as target:
        assert generated_calls(target, examples=7, random_seed=2) >= 200


# --- written by hand ---------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True):
    """A room with messages, who is in it, and everything that is stored."""

    site: Site
    key: str
    token: str

    async def stored(self) -> list[Any]:
        """All items of all tables but those where the service shows that it lives."""
        found: list[Any] = []
        for table in TABLES:
            if table in (NODES, LEASES):
                continue
            after = None
            while True:
                page = await self.site.service.store.scan(table, after=after)
                found += [(table.name, item) for item in page.items]
                after = page.after
                if after is None:
                    break
        return found

    @asynccontextmanager
    async def stores_nothing(self) -> AsyncIterator[None]:
        """What happens here leaves no trace, and a good call works afterwards."""
        before = await self.stored()
        yield
        assert await self.stored() == before
        assert (await self.site.call("GET", "/v1/rooms/r1", self.token)).json["head"] == 3


@pytest.fixture
async def place(site: Site) -> Place:
    key, token = await site.key(), await site.user("ada")
    await site.user("bob")
    room = {"id": "r1", "kind": "group", "member_ids": ["ada", "bob"]}
    assert (await site.call("POST", "/v1/rooms", key, room)).status == 201
    for number in range(1, 4):
        message = {"client_id": f"c{number}", "text": "Hello"}
        answer = await site.call("POST", "/v1/rooms/r1/messages", token, message)
        assert answer.status == 201
    return Place(site, key, token)


def message(**fields: Any) -> bytes:
    """A message that would be fine but for the fields."""
    return msgspec.json.encode({"client_id": "new", "text": "Hello", **fields})


TOO_DEEP = b"[" * 50_000 + b"]" * 50_000
TOO_LONG = "a" * 8_001
POST_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "body"),
    (b"{", 400, "body"),
    (b"\xff\xfe\x00", 400, "body"),
    (b'{"client_id":"new","text":"\xff"}', 400, "body"),
    (b'{"client_id":"new","text":"\xed\xa0\x80"}', 400, "body"),
    (b'{"client_id":"new","text":"\\ud800"}', 400, "body"),
    (b'{"client_id":"new","text":"\\udc00\\ud800"}', 400, "body"),
    (b'{"client_id":"new","text":"a\nb"}', 400, "body"),
    (b'{"client_id":"new","text":NaN}', 400, "body"),
    (b'{"client_id":"new","text":' + TOO_DEEP + b"}", 400, "text"),
    (b'{"client_id":"new","more":' + TOO_DEEP + b"}", 400, "more"),
    (b'{"client_id":"new","text":"a"}{}', 400, "body"),
    (message(text=""), 400, "text"),
    (message(text=None), 400, "text"),
    (message(text=1), 400, "text"),
    (message(text=TOO_LONG), 413, ""),
    (message(client_id=None), 400, "client_id"),
    (message(client_id=""), 400, "client_id"),
    (message(client_id="a#b"), 400, "client_id"),
    (message(client_id="a\x00b"), 400, "client_id"),
    (message(client_id="a\n"), 400, "client_id"),
    (message(client_id="é"), 400, "client_id"),
    (message(client_id="a" * 65), 400, "client_id"),
    (message(client_id=7), 400, "client_id"),
    (message(reply_to=0), 400, "reply_to"),
    (message(reply_to=-1), 400, "reply_to"),
    (message(reply_to=1.5), 400, "reply_to"),
    (message(reply_to="1"), 400, "reply_to"),
    (message(reply_to=4), 400, "reply_to"),
    (b'{"client_id":"new","text":"a","reply_to":1e400}', 400, "reply_to"),
    (b'{"client_id":"new","text":"a","reply_to":' + b"9" * 5_000 + b"}", 400, "reply_to"),
    (message(mentions="bob"), 400, "mentions"),
    (message(mentions=["nobody"]), 400, "mentions"),
    (message(mentions=["a b"]), 400, "mentions[0]"),
    (message(mentions=[f"u{n}" for n in range(51)]), 400, "mentions"),
    (message(blobs=["blob_1"]), 400, "blobs"),
    (message(as_user="bob"), 403, ""),
    (message(colour="red"), 400, "colour"),
]


async def test_a_message_of_another_type_is_not_stored(place: Place) -> None:
    async with place.stores_nothing():
        for given_type in ("text/plain", "application/merge-patch+json", "", "x", "a/b; charset=é"):
            answer = await place.site.call(
                "POST",
                "/v1/rooms/r1/messages",
                place.token,
                data=message(),
                headers={"Content-Type": given_type},
            )
            assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")


def field_of(answer: Answer) -> str:
    """The first field that a problem names, without where in it."""
    return (answer.fields or [""])[0]


async def test_a_message_that_is_not_in_order_is_not_stored(place: Place) -> None:
    async with place.stores_nothing():
        for body, status, field in POST_BODIES:
            answer = await place.site.call(
                "POST", "/v1/rooms/r1/messages", place.token, data=body, headers=JSON
            )
            assert answer.status == status, (body[:80], answer)
            assert answer.headers["Content-Type"] == PROBLEM
            assert field_of(answer) == field, (body[:80], answer.json)


OTHER_CALLS: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/rooms", {"kind": "heap", "member_ids": ["bob"]}, 400),
    ("POST", "/v1/rooms", {"kind": "group", "title": "a" * 201}, 400),
    ("POST", "/v1/rooms", {"kind": "group", "title": 7}, 400),
    ("POST", "/v1/rooms", {"kind": "group", "member_ids": ["nobody"]}, 400),
    ("POST", "/v1/rooms", {"kind": "group", "member_ids": ["a\x00"]}, 400),
    ("POST", "/v1/rooms", {"kind": "direct", "member_ids": ["ada"]}, 400),
    ("POST", "/v1/rooms", {"kind": "direct", "member_ids": []}, 400),
    ("POST", "/v1/rooms", {"kind": "support", "member_ids": ["bob"]}, 400),
    ("POST", "/v1/rooms", {"kind": "group", "id": "mine", "member_ids": ["bob"]}, 403),
    ("PATCH", "/v1/rooms/r1", {"status": "closed"}, 400),
    ("PATCH", "/v1/rooms/r1", {"scope": "secret"}, 400),
    ("PATCH", "/v1/rooms/r1", {"snoozed_until": "tomorrow"}, 400),
    ("PATCH", "/v1/rooms/r1", {"title": ""}, 400),
    ("POST", "/v1/rooms/r1/members", {}, 400),
    ("POST", "/v1/rooms/r1/members", {"user_id": "nobody"}, 400),
    ("POST", "/v1/rooms/r1/members", {"user_ids": [{}]}, 400),
    ("DELETE", "/v1/rooms/r1/members/nobody", None, 404),
    ("PUT", "/v1/rooms/r1/read", {"seq": 4}, 400),
    ("PUT", "/v1/rooms/r1/read", {"seq": -1}, 400),
    ("PUT", "/v1/rooms/r1/read", {"seq": 2**63}, 400),
    ("PUT", "/v1/rooms/r1/read", {"seq": True}, 400),
    ("PUT", "/v1/rooms/r1/mute", {"muted": "yes"}, 400),
    ("PUT", "/v1/rooms/r1/hide", {}, 400),
    ("PATCH", "/v1/rooms/r1/messages/1", {"text": ""}, 400),
    ("PATCH", "/v1/rooms/r1/messages/1", {"text": TOO_LONG}, 413),
    ("PATCH", "/v1/rooms/r1/messages/4", {"text": "a"}, 404),
    ("DELETE", "/v1/rooms/r1/messages/4", None, 404),
    ("DELETE", "/v1/rooms/r1/messages/" + "9" * 5_000, None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/%00", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/%0A", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/a%23b", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/%ED%A0%80", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/%ff", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/%zz", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/a%2", None, 400),
    ("GET", "/v1/users?q=%zz", None, 400),
    ("PUT", "/v1/rooms/r1/messages/1/reactions/" + "a" * 33, None, 400),
    ("PUT", "/v1/rooms/r1/messages/4/reactions/a", None, 404),
    ("GET", "/v1/rooms/r1/messages?limit=501", None, 400),
    ("GET", "/v1/rooms/r1/messages?limit=0", None, 400),
    ("GET", "/v1/rooms/r1/messages?limit=-5", None, 400),
    ("GET", "/v1/rooms/r1/messages?limit=1&limit=2", None, 400),
    ("GET", "/v1/rooms/r1/messages?limit=%31%00", None, 400),
    ("GET", "/v1/rooms/r1/messages?limit=%zz", None, 400),
    ("GET", "/v1/rooms/r1/messages?before=0", None, 400),
    ("GET", "/v1/rooms/r1/messages?after=-1", None, 400),
    ("GET", "/v1/rooms/r1/messages?before=" + "9" * 5_000, None, 400),
    ("GET", "/v1/rooms/r1/messages?after=9007199254740992", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=3-1", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=0", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=1-", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=1,,2", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=%D9%A1", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=01", None, 400),
    ("GET", "/v1/rooms/r1/messages?have=" + ",".join(map(str, range(1, 1_500))), None, 400),
    ("GET", "/v1/rooms/r1/messages?cursor=a", None, 400),
    ("GET", "/v1/rooms/%ff/messages", None, 400),
    ("GET", "/v1/rooms/%/messages", None, 400),
    ("GET", "/v1/rooms/%F0%9F%99%82/messages", None, 400),
    ("GET", "/v1/rooms?assignee_id=%23", None, 400),
    ("GET", "/v1/rooms?kind=call", None, 400),
    ("GET", "/v1/inbox?unread=perhaps", None, 400),
    ("GET", "/v1/inbox?status=open&status=closed", None, 400),
    ("GET", "/v1/inbox?q=%ED%A0%80", None, 400),
    ("GET", "/v1/sync?wait=61", None, 400),
    ("GET", "/v1/sync?wait=nan", None, 400),
    ("GET", "/v1/sync?wait=inf", None, 400),
    ("GET", "/v1/sync?wait=-1", None, 400),
    ("POST", "/v1/sync", {"have": {"r1": "5-2"}}, 400),
    ("POST", "/v1/sync", {"have": {"r#": "1"}}, 400),
    ("POST", "/v1/sync", {"have": {f"r{n}": "1" for n in range(501)}}, 400),
    ("POST", "/v1/sync", {"limit": 0}, 400),
    ("POST", "/v1/sync", {"since": 7}, 400),
    ("GET", "/v1/badge?x=1", None, 400),
    ("PATCH", "/v1/users/ada", {"name": ""}, 400),
    ("PATCH", "/v1/users/ada", {"email": "nobody"}, 400),
    ("PATCH", "/v1/users/ada", {"email": "a@b.example\n"}, 400),
    ("GET", "/v1/rooms/r1%0A", None, 400),
    ("PATCH", "/v1/users/ada", {"attributes": []}, 400),
]


async def test_a_call_that_is_not_in_order_changes_nothing(place: Place) -> None:
    async with place.stores_nothing():
        for method, path, body, status in OTHER_CALLS:
            answer = await place.site.call(method, path, place.token, body)
            assert answer.status == status, (method, path[:80], body, answer)
            assert answer.headers["Content-Type"] == PROBLEM
            assert answer.json["detail"]


async def test_only_a_cursor_as_it_was_given_out_is_taken(place: Place) -> None:
    for n in range(3):
        room = {"kind": "group", "scope": "public", "title": f"Room {n}"}
        assert (await place.site.call("POST", "/v1/rooms", place.token, room)).status == 201
    lists = ["/v1/inbox", "/v1/rooms?kind=group", "/v1/rooms/r1/members", "/v1/users"]
    given_out = {}
    for path in lists:
        joint = "&" if "?" in path else "?"
        page = await place.site.call("GET", f"{path}{joint}limit=1", place.token)
        given_out[f"{path}{joint}limit=1&cursor="] = page.json["next"]
    synced = await place.site.call("GET", "/v1/sync?wait=0", place.token)
    given_out["/v1/sync?wait=0&since="] = synced.json["cursor"]
    before = await place.stored()
    for path, cursor in given_out.items():
        for tampered in tampered_with(cursor):
            answer = await place.site.call("GET", path + tampered, place.token)
            assert answer.status == 400, (path, cursor, tampered)
            assert answer.json["code"] == "validation_failed"
    assert await place.stored() == before
    for path in given_out:
        for other, cursor in given_out.items():
            status = (await place.site.call("GET", path + cursor, place.token)).status
            assert (status == 200) is (path == other), (path, other)


def tampered_with(cursor: str) -> Iterator[str]:
    """The cursor with one character changed, and cut, and longer."""
    for place in range(len(cursor)):
        other = "B" if cursor[place] == "A" else chr(ord(cursor[place]) ^ 1)
        other = other if other.isalnum() else "A" if cursor[place] != "A" else "B"
        yield cursor[:place] + other + cursor[place + 1 :]
    yield cursor[:-1]
    yield cursor + "A"
    yield cursor + "%3D"
    yield cursor + "%0A"
    yield "%F0%9F%99%82"
    yield "%00"
    yield "A" * 8_193


async def test_a_cursor_of_somebody_else_is_not_taken(place: Place) -> None:
    other = await place.site.user("bob")
    synced = await place.site.call("GET", "/v1/sync?wait=0", other)
    taken = await place.site.call("GET", f"/v1/sync?since={synced.json['cursor']}", place.token)
    assert (taken.status, taken.json["code"]) == (400, "validation_failed")


async def test_a_body_in_chunks_beyond_the_limit_is_too_large(place: Place) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"client_id":"new","text":"'
        for _ in range(BODY_BYTES_MAX // 65_536 + 2):
            yield b"a" * 65_536

    headers = {**JSON, "Authorization": f"Bearer {place.token}"}
    url = f"{place.site.url}/v1/rooms/r1/messages"
    async with (
        place.stores_nothing(),
        place.site.http.post(url, data=chunks(), headers=headers) as response,
    ):
        assert response.status == 413
        assert response.headers["Content-Type"] == PROBLEM


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"-5\r\n{}\r\n"),
        (b"Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFFFF\r\n{}\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", b"{}"),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"),
        (b"Content-Length: 99\r\n", b'{"client_id":"new","text":"a"}'),
        (b"Content-Length: 99999999999999999999999\r\n", b"{}"),
        (b"Content-Length: 2\r\nContent-Type: \xff\r\n", b"{}"),
    ],
    ids=range(8),
)
async def test_a_body_that_does_not_end_as_it_says_stores_nothing(
    place: Place, head: bytes, rest: bytes
) -> None:
    async with place.stores_nothing():
        reply = await raw_reply(
            place.site,
            b"POST /v1/rooms/r1/messages HTTP/1.1\r\nHost: a\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer "
            + place.token.encode()
            + b"\r\n"
            + head
            + b"\r\n"
            + rest,
        )
        assert not reply or reply.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4")), reply


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/badge HTTP/1.1\r\nBad Header: x\r\n\r\n", 400),
        (b"GET /v1/badge?x=" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 413),
        (b"GET /v1/badge HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 413),
    ],
    ids=range(4),
)
async def test_what_is_no_request_gets_a_problem(site: Site, text: bytes, status: int) -> None:
    head, _, body = (await raw_reply(site, text, is_all=False)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 %d " % status)
    assert f"Content-Type: {PROBLEM}".encode() in head
    assert b"X-Content-Type-Options: nosniff" in head
    assert msgspec.json.decode(body)["status"] == status


async def raw_reply(site: Site, text: bytes, *, is_all: bool = True) -> bytes:
    """Everything that comes back after these bytes; the sender may say that they are all."""
    address = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(text)
    if is_all:
        writer.write_eof()
    async with asyncio.timeout(TIMEOUT_S):
        reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


async def test_strange_texts_come_back_as_they_were(place: Place) -> None:
    texts = [
        "\x00",
        "a\x00b\x1f\x7f\x85",
        "\ufeff\ufffe\uffff\U0010ffff",
        "👩‍👩‍👧‍👦 e\u0301 \u202etfel\u202c",
        " ",
        "'; DROP TABLE entries; --",
        "a" * 8_000,
        "🦊" * 8_000,
    ]
    for number, text in enumerate(texts):
        body = {"client_id": f"s{number}", "text": text}
        answer = await place.site.call("POST", "/v1/rooms/r1/messages", place.token, body)
        assert (answer.status, answer.json["text"]) == (201, text)
        again = await place.site.call("POST", "/v1/rooms/r1/messages", place.token, body)
        assert (again.status, again.json) == (200, answer.json)
    page = await place.site.call("GET", "/v1/rooms/r1/messages?after=3", place.token)
    assert [entry["text"] for entry in page.json["items"]] == texts
    inbox = await place.site.call("GET", "/v1/inbox", place.token)
    assert inbox.json["items"][0]["preview"] == texts[-1][:120]


# --- frames ------------------------------------------------------------------------------------

SEND = {"type": "send", "room_id": "r1", "client_id": "new", "text": "Hello"}
FRAMES: list[tuple[Any, str]] = [
    ("", "validation_failed"),
    ("{", "validation_failed"),
    ("[]", "validation_failed"),
    ("null", "validation_failed"),
    ("7", "validation_failed"),
    ('"ping"', "validation_failed"),
    ("{}", "validation_failed"),
    ('{"type":"ping"}{"type":"ping"}', "validation_failed"),
    ('{"type":"ping","more":' + "[" * 60_000 + "]" * 60_000 + "}", "validation_failed"),
    ('{"more":' + "[" * 60_000 + "]" * 60_000 + ',"type":"ping"}', "validation_failed"),
    ("[" * 100_000, "validation_failed"),
    ({"type": "dance"}, "validation_failed"),
    ({"type": None}, "validation_failed"),
    ({"type": 7}, "validation_failed"),
    ({"type": "ping", "ref": {}}, "validation_failed"),
    ({"type": "ping", "ref": 1.5}, "validation_failed"),
    ({"type": "ping", "ref": "a" * 257}, "validation_failed"),
    ('{"type":"ping","ref":' + "9" * 5_000 + "}", "validation_failed"),
    ('{"type":"ping","ref":"\\ud800"}', "validation_failed"),
    ({"type": "auth", "token": "ts_other"}, "conflict"),
    ({"type": "auth"}, "validation_failed"),
    ({"type": "seen"}, "validation_failed"),
    ({"type": "seen", "cursor": "nonsense"}, "validation_failed"),
    ({"type": "seen", "cursor": "é\x00"}, "validation_failed"),
    ({"type": "sync", "since": "nonsense"}, "validation_failed"),
    ({"type": "sync", "have": {"r1": "5-1"}}, "validation_failed"),
    ({"type": "sync", "have": {"r#1": "1"}}, "validation_failed"),
    ({"type": "sync", "limit": 0}, "validation_failed"),
    ({"type": "sync", "limit": 501}, "validation_failed"),
    ({"type": "read", "room_id": "r1"}, "validation_failed"),
    ({"type": "read", "room_id": "r1", "seq": -1}, "validation_failed"),
    ({"type": "read", "room_id": "r1", "seq": 4}, "validation_failed"),
    ({"type": "read", "room_id": "r1", "seq": 1.5}, "validation_failed"),
    ({"type": "read", "room_id": "r1", "seq": "1"}, "validation_failed"),
    ({"type": "read", "room_id": "nowhere", "seq": 1}, "not_found"),
    ('{"type":"read","room_id":"r1","seq":1e999}', "validation_failed"),
    ({"type": "typing"}, "validation_failed"),
    ({"type": "typing", "room_id": ["r1"]}, "validation_failed"),
    ({"type": "typing", "room_id": "nowhere"}, "not_found"),
    ({"type": "send"}, "validation_failed"),
    (SEND | {"text": None}, "validation_failed"),
    (SEND | {"text": ""}, "validation_failed"),
    (SEND | {"text": 7}, "validation_failed"),
    (SEND | {"text": TOO_LONG}, "too_large"),
    ('{"type":"send","room_id":"r1","client_id":"new","text":"\\ud800"}', "validation_failed"),
    (SEND | {"client_id": None}, "validation_failed"),
    (SEND | {"client_id": "a#b"}, "validation_failed"),
    (SEND | {"client_id": "a\x00"}, "validation_failed"),
    (SEND | {"room_id": "r1\x00"}, "validation_failed"),
    (SEND | {"room_id": "nowhere"}, "not_found"),
    (SEND | {"reply_to": 4}, "validation_failed"),
    (SEND | {"reply_to": 0}, "validation_failed"),
    (SEND | {"mentions": ["nobody"]}, "validation_failed"),
    (SEND | {"blobs": ["blob_1"]}, "validation_failed"),
    (SEND | {"as_user": "bob"}, "forbidden"),
    (SEND | {"colour": "red"}, "validation_failed"),
    (SEND | {"client_id": "c1", "text": "Something else"}, "idempotency_mismatch"),
]


class Socket:
    """One WebSocket, its batches unpacked."""

    def __init__(self, raw: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = raw
        self._waiting: list[Any] = []

    async def send(self, frame: Any) -> None:
        await self.raw.send_str(frame if isinstance(frame, str) else encode(frame))

    async def next(self, *types: str) -> Any:
        """The next frame of one of these types."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                while self._waiting:
                    frame = self._waiting.pop(0)
                    if frame["type"] in types:
                        return frame
                told = msgspec.json.decode(await self.raw.receive_str())
                self._waiting += told["updates"] if told["type"] == "batch" else [told]

    async def closed(self) -> int | None:
        """The code with which the service closes."""
        async with asyncio.timeout(TIMEOUT_S):
            async for _ in self.raw:
                pass
        return self.raw.close_code

    async def is_alive(self) -> bool:
        await self.send({"type": "ping", "ref": "alive"})
        told = await self.next("pong", "error")
        return bool(told == {"type": "pong", "ref": "alive"})


def encode(value: Any) -> str:
    """The value as JSON."""
    return msgspec.json.encode(value).decode()


@asynccontextmanager
async def socket_of(place: Place, *, is_known: bool = True) -> AsyncIterator[Socket]:
    """A socket of Ada's; one that is not known yet sent no credential."""
    headers = {"Authorization": f"Bearer {place.token}"} if is_known else {}
    async with place.site.http.ws_connect(
        f"{place.site.url}/v1/ws", protocols=["tidings.v1"], headers=headers
    ) as raw:
        socket = Socket(raw)
        if is_known:
            await socket.next("ready")
        yield socket


async def test_a_bad_frame_gets_a_problem_and_the_socket_stays(place: Place) -> None:
    async with place.stores_nothing(), socket_of(place) as socket:
        for frame, code in FRAMES:
            await socket.send(frame)
            told = await socket.next("error", "ack", "pong", "sync")
            assert told["type"] == "error", (str(frame)[:80], told)
            assert told["problem"]["code"] == code, (str(frame)[:80], told)
        assert await socket.is_alive()


async def test_a_bad_frame_is_named_by_its_ref(place: Place) -> None:
    async with place.stores_nothing(), socket_of(place) as socket:
        for ref in ("a", "", 0, -7, 2**63 - 1):
            for frame in (
                SEND | {"text": 7},
                SEND | {"room_id": "nowhere"},
                {"type": "dance"},
                {"type": "read", "room_id": "r1", "seq": 99},
                {"type": "sync", "since": "nonsense"},
            ):
                await socket.send(frame | {"ref": ref})
                assert (await socket.next("error"))["ref"] == ref
        await socket.send(SEND | {"text": 7})
        assert (await socket.next("error")).get("ref") is None


async def test_a_binary_frame_gets_a_problem(place: Place) -> None:
    async with place.stores_nothing(), socket_of(place) as socket:
        await socket.raw.send_bytes(encode(SEND).encode())
        assert (await socket.next("error"))["problem"]["code"] == "validation_failed"
        assert await socket.is_alive()


async def test_a_bad_frame_before_auth_leaves_time_for_a_good_one(place: Place) -> None:
    async with place.stores_nothing(), socket_of(place, is_known=False) as socket:
        for frame in ("{", "[" * 100_000, {"type": "auth"}, {"type": "auth", "token": 7}):
            await socket.send(frame)
            assert (await socket.next("error"))["problem"]["code"] == "validation_failed"
        wrong = {"type": "auth", "token": place.token, "since": "nonsense"}
        await socket.send(wrong)
        assert (await socket.next("error"))["problem"]["code"] == "validation_failed"
        await socket.send({"type": "auth", "token": place.token})
        assert (await socket.next("ready"))["user_id"] == "ada"
        assert await socket.is_alive()


@pytest.mark.parametrize("frame", [SEND, {"type": "auth", "token": "ts_x"}], ids=["send", "token"])
async def test_who_is_not_known_is_sent_away(place: Place, frame: Any) -> None:
    async with place.stores_nothing(), socket_of(place, is_known=False) as socket:
        await socket.send(frame)
        assert (await socket.next("error"))["problem"]["code"] == "unauthorized"
        assert await socket.closed() == 4401


Breaking = Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]]


async def huge(raw: aiohttp.ClientWebSocketResponse) -> None:
    await raw.send_str(encode(SEND | {"text": "a" * INBOUND_BYTES_MAX}))


async def not_utf8(raw: aiohttp.ClientWebSocketResponse) -> None:
    await raw.send_frame(b'{"type":"ping","ref":"\xff"}', aiohttp.WSMsgType.TEXT)


async def surrogate(raw: aiohttp.ClientWebSocketResponse) -> None:
    await raw.send_frame(b'{"type":"ping","ref":"\xed\xa0\x80"}', aiohttp.WSMsgType.TEXT)


async def stray_continuation(raw: aiohttp.ClientWebSocketResponse) -> None:
    await raw.send_frame(b"{}", aiohttp.WSMsgType.CONTINUATION)


@pytest.mark.parametrize(
    ("breaking", "code"),
    [(huge, 1009), (not_utf8, 1007), (surrogate, 1007), (stray_continuation, 1002)],
)
async def test_a_frame_that_breaks_the_protocol_ends_the_socket_alone(
    place: Place, breaking: Breaking, code: int
) -> None:
    async with place.stores_nothing(), socket_of(place) as other:
        async with socket_of(place) as socket:
            await breaking(socket.raw)
            assert await socket.closed() == code
        assert await other.is_alive()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # a reserved opcode
        (b"\xc1\x82\x00\x00\x00\x00{}", 1002),  # compressed, though nobody agreed to that
        (b"\x09\x80\x00\x00\x00\x00", 1002),  # a ping in fragments
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + bytes(126), 1002),  # a ping that is too long
        (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 1009),  # 2^63 - 1 bytes
        (b"\x88\x81\x00\x00\x00\x00x", 1002),  # a close with half a code
    ],
    ids=range(6),
)
async def test_bytes_that_are_no_frame_end_the_socket_alone(
    place: Place, frame: bytes, code: int
) -> None:
    opening = (
        b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Authorization: Bearer " + place.token.encode() + b"\r\n\r\n"
    )
    async with place.stores_nothing(), socket_of(place) as other:
        address = urlsplit(place.site.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(opening)
        async with asyncio.timeout(TIMEOUT_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            await reader.readuntil(b'"ready"')
            writer.write(frame)
            rest = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b"\x88" in rest
        closing = rest[rest.rindex(b"\x88") :]
        assert int.from_bytes(closing[2:4]) == code
        assert await other.is_alive()


@pytest.mark.parametrize("event_id", ["nonsense", "é", "a" * 9_000])
async def test_a_stream_from_a_wrong_cursor_is_refused(place: Place, event_id: str) -> None:
    async with place.stores_nothing():
        answer = await place.site.call(
            "GET", "/v1/events", place.token, headers={"Last-Event-ID": event_id}
        )
        assert (answer.status, answer.json["code"]) == (400, "validation_failed")
