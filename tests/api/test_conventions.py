"""What all endpoints have in common: problems, bodies, parameters, headers, limits, prices."""

from __future__ import annotations

import asyncio
import gzip
import re
from urllib.parse import urlsplit

import pytest

from tests.api.conftest import Opening, Site, soon
from tests.api.trials import SECRET
from tidings.api.decoding import BODY_BYTES_MAX

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}


async def test_a_problem_is_what_rfc_9457_says(site: Site) -> None:
    answer = await site.call("GET", "/v1/users", await site.key(), headers={})
    assert answer.status == 200
    answer = await site.call("GET", "/v1/users?limit=0", await site.key())
    assert answer.status == 400
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.json == {
        "type": "/docs#problem-validation_failed",
        "title": "The request is not valid",
        "status": 400,
        "code": "validation_failed",
        "detail": "The request is not valid.",
        "errors": [{"field": "limit", "detail": "Expected `int` >= 1"}],
    }


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/users/", "//", "/v1/rooms/a/b"])
async def test_an_unknown_route_is_not_found(site: Site, path: str) -> None:
    answer = await site.call("GET", path)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert answer.headers["Content-Type"] == PROBLEM


@pytest.mark.parametrize("method", ["DELETE", "TRACE", "OPTIONS", "PROPFIND"])
async def test_a_wrong_method_is_told_the_right_ones(site: Site, method: str) -> None:
    answer = await site.call(method, "/v1/users")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, POST"


async def test_head_is_get_without_a_body(site: Site) -> None:
    answer = await site.call("HEAD", "/healthz")
    assert (answer.status, answer.raw) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b'{"text": "a"} b', "body"),
        (b'{"text": "\xff"}', "body"),
        (b'{"text": "\\ud800"}', "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"count": 1}', "text"),
        (b'{"text": 1}', "text"),
        (b'{"text": "a", "count": 10}', "count"),
        (b'{"text": "a", "colour": "red"}', "colour"),
        (b'{"text": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
    ],
    ids=range(12),
)
async def test_a_wrong_body_names_the_field(site: Site, body: bytes, field: str) -> None:
    answer = await site.call("POST", "/v1/trials", await site.key(), data=body, headers=JSON)
    assert (answer.status, answer.json["code"]) == (400, "validation_failed")
    assert answer.fields == [field]


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_of_another_type_is_refused(site: Site, given: str) -> None:
    answer = await site.call(
        "POST",
        "/v1/trials",
        await site.key(),
        data=b'{"text":"a"}',
        headers={"Content-Type": given},
    )
    assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/merge-patch+json", "application/json"])
async def test_a_patch_may_come_as_either_type(site: Site, kind: str) -> None:
    token = await site.user("ada")
    answer = await site.call(
        "PATCH", "/v1/users/ada", token, {"name": "Countess"}, headers={"Content-Type": kind}
    )
    assert (answer.status, answer.json["name"]) == (200, "Countess")
    wrong = await site.call(
        "POST", "/v1/trials", token, {"text": "a"}, headers={"Content-Type": kind}
    )
    assert wrong.status == (200 if kind == "application/json" else 415)


async def test_a_body_beyond_the_limit_is_too_large(site: Site) -> None:
    key = await site.key()
    most = b'{"text":"' + b"a" * (BODY_BYTES_MAX - 11) + b'"}'
    answer = await site.call("POST", "/v1/trials", key, data=most, headers=JSON)
    assert answer.status == 200
    answer = await site.call("POST", "/v1/trials", key, data=most + b" ", headers=JSON)
    assert (answer.status, answer.json["code"]) == (413, "too_large")
    packed = gzip.compress(most + b" ")
    answer = await site.call(
        "POST", "/v1/trials", key, data=packed, headers={**JSON, "Content-Encoding": "gzip"}
    )
    assert answer.status == 413


async def test_a_body_that_is_not_what_its_headers_say(site: Site) -> None:
    answer = await site.call(
        "POST",
        "/v1/trials",
        await site.key(),
        data=b"not gzip",
        headers={**JSON, "Content-Encoding": "gzip"},
    )
    assert answer.status == 400


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("count=0", "count"),
        ("count=10", "count"),
        ("count=", "count"),
        ("count=one", "count"),
        ("count=1e99999", "count"),
        ("count=9999999999999999999999999", "count"),
        ("is_fine=perhaps", "is_fine"),
        ("colour=red", "colour"),
        ("count=1&count=2", "query"),
        ("count=%ff", "query"),
        ("&".join(f"x{number}=1" for number in range(60)), "query"),
    ],
)
async def test_a_wrong_query_names_the_parameter(site: Site, query: str, field: str) -> None:
    answer = await site.call("POST", f"/v1/trials?{query}", await site.key(), {"text": "a"})
    assert (answer.status, answer.json["code"]) == (400, "validation_failed")
    assert answer.fields == [field]


@pytest.mark.parametrize("room_id", ["a%2Fb", "a%ff", "%00", "a" * 65, "a%23b", "%F0%9F%99%82"])
async def test_a_path_that_holds_no_id_is_refused(site: Site, room_id: str) -> None:
    answer = await site.call("GET", f"/v1/rooms/{room_id}", await site.key())
    assert (answer.status, answer.fields) == (400, ["room_id"])


