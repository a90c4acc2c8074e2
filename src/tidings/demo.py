"""`tidings demo`: a service on a store with a sample workspace, and ready links and tokens."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from tidings import wire
from tidings.api.pages import SAMPLE_SHOP
from tidings.api.sections import SECTIONS
from tidings.app import Service, open_app, run
from tidings.chat.chat import Chat
from tidings.clock import system_clock
from tidings.config import Settings
from tidings.cursors import Cursors
from tidings.demo_story import PEOPLE, SCENES, Line, Scene
from tidings.errors import Unauthorized
from tidings.ids import IdMaker
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.people import People
from tidings.storage.interface import Store

WORKSPACE = "kettlewright"
CREDENTIALS_FILE = "credentials.json"
BLOBS_FOLDER = "files"
STORE_FILE = "demo.db"
MINUTE_MS = 60_000
DEVICE = wire.Device(name="demo", platform="command line")


class Credentials(msgspec.Struct, frozen=True):
    """What the demo prints, kept in its folder so that links stay good over restarts."""

    api_key: str
    operator_key: str
    publishable_key: str
    tokens: dict[str, str]
    """User id to session token."""


def run_demo(folder: Path, host: str, port: int) -> None:
    """Fill the folder's store if it is new, print who may sign in and how, and serve.

    Where the port is taken, another one is used. Ends as `tidings serve` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        store=f"sqlite:///{quote(str(folder / STORE_FILE))}",
        blobs=f"file:{quote(str(folder / BLOBS_FOLDER))}",
        host=host,
        port=_usable_port(host, port),
        log="off",
    )
    path = folder / CREDENTIALS_FILE
    kept = msgspec.json.decode(path.read_bytes(), type=Credentials) if path.exists() else None
    credentials = asyncio.run(_prepare(settings, kept))
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(credentials)))
    _show(credentials, f"http://{host}:{settings.port}", folder)
    run(settings, (*SECTIONS, SAMPLE_SHOP))


def _usable_port(host: str, port: int) -> int:
    """The port, or a free one where it is taken or 0."""
    for wanted in (port, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, wanted))
            except OSError:
                continue
            found: int = listener.getsockname()[1]
            return found
    return port


async def _prepare(settings: Settings, kept: Credentials | None) -> Credentials:
    """Fill the store unless credentials were kept; credentials that work, new ones if need be."""
    async with open_app(settings) as service:
        if kept is None:
            await fill(service.store, system_clock())
        elif await _all_work(service, kept):
            return kept
        return await new_credentials(service)


async def new_credentials(service: Service) -> Credentials:
    """Keys, and a session for everybody of the story, whom the store has already."""
    keys = service.people.credentials
    workspace = await service.people.workspaces.default(WORKSPACE)
    _, api_key = await keys.create_key(workspace.id, "demo", ALL_SCOPES)
    _, operator_key = await keys.create_key("", "demo", (), operator=True)
    tokens = {}
    for person in PEOPLE:
        body = wire.CreateSession(user_id=person.id, device=DEVICE)
        session = await keys.create_session(_KEY, body, None, "127.0.0.1")
        tokens[person.id] = session.token
    return Credentials(api_key, operator_key, workspace.publishable_key, tokens)


async def _all_work(service: Service, credentials: Credentials) -> bool:
    try:
        for token in (credentials.api_key, credentials.operator_key, *credentials.tokens.values()):
            await service.people.credentials.authenticate(token)
    except Unauthorized:
        return False
    return True


INBOXES = (("ines", "Inês, an admin"), ("tomasz", "Tomasz, a manager"))
"""Whose inboxes are linked to."""
TABLE_WIDTH = 100
"""Characters that the table of people needs: a token that is cut off is of no use."""


