"""A company with rooms of every kind, and everybody who may and who may not see them.

Each kind of room has marks of its own (its ids, a word in its titles and texts), so that whatever
somebody is told can be searched for what isn't theirs.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from tests.api.conftest import DEADLINE_S, Answer, Site
from tests.api.trials import GATE, Gate
from tidings.app import listening, open_app
from tidings.clock import Clock, system_clock
from tidings.config import Settings
from tidings.people.callers import ALL_SCOPES

PEOPLE = {
    "ada": "admin",
    "max": "manager",
    "mona": "manager",
    "gus": "manager",
    "cleo": "customer",
    "olga": "customer",
    "fred": "customer",
    "zoe": "customer",
    "robo": "bot",
    "ida": "manager",
    "dan": "manager",
}
"""Users and their roles. Gus is in every room but the direct one; Ida and Zoe are in none."""
SHARING: Mapping[str, set[str]] = {
    "cleo": {"max", "robo", "gus", "dan"},
    "robo": {"max", "cleo", "gus", "dan"},
    "olga": {"gus"},
    "visitor": {"gus"},
    "fred": set(),
}
"""Who isn't a manager, and with whom they share a room."""
MEMBERS: Mapping[str, tuple[str, ...]] = {
    "direct": ("max", "cleo"),
    "private": ("max", "cleo", "robo", "gus"),
    "public": ("max", "cleo", "robo", "gus"),
    "support": ("max", "cleo", "robo", "gus"),
    "others_support": ("olga", "gus"),
    "visitors_support": ("visitor", "gus"),
    "notes": ("max", "gus"),
}
"""Kinds of rooms and who is in them; the notes are about Cleo's support room."""
KINDS = {
    "private": {"kind": "group"},
    "public": {"kind": "group", "scope": "public"},
    "support": {"kind": "support"},
    "others_support": {"kind": "support"},
    "visitors_support": {"kind": "support"},
    "notes": {"kind": "group"},
}
FORMER_ROOMS = ("private", "public")
"""Kinds whose first room Fred was a member of, before anything was said there."""
ABSENT = "room-that-never-was"
KEY_SCOPES = {
    "key": ALL_SCOPES,
    "key_users": {"users"},
    "key_rooms": {"rooms"},
    "key_messages": {"messages"},
    "key_sessions": {"sessions"},
}
USERS_OF_CALLERS = {
    "admin": "ada",
    "manager_in": "max",
    "manager_out": "mona",
    "customer_in": "cleo",
    "customer_out": "olga",
    "bot_in": "robo",
    "former": "fred",
}
"""Callers by session, and which user each is."""
VISITOR, FOREIGN_ADMIN, FOREIGN_KEY, OPERATOR = (
    "visitor",
    "foreign_admin",
    "foreign_key",
    "operator",
)
STRANGERS = ("nobody", "garbage", "revoked", "deactivated")
"""Callers whose credential is missing, unknown or taken away."""
SESSIONS = (*USERS_OF_CALLERS, VISITOR, FOREIGN_ADMIN)
CALLERS = (*SESSIONS, *KEY_SCOPES, FOREIGN_KEY, OPERATOR, *STRANGERS)


class Room(msgspec.Struct, frozen=True):
    """A room and where in it something of each member stands."""

    kind: str
    id: str
    seqs: dict[str, int]
    """User to the sequence of a text of theirs."""
    blob_id: str = "blob-of-nowhere"
    """A file that the first of these texts links to."""


