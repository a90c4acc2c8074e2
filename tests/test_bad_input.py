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
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Answer, Opening, Site, open_site, pytest_asyncio_loop_factories, site
from tests.command_line import run_tidings, running_service
from tidings.api.decoding import BODY_BYTES_MAX
from tidings.delivery.websocket import INBOUND_BYTES_MAX
from tidings.storage.tables import TABLES

__all__ = ["open_site", "pytest_asyncio_loop_factories", "site"]

JSON = {"Content-Type": "application/json"}
PROBLEM = "application/problem+json"
TIMEOUT_S = 20.0
STREAMS = frozenset({"/v1/ws", "/v1/events"})
"""They answer for as long as they like; their frames are tested below."""
CASES_MIN = 2_000
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MODES = tuple(schemathesis.GenerationMode)


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
        known = {
            "room_id": [room["id"] for room in rooms],
            "user_id": ["vic", "vin"],
            "seq": [1, 2, 3, 4],
            "emoji": ["👍", "a"],
            "file": ["docs.css", "docs.js"],
        }
        yield Target(url, tokens, operator, known)


def generated_calls(target: Target, examples: int, random_seed: int) -> int:
    """Make calls of every operation as each caller, right and wrong ones; how many were made."""
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json")
    http = requests.Session()
    tokens = st.sampled_from([*target.tokens.values(), target.operator, ""])
    count = 0

    def call(case: schemathesis.Case, token: str, hits: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        case.path_parameters.update(
            {name: value for name, value in hits.items() if value is not None}
        )
        wait_no_longer(case)
        given = {"Authorization": f"Bearer {token}"} if token else {}
        response = case.call(session=http, headers=given, timeout=TIMEOUT_S)
        assert response.status_code < 500, case.as_curl_command()
        if response.status_code >= 400:
            assert response.headers["content-type"] == [PROBLEM]
            if case.method != "HEAD":
                problem = response.json()
                assert problem["status"] == response.status_code
                assert problem["code"]
        case.validate_response(response, checks=CHECKS)

    for result in schema.get_all_operations():
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


def wait_no_longer(case: schemathesis.Case) -> None:
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
        assert generated_calls(target, examples=85, random_seed=1) >= CASES_MIN
    audit = run_tidings("audit", "--json", "--store", f"sqlite:///{tmp_path}/bad.db")
    assert audit.code == 0, audit.output


def test_few_generated_calls_break_nothing(tmp_path: Path) -> None:
    with filled_service(tmp_path) as target:
        assert generated_calls(target, examples=8, random_seed=2) >= 200


