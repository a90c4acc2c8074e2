"""A company with its whole chat on a real store, in one process, without ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.people.clocks import FakeClock
from tidings import wire
from tidings.chat.audit import Report, audit
from tidings.chat.chat import Chat
from tidings.chat.updates import UserUpdate
from tidings.cursors import Cursors
from tidings.ids import IdMaker
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.people import People
from tidings.storage.interface import Store

KEY = Caller(workspace="acme", kind="api_key", credential_id="key", scopes=ALL_SCOPES)
ROLES: dict[str, wire.Role] = {
    "ada": "admin",
    "max": "manager",
    "mia": "manager",
    "cleo": "customer",
    "carl": "customer",
    "robo": "bot",
}
CALLERS = {
    user_id: Caller("acme", "session", f"ses_{user_id}", user_id, role, f"ses_{user_id}")
    for user_id, role in ROLES.items()
}
ADA, MAX, MIA, CLEO, CARL, ROBO = CALLERS.values()


class Company:
    """Workspace `acme` with the users of ROLES, and what its devices would have been told."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        """One node of the company; what it remembers is its own."""
        self.store = store
        self.clock = clock
        self.published: list[UserUpdate] = []
        self.signals: list[tuple[set[str], dict[str, object]]] = []
        self.apart: asyncio.Queue[tuple[set[str], dict[str, object], dict[str, object]]]
        self.apart = asyncio.Queue()
        self._count = 0
        ids, cursors = IdMaker(clock), Cursors(b"a secret of the test")
        self.people = People(store, clock, ids, cursors, policy=None)
        self.chat = Chat(
            store,
            clock,
            ids,
            cursors,
            self.people.users,
            self._publish,
            self._signal,
            signal_role=self._signal,
            signal_apart=self._signal_apart,
            ensure_stored=self.people.credentials.ensure_stored,
        )
        self.rooms = self.chat.rooms
        self.messages = self.chat.messages
        self.inboxes = self.chat.inboxes

    def _publish(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        self.published += updates

    def _signal(self, workspace: str, to: Collection[str], frame: dict[str, object]) -> None:
        self.signals.append((set(to), frame))

    def _signal_apart(
        self,
        workspace: str,
        to: Collection[str],
        frame: dict[str, object],
        customers_frame: dict[str, object],
    ) -> None:
        self.apart.put_nowait((set(to), frame, customers_frame))

    async def add_users(self, roles: dict[str, wire.Role]) -> None:
        for user_id, role in roles.items():
            body = wire.CreateUser(role=role, name=user_id.title(), id=user_id)
            await self.people.users.create(KEY, body)

    async def open(self, kind: wire.RoomKind, *member_ids: str, **fields: Any) -> wire.Room:
        """Make a room by the API key."""
        body = wire.CreateRoom(kind=kind, member_ids=list(member_ids), **fields)
        return (await self.rooms.create(KEY, body))[0]

    async def say(self, caller: Caller, room_id: str, text: str, **fields: Any) -> wire.Entry:
        """Post a message with a client_id of its own."""
        self._count += 1
        body = wire.PostMessage(client_id=f"said-{self._count}", text=text, **fields)
        return (await self.messages.post(caller, room_id, body))[0]

    async def audit(self) -> Report:
        return await audit(self.store, clock=self.clock)


@asynccontextmanager
async def company(store: Store, clock: FakeClock) -> AsyncIterator[Company]:
    """A company whose chat is stopped at the end, and then found sound."""
    made = Company(store, clock)
    await made.people.workspaces.create("Acme", "acme")
    await made.add_users(ROLES)
    try:
        yield made
    finally:
        await made.chat.stop()
    report = await made.audit()
    assert report.ok, report.broken