class Scene:
    """Everybody and everything, made over HTTP with API keys."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        """Where the store is that the scene was made in."""
        self.tokens: dict[str, str | None] = {}
        self.user_ids: dict[str, str] = {**{user_id: user_id for user_id in PEOPLE}}
        """Users by the name that the tables give them: the visitor's id is made by the service."""
        self.sessions: dict[str, str] = {}
        """Caller to the id of their session."""
        self.rooms: dict[str, Room] = {}
        """The first room of each kind, as long as nobody changed it."""
        self.marks: dict[str, set[str]] = {kind: {f"word-of-{kind}"} for kind in MEMBERS}
        self.publishable_key = ""
        self.key = ""
        self._numbers = count(1)

    def moved(self, site: Site) -> Scene:
        """The same people and rooms behind another service."""
        scene = copy(self)
        scene.site = site
        scene.marks = {kind: set(marks) for kind, marks in self.marks.items()}
        return scene

    def number(self) -> int:
        """A new one."""
        return next(self._numbers)

    async def must(self, method: str, path: str, json: Any = None, token: str = "") -> Any:
        """The reply to a call that has to succeed, by the company's own key if not said else."""
        answer = await self.site.call(method, path, token or self.key, json)
        assert answer.status < 300, (method, path, answer)
        return answer.json if answer.raw else None

    async def call(self, caller: str, method: str, path: str, json: Any = None) -> Answer:
        """One call by one of the callers."""
        return await self.site.call(method, path, self.tokens[caller], json)

    def user_of(self, caller: str) -> str | None:
        """The user who calls; None for keys and strangers."""
        name = USERS_OF_CALLERS.get(caller, caller)
        return self.user_ids.get(name)

    async def user(self, role: str = "manager") -> str:
        """A new user."""
        user_id = f"new{self.number()}"
        await self.must("POST", "/v1/users", {"id": user_id, "role": role, "name": user_id})
        return user_id

    async def session(self, user_id: str) -> tuple[str, str]:
        """A new session of a user: its id and its token."""
        opened = await self.must("POST", "/v1/sessions", {"user_id": user_id})
        return opened["session_id"], opened["token"]

    async def room(self, kind: str, caller: str = "") -> Room:
        """A new room of a kind, in which every member has said something.

        The direct room is one of the caller, or else of Max, with somebody new.
        """
        word = f"word-of-{kind}"
        if kind == "direct":
            first = self.user_of(caller)
            members = [first if first in MEMBERS[kind] else "max", await self.user()]
            body: dict[str, Any] = {"kind": "direct"}
        else:
            members = [self.user_ids[name] for name in MEMBERS[kind]]
            body = {**KINDS[kind], "id": f"room-of-{kind}-{self.number()}", "title": word}
        if kind == "notes":
            body["about"] = self.rooms["support"].id
        room = await self.must("POST", "/v1/rooms", {**body, "member_ids": members})
        return await self.speak(kind, room["id"], members)

    async def speak(self, kind: str, room_id: str, members: list[str]) -> Room:
        """The room, once every member has said something in it."""
        self.marks[kind].add(room_id)
        blob_id = await self.file(self.key, f"word-of-{kind}")
        seqs = {
            user_id: await self.say(kind, room_id, user_id, [] if number else [blob_id])
            for number, user_id in enumerate(members)
        }
        return Room(kind, room_id, seqs, blob_id)

    async def file(self, token: str, word: str) -> str:
        """A file that is called and says the word; its id."""
        body = {"name": word, "type": "text/plain", "size": len(msgspec.json.encode(word))}
        made = await self.must("POST", "/v1/blobs", body, token)
        path = URL(made["upload"]["url"]).raw_path
        await self.must("PUT", path, word, token)
        blob_id: str = made["blob_id"]
        return blob_id

    async def say(self, kind: str, room_id: str, user_id: str, blob_ids: Sequence[str] = ()) -> int:
        """Let a member say the word of a kind; its sequence."""
        body = {
            "client_id": f"c{self.number()}",
            "text": f"the word-of-{kind} by {user_id}",
            "blobs": list(blob_ids),
            "as_user": user_id,
        }
        entry = await self.must("POST", f"/v1/rooms/{room_id}/messages", body)
        seq: int = entry["seq"]
        return seq

    def marks_but_of(self, kinds: set[str]) -> set[str]:
        """What nobody may be told who sees rooms of these kinds only."""
        return {mark for kind, marks in self.marks.items() if kind not in kinds for mark in marks}

    def people_hidden_from(self, caller: str) -> set[str]:
        """Users of whom the caller may not even know the name."""
        if caller in KEY_SCOPES:
            return set()
        name = USERS_OF_CALLERS.get(caller, caller)
        if name in SHARING:
            return set(PEOPLE) - SHARING[name] - {name}
        return set() if name in PEOPLE else set(PEOPLE)

    def people_known_by_name_to(self, caller: str) -> set[str]:
        """Users of whom the caller may know the name, but nothing else."""
        name = USERS_OF_CALLERS.get(caller, caller)
        if caller in KEY_SCOPES or PEOPLE.get(name) in ("admin", "manager"):
            return set()
        return set(PEOPLE) - {name}

    async def stir(self) -> None:
        """Let something of every sort happen in the first room of every kind."""
        for kind, room in self.rooms.items():
            author, path = next(iter(room.seqs)), f"/v1/rooms/{room.id}"
            _, token = await self.session(author)
            said = await self.say(kind, room.id, author)
            entry = f"{path}/messages/{said}"
            text = {"text": f"edited word-of-{kind}"}
            await self.must("PATCH", entry, text, token)
            await self.must("PUT", f"{entry}/reactions/word-of-{kind}", None, token)
            await self.must("POST", f"{path}/typing", None, token)
            await self.must("PUT", f"{path}/read", {"seq": said}, token)
            await self.must("PUT", f"{path}/mute", {"muted": True}, token)
            await self.must("DELETE", entry, None, token)
            if kind != "direct":
                await self.must("PATCH", path, {"title": f"renamed word-of-{kind}"})
                joining = {"user_id": await self.user()}
                await self.must("POST", f"{path}/members", joining)
                await self.must("DELETE", f"{path}/members/{joining['user_id']}")
            if "support" in kind:
                await self.must("PATCH", path, {"status": "closed"})

    async def logs(self) -> dict[str, Any]:
        """What the first rooms are and hold, as an API key sees them."""
        found: dict[str, Any] = {}
        for kind, room in self.rooms.items():
            path = f"/v1/rooms/{room.id}"
            found[kind] = [
                await self.must("GET", path),
                await self.must("GET", f"{path}/messages?limit=500"),
                await self.must("GET", f"{path}/members?limit=500"),
            ]
        return found


