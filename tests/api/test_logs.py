"""Logs: one line per request that says enough, and never a secret."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog

from tests.api.conftest import Site
from tests.api.trials import SECRET
from tidings import logs

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Log:
    """What was logged, as text and as events."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self._writer = logs.configure("json", self.stream)

    def close(self) -> str:
        """Everything that was logged."""
        assert self._writer is not None
        self._writer.close()
        return self.stream.getvalue()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name."""
        events = [msgspec.json.decode(line) for line in self.close().splitlines()]
        return [event for event in events if event["event"] == name]


@pytest.fixture
def log() -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    log = Log()
    yield log
    log.close()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


async def test_a_request_is_one_line(log: Log, site: Site) -> None:
    key = await site.key()
    traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = await site.call("GET", "/v1/users/ada?", key, headers=traced)
    assert answer.status == 404
    (line,) = log.events("request")
    caller = await site.service.people.credentials.authenticate(key)
    assert line["method"] == "GET"
    assert line["route"] == "/v1/users/{user_id}"
    assert line["status"] == 404
    assert line["caller"] == caller.credential_id
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert line["trace_id"] == TRACE
    assert line["duration_ms"] >= 0
    assert answer.headers["Tidings-Cost"] == (
        f"r={line['read_units']:g}, w={line['write_units']:g}"
    )


@pytest.mark.parametrize(
    "given",
    [
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        SECRET,
    ],
)
async def test_a_wrong_trace_begins_a_new_one(log: Log, site: Site, given: str) -> None:
    await site.call("GET", "/healthz", headers={"traceparent": given})
    (line,) = log.events("request")
    assert line["trace_id"] != TRACE
    assert len(line["trace_id"]) == 32


async def test_an_unforeseen_error_is_logged_once_without_its_text(log: Log, site: Site) -> None:
    answer = await site.call("GET", "/v1/trials/broken")
    (event,) = log.events("unexpected")
    assert event["exception"] == "RuntimeError"
    assert event["request_id"] == answer.headers["X-Request-Id"]
    assert "break_down" in event["places"][-1]
    assert SECRET not in log.close()


async def test_the_exceptions_of_a_group_are_named_without_their_texts(log: Log) -> None:
    async def break_down() -> None:
        raise KeyError(SECRET)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(break_down())
    except* KeyError:
        structlog.get_logger().exception("unexpected", place="here")
    (event,) = log.events("unexpected")
    assert event["exception"] == "ExceptionGroup"
    (within,) = event["exceptions"]
    assert within["exception"] == "KeyError"
    assert "break_down" in within["places"][-1]
    assert SECRET not in log.close()


async def test_nothing_that_clients_send_is_logged(log: Log, site: Site) -> None:
    key = await site.key()
    bearer = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "Origin": f"http://{SECRET}"}
    room = f"/v1/rooms/{SECRET}"
    made = await site.call(
        "POST", "/v1/users", key, {"id": SECRET, "name": SECRET, "role": "manager", "email": "a@b"}
    )
    assert made.status == 201
    opened = await site.call("POST", "/v1/sessions", key, {"user_id": SECRET})
    token = opened.json["token"]
    for method, path, json in (
        (
            "POST",
            "/v1/rooms",
            {"id": SECRET, "kind": "group", "title": SECRET, "member_ids": [SECRET]},
        ),
        ("POST", f"{room}/messages", {"client_id": SECRET, "text": SECRET, "as_user": SECRET}),
        ("POST", f"{room}/messages", {"client_id": SECRET, SECRET: SECRET}),
        ("GET", f"{room}/messages?have={SECRET}", None),
        ("GET", f"/v1/users?q={SECRET}&limit={SECRET}", None),
        ("GET", f"/v1/users?cursor={SECRET}", None),
        ("GET", f"/v1/sync?since={SECRET}&wait=0", None),
        ("GET", f"/{SECRET}", None),
        ("POST", "/v1/sessions", {"publishable_key": SECRET, "jwt": SECRET}),
        ("POST", "/v1/trials", SECRET),
    ):
        for who in (key, token, None):
            await site.call(method, path, who, json)
        await site.call(method, path, None, json, headers=bearer)
    host, port = site.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{SECRET} /{SECRET}\r\n{SECRET}\r\n\r\n".encode())
    writer.write_eof()
    writer.close()
    await writer.wait_closed()
    await site.call("GET", "/healthz")
    text = log.close()
    assert text.count('"event":"request"') > 40
    for secret in (SECRET, key, token):
        assert secret not in text


async def test_what_libraries_log_arrives_without_its_text(log: Log) -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("some.library").exception("could not read %s", SECRET)
    (event,) = log.events("library")
    assert (event["logger"], event["exception"]) == ("some.library", "ValueError")
    assert SECRET not in log.close()


def test_a_reader_that_stopped_stops_nobody() -> None:
    class Stuck(io.StringIO):
        """Takes nothing until it is let go."""

        def __init__(self) -> None:
            super().__init__()
            self.is_writing = threading.Event()
            self.may_go_on = threading.Event()

        def write(self, text: str) -> int:
            self.is_writing.set()
            self.may_go_on.wait()
            return super().write(text)

    stream = Stuck()
    writer = logs.LineWriter(stream)
    writer.msg("first")
    stream.is_writing.wait()
    for number in range(logs.LINES_WAITING_MAX + 5):
        writer.msg(str(number))
    stream.may_go_on.set()
    writer.close()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["first", "0"]
    assert len(lines) == logs.LINES_WAITING_MAX + 2
    assert msgspec.json.decode(lines[-1]) == {"event": "lines_dropped", "count": 5}
