"""What was ended is refused at once, also where nobody was told that it was ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.people.clocks import FakeClock
from tests.people.conftest import World
from tests.storage.suspending import HeldStore
from tidings.errors import NotFound, Unauthorized, Unavailable
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import TOKENS, WORKSPACES

pytestmark = pytest.mark.usefixtures("acme")


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock) -> AsyncIterator[HeldStore]:
    async with SqliteStore.open(tmp_path / "store.db", clock=clock) as engine:
        yield HeldStore(engine)


async def test_a_session_that_may_have_ended(world: World, store: HeldStore) -> None:
    await world.user("acme", "cleo")
    opened, caller = await world.session("acme", "cleo")
    with store.failing("answer", "write"), pytest.raises(Unavailable):
        await world.credentials.revoke_session(caller, opened.session_id)
    with pytest.raises(Unauthorized):
        await world.credentials.authenticate(opened.token)


async def test_a_session_that_did_not_end(world: World, store: HeldStore) -> None:
    await world.user("acme", "cleo")
    opened, caller = await world.session("acme", "cleo")
    with store.failing("request", "write"), pytest.raises(Unavailable):
        await world.credentials.revoke_session(caller, opened.session_id)
    assert await world.credentials.authenticate(opened.token) == caller
    assert world.revoked == []


async def test_a_key_that_may_have_been_taken_away(world: World, store: HeldStore) -> None:
    key_id, key = await world.credentials.create_key("acme", "server")
    await world.credentials.authenticate(key)
    with store.failing("answer", "write", TOKENS), pytest.raises(Unavailable):
        await world.credentials.revoke_key("acme", key_id)
    with pytest.raises(Unauthorized):
        await world.credentials.authenticate(key)
    with pytest.raises(NotFound):
        await world.credentials.revoke_key("acme", key_id)


async def test_a_workspace_that_may_have_changed(world: World, store: HeldStore) -> None:
    await world.workspaces.get("acme")
    with store.failing("answer", "write", WORKSPACES), pytest.raises(Unavailable):
        await world.workspaces.update("acme", name="Other")
    found = await world.workspaces.get("acme")
    assert found is not None
    assert found.name == "Other"


async def test_a_user_who_may_have_been_deactivated(world: World, store: HeldStore) -> None:
    await world.user("acme", "ada", "admin")
    await world.user("acme", "cleo")
    _, admin = await world.session("acme", "ada")
    opened, _ = await world.session("acme", "cleo")
    with store.failing("answer", "write"), pytest.raises(Unavailable):
        await world.users.delete(admin, "cleo")
    with pytest.raises(Unauthorized):
        await world.credentials.authenticate(opened.token)
    await world.users.delete(admin, "cleo")
    assert ("acme", "cleo", None) in world.revoked
