"""Nobody sees what isn't theirs: every endpoint and frame, by every caller, in every room.

The tables are written from the public contract ("Who is calling", "Roles", "Rooms"), not from
the code. A room that a caller may not see is answered like one that does not exist, to the byte.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import aiohttp
import msgspec
import pytest
from yarl import URL

from tests.access_scene import (
    ABSENT,
    CALLERS,
    FOREIGN_ADMIN,
    FOREIGN_KEY,
    KEY_SCOPES,
    MEMBERS,
    OPERATOR,
    PEOPLE,
    SESSIONS,
    STRANGERS,
    USERS_OF_CALLERS,
    VISITOR,
    Listener,
    Room,
    Scene,
    build_scene,
    connected,
    listening_to_all,
    open_scene,
)
from tests.api.conftest import Answer, soon
from tests.delivery.push_service import Browser
from tidings.api.sections import SECTIONS
from tidings.clock import system_clock
from tidings.delivery.frames import ClientFrame
from tidings.web.assets import version

# M: a member; s: sees the room without being one; -: for this caller there is no such room.
SIGHT = """
                  admin manager_in manager_out customer_in customer_out bot_in visitor former
direct            -     M          -           M           -            -      -       -
private           -     M          -           M           -            M      -       -
public            s     M          s           M           -            M      -       -
support           s     M          s           M           -            M      -       -
others_support    s     s          s           -           M            -      -       -
visitors_support  s     s          s           -           -            -      M       -
notes             -     M          -           -           -            -      -       -
"""

# By session: as a member who is a customer, bot or manager; as a manager or admin who only sees
# the room. By an API key with the scope ("-": for sessions only; a key is then refused with 403).
# Last what the caller gets for a room that isn't there for them, by session and by key.
# `~` is /v1/rooms/{room_id} and `~~` an entry of it. `.`: there is no such case. Every room is in
# exactly one line of each call and deed.
ROOM_CALLS = """
                                                      cust bot  man | man adm | key | ses key
GET    ~                    -       all     rooms     200  200  200 | 200 200 | 200 | 404 404
PATCH  ~                    title   wide    rooms     403  403  200 | 200 200 | 200 | 404 404
PATCH  ~                    title   direct  rooms     403  .    400 | .   .   | 400 | 404 404
PATCH  ~                    status  support rooms     403  403  200 | 200 200 | 200 | 404 404
PATCH  ~                    assign  support rooms     403  403  200 | 200 200 | 200 | 404 404
PATCH  ~                    assign  closed  rooms     403  403  400 | .   .   | 400 | 404 404
PATCH  ~                    assign  public  rooms     403  403  400 | 400 400 | 400 | 404 404
PATCH  ~                    status  closed  rooms     403  403  400 | .   .   | 400 | 404 404
PATCH  ~                    status  public  rooms     403  403  400 | 400 400 | 400 | 404 404
GET    ~/members            -       all     rooms     200  200  200 | 200 200 | 200 | 404 404
GET    ~/readers            -       all     rooms     200  200  200 | 200 200 | 200 | 404 404
POST   ~/members            other   wide    rooms     403  403  201 | 201 201 | 201 | 404 404
POST   ~/members            other   direct  rooms     403  .    409 | .   .   | 409 | 404 404
POST   ~/members            self    wide    rooms     403  403  201 | 201 201 | .   | 404 .
POST   ~/members            self    direct  rooms     403  .    409 | .   .   | .   | 404 .
DELETE ~/members/{user_id}  other   wide    rooms     403  403  204 | 204 204 | 204 | 404 404
DELETE ~/members/{user_id}  other   direct  rooms     403  .    409 | .   .   | 409 | 404 404
DELETE ~/members/{user_id}  self    groups  rooms     204  204  204 | 404 404 | .   | 404 .
DELETE ~/members/{user_id}  self    support rooms     409  204  204 | 404 404 | .   | 404 .
DELETE ~/members/{user_id}  self    direct  rooms     409  .    409 | .   .   | .   | 404 .
PUT    ~/mute               -       all     -         200  200  200 | 403 403 | 403 | 404 403
GET    ~/inbox              -       all     -         200  200  200 | 403 403 | 403 | 404 403
PUT    ~/hide               -       all     -         200  200  200 | 403 403 | 403 | 404 403
POST   ~/messages           -       closed  messages  201  201  201 | .   .   | 403 | 404 403
POST   ~/messages           -       public  messages  201  201  201 | 403 403 | 403 | 404 403
POST   ~/messages           -       support messages  201  201  201 | 201 201 | 403 | 404 403
POST   ~/messages           as_user all     messages  403  403  403 | 403 403 | 201 | 403 404
GET    ~/messages           -       all     messages  200  200  200 | 200 200 | 200 | 404 404
GET    ~/messages           have    all     messages  200  200  200 | 200 200 | 200 | 404 404
PATCH  ~~                   own     all     messages  200  200  200 | 403 403 | 403 | 404 404
PATCH  ~~                   other   all     messages  403  403  403 | 403 403 | 403 | 404 404
DELETE ~~                   own     all     messages  200  200  200 | 403 200 | 200 | 404 404
DELETE ~~                   other   all     messages  403  403  403 | 403 200 | 200 | 404 404
PUT    ~~/reactions/{emoji} own     all     -         200  200  200 | 403 403 | 403 | 404 403
PUT    ~~/reactions/{emoji} other   all     -         200  200  200 | 403 403 | 403 | 404 403
DELETE ~~/reactions/{emoji} own     all     -         200  200  200 | 403 403 | 403 | 404 403
PUT    ~/read               -       all     -         200  200  200 | 403 403 | 403 | 404 403
GET    /v1/blobs/{blob_id}  -       all     messages  200  200  200 | 200 200 | 200 | 404 404
GET    /v1/blobs/{blob_id}/link -   all     messages  200  200  200 | 200 200 | 200 | 404 404
POST   ~/typing             -       closed  -         202  202  202 | .   .   | 403 | 404 403
POST   ~/typing             -       public  -         202  202  202 | 403 403 | 403 | 404 403
POST   ~/typing             -       support -         202  202  202 | 202 202 | 403 | 404 403
"""

# By session of an admin, manager, customer, bot, visitor, former member, and of another company's
# admin; by an API key with the scope, ours and that company's; by nobody. "open" needs no
# credential and looks at none.
OTHER_CALLS = """
                                           adm man cus bot vis for out | scope    key out | nobody
