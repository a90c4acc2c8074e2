"""Web push: devices that are not connected hear of messages, once, and of what was read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import (
    Opening,
    Site,
    open_site,
    pytest_asyncio_loop_factories,
    soon,
    store_url,
)
from tests.delivery.push_service import Browser, PushService, push_service
from tidings.cluster import nodes
from tidings.delivery import presence, push
from tidings.storage.tables import PUSHES, SESSIONS, user_key

__all__ = ["open_site", "pytest_asyncio_loop_factories", "store_url"]

_numbers = count()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "PAUSE_S", 0.05)
    monkeypatch.setattr(push, "RETRY_FIRST_S", 0.01)


@pytest.fixture
async def far() -> AsyncIterator[PushService]:
    """The push service."""
    async with push_service() as service:
        yield service


@pytest.fixture
async def site(open_site: Opening) -> AsyncIterator[Site]:
    async with open_site(push="loopback") as site:
        yield site


class Person:
    """A user with one device, which may be pushed to."""

    def __init__(self, site: Site, user_id: str, token: str, session_id: str) -> None:
        self.site = site
        self.user_id = user_id
        self.token = token
        self.session_id = session_id

    async def call(self, method: str, path: str, json: Any = None) -> Any:
        answer = await self.site.call(method, path, self.token, json)
        assert answer.status < 300, (method, path, answer)
        return answer.json if answer.raw else None

    async def subscribe(self, browser: Browser) -> None:
        path = f"/v1/sessions/{self.session_id}/push"
        await self.call("PUT", path, browser.subscription)

    async def post(self, room_id: str, text: str) -> int:
        body = {"client_id": f"c{next(_numbers)}", "text": text}
        entry = await self.call("POST", f"/v1/rooms/{room_id}/messages", body)
        seq: int = entry["seq"]
        return seq

    async def read(self, room_id: str, seq: int) -> None:
        await self.call("PUT", f"/v1/rooms/{room_id}/read", {"seq": seq})

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.site.http.ws_connect(f"{self.site.url}/v1/ws", headers=headers) as socket:
            assert (await socket.receive_json())["type"] == "ready"
            yield socket


async def person(site: Site, user_id: str) -> Person:
    """A user with a new session."""
    key = await site.key()
    await site.call("POST", "/v1/users", key, {"id": user_id, "role": "manager", "name": "Ann Lee"})
    opened = await site.call("POST", "/v1/sessions", key, {"user_id": user_id})
    return Person(site, user_id, opened.json["token"], opened.json["session_id"])


async def direct(one: Person, other: Person) -> str:
    body = {"kind": "direct", "member_ids": [other.user_id]}
    room_id: str = (await one.call("POST", "/v1/rooms", body))["id"]
    return room_id


async def test_who_is_away_hears_of_a_message_and_of_its_being_read(
    site: Site, far: PushService
) -> None:
    ann, ben = await person(site, "ann"), await person(site, "ben")
    laptop = await person(site, "ben")
    room_id = await direct(ann, ben)
    await ben.subscribe(far.browser("phone"))
    async with laptop.connected():
        await laptop.subscribe(far.browser("laptop"))
        seq = await ann.post(room_id, "hello ☀")
        await far.until(lambda: far.pushes)
        (pushed,) = far.pushes
        assert pushed.device == "phone", "the laptop is connected"
        total = await ben.call("GET", "/v1/badge")
        assert pushed.body == {
            "type": "entry",
            "room_id": room_id,
            "seq": seq,
            "sender_id": "ann",
            "sender_name": "Ann Lee",
            "preview": "hello ☀",
            "total": total,
        }
        assert (pushed.urgency, pushed.life_s) == ("high", 86_400)
        key = await ben.call("GET", "/v1/push")
        assert pushed.public_key == key["public_key"]

        await laptop.read(room_id, seq)
        await far.until(lambda: len(far.pushes) == 2)
    cleared = far.pushes[1]
    total = await ben.call("GET", "/v1/badge")
    assert total["unread"] == 0
    assert cleared.body == {"type": "read", "room_id": room_id, "total": total}
    assert (cleared.device, cleared.topic) == ("phone", pushed.topic)
    assert cleared.urgency == "low", "nobody is woken for it"


async def test_what_comes_together_is_pushed_once_for_each_room(
    site: Site, far: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "PAUSE_S", 1.0)
    ann, ben, eve = [await person(site, each) for each in ("ann", "ben", "eve")]
    await ben.subscribe(far.browser("phone"))
    rooms = [await direct(ann, ben), await direct(eve, ben)]
    for number in range(5):
        await ann.post(rooms[0], f"a{number}")
        await eve.post(rooms[1], f"e{number}")
    await far.until(lambda: len(far.pushes) == 2)
    assert {each["preview"] for each in far.to("phone")} == {"a4", "e4"}
    assert {each["total"]["unread"] for each in far.to("phone")} == {10}
    assert len({each.topic for each in far.pushes}) == 2


async def test_nobody_is_told_of_their_own_of_muted_rooms_or_of_what_they_read(
    site: Site, far: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "PAUSE_S", 1.0)
    ann, ben = await person(site, "ann"), await person(site, "ben")
    await ann.subscribe(far.browser("ann"))
    await ben.subscribe(far.browser("ben"))
    for number in range(30):
        await site.user(f"u{number}")
    room_id = await direct(ann, ben)
    for others in ([], [f"u{number}" for number in range(30)]):
        body = {"kind": "group", "member_ids": ["ben", *others]}
        muted = await ann.call("POST", "/v1/rooms", body)
        await ben.call("PUT", f"/v1/rooms/{muted['id']}/mute", {"muted": True})
        await ann.post(muted["id"], "muted")
    laptop = await person(site, "ben")
    async with laptop.connected():
        await laptop.read(room_id, await ann.post(room_id, "read at once"))
    other = await ann.call("POST", "/v1/rooms", {"kind": "group", "member_ids": ["ben"]})
    await ann.post(other["id"], "news")
    await far.until(lambda: far.pushes)
    assert [each["preview"] for each in far.to("ben")] == ["news"]
    assert not far.to("ann")


async def test_a_subscription_that_is_gone_is_forgotten(site: Site, far: PushService) -> None:
    ann, ben = await person(site, "ann"), await person(site, "ben")
    room_id = await direct(ann, ben)
    await ben.subscribe(far.browser("old"))
    far.answers = [(410, {})]
    await ann.post(room_id, "one")
    await far.until(lambda: far.refused == [410])
    key = user_key(site.workspace, "ben")

    async def is_forgotten() -> bool:
        return not (await site.service.store.query(PUSHES, key)).items

    await soon(is_forgotten)
    await ben.subscribe(far.browser("new"))
    await ann.post(room_id, "two")
    await far.until(lambda: far.pushes)
    assert [each["preview"] for each in far.to("new")] == ["two"]
    assert not far.to("old")


async def test_a_push_service_that_is_busy_is_asked_again_within_limits(
    site: Site, far: PushService
) -> None:
    ann, ben = await person(site, "ann"), await person(site, "ben")
    room_id = await direct(ann, ben)
    await ben.subscribe(far.browser("phone"))
    far.answers = [(503, {}), (429, {"Retry-After": "0"}), (500, {})]
    await ann.post(room_id, "one")
    await far.until(lambda: far.pushes)
    assert far.refused == [503, 429, 500]
    far.answers = [(503, {})] * 10
    await ann.post(room_id, "two")
    await far.until(lambda: len(far.refused) == 3 + push.ATTEMPTS_MAX)
    far.answers = [(400, {})]
    await ann.post(room_id, "three")
    await far.until(lambda: far.refused[-1] == 400)
    await ann.post(room_id, "four")
    await far.until(lambda: len(far.pushes) == 2)
    assert far.pushes[-1].body["total"]["unread"] == 4


async def test_who_signed_out_is_told_nothing(site: Site, far: PushService) -> None:
    ann, ben = await person(site, "ann"), await person(site, "ben")
    phone = await person(site, "ben")
    room_id = await direct(ann, ben)
    await ben.subscribe(far.browser("one"))
    await phone.subscribe(far.browser("two"))
    await ben.call("DELETE", f"/v1/sessions/{phone.session_id}")
    await ann.post(room_id, "hello")
    await far.until(lambda: far.pushes)
    await ben.call("DELETE", f"/v1/sessions/{ben.session_id}/push")
    await ann.post(room_id, "again")
    key = user_key(site.workspace, "ben")

    async def is_forgotten() -> bool:
        return not (await site.service.store.query(PUSHES, key)).items

    await soon(is_forgotten)
    await asyncio.sleep(0.2)
    assert [(each.device, each.body["preview"]) for each in far.pushes] == [("one", "hello")]


async def test_what_a_service_did_not_push_before_its_end_the_next_one_does(
    open_site: Opening, far: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "PAUSE_S", 60.0)
    async with open_site(push="loopback") as site:
        ann, ben, eve = [await person(site, each) for each in ("ann", "ben", "eve")]
        room_id = await direct(ann, ben)
        await ben.subscribe(far.browser("phone"))
        await eve.subscribe(far.browser("idle"))
        synced = await eve.call("POST", "/v1/sync", {})
        await ann.post(await direct(ann, eve), "seen by a device that was connected")
        seen = await eve.call("POST", "/v1/sync", {"since": synced["cursor"]})
        await eve.call("POST", "/v1/sync", {"since": seen["cursor"]})
        await ann.post(room_id, "hello")
        assert not far.pushes
    async with open_site(push="loopback") as site:
        await far.until(lambda: far.pushes)
        (pushed,) = far.pushes
        assert (pushed.device, pushed.body["type"]) == ("phone", "badge")
        assert pushed.body["total"]["unread"] == 1
        key = (user_key(site.workspace, "ben"), ben.session_id)

        async def is_noted() -> bool:
            row = await site.service.store.get(PUSHES, key)
            return row is not None and row["told_unread"] == 1

        await soon(is_noted)
        assert await site.service.pushes.sweep() == 0, "it is known what was told"


async def test_what_a_broken_connection_did_not_bring_is_pushed(
    site: Site, far: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "OFFLINE_AFTER_S", 0.0)
    ann, deaf, careful, away = [await person(site, each) for each in ("ann", "ben", "eve", "cal")]
    for each, name in ((deaf, "deaf"), (careful, "careful"), (away, "away")):
        await each.subscribe(far.browser(name))
    async with deaf.connected(), careful.connected() as socket:
        for each in (careful, deaf, away):
            await ann.post(await direct(ann, each), "hello")
        while (told := await socket.receive_json())["type"] != "entry":
            pass
        await socket.send_json({"type": "seen", "cursor": told["cursor"]})
        key = (user_key(site.workspace, "eve"), careful.session_id)

        async def is_acknowledged() -> bool:
            session = await site.service.store.get(SESSIONS, key)
            return session is not None and session["cursor"] == told["cursor"]

        await soon(is_acknowledged)
        await far.until(lambda: far.to("away"))
        assert len(far.pushes) == 1, "the others seem to be connected"
    await far.until(lambda: len(far.pushes) == 2)
    pushed = far.pushes[1]
    assert (pushed.device, pushed.body["type"]) == ("deaf", "badge")
    assert pushed.body["total"]["unread"] == 1


async def test_of_several_nodes_the_one_that_committed_pushes(
    open_site: Opening, far: PushService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "PAUSE_S", 0.5)
    monkeypatch.setattr(nodes, "BEAT_S", 0.05)
    async with open_site(push="loopback") as one, open_site(push="loopback") as other:

        async def see_each_other() -> bool:
            return len(one.service.nodes.live) == len(other.service.nodes.live) == 2

        await soon(see_each_other)
        ann, ben = await person(one, "ann"), await person(one, "ben")
        laptop = await person(other, "ben")
        room_id = await direct(ann, ben)
        await ben.subscribe(far.browser("phone"))
        await laptop.subscribe(far.browser("laptop"))
        async with laptop.connected():

            async def is_known() -> bool:
                sessions = await ben.call("GET", "/v1/sessions")
                return any(each["is_online"] for each in sessions["items"])

            await soon(is_known)
            await ann.post(room_id, "hello")
            await far.until(lambda: far.pushes)
            await asyncio.sleep(0.7)
            assert [each.device for each in far.pushes] == ["phone"]
        one_key, other_key = [
            (await each.call("GET", "/v1/push", ben.token)).json for each in (one, other)
        ]
        assert one_key == other_key


ENDPOINTS = [
    "http://push.example.com/1",
    "https://127.0.0.1/1",
    "https://10.0.0.1/1",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/1",
    "https://[::ffff:10.0.0.1]/1",
    "https://[64:ff9b::a9fe:a9fe]/1",
    "https://[fd00:ec2::254]/1",
    "https://100.100.100.200/1",
    "https://localhost/1",
    "https://push.example.com:8443/1",
    "https://user:pass@push.example.com/1",
    "https://push.example.com:port/1",
    "ftp://push.example.com/1",
    "nonsense",
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_only_public_push_services_are_taken(open_site: Opening, endpoint: str) -> None:
    async with open_site() as site:
        ann = await person(site, "ann")
        body = Browser("phone", endpoint).subscription
        path = f"/v1/sessions/{ann.session_id}/push"
        refused = await site.call("PUT", path, ann.token, body)
        assert (refused.status, refused.fields) == (400, ["endpoint"])


async def test_a_subscription_is_of_ones_own_session_and_whole(open_site: Opening) -> None:
    async with open_site() as site:
        ann, ben = await person(site, "ann"), await person(site, "ben")
        good = Browser("phone", "https://push.example.com/1").subscription
        path = f"/v1/sessions/{ann.session_id}/push"
        assert (await site.call("PUT", path, ben.token, good)).status == 404
        assert (await site.call("DELETE", path, ann.token)).status == 404
        for keys in (
            good["keys"] | {"p256dh": "AAAA"},
            good["keys"] | {"p256dh": "B" + "A" * 86},
            good["keys"] | {"auth": "AAAA"},
            good["keys"] | {"auth": "%%%%"},
        ):
            assert (await site.call("PUT", path, ann.token, good | {"keys": keys})).status == 400
        assert (await site.call("PUT", path, ann.token, good)).status == 204
        assert (await site.call("DELETE", path, ben.token)).status == 404
        assert (await site.call("DELETE", path, ann.token)).status == 204
    async with open_site(push="off") as site:
        path = f"/v1/sessions/{ann.session_id}/push"
        assert (await site.call("PUT", path, ann.token, good)).status == 404