@pytest.mark.parametrize("seq", ["0", "-1", "one", "9007199254740992"])
async def test_a_path_that_holds_no_sequence_is_refused(site: Site, seq: str) -> None:
    answer = await site.call("DELETE", f"/v1/rooms/a/messages/{seq}", await site.user("ada"))
    assert (answer.status, answer.fields) == (400, ["seq"])


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer nonsense", "Bearer a b", "x" * 8000]
)
async def test_a_wrong_credential_is_unauthorized(site: Site, header: str) -> None:
    answer = await site.call("GET", "/v1/users", headers={"Authorization": header})
    assert (answer.status, answer.json["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_each_kind_of_credential_has_its_endpoints(site: Site) -> None:
    session, key = await site.user("ada"), await site.key()
    operator = await site.key(operator=True)
    for path in ("/v1/me", "/v1/inbox", "/v1/badge", "/v1/queue", "/v1/sync", "/v1/sessions"):
        answer = await site.call("GET", path, key)
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), path
    for token, status in ((session, 403), (key, 403), (operator, 200), (None, 401)):
        assert (await site.call("GET", "/metrics", token)).status == status
    for path in ("/v1/users", "/v1/me", "/v1/rooms"):
        assert (await site.call("GET", path, operator)).status == 403, path


async def test_a_key_acts_within_its_scopes(site: Site) -> None:
    key = await site.key("rooms")
    assert (await site.call("POST", "/v1/trials", key, {"text": "a"})).status == 200
    assert (await site.call("GET", "/v1/users", key)).status == 403
    assert (await site.call("POST", "/v1/sessions", key, {"user_id": "ada"})).status == 403


async def test_every_reply_says_who_may_do_what_with_it(site: Site) -> None:
    for path in ("/healthz", "/docs", "/openapi.json", "/nothing", "/v1/me", "/v1/trials/broken"):
        headers = (await site.call("GET", path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Server"] == "tidings"
        assert re.fullmatch("[0-9a-f]{16}", headers["X-Request-Id"])
    assert (
        "default-src 'self'" in (await site.call("GET", "/docs")).headers["Content-Security-Policy"]
    )


async def test_every_reply_says_what_it_cost(site: Site) -> None:
    key = await site.key()
    made = await site.call("POST", "/v1/users", key, {"role": "bot", "name": "Bo", "id": "bo"})
    cost = re.fullmatch(r"r=([0-9.]+), w=([0-9.]+)", made.headers["Tidings-Cost"])
    assert cost is not None
    assert float(cost[2]) > 0
    assert made.headers["Tidings-Cost-Source"] == "metered"
    for answer in (
        await site.call("GET", "/v1/nothing"),
        await site.call("GET", "/v1/me"),
        await site.call("GET", "/v1/trials/broken"),
    ):
        assert answer.headers["Tidings-Cost"] == "r=0, w=0"


async def test_another_origins_page_may_read_but_brings_nothing_along(site: Site) -> None:
    origin = {"Origin": "https://shop.example"}
    answer = await site.call("GET", "/v1/me", headers=origin)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Tidings-Cost", "Tidings-Cost-Source"} < {*exposed}
    asked = await site.call(
        "OPTIONS", "/v1/sessions", headers={**origin, "Access-Control-Request-Method": "POST"}
    )
    assert (asked.status, asked.raw) == (204, b"")
    assert asked.headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"
    assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
    closed = await site.call("GET", "/healthz", headers=origin)
    assert "Access-Control-Allow-Origin" not in closed.headers


async def test_limits_are_told_and_kept(open_site: Opening) -> None:
    async with open_site(rate_limit="1/second") as site:
        token = await site.user("ada")
        first = await site.call("GET", "/v1/users/ada", token)
        assert first.headers["RateLimit-Policy"] == '"session";q=2;w=2'
        assert re.fullmatch('"session";r=1;t=[12]', first.headers["RateLimit"])
        await site.call("GET", "/v1/users/ada", token)
        refused = await site.call("GET", "/v1/users/ada", token)
        assert (refused.status, refused.json["code"]) == (429, "rate_limited")
        assert int(refused.headers["Retry-After"]) in (1, 2)
        assert re.fullmatch('"session";r=0;t=[12]', refused.headers["RateLimit"])
        other = await site.user("bob")
        assert (await site.call("GET", "/v1/users/bob", other)).status == 200


async def test_an_unforeseen_error_is_a_problem_that_tells_nothing(site: Site) -> None:
    answer = await site.call("GET", "/v1/trials/broken")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert SECRET not in answer.raw.decode()
    assert answer.headers["X-Request-Id"] in answer.json["detail"]
    metrics = await site.call("GET", "/metrics", await site.key(operator=True))
    assert b'tidings_errors_total{place="/v1/trials/broken"} 1.0' in metrics.raw
    assert b'tidings_requests_total{route="/v1/trials/broken",status="500"} 1.0' in metrics.raw


async def test_an_unforeseen_error_in_a_stream_ends_it(site: Site) -> None:
    async with site.http.get(site.url + "/v1/trials/stream") as response:
        assert (response.status, await response.read()) == (200, b"so far so good")
    assert (await site.call("GET", "/healthz")).status == 200


async def test_a_client_that_hangs_up_stops_its_reads_but_not_its_changes(site: Site) -> None:
    for method in ("GET", "POST"):
        site.gate.arrived.clear()
        waiting = asyncio.ensure_future(site.call(method, "/v1/trials/wait"))
        await site.gate.arrived.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def is_read_stopped() -> bool:
        return site.gate.ended == ["look canceled"]

    await soon(is_read_stopped)
    site.gate.opened.set()

    async def is_change_done() -> bool:
        return site.gate.ended == ["look canceled", "change done"]

    await soon(is_change_done)


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /healthz HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"POST /v1/trials HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"\xff" * 50 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
    ],
    ids=range(7),
)
async def test_what_is_not_http_leaves_the_service_alive(site: Site, text: bytes) -> None:
    address = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(text)
    writer.write_eof()
    async with asyncio.timeout(60):
        reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert not re.match(rb"HTTP/1.1 5", reply)
    assert b"Traceback" not in reply
    assert (await site.call("GET", "/healthz")).status == 200