POST   /v1/sessions              user      403 403 403 403 403 403 403 | sessions 201 404 | 401
POST   /v1/sessions              anonymous 403 403 403 403 403 403 403 | sessions 400 400 | 201
GET    /v1/sessions              -         200 200 200 200 200 200 200 | -        .   .   | 401
DELETE /v1/sessions/{session_id} own       204 204 204 204 204 204 .   | -        .   .   | 401
DELETE /v1/sessions/{session_id} other     404 404 404 404 404 404 404 | -        .   .   | 401
GET    /v1/push                  -         200 200 200 200 200 200 200 | -        .   .   | 401
PUT    /v1/sessions/{session_id}/push own   204 204 204 204 204 204 .   | -        .   .   | 401
PUT    /v1/sessions/{session_id}/push other 404 404 404 404 404 404 404 | -        .   .   | 401
DELETE /v1/sessions/{session_id}/push other 404 404 404 404 404 404 404 | -        .   .   | 401
POST   /v1/users                 -         201 403 403 403 403 403 201 | users    201 201 | 401
POST   /v1/users                 id        403 403 403 403 403 403 403 | users    201 201 | 401
GET    /v1/users                 -         200 200 403 403 403 403 200 | users    200 200 | 401
GET    /v1/users/{user_id}       self      200 200 200 200 200 200 200 | users    .   .   | 401
GET    /v1/users/{user_id}       near      200 200 200 200 200 404 404 | users    200 404 | 401
GET    /v1/users/{user_id}       far       200 200 404 404 404 404 404 | users    200 404 | 401
GET    /v1/users/{user_id}       absent    404 404 404 404 404 404 404 | users    404 404 | 401
PATCH  /v1/users/{user_id}       self      200 200 200 200 200 200 200 | users    .   .   | 401
PATCH  /v1/users/{user_id}       role      200 403 403 403 403 403 200 | users    .   .   | 401
PATCH  /v1/users/{user_id}       near      200 403 403 403 403 404 404 | users    200 404 | 401
PATCH  /v1/users/{user_id}       far       200 403 404 404 404 404 404 | users    200 404 | 401
DELETE /v1/users/{user_id}       near      204 403 403 403 403 404 404 | users    204 404 | 401
DELETE /v1/users/{user_id}       far       204 403 404 404 404 404 404 | users    204 404 | 401
DELETE /v1/users/{user_id}       erase     204 403 404 404 404 404 404 | users    204 404 | 401
GET    /v1/me                    -         200 200 200 200 200 200 200 | -        .   .   | 401
POST   /v1/rooms                 support   400 400 201 403 201 201 400 | rooms    400 400 | 401
POST   /v1/rooms                 theirs    201 201 403 403 403 403 400 | rooms    201 400 | 401
POST   /v1/rooms                 group     201 201 403 403 403 403 400 | rooms    201 400 | 401
POST   /v1/rooms                 public    201 201 403 403 403 403 400 | rooms    201 400 | 401
POST   /v1/rooms                 notes     201 201 403 403 403 403 400 | rooms    201 400 | 401
POST   /v1/rooms                 direct    201 201 403 403 403 403 400 | rooms    400 400 | 401
POST   /v1/rooms                 id        403 403 403 403 403 403 403 | rooms    201 201 | 401
GET    /v1/rooms                 support   200 200 403 403 403 403 200 | rooms    200 200 | 401
GET    /v1/rooms                 group     200 200 403 403 403 403 200 | rooms    200 200 | 401
GET    /v1/inbox                 -         200 200 200 200 200 200 200 | -        .   .   | 401
GET    /v1/inbox                 unread    200 200 200 200 200 200 200 | -        .   .   | 401
GET    /v1/badge                 -         200 200 200 200 200 200 200 | -        .   .   | 401
GET    /v1/queue                 -         200 200 403 403 403 403 200 | -        .   .   | 401
POST   /v1/blobs                 -         201 201 201 201 201 201 201 | messages 201 201 | 401
GET    /v1/blobs/{blob_id}       own       200 200 200 200 200 200 200 | messages 200 200 | 401
GET    /v1/blobs/{blob_id}       other     404 404 404 404 404 404 404 | messages 404 404 | 401
PUT    /v1/uploads/{ticket}      -         204 204 204 204 204 204 204 | open     204 204 | 204
PUT    /v1/uploads/{ticket}      forged    404 404 404 404 404 404 404 | open     404 404 | 404
GET    /v1/downloads/{ticket}    -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /v1/downloads/{ticket}    forged    404 404 404 404 404 404 404 | open     404 404 | 404
GET    /v1/events                -         200 200 200 200 200 200 200 | -        .   .   | 401
GET    /v1/sync                  -         200 200 200 200 200 200 200 | -        .   .   | 401
GET    /v1/sync                  cursor    400 400 400 400 400 400 400 | -        .   .   | 401
POST   /v1/sync                  -         200 200 200 200 200 200 200 | -        .   .   | 401
POST   /v1/sync                  cursor    400 400 400 400 400 400 400 | -        .   .   | 401
GET    /v1/ws                    -         101 101 101 101 101 101 101 | -        .   .   | 101
GET    /metrics                  -         403 403 403 403 403 403 403 | -        .   .   | 401
GET    /v1/nodes                 -         403 403 403 403 403 403 403 | -        .   .   | 401
GET    /v1/migration             -         403 403 403 403 403 403 403 | -        .   .   | 401
GET    /v1/operations            -         403 403 403 403 403 403 403 | -        .   .   | 401
GET    /healthz                  -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /readyz                   -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /openapi.json             -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /docs                     -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /docs/{file}              -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /                         -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /ops                      -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /sw.js                    -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /widget.js                -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /client.js                -         200 200 200 200 200 200 200 | open     200 200 | 200
GET    /assets/{version}/{folder}/{file} - 200 200 200 200 200 200 200 | open     200 200 | 200
"""

# What a frame over a socket is answered with: as a member or as a manager or admin who only sees
# the room; last, for a room that isn't there. `quiet`: with nothing.
FRAMES = """
                         member     man       adm         unseen
