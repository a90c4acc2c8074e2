"""What people see is the same on every store: one story, told on each, reply by reply and frame by
frame, byte for byte.

Time stands still but for where the story moves it, and nothing is left to chance, so that even ids,
tokens and cursors have to be the same.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from yarl import URL

from tests.people.clocks import FakeClock
from tests.stores import EVERY_STORE, StoreKind, store_address
from tidings.app import Service, listening, open_app
from tidings.config import Settings
from tidings.people.callers import ALL_SCOPES
from tidings.storage.tables import FANOUTS

DEADLINE_S = 60.0
DAY_S = 24 * 3600
OWN_HEADERS = frozenset({"Date", "Tidings-Cost-Source"})
"""Headers that may differ."""
TIMED_FRAMES = frozenset({"presence", "queue", "reader", "pong"})
"""Frames that come when a timer says so."""
CROWD = [f"u{number:02}" for number in range(40)]


def leave_nothing_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids count up from the clock, tokens from 0, and every secret is the same."""
    numbers = itertools.count()
    monkeypatch.setattr(secrets, "randbits", lambda bits: bits)
    monkeypatch.setattr(random, "getrandbits", lambda bits: 0)
    monkeypatch.setattr(secrets, "token_bytes", lambda size: b"s" * size)
    monkeypatch.setattr(secrets, "token_urlsafe", lambda size: f"{next(numbers):043}")


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """The event loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


class Frame(msgspec.Struct):
    """What tells frames apart."""

    type: str
    ref: str | int | None = None
    updates: list[msgspec.Raw] | None = None


def str_of(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


class Telling:
    """One service, and a record of everything that its clients get to see."""

    def __init__(self, service: Service, url: str, http: aiohttp.ClientSession) -> None:
        self.service = service
        self.url = url
        self.http = http
        self.tokens: dict[str, str] = {}
        self.sockets: dict[str, aiohttp.ClientWebSocketResponse] = {}
        self.seen: dict[str, list[Any]] = {"": []}
        """Replies in their order, and by user the frames in theirs."""

    async def ask(self, who: str, method: str, path: str, body: Any = None) -> Any:
        """One request, and then all frames that are due; the reply's body."""
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}
        data = None if body is None else msgspec.json.encode(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        url = URL(self.url + path, encoded=True)
        async with self.http.request(method, url, data=data, headers=headers) as reply:
            raw = await reply.read()
            shown = sorted((n, v) for n, v in reply.headers.items() if n not in OWN_HEADERS)
            self.seen[""].append((who, method, path, body, reply.status, shown, raw))
        await self.listen()
        return msgspec.json.decode(raw) if raw else None

    async def pages(self, who: str, path: str) -> list[Any]:
        """All items of a list, page by page."""
        items: list[Any] = []
        cursor = ""
        while True:
            page = await self.ask(who, "GET", f"{path}{cursor}")
            items += page["items"]
            if page["next"] is None:
                return items
            cursor = f"&cursor={page['next']}"

    async def session(self, user_id: str, role: str) -> None:
        await self.ask("key", "POST", "/v1/users", {"id": user_id, "role": role, "name": user_id})
        body = {"user_id": user_id, "device": {"name": "", "platform": role}}
        opened = await self.ask("key", "POST", "/v1/sessions", body)
        self.tokens[user_id] = opened["token"]

    async def connect(self, user_id: str) -> None:
        """A socket of the user, whose frames are recorded from now on."""
        headers = {"Authorization": f"Bearer {self.tokens[user_id]}"}
        self.seen[user_id] = []
        self.sockets[user_id] = await self.http.ws_connect(
            f"{self.url}/v1/ws", headers=headers, protocols=("tidings.v1",)
        )
        await self.listen()

    async def meet(self) -> None:
        """Have everybody and their tokens in the service's caches: what a call then costs does not
        depend on whether it or the frames of an earlier one were first to look them up. What these
        calls cost does, so they are not told.
        """
        told = len(self.seen[""])
        for user_id in sorted(self.tokens.keys() - {"key"}):
            await self.ask("key", "GET", f"/v1/users/{user_id}")
            await self.ask(user_id, "GET", "/v1/me")
        del self.seen[""][told:]

    async def send(self, user_id: str, frame: Any) -> None:
        """A frame, and then all that are due, its answer among them."""
        await self.sockets[user_id].send_str(msgspec.json.encode(frame).decode())
        async with asyncio.timeout(DEADLINE_S):
            while all(ref != frame["ref"] for _, ref, _ in self.seen[user_id]):
                await self.listen()

    async def settle(self) -> None:
        """Wait until no fan-out is open, and take the frames that it led to."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self.service.engine.scan(FANOUTS)).items:
                await asyncio.sleep(0.01)
        await self.listen()

    async def listen(self) -> None:
        """All frames up to a pong of our own."""
        for user_id, socket in self.sockets.items():
            await socket.send_str('{"type":"ping","ref":"end"}')
            is_over = False
            while not is_over:
                raw = await socket.receive_str(timeout=DEADLINE_S)
                frame = msgspec.json.decode(raw, type=Frame)
                for text in [raw] if frame.updates is None else map(str_of, frame.updates):
                    kind = msgspec.json.decode(text, type=Frame)
                    is_over = is_over or (kind.type, kind.ref) == ("pong", "end")
                    if kind.type not in TIMED_FRAMES:
                        self.seen[user_id].append((kind.type, kind.ref, text))


@asynccontextmanager
async def telling(store_url: str, clock: FakeClock) -> AsyncIterator[Telling]:
    settings = Settings(store=store_url, rate_limit="off")
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_app(settings, clock=clock))
        url = await stack.enter_async_context(listening(service, "127.0.0.1", 0))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        told = Telling(service, url, http)
        workspace = (await service.people.workspaces.default("acme")).id
        _, told.tokens["key"] = await service.people.credentials.create_key(
            workspace, "story", ALL_SCOPES
        )
        yield told
        for socket in told.sockets.values():
            await socket.close()


async def people(told: Telling) -> None:
    """Users with every kind of attribute, changed, listed and looked for."""
    for user_id, role in (("mia", "manager"), ("max", "manager"), ("ada", "admin")):
        await told.session(user_id, role)
    for user_id in ("cleo", "carl", "Zoe"):
        await told.session(user_id, "customer")
    attributes = {
        "empty": {},
        "none": [],
        "blank": "",
        "text": "größer 🎉 \u0000 \u2028",
        "zero": 0.0,
        "minus": -0.0,
        "whole": 2.0,
        "tiny": 1e-200,
        "pi": 3.141592653589793,
        "long": 12345678901234567890123,
        "yes": True,
        "deep": {"z": [1, 2.5, None, {"a": "b"}], "a": {"x": None}},
    }
    body = {"id": "eve", "role": "customer", "name": "Eve", "attributes": attributes}
    await told.ask("key", "POST", "/v1/users", body)
    await told.ask("key", "POST", "/v1/users", body)
    await told.ask("key", "GET", "/v1/users/eve")
    patch = {"attributes": {"deep": {"z": None}, "new": [[], {}, ""]}, "email": "eve@example.com"}
    await told.ask("key", "PATCH", "/v1/users/eve", patch)
    await told.ask("ada", "GET", "/v1/users/eve")
    await told.ask("cleo", "GET", "/v1/users/eve")
    await told.ask("key", "PATCH", "/v1/users/eve", {"email": None, "attributes": {"empty": None}})
    await told.pages("mia", "/v1/users?limit=2")
    await told.pages("mia", "/v1/users?limit=1&role=customer&q=c")
    await told.ask("mia", "GET", "/v1/users?cursor=nonsense")
    for device in ({"name": "", "platform": " "}, {"name": "Pixel 🦊"}, {}):
        await told.ask("key", "POST", "/v1/sessions", {"user_id": "eve", "device": device})
    await told.ask("key", "POST", "/v1/users", {"id": "e" * 64, "role": "bot", "name": " "})
    await told.ask("key", "DELETE", "/v1/users/eve")
    await told.ask("key", "POST", "/v1/sessions", {"user_id": "eve"})
    await told.ask("key", "GET", "/v1/users/nobody")


async def rooms(told: Telling) -> list[str]:
    """Rooms of every kind, many within one minute, listed by pages of any size."""
    await told.meet()
    for user_id in ("mia", "max", "cleo"):
        await told.connect(user_id)
    made = []
    for number in range(7):
        body = {"kind": "support", "member_ids": ["cleo" if number % 2 else "carl"]}
        room = await told.ask("key", "POST", "/v1/rooms", body | {"id": f"desk-{number}"})
        made.append(room["id"])
    for scope, title in (("public", "Open"), ("private", "Closed"), ("public", "👩‍💻")):
        body = {"kind": "group", "title": title, "scope": scope, "member_ids": ["max"]}
        made.append((await told.ask("mia", "POST", "/v1/rooms", body))["id"])
    pair = {"kind": "direct", "member_ids": ["max"]}
    made.append((await told.ask("mia", "POST", "/v1/rooms", pair))["id"])
    await told.ask("max", "POST", "/v1/rooms", {"kind": "direct", "member_ids": ["mia"]})
    await told.ask("key", "POST", "/v1/rooms", {"kind": "group", "id": "desk-1"})
    await told.ask("cleo", "POST", "/v1/rooms", {"kind": "group"})
    for path in ("/v1/rooms?limit=2", "/v1/rooms?limit=3&kind=support&status=open"):
        await told.pages("mia", path)
    first = await told.ask("mia", "GET", "/v1/rooms?limit=2")
    await told.ask("mia", "GET", f"/v1/rooms?limit=500&cursor={first['next']}")
    await told.pages("mia", "/v1/rooms?limit=1&kind=group")
    await told.ask("mia", "PATCH", "/v1/rooms/desk-0", {"assignee_id": "mia"})
    await told.ask("mia", "PATCH", "/v1/rooms/desk-1", {"status": "closed", "title": "Done"})
    await told.ask("max", "PATCH", "/v1/rooms/desk-2", {"snoozed_until": "2030-01-01T00:00:00Z"})
    for query in ("assignee_id=me", "assignee_id=none", "status=snoozed", "status=closed"):
        await told.pages("mia", f"/v1/rooms?{query}&limit=2")
    await told.ask("mia", "PATCH", "/v1/rooms/desk-1", {"title": None, "status": "open"})
    await told.ask("mia", "GET", "/v1/queue")
    return made


async def talk(told: Telling, made: list[str], clock: FakeClock) -> None:
    """Messages, their changes, read marks, inboxes and queues."""
    team, pair = made[7], made[-1]
    clock.forward(100)
    await told.meet()
    for number in range(5):
        clock.forward(0.1)
        body = {"client_id": f"c{number}", "text": f"Text {number} — ü 🎉 \u0000", "mentions": []}
        for room in (team, pair, "desk-0"):
            await told.ask("mia", "POST", f"/v1/rooms/{room}/messages", body)
    again = {"client_id": "c4", "text": "Text 4 — ü 🎉 \u0000"}
    await told.ask("mia", "POST", f"/v1/rooms/{pair}/messages", again)
    await told.ask("mia", "POST", f"/v1/rooms/{pair}/messages", again | {"text": "Other"})
    await told.ask("mia", "POST", f"/v1/rooms/{pair}/messages", {"client_id": "e", "text": ""})
    mention = {"client_id": "m", "text": "You?", "mentions": ["max"], "reply_to": 2}
    await told.ask("mia", "POST", f"/v1/rooms/{team}/messages", mention)
    await told.ask("mia", "POST", f"/v1/rooms/{team}/messages", mention | {"mentions": ["carl"]})
    for emoji in ("%F0%9F%8E%89", "%2B1", "%E2%9D%A4%EF%B8%8F"):
        for who in ("mia", "max"):
            await told.ask(who, "PUT", f"/v1/rooms/{team}/messages/1/reactions/{emoji}")
    await told.ask("mia", "DELETE", f"/v1/rooms/{team}/messages/1/reactions/%2B1")
    await told.ask("mia", "PATCH", f"/v1/rooms/{team}/messages/2", {"text": "Better"})
    await told.ask("mia", "DELETE", f"/v1/rooms/{team}/messages/3")
    for query in ("", "?before=4&limit=2", "?after=2&limit=3", "?have=1-3,7&limit=4", "?have="):
        await told.ask("max", "GET", f"/v1/rooms/{team}/messages{query}")
    await told.ask("max", "GET", "/v1/badge")
    for query in ("limit=2", "limit=2&unread=true", "limit=1&kind=group", "limit=1&status=open"):
        await told.pages("max", f"/v1/inbox?{query}")
    for seq in (2, 1, 99, 6):
        await told.ask("max", "PUT", f"/v1/rooms/{team}/read", {"seq": seq})
    await told.ask("max", "PUT", f"/v1/rooms/{team}/mute", {"muted": True})
    await told.ask("max", "PUT", f"/v1/rooms/{team}/hide", {"hidden": True})
    await told.pages("max", "/v1/inbox?limit=2")
    await told.ask("max", "GET", "/v1/me")
    await told.ask("carl", "GET", f"/v1/rooms/{team}")
    await told.ask("carl", "PUT", f"/v1/rooms/{team}/read", {"seq": 1})
    frame = {"type": "send", "ref": 1, "room_id": team, "client_id": "ws", "text": "By frame"}
    await told.send("max", frame)
    await told.send("max", {"type": "read", "ref": "r", "room_id": pair, "seq": 5})
    await told.send("max", {"type": "sync", "ref": 2, "since": None, "have": {team: "1-3"}})
    await told.ask("max", "POST", f"/v1/rooms/{team}/members", {"user_ids": ["ada", "cleo"]})
    await told.ask("cleo", "DELETE", f"/v1/rooms/{team}/members/cleo")
    await told.pages("mia", f"/v1/rooms/{team}/members?limit=1")
    reply = await told.ask("ada", "POST", "/v1/sync", {"limit": 2})
    while reply["more"]:
        reply = await told.ask("ada", "POST", "/v1/sync", {"since": reply["cursor"], "limit": 2})
    await told.ask("ada", "GET", f"/v1/sync?wait=0&since={reply['cursor']}")
    await told.ask("cleo", "POST", "/v1/sync", {"have": {team: "1", "desk-1": ""}})


async def crowd(told: Telling) -> None:
    """A room larger than one transaction."""
    for user_id in CROWD:
        await told.ask(
            "key", "POST", "/v1/users", {"id": user_id, "role": "bot", "name": user_id.title()}
        )
    members = ["mia", "max", *CROWD]
    await told.ask(
        "key", "POST", "/v1/rooms", {"kind": "group", "id": "hall", "member_ids": members}
    )
    await told.settle()
    for number in range(3):
        body = {"client_id": f"h{number}", "text": "To all", "mentions": ["max"], "as_user": "u00"}
        await told.ask("key", "POST", "/v1/rooms/hall/messages", body)
        await told.settle()
    await told.ask("max", "PUT", "/v1/rooms/hall/read", {"seq": 2})
    await told.ask("key", "DELETE", "/v1/rooms/hall/messages/3")
    await told.settle()
    await told.pages("mia", "/v1/rooms/hall/members?limit=17")
    await told.ask("max", "GET", "/v1/inbox")


async def years_later(told: Telling, made: list[str], clock: FakeClock) -> None:
    """What has expired is not there any more, though nothing has deleted it."""
    clock.forward(31 * DAY_S)
    again = {"client_id": "c4", "text": "Text 4 — ü 🎉 \u0000"}
    await told.ask("mia", "POST", f"/v1/rooms/{made[-1]}/messages", again)
    await told.pages("mia", "/v1/sessions?limit=1")
    clock.forward(60 * DAY_S)
    await told.ask("mia", "GET", "/v1/sessions")
    await told.ask("key", "GET", "/v1/users/mia")
    opened = await told.ask("key", "POST", "/v1/sessions", {"user_id": "mia"})
    told.tokens["mia"] = opened["token"]
    await told.ask("mia", "GET", "/v1/sessions")
    await told.ask("mia", "DELETE", f"/v1/sessions/{opened['session_id']}")
    await told.ask("mia", "GET", "/v1/sessions")


async def story(store_url: str) -> dict[str, list[Any]]:
    clock = FakeClock()
    async with telling(store_url, clock) as told:
        await people(told)
        made = await rooms(told)
        await talk(told, made, clock)
        await crowd(told)
        for socket in told.sockets.values():
            await socket.close()
        told.sockets.clear()
        await years_later(told, made, clock)
        return told.seen


@pytest.mark.slow
async def test_every_store_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stories: dict[StoreKind, dict[str, list[Any]]] = {}
    for kind in EVERY_STORE:
        folder = tmp_path / kind
        folder.mkdir()
        with monkeypatch.context() as patched:
            async with store_address(kind, folder, patched) as store_url:
                leave_nothing_to_chance(patched)
                stories[kind] = await story(store_url)
    expected = stories.pop("sqlite")
    assert len(expected[""]) > 150
    assert sum(map(len, expected.values())) > 250
    for kind, told in stories.items():
        for who, seen in told.items():
            for one, other in zip(seen, expected[who], strict=False):
                assert one == other, kind
            assert len(seen) == len(expected[who]), (kind, who)
