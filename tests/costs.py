"""What every call of the API costs, measured on a running service: the source of docs/costs.md.

`tests/costs_page.py` makes the page of it. All calls are made one after the other, on a clock that
moves only between them, so that the figures are the same each time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from tests.delivery.push_service import Browser
from tests.storage.contract import SetClock
from tidings import wire
from tidings.api.exchanges import EXCHANGE
from tidings.app import Service, listening, open_app
from tidings.chat import fanouts
from tidings.cli.parts import administrator, open_parts
from tidings.clock import rfc3339
from tidings.config import Settings
from tidings.people.callers import ALL_SCOPES
from tidings.storage.metered import Meter, MeteredStore, Place, metering

SIZES = (1, 2, 24, 50, 1_000)
"""Members of the rooms in which calls are made."""
TEXT = "Could you tell me when my parcel comes? I shall be at home from four in the afternoon. " * 2
"""A message of the usual length, 174 characters."""
UNREAD = 10
"""Messages that are marked as read."""
PAGE = 25
"""Items in a page of any list."""
PAUSE_MS = 3_000
"""Time between calls: what is remembered of users and sessions is read again after 1.5 s."""
MINUTE_MS = 60_000
SNOOZE_MS = 24 * 60 * MINUTE_MS
NOBODY = ""
OPERATOR = "operator"
DEADLINE_S = 60.0


class Figure(msgspec.Struct, frozen=True):
    """What one call took; write units with index writes counted once, and doubled."""

    reads: float
    writes: float
    writes_doubled: float
    requests: int

    @classmethod
    def of(cls, meter: Meter) -> Figure:
        """What the meter has counted."""
        return cls(meter.read_units, meter.write_units_once, meter.write_units, meter.requests)


class Line(msgspec.Struct, frozen=True):
    """One row of a table: a call, and what it took, by the size of the room where that matters."""

    call: str
    what: str
    figures: dict[int, Figure]


class Share(msgspec.Struct, frozen=True):
    """A kind of message between two, and the units that each place took: (once, doubled)."""

    name: str
    places: dict[str, tuple[float, float]]

    @property
    def total(self) -> tuple[float, float]:
        """Both in all places."""
        once, doubled = zip(*self.places.values(), strict=True)
        return sum(once), sum(doubled)


class Book(msgspec.Struct):
    """Everything that was measured."""

    calls: set[tuple[str, str]]
    """Method and path of every endpoint that was measured."""
    by_size: list[Line]
    others: list[Line]
    shares: list[Share]


class Till:
    """A running service whose every call is charged to a meter that can be seen."""

    def __init__(self, service: Service, clock: SetClock, http: aiohttp.ClientSession) -> None:
        self.service = service
        self.clock = clock
        self.key = ""
        self.tokens: dict[str, str] = {}
        self.calls: set[tuple[str, str]] = set()
        self._http = http
        self.url = ""
        self._count = 0
        self._meters: dict[str, Meter] = {}
        service.web.on_response_prepare.append(self._see)

    async def _see(self, request: web.Request, response: web.StreamResponse) -> None:
        exchange = request[EXCHANGE]
        self._meters[exchange.request_id] = exchange.meter
        self.calls.add((request.method, exchange.route))

    async def call(
        self, method: str, path: str, body: Any = None, *, by: str | None = None
    ) -> tuple[Any, Meter]:
        """One call by a user, nobody or the API key: the reply's JSON, and what it took."""
        headers = {}
        if by != NOBODY:
            token = self.key if by is None else await self.token(by)
            headers["Authorization"] = f"Bearer {token}"
        async with self._http.request(
            method, self.url + path, json=body, headers=headers, allow_redirects=False
        ) as answer:
            raw = await answer.read()
            assert answer.status < 400, (method, path, answer.status, raw)
            meter = self._meters.pop(answer.headers["X-Request-Id"])
        return (msgspec.json.decode(raw) if raw else None), meter

    async def price(
        self, method: str, path: str, body: Any = None, *, by: str | None = None
    ) -> Meter:
        """What one call takes from a caller who is known, when nothing else was looked up lately.

        Known callers are looked up again after 1.5 s; that is a line of its own.
        """
        self.clock.now_ms += PAUSE_MS
        if by != NOBODY:
            known_by = {None: "/v1/users?limit=1", OPERATOR: "/v1/nodes"}
            await self.call("GET", known_by.get(by, "/v1/badge"), by=by)
        return (await self.call(method, path, body, by=by))[1]

    async def token(self, user_id: str) -> str:
        """The token of the user's session, which is opened when it is first asked for."""
        if user_id not in self.tokens:
            opened, _ = await self.call("POST", "/v1/sessions", {"user_id": user_id})
            self.tokens[user_id] = opened["token"]
        return self.tokens[user_id]

    def message(self, text: str = TEXT) -> dict[str, str]:
        """A message that was not sent before."""
        self._count += 1
        return {"client_id": f"message-{self._count:05}", "text": text}

    async def rest(self) -> None:
        """Wait until the members of large rooms have caught up."""
        await self.service.chat.commits.settle()