send    -       closed   ack        .         .         | not_found
send    -       public   ack        forbidden forbidden | not_found
send    -       support  ack        ack       ack       | not_found
send    as_user all      forbidden  forbidden forbidden | forbidden
read    -       all      ack        forbidden forbidden | not_found
typing  -       closed   quiet      .         .         | not_found
typing  -       public   quiet      forbidden forbidden | not_found
typing  -       support  quiet      quiet     quiet     | not_found
sync    have    all      told       told      told      | nothing
sync    cursor  all      validation_failed validation_failed validation_failed | validation_failed
seen    own     all      quiet      quiet     quiet     | quiet
seen    cursor  all      validation_failed validation_failed validation_failed | validation_failed
ping    -       all      pong       pong      pong      | pong
auth    -       all      conflict   conflict  conflict  | conflict
"""
# Without a credential every frame but `auth` ends the connection with this code.
NOT_AUTHENTICATED = 4401
# How a connection ends whose `auth` brings a credential without a queue, or none that is good.
AUTH_CODES = {
    **dict.fromkeys((*KEY_SCOPES, FOREIGN_KEY, OPERATOR), 4403),
    **dict.fromkeys(("garbage", "revoked", "deactivated"), 4401),
}

ROOM_SETS = {
    "all": set(MEMBERS),
    "direct": {"direct"},
    "wide": set(MEMBERS) - {"direct"},
    "groups": {"private", "public", "notes"},
    "closed": {"direct", "private", "notes"},
    "public": {"public"},
    "support": {"support", "others_support", "visitors_support"},
}
READING = (
    "POST /v1/sync",
    "GET /v1/inbox?limit=500",
    "GET /v1/inbox?unread=true",
    "GET /v1/badge",
    "GET /v1/me",
    "GET /v1/queue",
    "GET /v1/rooms?limit=500",
    "GET /v1/users?limit=500",
    "GET /v1/sessions",
)
OPERATORS = frozenset({"GET /metrics", "GET /v1/nodes", "GET /v1/migration", "GET /v1/operations"})
"""Calls for which the operator's key is there."""
ROOM = "/v1/rooms/{room_id}"
VARYING = {"date", "x-request-id", "tidings-cost"}
"""Headers that differ from call to call; what a call costs has a test of its own."""
TEAM = {"admin", "manager_in", "manager_out"}
EMOJI = "%F0%9F%91%8D"
NO_ROOMS = tuple(Room("absent", room_id, {}) for room_id in (ABSENT, f"{ABSENT}-either"))


class RoomCall(msgspec.Struct, frozen=True):
    """A line of ROOM_CALLS."""

    call: str
    deed: str
    rooms: str
    scope: str
    member: dict[str, str]
    sees: dict[str, str]
    key: str
    unseen: str
    unseen_by_key: str


class OtherCall(msgspec.Struct, frozen=True):
    """A line of OTHER_CALLS."""

    call: str
    deed: str
    by_session: dict[str, str]
    scope: str
    key: str
    foreign_key: str
    nobody: str


class FrameCase(msgspec.Struct, frozen=True):
    """A line of FRAMES."""

    frame: str
    deed: str
    rooms: str
    member: str
    sees: dict[str, str]
    unseen: str


def _lines(table: str) -> list[list[str]]:
    return [line.replace("|", " ").split() for line in table.strip("\n").splitlines()[1:]]


def _sight() -> dict[str, dict[str, str]]:
    callers = SIGHT.strip("\n").splitlines()[0].split()
    return {kind: dict(zip(callers, marks, strict=True)) for kind, *marks in _lines(SIGHT)}


def _room_calls() -> list[RoomCall]:
    return [
        RoomCall(
            call=f"{method} {path}".replace("~~", f"{ROOM}/messages/{{seq}}").replace("~", ROOM),
            deed=deed,
            rooms=rooms,
            scope=scope,
            member=dict(zip(("customer", "bot", "manager"), cells[:3], strict=True)),
            sees=dict(zip(("manager", "admin"), cells[3:5], strict=True)),
            key=cells[5],
            unseen=cells[6],
            unseen_by_key=cells[7],
        )
        for method, path, deed, rooms, scope, *cells in _lines(ROOM_CALLS)
    ]


def _other_calls() -> list[OtherCall]:
    roles = ("admin", "manager", "customer", "bot", VISITOR, "former", FOREIGN_ADMIN)
    return [
        OtherCall(
            call=f"{method} {path}",
            deed=deed,
            by_session=dict(zip(roles, cells[:7], strict=True)),
            scope=cells[7],
            key=cells[8],
            foreign_key=cells[9],
            nobody=cells[10],
        )
        for method, path, deed, *cells in _lines(OTHER_CALLS)
    ]


def _frame_cases() -> list[FrameCase]:
    return [
        FrameCase(frame, deed, rooms, member, {"manager": man, "admin": adm}, unseen)
        for frame, deed, rooms, member, man, adm, unseen in _lines(FRAMES)
    ]


