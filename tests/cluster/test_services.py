"""Two services on one store: what one did counts for the other, within the time promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import DEADLINE_S, Site, soon
from tests.api.trials import GATE, TRIALS, Gate
from tidings.api.sections import SECTIONS
from tidings.app import listening, open_app
from tidings.clock import rfc3339, system_clock
from tidings.cluster import schedule
from tidings.config import Settings
from tidings.delivery import hub
from tidings.people import credentials, directory
from tidings.storage.interface import Delete, Update
from tidings.storage.tables import ROOMS, SCHEDULE

REVOCATION_S = 5.0
"""Within this a revoked session is refused everywhere."""
SLACK_S = 0.4
"""For reading the store, and for a loop that is busy."""


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    """A service of its own on the store in the folder."""
    settings = Settings(store=f"sqlite:///{folder}/test.db", rate_limit="off")
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with (
        open_app(settings, sections=(*SECTIONS, TRIALS)) as service,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        service.web[GATE] = Gate()
        workspace = await service.people.workspaces.default("acme")
        async with listening(service, "127.0.0.1", 0) as url:
            yield Site(service, url, http, workspace.id)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(site(tmp_path))
        b = await stack.enter_async_context(site(tmp_path))
        yield a, b


async def nodes_of(site: Site) -> list[dict[str, Any]]:
    answer = await site.call("GET", "/v1/nodes", await site.key(operator=True))
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.json["items"]
    return found


async def test_both_list_both(sites: tuple[Site, Site], tmp_path: Path) -> None:
    ids = {each.service.nodes.node_id for each in sites}

    async def is_known() -> bool:
        lists = [await nodes_of(each) for each in sites]
        return all({node["id"] for node in found} == ids for found in lists)

    async def is_addressed() -> bool:
        found = {node["id"]: node["address"] for node in await nodes_of(sites[0])}
        return all(
            found[each.service.nodes.node_id] == each.url.removeprefix("http://") for each in sites
        )

    await soon(is_known)
    await soon(is_addressed)
    assert not any(node["is_draining"] for node in await nodes_of(sites[0]))
    assert b"tidings_nodes_live 2.0" in sites[0].service.metrics.exposition()
    async with site(tmp_path) as third:
        ids.add(third.service.nodes.node_id)
        await soon(is_known)
    ids.remove(third.service.nodes.node_id)
    await soon(is_known)


async def test_a_snooze_set_on_one_ends_once(
    sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sites
    token = await a.user("max")
    await a.user("cleo", "customer")
    key = await a.key()
    rooms = []
    for _ in range(6):
        body = {"kind": "support", "member_ids": ["cleo", "max"]}
        rooms.append((await a.call("POST", "/v1/rooms", key, body)).json["id"])
    later = rfc3339(system_clock() + 700)
    for number, room in enumerate(rooms):
        on = (a, b)[number % 2]
        answer = await on.call("PATCH", f"/v1/rooms/{room}", token, {"snoozed_until": later})
        assert answer.json["status"] == "snoozed"
    monkeypatch.setattr(schedule, "LOOK_PAUSE_S", 0.05)
    clusters = [each.service.chat.cluster for each in sites]

    async def is_awake() -> bool:
        await asyncio.gather(*(cluster.schedule.run() for cluster in clusters))
        answers = [await b.call("GET", f"/v1/rooms/{room}", token) for room in rooms]
        return all(answer.json["status"] == "open" for answer in answers)

    await soon(is_awake)
    for room in rooms:
        entries = (await a.call("GET", f"/v1/rooms/{room}/messages", token)).json["items"]
        opened = [entry for entry in entries if entry["data"].get("status") == "open"]
        assert len(opened) == 1, entries
    assert not (await a.service.store.scan(SCHEDULE)).items


async def test_snoozes_of_a_version_without_a_schedule_still_end(tmp_path: Path) -> None:
    async with site(tmp_path) as a:
        token = await a.user("max")
        await a.user("cleo", "customer")
        body = {"kind": "support", "member_ids": ["cleo", "max"]}
        room = (await a.call("POST", "/v1/rooms", await a.key(), body)).json["id"]
        later = rfc3339(system_clock() + 1_000)
        await a.call("PATCH", f"/v1/rooms/{room}", token, {"snoozed_until": later})
        store = a.service.store
        for item in (await store.scan(SCHEDULE)).items:
            await store.write(Delete(SCHEDULE, SCHEDULE.key(item)))
        await store.write(Update(ROOMS, (f"{a.workspace}#{room}",), set={"status": "snoozed"}))
    async with site(tmp_path) as b:
        assert len((await b.service.store.scan(SCHEDULE)).items) == 1

        async def is_awake() -> bool:
            await b.service.chat.cluster.schedule.run()
            answer = await b.call("GET", f"/v1/rooms/{room}", token)
            return bool(answer.json["status"] == "open")

        await soon(is_awake)


def test_what_may_be_remembered_of_a_revoked_session_fits_into_the_promise() -> None:
    checked_s = hub.BEAT_S * hub.CHECK_BEATS
    for remembered_ms in (credentials.CACHE_MS, directory.CACHE_MS):
        assert remembered_ms / 1000 + checked_s + SLACK_S < REVOCATION_S


@pytest.mark.slow
async def test_what_is_revoked_on_one_is_refused_on_the_other_in_time(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    loop = asyncio.get_running_loop()
    token = await a.user("max")
    session = (await a.call("GET", "/v1/sessions", token)).json["items"][0]["session_id"]
    async with AsyncExitStack() as stack:
        sockets = []
        for _ in range(6):  # each is looked after at another beat
            headers = {"Authorization": f"Bearer {token}"}
            opening = b.http.ws_connect(
                f"{b.url}/v1/ws", headers=headers, protocols=("tidings.v1",)
            )
            socket = await stack.enter_async_context(opening)
            assert (await socket.receive_json())["type"] == "ready"
            sockets.append(socket)
            await asyncio.sleep(0.15)
        assert (
            await b.call("GET", "/v1/me", token)
        ).status == 200  # remembered as late as it can be
        began_s = loop.time()
        assert (await a.call("DELETE", f"/v1/sessions/{session}", token)).status == 204

        async def closed(socket: Any) -> float:
            while (await socket.receive()).type != aiohttp.WSMsgType.CLOSE:
                pass
            assert socket.close_code == 4401
            return loop.time() - began_s

        async def refused() -> float:
            while (await b.call("GET", "/v1/me", token)).status != 401:
                await asyncio.sleep(0.02)
            return loop.time() - began_s

        async with asyncio.timeout(DEADLINE_S):
            took_s = await asyncio.gather(refused(), *map(closed, sockets))
        assert max(took_s) < REVOCATION_S, took_s


async def test_what_one_does_is_seen_at_the_other_by_the_operator(sites: tuple[Site, Site]) -> None:
    a, b = sites
    key = await a.key()
    await a.call("POST", "/v1/users", key, {"id": "ann", "role": "manager", "name": "Ann"})
    await a.call("POST", "/v1/users", key, {"id": "ben", "role": "manager", "name": "Ben"})
    room = {"id": "r", "kind": "group", "member_ids": ["ann", "ben"]}
    assert (await a.call("POST", "/v1/rooms", key, room)).status == 201
    for number in range(3):
        body = {"client_id": f"m{number}", "text": "hello", "as_user": "ann"}
        assert (await a.call("POST", "/v1/rooms/r/messages", key, body)).status == 201
    operator = await b.key(operator=True)

    found: dict[str, Any] = {}

    async def has_told() -> bool:
        answer = await b.call("GET", "/v1/operations", operator)
        assert answer.status == 200, answer
        told = {one["node"]["id"]: one["figures"] for one in answer.json["nodes"]}
        assert b.service.nodes.node_id in told
        found.update(told.get(a.service.nodes.node_id) or {})
        return found.get("messages") == 3

    await soon(has_told)
    assert sum(found["commits"]) == 4  # the room and its messages
    assert found["write_units"] >= 3 * 18  # docs/costs.md
    assert found["errors"] == found["throttles"] == 0
    refused = await b.call("GET", "/v1/operations", key)
    assert refused.status == 403


async def test_what_sockets_spend_is_seen_by_the_operator(tmp_path: Path) -> None:
    async with site(tmp_path) as a:
        key, operator, token = await a.key(), await a.key(operator=True), await a.user("ann")
        room = {"id": "r", "kind": "group", "member_ids": ["ann"]}
        assert (await a.call("POST", "/v1/rooms", key, room)).status == 201

        async def write_units() -> float:
            await a.service.nodes.beat()
            answer = await a.call("GET", "/v1/operations", operator)
            (node,) = answer.json["nodes"]
            found: float = node["figures"]["write_units"]
            return found

        headers = {"Authorization": f"Bearer {token}"}
        async with a.http.ws_connect(
            f"{a.url}/v1/ws", headers=headers, protocols=("tidings.v1",)
        ) as socket:
            assert (await socket.receive_json())["type"] == "ready"
            before = await write_units()
            post = {"type": "send", "room_id": "r", "client_id": "m", "text": "hello"}
            await socket.send_json(post)
            assert (await socket.receive_json())["type"] == "batch"  # the entry, and that it is
            # An entry, the room, a receipt, an inbox row and a badge, doubled by the transaction.
            assert await write_units() >= before + 2 * 5
