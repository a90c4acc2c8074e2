"""`--faults`: the service holds while its store fails on purpose, and the metrics say how."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.api.conftest import Opening, Site
from tidings.app import open_app
from tidings.chat.audit import audit
from tidings.config import SettingRefused, Settings

MESSAGES = 20
"""Of each of two people."""


async def post_some(site: Site) -> None:
    key = await site.key()
    members = ["ann", "ben"]
    for user_id in members:
        await site.user(user_id)
    body = {"id": "team", "kind": "group", "scope": "private", "member_ids": members}
    assert (await site.call("POST", "/v1/rooms", key, body)).status == 201
    seqs: set[int] = set()

    async def post_in_turn(author: str) -> None:
        for number in range(MESSAGES):
            message = {"client_id": f"m-{number}", "as_user": author, "text": "Hello"}
            answer = await site.call("POST", "/v1/rooms/team/messages", key, message)
            assert answer.status == 201, answer
            seqs.add(answer.json["seq"])

    await asyncio.gather(*(post_in_turn(author) for author in members))
    assert len(seqs) == MESSAGES * len(members)


async def test_a_service_practises(open_site: Opening, tmp_path: Path) -> None:
    profile = tmp_path / "own.toml"
    profile.write_text("[tables.rooms]\nthrottle = 0.3\nlost_answer = 0.3\n")
    with capture_logs() as logs:
        async with open_site(faults=str(profile)) as site:
            await post_some(site)
            metrics = (await site.call("GET", "/metrics", await site.key(operator=True))).raw
            report = await audit(site.service.store)
    assert report.ok, report.broken
    assert logs[0] == {
        "event": "faults_on_purpose",
        "log_level": "warning",
        "profile": str(profile),
    }
    text = metrics.decode()
    for line in (
        r'tidings_faults_injected_total\{kind="lost_answer",table="rooms"\} [1-9]',
        r'tidings_faults_injected_total\{kind="throttle",table="rooms"\} [1-9]',
        r'tidings_store_retries_total\{kind="lost_answer"\} [1-9]',
        r'tidings_store_retries_total\{kind="throttle"\} [1-9]',
    ):
        assert re.search(line, text), line


async def test_no_faults_unless_asked_for(site: Site) -> None:
    await post_some(site)
    metrics = (await site.call("GET", "/metrics", await site.key(operator=True))).raw
    assert b"tidings_faults_injected_total{" not in metrics


async def test_a_profile_with_a_mistake_is_refused_before_anything_is_opened(
    tmp_path: Path,
) -> None:
    settings = Settings(store=f"sqlite:///{tmp_path}/a.db", faults="wild")
    with pytest.raises(SettingRefused, match="wild"):
        async with open_app(settings):
            pass
    assert not (tmp_path / "a.db").exists()