SIGHTS, ROOM_LINES, OTHER_LINES = _sight(), _room_calls(), _other_calls()
FRAME_LINES = _frame_cases()
SHORT = {"customer_out", "nobody"}
"""Callers whose part of the table is gone through in the quick suite, too."""
EACH_CALLER = [
    pytest.param(caller, marks=() if caller in SHORT else pytest.mark.slow) for caller in CALLERS
]


@pytest.fixture(scope="module")
def first_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The scene as it begins, whose store every test gets a copy of."""
    return asyncio.run(build_scene(tmp_path_factory.mktemp("access")))


@pytest.fixture
async def scene(first_scene: Scene, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path, first_scene) as scene:
        yield scene


def test_every_endpoint_is_in_a_table() -> None:
    there = {f"{each.method} {each.path}" for section in SECTIONS for each in section.endpoints}
    assert {line.call for line in ROOM_LINES} | {line.call for line in OTHER_LINES} == there


def test_every_room_is_in_one_line_of_every_call() -> None:
    for call, deed in {(line.call, line.deed) for line in ROOM_LINES}:
        named = [
            kind
            for line in ROOM_LINES
            if (line.call, line.deed) == (call, deed)
            for kind in ROOM_SETS[line.rooms]
        ]
        assert sorted(named) == sorted(MEMBERS), (call, deed)


def test_every_client_frame_is_in_the_table() -> None:
    there = {each.__struct_config__.tag for each in get_args(ClientFrame)}
    assert {line.frame for line in FRAME_LINES} == there


@pytest.mark.parametrize("caller", EACH_CALLER)
async def test_rooms_are_for_those_who_may_see_them(scene: Scene, caller: str) -> None:
    before = await scene.logs()
    for line in ROOM_LINES:
        hidden = [await _ask(scene, line, caller, each) for each in NO_ROOMS]
        expected = _expected(line, caller, "absent")
        assert {str(each.status) for each in hidden} == {expected} or expected == ".", (
            line,
            hidden,
        )
        for kind in [kind for kind in MEMBERS if kind in ROOM_SETS[line.rooms]]:
            expected = _expected(line, caller, kind)
            if expected == ".":
                continue
            is_change = expected.startswith("2") and not line.call.startswith("GET ")
            room = await scene.room(kind, caller) if is_change else scene.rooms[kind]
            answer = await _ask(scene, line, caller, room)
            told = (caller, line.call, line.deed, kind, answer.status, answer.raw)
            assert str(answer.status) == expected, told
            _check_untold(scene, caller, answer.raw)
            if not _may_see(caller, kind):
                hidden.append(answer)
        # What may not be seen and what does not exist are one and the same.
        assert len({_shown(each) for each in hidden}) == 1, (caller, line.call, hidden)
    assert await scene.logs() == before


def _may_see(caller: str, kind: str) -> bool:
    return caller in KEY_SCOPES or SIGHTS[kind].get(caller, "-") != "-"


def _role(caller: str) -> str:
    return "customer" if caller == VISITOR else PEOPLE[USERS_OF_CALLERS[caller]]


def _expected(line: RoomCall, caller: str, kind: str) -> str:
    if caller in STRANGERS:
        return "401"
    if caller == OPERATOR:
        return "403"
    if caller in KEY_SCOPES or caller == FOREIGN_KEY:
        if caller in KEY_SCOPES and line.scope not in KEY_SCOPES[caller]:
            return "403"
        is_there = caller in KEY_SCOPES and kind != "absent"
        return line.key if is_there else line.unseen_by_key
    sight = "-" if kind == "absent" else SIGHTS[kind].get(caller, "-")
    if sight == "-":
        return line.unseen
    return line.member[_role(caller)] if sight == "M" else line.sees[_role(caller)]


async def _ask(scene: Scene, line: RoomCall, caller: str, room: Room) -> Answer:
    user_id = scene.user_of(caller) or "max"
    others = [seq for member, seq in room.seqs.items() if member != user_id]
    own = room.seqs.get(user_id) or next(iter(room.seqs.values()), 1)
    seq = own if line.deed == "own" or not others else others[0]
    other_member = next((each for each in reversed(room.seqs) if each != user_id), "gus")
    method, path = line.call.split(" ")
    path = path.format(
        room_id=room.id,
        seq=seq,
        emoji=EMOJI,
        user_id=user_id if line.deed == "self" else other_member,
        blob_id=room.blob_id,
    )
    if "{blob_id}" in line.call:
        path += f"?room_id={room.id}"
    body = _body(scene, f"{method} {line.call.rpartition('/')[2]}", line.deed, user_id)
    if line.deed == "have":
        path += "?have=2-3&limit=500"
    return await scene.call(caller, method, path, body)


def _body(scene: Scene, call: str, deed: str, user_id: str) -> Any:
    changes = {"title": "new", "status": "closed"}
    bodies: dict[str, Any] = {
        "PATCH {room_id}": {"assignee_id": "ida"}
        if deed == "assign"
        else {deed: changes.get(deed)},
        "POST members": {"user_id": user_id if deed == "self" else "ida"},
        "PUT mute": {"muted": True},
        "PUT hide": {"hidden": True},
        "POST messages": {"client_id": f"c{scene.number()}", "text": "hello"}
        | ({"as_user": "max"} if deed == "as_user" else {}),
        "PATCH {seq}": {"text": "changed"},
        "PUT read": {"seq": 1},
    }
    return bodies.get(call)


def _shown(answer: Answer) -> tuple[object, ...]:
    """All of a reply that its reader could tell apart from another one."""
    headers = [(name.lower(), value) for name, value in answer.headers.items()]
    return answer.status, answer.raw, *sorted(each for each in headers if each[0] not in VARYING)


def _check_untold(scene: Scene, caller: str, raw: bytes) -> None:
    """Nothing of other people's rooms, and no name of somebody out of sight, is in it."""
    kinds = {kind for kind in MEMBERS if _may_see(caller, kind)}
    secrets = scene.marks_but_of(kinds)
    secrets |= {f"Name-of-{user_id}" for user_id in scene.people_hidden_from(caller)}
    secrets |= {f"{user_id}@mail" for user_id in scene.people_known_by_name_to(caller)}
    found = {secret for secret in secrets if secret.encode() in raw}
    assert not found, (caller, found, raw)


