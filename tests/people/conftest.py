"""People on a real store, with a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from tests.people.clocks import FakeClock
from tests.stores import StoreKind, open_store
from tidings import wire
from tidings.cursors import Cursors
from tidings.ids import IdMaker
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.people import People
from tidings.people.workspaces import Workspace
from tidings.storage.interface import Store


class World:
    """One process with everything of people, and what it told the parts around it."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.revoked: list[tuple[str, str, str | None]] = []
        self.erased: list[tuple[str, str]] = []
        self.online: set[str] = set()
        self.online_sessions: set[str] = set()
        self.sharing: set[frozenset[str]] = set()
        people = People(
            store,
            clock,
            IdMaker(clock),
            Cursors(b"a secret of the test"),
            shares_room=self._shares_room,
            who_is_online=self._who_is_online,
            online_sessions=self._online_sessions,
            erase=self._erase,
            on_revoked=lambda *revoked: self.revoked.append(revoked),
            first_cursor=self._first_cursor,
        )
        self.workspaces = people.workspaces
        self.credentials = people.credentials
        self.users = people.users
        self.limits = people.limits

    async def _shares_room(self, workspace: str, a: str, b: str) -> bool:
        return frozenset((a, b)) in self.sharing

    async def _who_is_online(self, workspace: str, user_ids: Collection[str]) -> set[str]:
        return self.online.intersection(user_ids)

    async def _online_sessions(self, workspace: str, user_id: str) -> set[str]:
        return self.online_sessions

    async def _erase(self, workspace: str, user_id: str) -> None:
        self.erased.append((workspace, user_id))

    async def _first_cursor(self, workspace: str, user_id: str) -> str | None:
        return f"start of {user_id}"

    async def user(self, workspace: str, user_id: str, role: wire.Role = "customer") -> wire.User:
        body = wire.CreateUser(id=user_id, role=role, name=user_id.title())
        return (await self.users.create(key_of(workspace), body))[0]

    async def session(self, workspace: str, user_id: str) -> tuple[wire.NewSession, Caller]:
        body = wire.CreateSession(user_id=user_id)
        opened = await self.credentials.create_session(key_of(workspace), body, None, None)
        return opened, await self.credentials.authenticate(opened.token)


def key_of(workspace: str) -> Caller:
    """An API key of the workspace with every scope."""
    return Caller(workspace=workspace, kind="api_key", credential_id="key_test", scopes=ALL_SCOPES)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(store_kind: StoreKind, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Store]:
    async with open_store(store_kind, tmp_path, clock) as opened:
        yield opened


@pytest.fixture
def world(store: Store, clock: FakeClock) -> World:
    return World(store, clock)


@pytest.fixture
def elsewhere(store: Store, clock: FakeClock) -> World:
    """Another process on the same store, with caches of its own."""
    return World(store, clock)


@pytest.fixture
async def acme(world: World) -> Workspace:
    return await world.workspaces.create("Acme", "acme")