@asynccontextmanager
async def open_till(
    folder: Path, clock: SetClock, known: Till | None = None
) -> AsyncIterator[Till]:
    """A service on the store in the folder; with `known` the same callers as that one's."""
    settings = Settings(
        store=f"sqlite:///{folder / 'costs.db'}", blobs=f"file:{folder / 'files'}", rate_limit="off"
    )
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with (
        open_app(settings, clock=clock) as service,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        workspace = await service.people.workspaces.default("shop")
        till = Till(service, clock, http)
        async with listening(service, "127.0.0.1", 0) as till.url:
            if known is None:
                create_key = service.people.credentials.create_key
                _, till.key = await create_key(workspace.id, "costs", ALL_SCOPES)
                _, till.tokens[OPERATOR] = await create_key("", "operator", operator=True)
            else:
                till.key, till.tokens, till.calls = known.key, known.tokens, known.calls
                till._count = known._count
            yield till


async def measure(folder: Path) -> Book:
    """Make every call, and write down what it took."""
    # Who makes a large room looks now and then whether its members are in: a matter of time.
    with patch.multiple(fanouts, FOUNDING_LOOK_S=DEADLINE_S, FOUNDING_S_MAX=DEADLINE_S):
        return await _measure(folder, SetClock())


async def _measure(folder: Path, clock: SetClock) -> Book:
    lines: dict[tuple[str, str], dict[int, Figure]] = {}
    async with open_till(folder, clock) as till:
        crowd = [f"user-{number:04}" for number in range(max(SIZES))]
        for user_id in [*crowd, "joiner"]:
            body = {"role": "manager", "name": user_id.title(), "id": user_id}
            await till.call("POST", "/v1/users", body)
        for size in SIZES:
            async for call, what, meter in _in_a_room(till, size, crowd[:size]):
                lines.setdefault((call, what), {})[size] = Figure.of(meter)
        shares = [share async for share in _between_two(till)]
        others = [
            Line(call, what, {0: Figure.of(meter)}) async for call, what, meter in _elsewhere(till)
        ]
    async with open_till(folder, clock, till) as till:
        for size in SIZES:
            path = f"/v1/rooms/room-{size}/messages"
            meter = await till.price("POST", path, till.message(), by=crowd[0])
            await till.rest()
            what = "a message, in a process that has not seen the room"
            lines.setdefault((MESSAGES, what), {})[size] = Figure.of(meter)
        calls = till.calls
    for size in SIZES:
        async for call, what, meter in _with_what_follows(folder, size):
            lines.setdefault((call, what), {})[size] = Figure.of(meter)
    by_size = [Line(call, what, figures) for (call, what), figures in lines.items()]
    return Book(calls, by_size, others, shares)


ROOMS_ = "POST /v1/rooms"
ROOM = "/v1/rooms/{room_id}"
PUSHED = "/v1/sessions/{session_id}/push"
MESSAGES = f"POST {ROOM}/messages"


async def _in_a_room(
    till: Till, size: int, members: list[str]
) -> AsyncIterator[tuple[str, str, Meter]]:
    """The calls whose price may depend on the members of the room in which they are made."""
    room_id = f"room-{size}"
    path = f"/v1/rooms/{room_id}"
    first, last = members[0], members[-1]
    body = {"kind": "group", "id": room_id, "title": "Parcels", "member_ids": members}
    yield ROOMS_, "a new room", await till.price("POST", "/v1/rooms", body)
    await till.rest()

    async def price(method: str, below: str = "", body: Any = None, by: str = first) -> Meter:
        meter = await till.price(method, path + below, body, by=by)
        await till.rest()
        return meter

    yield (
        MESSAGES,
        "a message, nothing unread before",
        await price("POST", "/messages", till.message()),
    )
    again = till.message()
    yield MESSAGES, "a message", await price("POST", "/messages", again)
    yield MESSAGES, "the same message again", await price("POST", "/messages", again)
    own = "/messages/2"
    yield f"PATCH {ROOM}/messages/{{seq}}", "", await price("PATCH", own, {"text": TEXT.upper()})
    reaction = f"{own}/reactions/%F0%9F%91%8D"
    named = f"{ROOM}/messages/{{seq}}/reactions/{{emoji}}"
    yield f"PUT {named}", "", await price("PUT", reaction, by=last)
    yield f"DELETE {named}", "", await price("DELETE", reaction, by=last)
    yield f"DELETE {ROOM}/messages/{{seq}}", "", await price("DELETE", own)
    for _ in range(UNREAD):
        await till.call("POST", f"{path}/messages", till.message(), by=first)
    await till.rest()
    head = (await till.call("GET", path))[0]["head"]
    read = {"seq": head}
    yield f"PUT {ROOM}/read", f"{UNREAD} messages, all", await price("PUT", "/read", read, last)
    yield f"PUT {ROOM}/read", "again", await price("PUT", "/read", read, last)
    yield f"PUT {ROOM}/mute", "", await price("PUT", "/mute", {"muted": True}, last)
    await price("PUT", "/mute", {"muted": False}, last)
    yield f"GET {ROOM}/inbox", "", await price("GET", "/inbox", by=last)
    yield f"PUT {ROOM}/hide", "", await price("PUT", "/hide", {"hidden": True}, last)
    await price("PUT", "/hide", {"hidden": False}, last)
    yield f"PATCH {ROOM}", "another title", await price("PATCH", "", {"title": "Letters"})
    yield f"POST {ROOM}/typing", "", await price("POST", "/typing", by=last)
    yield f"GET {ROOM}/readers", "", await price("GET", "/readers", by=last)
    joining = {"user_id": "joiner"}
    yield f"POST {ROOM}/members", "one joins", await price("POST", "/members", joining)
    leaving = "/members/joiner"
    yield f"DELETE {ROOM}/members/{{user_id}}", "and leaves", await price("DELETE", leaving)
    yield f"GET {ROOM}", "", await price("GET")
    yield f"GET {ROOM}/members", f"a page of {PAGE}", await price("GET", f"/members?limit={PAGE}")
    yield (
        f"GET {ROOM}/messages",
        f"the newest {PAGE}",
        await price("GET", f"/messages?limit={PAGE}"),
    )
    cursor = (await till.call("POST", "/v1/sync", {}, by=last))[0]["cursor"]
    await till.call("POST", f"{path}/messages", till.message(), by=first)
    await till.rest()
    body = {"since": cursor}
    yield "POST /v1/sync", "one message is new", await till.price("POST", "/v1/sync", body, by=last)


async def _between_two(till: Till) -> AsyncIterator[Share]:
    """A message between two people: where each unit goes."""
    for user_id, role in (("ann", "manager"), ("ben", "customer"), ("cat", "manager")):
        await till.call("POST", "/v1/users", {"role": role, "name": user_id, "id": user_id})
    direct, _ = await till.call(
        "POST", "/v1/rooms", {"kind": "direct", "member_ids": ["ann", "cat"]}
    )
    support, _ = await till.call(
        "POST", "/v1/rooms", {"kind": "support", "id": "help", "member_ids": ["ann", "ben"]}
    )
    for name, room_id, sender in (
        ("direct room", direct["id"], "cat"),
        ("support room", support["id"], "ben"),
    ):
        path = f"/v1/rooms/{room_id}"

        async def post(path: str = path, sender: str = sender) -> Meter:
            return await till.price("POST", f"{path}/messages", till.message(), by=sender)

        for _ in range(30):  # marks and counts have grown to their usual length
            await post()
        till.clock.now_ms += MINUTE_MS - till.clock.now_ms % MINUTE_MS
        await post()
        yield _share(f"{name}: one more", await post())
        head = (await till.call("GET", path))[0]["head"]
        reading = await till.price("PUT", f"{path}/read", {"seq": head}, by="ann")
        till.clock.now_ms += MINUTE_MS
        yield _share(f"{name}: after a pause", await post())
        yield _share(f"{name}: reading it", reading)


def _share(name: str, meter: Meter) -> Share:
    places = {
        _name(place): (units.write - units.doubling, units.write)
        for place, units in meter.places.items()
        if units.write
    }
    return Share(name, places)


def _name(place: Place) -> str:
    return f"`{place.table}`" if place.index is None else f"`{place.table}`, index `{place.index}`"


async def _elsewhere(till: Till) -> AsyncIterator[tuple[str, str, Meter]]:
    """The calls whose price has nothing to do with the members of a room."""
    price, call = till.price, till.call
    device = {"name": "Phone", "platform": "web"}
    till.clock.now_ms += PAUSE_MS
    _, known = await call("GET", "/v1/badge", by="ann")
    _, badge = await call("GET", "/v1/badge", by="ann")
    yield "every call", "who calls, when not seen for 1.5 s", known.since(badge)

    body: Any = {"user_id": "ann", "device": device}
    yield "POST /v1/sessions", "by an API key", await price("POST", "/v1/sessions", body)
    workspace = (await till.service.people.workspaces.list())[0]
    visit = {"publishable_key": workspace.publishable_key, "device": device}
    yield "POST /v1/sessions", "a visitor", await price("POST", "/v1/sessions", visit, by=NOBODY)
    opened, _ = await call("POST", "/v1/sessions", {"user_id": "ann"})
    yield "GET /v1/sessions", "three devices", await price("GET", "/v1/sessions", by="ann")
    ending = f"/v1/sessions/{opened['session_id']}"
    yield "DELETE /v1/sessions/{session_id}", "", await price("DELETE", ending, by="ann")

    body = {"role": "customer", "name": "Dan", "id": "dan", "email": "dan@example.org"}
    yield "POST /v1/users", "a new user", await price("POST", "/v1/users", body)
    yield "POST /v1/users", "one who is there", await price("POST", "/v1/users", body)
    yield "GET /v1/users", f"a page of {PAGE}", await price("GET", f"/v1/users?limit={PAGE}")
    yield "GET /v1/users/{user_id}", "", await price("GET", "/v1/users/dan")
    body = {"name": "Daniel"}
    yield "PATCH /v1/users/{user_id}", "another name", await price("PATCH", "/v1/users/dan", body)
    yield "DELETE /v1/users/{user_id}", "", await price("DELETE", "/v1/users/dan")
    yield "GET /v1/me", "", await price("GET", "/v1/me", by="ann")

    for number in range(PAGE):
        body = {"kind": "support", "id": f"help-{number:02}", "member_ids": ["ann", "ben"]}
        await call("POST", "/v1/rooms", body)
        await call("POST", f"/v1/rooms/help-{number:02}/messages", till.message(), by="ben")
    listing = f"/v1/rooms?kind=support&status=open&limit={PAGE}"
    yield "GET /v1/rooms", f"{PAGE} support rooms", await price("GET", listing, by="ann")
    body = {"status": "closed"}
    closing = await price("PATCH", "/v1/rooms/help-00", body, by="ann")
    yield "PATCH /v1/rooms/{room_id}", "a support room is closed", closing
    body = {"snoozed_until": rfc3339(till.clock() + SNOOZE_MS)}
    snoozing = await price("PATCH", "/v1/rooms/help-00", body, by="ann")
    yield "PATCH /v1/rooms/{room_id}", "a support room is snoozed", snoozing
    yield "GET /v1/inbox", f"{PAGE} rooms", await price("GET", f"/v1/inbox?limit={PAGE}", by="ann")
    unread = f"/v1/inbox?unread=true&limit={PAGE}"
    yield (
        "GET /v1/inbox",
        f"{PAGE} rooms with something unread",
        await price("GET", unread, by="ann"),
    )
    yield "GET /v1/badge", "", await price("GET", "/v1/badge", by="ann")
    yield "GET /v1/queue", f"{PAGE} rooms wait", await price("GET", "/v1/queue", by="ann")

    for path in ("/v1/nodes", "/v1/operations", "/v1/migration"):
        yield f"GET {path}", "", await price("GET", path, by=OPERATOR)

    cursor = (await call("POST", "/v1/sync", {}, by="ann"))[0]["cursor"]
    poll = f"/v1/sync?since={cursor}&wait=0"
    yield "GET /v1/sync", "nothing is new, acknowledging", await price("GET", poll, by="ann")
    yield "GET /v1/sync", "nothing is new", await price("GET", poll, by="ann")
    body = {"since": cursor}
    yield "POST /v1/sync", "nothing is new", await price("POST", "/v1/sync", body, by="ann")
    await call("PUT", "/v1/rooms/help-01/read", {"seq": 1}, by="ann")
    yield (
        "POST /v1/sync",
        "a room was read elsewhere",
        await price("POST", "/v1/sync", body, by="ann"),
    )
    async for line in _files_and_pushes(till):
        yield line


async def _files_and_pushes(till: Till) -> AsyncIterator[tuple[str, str, Meter]]:
    """What a file costs on its way, and where a device is pushed to."""
    price, call = till.price, till.call
    body: Any = {"name": "letter.txt", "type": "text/plain", "size": len(msgspec.json.encode(TEXT))}
    yield "POST /v1/blobs", "", await price("POST", "/v1/blobs", body, by="ann")
    made, _ = await call("POST", "/v1/blobs", body, by="ann")
    upload = URL(made["upload"]["url"]).raw_path
    yield "PUT /v1/uploads/{ticket}", "", await price("PUT", upload, TEXT, by=NOBODY)
    room = {"kind": "direct", "member_ids": ["ann", "cat"]}
    room_id = (await call("POST", "/v1/rooms", room))[0]["id"]
    path = f"/v1/rooms/{room_id}/messages"
    await call("POST", path, till.message(), by="ann")
    plain = await price("POST", path, till.message(), by="ann")
    yield MESSAGES, "between two, one more", plain
    message = till.message() | {"blobs": [made["blob_id"]]}
    yield MESSAGES, "the same with a file", await price("POST", path, message, by="ann")
    blob = f"/v1/blobs/{made['blob_id']}"
    where = f"?room_id={room_id}"
    yield "GET /v1/blobs/{blob_id}", "in a room", await price("GET", blob + where, by="cat")
    link = await price("GET", f"{blob}/link{where}", by="cat")
    yield "GET /v1/blobs/{blob_id}/link", "in a room", link
    download = URL((await call("GET", f"{blob}/link{where}", by="cat"))[0]["url"]).raw_path
    yield "GET /v1/downloads/{ticket}", "", await price("GET", download, by=NOBODY)

    yield "GET /v1/push", "", await price("GET", "/v1/push", by="cat")
    sessions, _ = await call("GET", "/v1/sessions", by="cat")
    pushed = f"/v1/sessions/{sessions['items'][0]['session_id']}/push"
    body = Browser("phone", "https://push.example.com/1").subscription
    yield f"PUT {PUSHED}", "", await price("PUT", pushed, body, by="cat")
    yield f"DELETE {PUSHED}", "", await price("DELETE", pushed, by="cat")


async def _with_what_follows(folder: Path, size: int) -> AsyncIterator[tuple[str, str, Meter]]:
    """A new room and a message with everything that they lead to, whoever does it and when."""
    url = f"sqlite:///{folder / f'follow-{size}.db'}"
    with metering() as meter:
        async with open_parts(url, must_exist=False, clock=SetClock(), wrap=MeteredStore) as parts:
            workspace = (await parts.workspaces.default(None)).id
            admin = administrator(workspace)
            members = [f"user-{number:04}" for number in range(size)]
            for user_id in members:
                user = wire.CreateUser(role="manager", name=user_id, id=user_id)
                await parts.users.create(admin, user)

            async def spent(work: Awaitable[object]) -> Meter:
                before = meter.copy()
                await work
                await parts.chat.commits.settle()
                return meter.since(before)

            room = wire.CreateRoom(kind="group", id="room", title="Parcels", member_ids=members)
            made = await spent(parts.chat.rooms.create(admin, room))
            for number in range(3):
                body = {"client_id": f"message-{number:05}", "text": TEXT, "as_user": members[0]}
                message = msgspec.convert(body, wire.PostMessage)
                posted = await spent(parts.chat.messages.post(admin, "room", message))
            yield ROOMS_, "a new room, with all that follows", made
            yield MESSAGES, "a message, with all that follows", posted