@pytest.mark.parametrize("caller", EACH_CALLER)
async def test_calls_are_for_those_who_may_make_them(scene: Scene, caller: str) -> None:
    for line in OTHER_LINES:
        expected = _expected_elsewhere(line, caller)
        if expected == ".":
            continue
        method, path, body = await _request(scene, line, caller, is_done=expected[0] == "2")
        if line.call in ("GET /v1/ws", "GET /v1/events"):
            status, raw = await _open_stream(scene, caller, path)
        else:
            answer = await scene.call(caller, method, path, body)
            status, raw = answer.status, answer.raw
        assert str(status) == expected, (caller, line.call, line.deed, status, raw)
        _check_untold(scene, caller, raw)
        if status == 404 and line.call.endswith("}"):
            nobody = path.replace(path.split("?")[0].rpartition("/")[2], "that-never-was")
            absent = await scene.call(caller, method, nobody, body)
            assert _shown(answer) == _shown(absent), (caller, line.call, line.deed)


def _expected_elsewhere(line: OtherCall, caller: str) -> str:
    if caller in STRANGERS:
        is_looked_at = caller != "nobody" and line.scope != "open"
        return "401" if is_looked_at else line.nobody
    if caller == OPERATOR:
        is_operators = line.call in OPERATORS
        return line.key if line.scope == "open" else "200" if is_operators else "403"
    if caller in KEY_SCOPES or caller == FOREIGN_KEY:
        scopes = KEY_SCOPES.get(caller, KEY_SCOPES["key"])
        if line.scope not in (*scopes, "open"):
            return "403"
        return line.foreign_key if caller == FOREIGN_KEY else line.key
    group = caller if caller in line.by_session else _role(caller)
    return line.by_session[group]


async def _request(
    scene: Scene, line: OtherCall, caller: str, *, is_done: bool
) -> tuple[str, str, Any]:
    """Method, path and body of a call; what is going to be done is done to somebody new."""
    method, path = line.call.split(" ")
    deed, user_id = line.deed, scene.user_of(caller) or "max"
    other = "customer_in" if caller != "customer_in" else "manager_in"
    body = None
    if "{session_id}" in path:
        mine = deed == "own" and caller != FOREIGN_ADMIN
        session_id = (await scene.session(user_id))[0] if mine else scene.sessions[other]
        path = path.format(session_id=session_id)
        if method == "PUT":
            body = Browser("phone", "https://push.example.com/1").subscription
    elif "{user_id}" in path:
        named = {"self": user_id, "role": user_id, "near": "gus", "absent": "nobody-at-all"}
        target = named.get(deed, "zoe")
        path = path.format(user_id=target)
        if method == "DELETE":
            path = f"/v1/users/{await scene.user('customer')}" if is_done else path
            path += "?erase=true" if deed == "erase" else ""
        elif method == "PATCH":
            role = PEOPLE.get(target, "customer") if caller != FOREIGN_ADMIN else "admin"
            name = "Name-of-another" if caller == FOREIGN_ADMIN else f"Name-of-{target}"
            body = {"role": role} if deed == "role" else {"name": name}
    elif "{blob_id}" in path:
        own = scene.tokens[caller] if scope_of(caller, "messages") else None
        token = scene.tokens[other] if deed == "other" else own
        path = path.format(blob_id=await scene.file(token or scene.key, "a word"))
    elif "{ticket}" in path:
        path, body = await _linked(scene, method, is_forged=deed == "forged")
    elif "{version}" in path:
        path = path.format(version=version(), folder="client", file="client.js")
    elif "{file}" in path:
        path = path.format(file="docs.css")
    elif deed == "cursor":
        cursor = (await scene.must("POST", "/v1/sync", {}, scene.tokens[other] or ""))["cursor"]
        path, body = (
            (path, {"since": cursor}) if method == "POST" else (f"{path}?since={cursor}", None)
        )
    elif method == "POST":
        body = _made(scene, path, deed)
    else:
        queries = {
            "support": "?kind=support&limit=500",
            "group": "?kind=group",
            "unread": "?unread=true",
        }
        path += queries.get(deed, "?wait=0" if path == "/v1/sync" else "")
    return method, path, body


def scope_of(caller: str, scope: str) -> bool:
    """Whether a caller is let in where sessions are, and keys with the scope."""
    return caller in SESSIONS or caller == FOREIGN_KEY or scope in KEY_SCOPES.get(caller, ())


async def _linked(scene: Scene, method: str, *, is_forged: bool) -> tuple[str, Any]:
    """The path of a link, and the bytes to be sent there."""
    word = "a word"
    if method == "PUT":
        asked = {"name": "a", "type": "text/plain", "size": len(msgspec.json.encode(word))}
        link = (await scene.must("POST", "/v1/blobs", asked))["upload"]
    else:
        blob_id = await scene.file(scene.key, word)
        link = await scene.must("GET", f"/v1/blobs/{blob_id}/link")
    path = URL(link["url"]).raw_path
    changed = "B" if path.endswith("A") else "A"
    return (path[:-1] + changed if is_forged else path), word if method == "PUT" else None


def _made(scene: Scene, path: str, deed: str) -> dict[str, Any]:
    """What is to be made."""
    if path == "/v1/sessions":
        if deed == "user":
            return {"user_id": "zoe"}
        return {"publishable_key": scene.publishable_key}
    if path == "/v1/users":
        named = {"id": f"new{scene.number()}"} if deed == "id" else {}
        return {"role": "customer", "name": "New", **named}
    if path == "/v1/blobs":
        return {"name": "a", "type": "text/plain", "size": 1}
    bodies: dict[str, dict[str, Any]] = {
        "support": {"kind": "support"},
        "theirs": {"kind": "support", "member_ids": ["zoe"]},
        "group": {"kind": "group", "member_ids": ["gus"]},
        "public": {"kind": "group", "scope": "public", "member_ids": ["gus"]},
        "notes": {"kind": "group", "about": scene.rooms["support"].id, "member_ids": ["gus"]},
        "direct": {"kind": "direct", "member_ids": ["gus"]},
        "id": {"kind": "group", "id": f"new{scene.number()}", "member_ids": ["max"]},
    }
    return bodies.get(deed, {})