def _show(credentials: Credentials, url: str, folder: Path) -> None:
    """Print people with their tokens, then links and calls that work when they are pasted."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, TABLE_WIDTH)
    table = Table(title="Kettlewright, a sample workspace", title_justify="left")
    for name in ("person", "role", "id", "session token"):
        table.add_column(name, no_wrap=True)
    for person in PEOPLE:
        table.add_row(person.name, person.role, person.id, credentials.tokens[person.id])
    console.print(table)
    authorization = f'-H "Authorization: Bearer {credentials.tokens["ines"]}"'
    post = (
        f'curl -s {url}/v1/rooms/counter/messages {authorization} -H "Content-Type: '
        'application/json" -d \'{"client_id": "hello-1", "text": "Hello from the command line"}\''
    )
    lines = (
        *(
            (f"the inbox of {name}", f"{url}/#token={credentials.tokens[who]}")
            for who, name in INBOXES
        ),
        ("every call, to try", f"{url}/docs"),
        ("OpenAPI", f"{url}/openapi.json"),
        ("what the service does, live", f"{url}/ops"),
        ("a shop with the chat for customers", f"{url}/shop#{credentials.publishable_key}"),
        ("API key", credentials.api_key),
        ("publishable key", credentials.publishable_key),
        ("operator key, for /ops and /metrics", credentials.operator_key),
        ("the rows of Inês's inbox", f"curl -s {url}/v1/inbox {authorization}"),
        ("her badge", f"curl -s {url}/v1/badge {authorization}"),
        ("who waits", f'curl -s "{url}/v1/rooms?kind=support&assignee_id=none" {authorization}'),
        ("say something", post),
        ("hear it, live", f"curl -sN {url}/v1/events {authorization}"),
    )
    for what, text in lines:
        console.print(f"[bold]{what}[/bold]", end="\n  ")
        console.print(text, markup=False)
    console.print(f"All of it is kept in {folder}; remove that folder to start anew.")


class _StoryClock:
    """The time at which a line of the story is said."""

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self.now_ms = start_ms

    def turn_to(self, ago_minutes: int, seconds: int = 0) -> None:
        self.now_ms = self._start_ms - ago_minutes * MINUTE_MS + seconds * 1000

    def __call__(self) -> int:
        return self.now_ms


def _session(user_id: str, role: wire.Role) -> Caller:
    return Caller(
        workspace=WORKSPACE,
        kind="session",
        credential_id="demo",
        user_id=user_id,
        role=role,
        session_id="demo",
    )


_ROLES = {person.id: person.role for person in PEOPLE}
_CALLERS = {person.id: _session(person.id, person.role) for person in PEOPLE}
_KEY = Caller(workspace=WORKSPACE, kind="api_key", credential_id="demo", scopes=ALL_SCOPES)


async def fill(store: Store, start_ms: int) -> None:
    """Tell the story into the store, as it happened before `start_ms`.

    Where it was broken off it goes on: what was said already is not said twice.
    """
    clock = _StoryClock(start_ms)
    ids = IdMaker(clock)
    cursors = Cursors(secrets.token_bytes(32))
    people = People(store, clock, ids, cursors, policy=None)
    chat = Chat(store, clock, ids, cursors, people.users, _tell_nobody, _tell_nobody)
    clock.turn_to(max(line.ago_minutes for scene in SCENES for line in scene.lines) + 60)
    try:
        await people.workspaces.default(WORKSPACE)
        for person in PEOPLE:
            body = wire.CreateUser(
                role=person.role,
                name=person.name,
                id=person.id,
                email=person.email,
                attributes=dict(person.attributes),
            )
            await people.users.create(_KEY, body)
        await _Stage(chat, clock).play()
    finally:
        await chat.stop()


class _Stage:
    """Plays the scenes, all lines of all rooms in the order of their times."""

    def __init__(self, chat: Chat, clock: _StoryClock) -> None:
        self._chat = chat
        self._clock = clock
        self._rooms: dict[int, str] = {}
        self._seqs: dict[tuple[int, int], int] = {}

    async def play(self) -> None:
        for number, scene in enumerate(SCENES):
            await self._open(number, scene)
        for number, place, line in _in_time():
            await self._say(number, place, line)
        for number, scene in enumerate(SCENES):
            await self._close(number, scene)

    async def _open(self, number: int, scene: Scene) -> None:
        self._clock.turn_to(scene.lines[0].ago_minutes + 1)
        body = wire.CreateRoom(
            kind=scene.kind,
            id=scene.id,
            title=scene.title,
            scope=scene.scope,
            about=scene.about,
            member_ids=list(scene.members),
        )
        room, _ = await self._chat.rooms.create(_KEY, body)
        self._rooms[number] = room.id

    async def _say(self, number: int, place: int, line: Line) -> None:
        messages = self._chat.messages
        room_id = self._rooms[number]
        self._clock.turn_to(line.ago_minutes)
        reply_to = None if line.reply_to is None else self._seqs[number, line.reply_to]
        body = wire.PostMessage(
            client_id=f"story-{number}-{place}",
            text=line.text,
            mentions=list(line.mentions),
            reply_to=reply_to,
        )
        entry, _ = await messages.post(_CALLERS[line.who], room_id, body)
        self._seqs[number, place] = entry.seq
        self._clock.turn_to(line.ago_minutes, seconds=40)
        for emoji, who in line.reactions:
            if who not in entry.reactions.get(emoji, ()):
                await messages.react(_CALLERS[who], room_id, entry.seq, emoji, is_given=True)
        self._clock.turn_to(line.ago_minutes, seconds=50)
        if line.edited is not None and entry.edited_at is None:
            edit = wire.EditMessage(text=line.edited)
            await messages.edit(_CALLERS[line.who], room_id, entry.seq, edit)
        if line.is_taken_back and entry.deleted_at is None:
            await messages.delete(_CALLERS[line.who], room_id, entry.seq)

    async def _close(self, number: int, scene: Scene) -> None:
        room_id = self._rooms[number]
        self._clock.turn_to(scene.lines[-1].ago_minutes, seconds=55)
        if scene.kind == "support":
            if scene.assignee is not None:
                patch = wire.PatchRoom(assignee_id=scene.assignee)
                await self._chat.rooms.patch(_CALLERS[scene.assignee], room_id, patch)
            if scene.status != "open":
                closer = _CALLERS[scene.assignee or "ines"]
                await self._chat.rooms.patch(closer, room_id, wire.PatchRoom(status=scene.status))
        left = dict(scene.unread)
        for member in scene.members:
            place = len(scene.lines) - left.get(member, 0)
            if place == len(scene.lines):
                seq = (await self._chat.rooms.get(_KEY, room_id)).head
            else:
                seq = self._seqs[number, place] if place else 0
            if seq and _ROLES[member] != "bot":
                await self._chat.messages.read(_CALLERS[member], room_id, seq)
        for member in scene.muted_by:
            await self._chat.rooms.mute(_CALLERS[member], room_id, True)


def _in_time() -> Iterator[tuple[int, int, Line]]:
    lines = [
        (number, place, line)
        for number, scene in enumerate(SCENES)
        for place, line in enumerate(scene.lines, start=1)
    ]
    return iter(sorted(lines, key=lambda each: -each[2].ago_minutes))


def _tell_nobody(*_: object) -> None:
    """Nobody is connected while the story is told."""