async def build_scene(path: Path) -> Scene:
    """A store with everybody and the first room of every kind; the service is stopped again."""
    async with _serving(path) as site:
        scene = Scene(site, path)
        await _people(scene)
        await _keys(scene)
        await _rooms(scene)
        await _strangers(scene)
    return scene


@asynccontextmanager
async def open_scene(path: Path, built: Scene, clock: Clock = system_clock) -> AsyncIterator[Scene]:
    """A service on a copy of the store of a scene."""
    shutil.copytree(built.folder, path, dirs_exist_ok=True)
    async with _serving(path, clock) as site:
        yield built.moved(site)


@asynccontextmanager
async def _serving(path: Path, clock: Clock = system_clock) -> AsyncIterator[Site]:
    settings = Settings(
        store=f"sqlite:///{path}/access.db", blobs=f"file:{path}/files", rate_limit="off"
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_read=DEADLINE_S)
    async with (
        open_app(settings, clock=clock) as service,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        service.web[GATE] = Gate()
        company = await service.people.workspaces.default("acme")
        async with listening(service, "127.0.0.1", 0) as url:
            yield Site(service, url, http, company.id)


async def _people(scene: Scene) -> None:
    company = await scene.site.service.people.workspaces.get(scene.site.workspace)
    assert company is not None
    scene.publishable_key = company.publishable_key
    scene.key = await scene.site.key()
    for user_id, role in PEOPLE.items():
        known = {"name": f"Name-of-{user_id}", "email": f"{user_id}@mail.example"}
        body = {"id": user_id, "role": role, **known}
        await scene.must("POST", "/v1/users", body)
    opened = await scene.site.call(
        "POST", "/v1/sessions", json={"publishable_key": scene.publishable_key}
    )
    scene.user_ids["visitor"] = opened.json["user"]["id"]
    scene.sessions[VISITOR] = opened.json["session_id"]
    scene.tokens[VISITOR] = opened.json["token"]


async def _keys(scene: Scene) -> None:
    people = scene.site.service.people
    for caller, scopes in KEY_SCOPES.items():
        scene.tokens[caller] = await scene.site.key(*scopes)  # type: ignore[arg-type]
    scene.tokens[OPERATOR] = await scene.site.key(operator=True)
    other = await people.workspaces.create("globex")
    _, key = await people.credentials.create_key(other.id, "another company's")
    scene.tokens[FOREIGN_KEY] = key
    # Whoever calls from elsewhere has the id of somebody here.
    body = {"id": "max", "role": "admin", "name": "Name-of-another"}
    await scene.must("POST", "/v1/users", body, key)
    opened = await scene.must("POST", "/v1/sessions", {"user_id": "max"}, key)
    scene.user_ids[FOREIGN_ADMIN] = "max"
    scene.sessions[FOREIGN_ADMIN] = opened["session_id"]
    scene.tokens[FOREIGN_ADMIN] = opened["token"]


async def _rooms(scene: Scene) -> None:
    visitors = await scene.must(
        "POST", "/v1/rooms", {"kind": "support"}, scene.tokens[VISITOR] or ""
    )
    await scene.must("PATCH", f"/v1/rooms/{visitors['id']}", {"title": "word-of-visitors_support"})
    await scene.must("POST", f"/v1/rooms/{visitors['id']}/members", {"user_id": "gus"})
    for kind, names in MEMBERS.items():
        members = [scene.user_ids[name] for name in names]
        if kind == "visitors_support":
            scene.rooms[kind] = await scene.speak(kind, visitors["id"], members)
        elif kind == "direct":
            body = {"kind": kind, "member_ids": members}
            made = await scene.must("POST", "/v1/rooms", body)
            scene.rooms[kind] = await scene.speak(kind, made["id"], members)
        elif kind in FORMER_ROOMS:
            scene.rooms[kind] = await _left_by_fred(scene, kind, members)
        else:
            scene.rooms[kind] = await scene.room(kind)


async def _left_by_fred(scene: Scene, kind: str, members: list[str]) -> Room:
    """Fred's time in the room lies before everything that is said in it."""
    room_id = f"room-of-{kind}-{scene.number()}"
    body = {**KINDS[kind], "id": room_id, "member_ids": [*members, "fred"]}
    await scene.must("POST", "/v1/rooms", body)
    await scene.must("DELETE", f"/v1/rooms/{room_id}/members/fred")
    await scene.must("PATCH", f"/v1/rooms/{room_id}", {"title": f"word-of-{kind}"})
    return await scene.speak(kind, room_id, members)


async def _strangers(scene: Scene) -> None:
    for caller, user_id in USERS_OF_CALLERS.items():
        scene.sessions[caller], scene.tokens[caller] = await scene.session(user_id)
    session_id, token = await scene.session("max")
    await scene.must("DELETE", f"/v1/sessions/{session_id}", None, token)
    scene.tokens["revoked"] = token
    _, scene.tokens["deactivated"] = await scene.session("dan")
    await scene.must("POST", f"/v1/rooms/{scene.rooms['private'].id}/members", {"user_id": "dan"})
    await scene.must("DELETE", "/v1/users/dan")
    scene.tokens["garbage"] = "ts_" + "x" * 43
    scene.tokens["nobody"] = None


class Listener:
    """Everything that a session is told while it listens, by socket and by stream."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.frames: list[Any] = []
        self.close_code: int | None = None
        self.ended = asyncio.Event()
        self._changed = asyncio.Event()

    async def listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Keep what comes over a socket until it is closed."""
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            self.heard.append(message.data.encode())
            frame = msgspec.json.decode(message.data)
            self.frames += frame["updates"] if frame["type"] == "batch" else [frame]
            self._changed.set()
        self.close_code = socket.close_code
        self.ended.set()
        self._changed.set()

    async def stream(self, response: aiohttp.ClientResponse) -> None:
        """Keep what comes over a stream until it ends."""
        try:
            async for chunk in response.content.iter_any():
                self.heard.append(chunk)
        except aiohttp.ClientPayloadError:
            pass  # the service cut it off

    async def first(self, fits: Callable[[Any], bool]) -> Any:
        """The first frame that fits, once it is there. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for frame in self.frames:
                    if fits(frame):
                        return frame
                assert self.close_code is None, (self.close_code, self.frames)
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def connected(
    scene: Scene, token: str | None
) -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, Listener]]:
    """A socket that heard `ready`, and what comes over it."""
    listener = Listener()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = scene.site.url + "/v1/ws"
    async with scene.site.http.ws_connect(url, headers=headers, protocols=["tidings.v1"]) as socket:
        task = asyncio.create_task(listener.listen(socket))
        try:
            if token is not None:
                await listener.first(lambda frame: frame["type"] == "ready")
            yield socket, listener
        finally:
            await socket.close()
            await task


@asynccontextmanager
async def listening_to_all(scene: Scene, caller: str) -> AsyncIterator[Listener]:
    """All that a session is told within, by socket and stream; it is signed out in the end."""
    token = scene.tokens[caller]
    async with connected(scene, token) as (_, listener):
        url, headers = scene.site.url + "/v1/events", {"Authorization": f"Bearer {token}"}
        async with scene.site.http.get(url, headers=headers) as response:
            assert response.status == 200
            task = asyncio.create_task(listener.stream(response))
            yield listener
            path = f"/v1/sessions/{scene.sessions[caller]}"
            await scene.must("DELETE", path, None, token or "")
            async with asyncio.timeout(DEADLINE_S):
                await task