async def _open_stream(scene: Scene, caller: str, path: str) -> tuple[int, bytes]:
    """The status of a socket or stream; what it then tells is looked at elsewhere."""
    token = scene.tokens[caller]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if path == "/v1/events":
        async with scene.site.http.get(scene.site.url + path, headers=headers) as response:
            return response.status, b"" if response.status == 200 else await response.read()
    try:
        async with scene.site.http.ws_connect(scene.site.url + path, headers=headers):
            return 101, b""
    except aiohttp.WSServerHandshakeError as error:
        return error.status, b""


@pytest.mark.parametrize("caller", [each for each in EACH_CALLER if each.values[0] in SESSIONS])
async def test_frames_are_for_those_who_may_send_them(scene: Scene, caller: str) -> None:
    before = await scene.logs()
    other = "customer_in" if caller != "customer_in" else "manager_in"
    strange = await scene.must("POST", "/v1/sync", {}, scene.tokens[other] or "")
    async with connected(scene, scene.tokens[caller]) as (socket, listener):
        for line in FRAME_LINES:
            hidden: set[str] = set()
            for kind in ("absent", *MEMBERS):
                if kind not in ROOM_SETS[line.rooms] | {"absent"}:
                    continue
                sight = "-" if kind == "absent" else SIGHTS[kind].get(caller, "-")
                expected = line.unseen
                if sight != "-":
                    expected = line.member if sight == "M" else line.sees[_role(caller)]
                is_new = expected == "ack" and line.frame == "send"
                room = NO_ROOMS[0] if kind == "absent" else scene.rooms[kind]
                room = await scene.room(kind, caller) if is_new else room
                frame = await _frame(scene, line, caller, room, strange["cursor"])
                outcome, answer = await _outcome(scene, socket, listener, frame, room)
                assert outcome == expected, (caller, line, kind, answer)
                if sight == "-" and line.frame != "sync":
                    hidden.add(re.sub(r'"ref":\d+', "", answer))
            assert len(hidden) <= 1, (caller, line, hidden)
    _check_untold(scene, caller, b"".join(listener.heard))
    assert await scene.logs() == before


async def _frame(
    scene: Scene, line: FrameCase, caller: str, room: Room, strange_cursor: str
) -> dict[str, Any]:
    """What a client sends, without its `ref`."""
    frame: dict[str, Any] = {"type": line.frame}
    if line.frame in ("send", "read", "typing"):
        frame["room_id"] = room.id
    if line.frame == "send":
        frame |= {"client_id": f"c{scene.number()}", "text": "hello"}
        frame |= {"as_user": "max"} if line.deed == "as_user" else {}
    if line.frame == "read":
        frame["seq"] = 1
    if line.frame == "auth":
        frame["token"] = scene.tokens["manager_in"]
    if line.frame in ("sync", "seen"):
        own = await scene.must("POST", "/v1/sync", {"limit": 500}, scene.tokens[caller] or "")
        name = "since" if line.frame == "sync" else "cursor"
        frame[name] = strange_cursor if line.deed == "cursor" else own["cursor"]
    if line.frame == "sync":
        frame |= {"have": {room.id: ""}, "limit": 500}
    return frame


async def _outcome(
    scene: Scene,
    socket: aiohttp.ClientWebSocketResponse,
    listener: Listener,
    frame: dict[str, Any],
    room: Room,
) -> tuple[str, str]:
    """How a frame was answered, in the words of the table, and the answer itself."""
    ref, ping_ref = scene.number(), scene.number()
    if frame["type"] not in ("seen", "auth"):
        frame = {**frame, "ref": ref}
    seen = len(listener.frames)
    await socket.send_str(msgspec.json.encode(frame).decode())
    await socket.send_json({"type": "ping", "ref": ping_ref})
    ends = {ref} if frame["type"] in ("send", "read", "sync", "ping") else {ref, ping_ref}
    await listener.first(lambda each: each.get("ref") in ends)
    answers = [
        each
        for each in listener.frames[seen:]
        if each.get("ref") == ref or (each["type"] == "error" and "ref" not in each)
    ]
    assert len(answers) <= 1, answers
    if not answers:
        return "quiet", ""
    (answer,) = answers
    text = msgspec.json.encode(answer).decode()
    if answer["type"] == "error":
        return answer["problem"]["code"], text
    if answer["type"] != "sync":
        return answer["type"], text
    entries = {each["room_id"]: each["entries"] for each in answer["rooms"]}
    return "told" if entries.get(room.id) else "nothing", text


async def test_a_socket_is_for_sessions_and_tells_them_what_is_theirs(scene: Scene) -> None:
    have = {room.id: "" for room in scene.rooms.values()} | {ABSENT: ""}
    for caller in CALLERS:
        auth = {"type": "auth", "token": scene.tokens[caller] or "none", "have": have}
        async with connected(scene, None) as (socket, listener):
            await socket.send_json(auth)
            if caller in SESSIONS:
                told = await listener.first(lambda frame: frame["type"] == "sync")
                seen = {room["room_id"] for room in told["rooms"]}
                kinds = [kind for kind in MEMBERS if SIGHTS[kind].get(caller, "-") != "-"]
                assert seen == {scene.rooms[kind].id for kind in kinds}, caller
            else:
                await listener.ended.wait()
                assert listener.close_code == AUTH_CODES.get(caller, NOT_AUTHENTICATED), caller
                assert [frame["type"] for frame in listener.frames] == ["error"]
        _check_untold(scene, caller, b"".join(listener.heard))


async def test_no_frame_is_heard_from_nobody(scene: Scene) -> None:
    before = await scene.logs()
    for line in FRAME_LINES:
        if line.frame == "auth":
            continue
        frame = await _frame(scene, line, "customer_in", scene.rooms["public"], "x")
        async with connected(scene, None) as (socket, listener):
            await socket.send_json(frame)
            await listener.ended.wait()
            assert listener.close_code == NOT_AUTHENTICATED, line
        _check_untold(scene, "nobody", b"".join(listener.heard))
    assert await scene.logs() == before


@pytest.mark.parametrize("caller", [each for each in EACH_CALLER if each.values[0] in SESSIONS])
async def test_devices_are_told_of_their_own_rooms_only(scene: Scene, caller: str) -> None:
    others = [each for each in SESSIONS if each != caller]
    token = scene.tokens[caller] or ""
    since = (await scene.must("POST", "/v1/sync", {}, token))["cursor"]
    have = {room.id: "" for room in scene.rooms.values()}
    read: list[bytes] = []
    team = Listener()
    async with AsyncExitStack() as stack:
        for other in others:
            connection = connected(scene, scene.tokens[other])
            _, heard = await stack.enter_async_context(connection)
            team = heard if other in TEAM else team
        async with listening_to_all(scene, caller) as listener:
            await scene.stir()
            await team.first(lambda frame: frame["type"] == "queue")
            if caller in ("customer_in", "bot_in"):
                await listener.first(lambda frame: frame.get("user_id") == "max" and _is_on(frame))
            for call in READING:
                method, _, path = call.partition(" ")
                body = {"since": since, "have": have, "limit": 500} if method == "POST" else None
                answer = await scene.call(caller, method, path, body)
                read.append(answer.raw)
    assert any(frame["type"] == "queue" for frame in listener.frames) is (caller in TEAM)
    everything = b"".join((*listener.heard, *read))
    _check_untold(scene, caller, everything)
    if caller != FOREIGN_ADMIN:  # its users may have the same ids; and Fred's time is in the logs
        ids = [scene.user_ids[each] for each in scene.people_hidden_from(caller) - {"fred"}]
        assert not [each for each in ids if f'"{each}"'.encode() in everything]
    for kind, room in scene.rooms.items():  # so that what is searched for would have been found
        is_told = f"the word-of-{kind} by".encode() in b"".join(listener.heard)
        is_member = SIGHTS[kind].get(caller, "-") == "M"
        assert is_told is is_member, (kind, room.id)


def _is_on(frame: Any) -> bool:
    return bool(frame["type"] == "presence" and frame["is_online"])


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["customer_out", "manager_out", "former"])
async def test_what_a_call_costs_does_not_betray_a_room(
    first_scene: Scene, tmp_path: Path, caller: str
) -> None:
    """Neither of a room that the service has just read, nor of one that it has not."""
    now_ms = system_clock()
    for number, line in enumerate(ROOM_LINES):
        async with open_scene(tmp_path / str(number), first_scene, lambda: now_ms) as scene:
            await scene.call(caller, "GET", "/v1/me")  # whoever calls is known from now on
            costs: dict[str, list[str]] = {}
            for room in (NO_ROOMS[0], *scene.rooms.values()):
                is_meant = room.kind in ROOM_SETS[line.rooms] and not _may_see(caller, room.kind)
                if is_meant or room.kind == "absent":
                    answers = [await _ask(scene, line, caller, room) for _ in range(3)]
                    costs[room.kind] = [each.headers["Tidings-Cost"] for each in answers]
            assert len({*map(tuple, costs.values())}) == 1, (line.call, line.deed, costs)


@pytest.mark.parametrize("size", [4, 40])
async def test_who_is_removed_hears_no_more(scene: Scene, size: int) -> None:
    """Also in a room that is too large for one transaction, whose members are told in chunks."""
    members = ["fred", "gus", *[await scene.user() for _ in range(size)]]
    body = {"kind": "group", "id": "room-to-leave", "member_ids": members}
    await scene.must("POST", "/v1/rooms", body)
    async with (
        connected(scene, scene.tokens["former"]) as (socket, listener),
        connected(scene, (await scene.session("gus"))[1]) as (_, other),
    ):
        await scene.say("before", "room-to-leave", "gus")
        await listener.first(lambda frame: _text(frame) == "the word-of-before by gus")
        since = (await scene.must("POST", "/v1/sync", {}, scene.tokens["former"] or ""))["cursor"]
        await scene.must("DELETE", "/v1/rooms/room-to-leave/members/fred")
        left_at = (await scene.must("GET", "/v1/rooms/room-to-leave"))["head"]
        for _ in range(3):
            await scene.say("after", "room-to-leave", "gus")
        await scene.must("PATCH", "/v1/rooms/room-to-leave", {"title": "word-of-after"})
        last = await scene.say("last", "room-to-leave", "gus")
        await other.first(lambda frame: frame.get("entry", {}).get("seq") == last)
        await socket.send_json({"type": "ping", "ref": "end"})
        await listener.first(lambda frame: frame.get("ref") == "end")
        have = {"since": since, "have": {"room-to-leave": ""}, "limit": 500}
        synced = await scene.call("former", "POST", "/v1/sync", have)
        inbox = await scene.call("former", "GET", "/v1/inbox")
        told = b"".join((*listener.heard, synced.raw, inbox.raw))
        row = await scene.site.service.chat.inboxes.item(
            scene.site.workspace, "fred", "room-to-leave"
        )
        told += msgspec.json.encode(row)
        assert row.left
        assert row.head <= left_at
    assert not [word for word in (b"word-of-after", b"word-of-last") if word in told]
    left = [room for room in synced.json["rooms"] if room["room_id"] == "room-to-leave"]
    assert [(room["left"], room["entries"]) for room in left] == [(True, [])]
    answer = await scene.call("former", "GET", "/v1/rooms/room-to-leave")
    assert _shown(answer) == _shown(await scene.call("former", "GET", f"/v1/rooms/{ABSENT}"))


def _text(frame: Any) -> Any:
    return frame.get("entry", {}).get("text")


async def test_who_joins_a_room_without_history_never_sees_what_was_before(scene: Scene) -> None:
    room = "/v1/rooms/room-since-join"
    body = {"kind": "group", "id": "room-since-join", "history": "since_join"}
    await scene.must("POST", "/v1/rooms", {**body, "member_ids": ["max", "gus"]})
    old = [await scene.say("before", "room-since-join", "max") for _ in range(3)]
    cleo, max_ = scene.tokens["customer_in"] or "", scene.tokens["manager_in"] or ""
    since = (await scene.must("POST", "/v1/sync", {}, cleo))["cursor"]
    async with connected(scene, cleo) as (socket, listener):
        await scene.must("POST", f"{room}/members", {"user_id": "cleo"})
        seen = await scene.say("after", "room-since-join", "max")
        entry = f"{room}/messages/{old[0]}"
        await scene.must("PATCH", entry, {"text": "changed word-of-before"}, max_)
        await scene.must("PUT", f"{entry}/reactions/{EMOJI}", None, max_)
        await scene.must("DELETE", f"{room}/messages/{old[1]}", None, max_)
        answers = [
            await scene.call("customer_in", method, path, json)
            for method, path, json in (
                ("GET", f"{room}/messages", None),
                ("GET", f"{room}/messages?before={seen}", None),
                ("GET", f"{room}/messages?after=0&limit=500", None),
                ("GET", f"{room}/messages?have=&limit=500", None),
                ("POST", "/v1/sync", {"have": {"room-since-join": ""}, "limit": 500}),
                ("POST", "/v1/sync", {"since": since, "limit": 500}),
                ("GET", "/v1/inbox", None),
            )
        ]
        assert all(each.status == 200 for each in answers)
        hidden = [
            await scene.call("customer_in", method, path, json)
            for seq in (*old, 9_999)
            for method, path, json in (
                ("PATCH", f"{room}/messages/{seq}", {"text": "mine"}),
                ("DELETE", f"{room}/messages/{seq}", None),
                ("PUT", f"{room}/messages/{seq}/reactions/{EMOJI}", None),
                ("DELETE", f"{room}/messages/{seq}/reactions/{EMOJI}", None),
            )
        ]
        assert len({_shown(each) for each in hidden}) == 1
        assert hidden[0].status == 404
        catch_up = {"type": "sync", "ref": "s", "since": since, "have": {"room-since-join": ""}}
        await socket.send_json({**catch_up, "limit": 500})
        await listener.first(lambda frame: frame.get("ref") == "s")
    told = b"".join((*listener.heard, *[each.raw for each in (*answers, *hidden)]))
    assert b"word-of-after" in told
    assert b"word-of-before" not in told


@pytest.mark.slow
async def test_a_changed_room_or_role_counts_for_open_sockets_too(scene: Scene) -> None:
    public, support = scene.rooms["public"], scene.rooms["support"]
    async with connected(scene, scene.tokens["manager_out"]) as (socket, listener):

        async def typing(room: Room) -> str:
            frame = {"type": "typing", "room_id": room.id}
            return (await _outcome(scene, socket, listener, frame, room))[0]

        async def is_hidden() -> bool:
            return await typing(support) == "not_found"

        assert (await typing(public), await typing(support)) == ("forbidden", "quiet")
        await scene.must("PATCH", f"/v1/rooms/{public.id}", {"scope": "private"})
        assert await typing(public) == "not_found"
        assert (await scene.call("manager_out", "GET", f"/v1/rooms/{public.id}")).status == 404
        await scene.must("PATCH", "/v1/users/mona", {"role": "customer"})
        await soon(is_hidden)
        assert (await scene.call("manager_out", "GET", f"/v1/rooms/{support.id}")).status == 404
        assert (await scene.call("manager_out", "GET", "/v1/queue")).status == 403


async def test_a_cursor_is_of_use_to_its_owner_only(scene: Scene) -> None:
    lists = ("/v1/inbox", "/v1/sessions", "/v1/rooms", "/v1/users", "/v1/rooms/{room_id}/members")
    await scene.session("max")
    for path in lists:
        own = path.format(room_id=scene.rooms["private"].id)
        page = (await scene.call("manager_in", "GET", f"{own}?limit=1")).json
        assert page["next"], path
        other = path.format(room_id=scene.rooms["public"].id)
        for caller in ("manager_out", "customer_in", FOREIGN_ADMIN):
            is_same = path in ("/v1/rooms", "/v1/users") and caller == "manager_out"
            answer = await scene.call(caller, "GET", f"{other}?limit=1&cursor={page['next']}")
            assert (answer.status == 200) is is_same, (caller, path, answer)
            _check_untold(scene, caller, answer.raw)


async def test_a_refusal_does_not_tell_what_is_there(scene: Scene) -> None:
    async def refused(caller: str, path: str, body: Any, named: str) -> bytes:
        answer = await scene.call(caller, "POST", path, body)
        assert answer.status == 400, answer
        return answer.raw.replace(named.encode(), b"")

    about = [scene.rooms["private"].id, scene.rooms["direct"].id, ABSENT]
    told = {
        await refused("manager_out", "/v1/rooms", {"kind": "group", "about": each}, each)
        for each in about
    }
    assert len(told) == 1
    path = f"/v1/rooms/{scene.rooms['private'].id}/messages"
    message = {"client_id": "mention", "text": "hello"}
    told = {
        await refused("customer_in", path, {**message, "mentions": [each]}, each)
        for each in ("zoe", "olga", "nobody-at-all")
    }
    assert len(told) == 1
