"""An import goes on while its store is moved to another, and where it was moved to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from tests.chat.company import company
from tests.importing.busy import live_through
from tests.people.clocks import FakeClock
from tests.storage.suspending import Action, DistantStore, Way
from tidings.chat.audit import audit
from tidings.config import SqliteAddress
from tidings.engines import open_store
from tidings.importing.exported import read_manifest
from tidings.importing.exports import export_workspace, reckon_workspace
from tidings.importing.workspaces import WorkspaceImport
from tidings.migrate import commands
from tidings.storage.interface import Table
from tidings.storage.moving import MovingStore
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES

LOOK_S = 0.1
TIMEOUT_S = 60.0


class Pausing(DistantStore):
    """A store to which the first entries take until they may go on."""

    def __init__(self, store: MovingStore) -> None:
        super().__init__(cast(SqliteStore, store))  # which has all that is asked of it
        self.is_reached = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        """See `DistantStore.travel`."""
        if (way, action, table) == ("answer", "put_many", ENTRIES):
            self.is_reached.set()
            await self.may_go_on.wait()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def export(clock: FakeClock, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    async with (
        SqliteStore.open(tmp_path / "a.db", clock=clock) as store,
        company(store, clock) as made,
    ):
        await live_through(made)
        await export_workspace(store, "acme", folder)
    return folder


@pytest.fixture
async def moved(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[MovingStore, SqliteAddress]]:
    """A store from which a move leads away, and where it was when that began."""
    monkeypatch.setattr("tidings.migrate.mover.PREPARE_S", 0.5)  # everybody here knows of it
    old, new = (SqliteAddress(tmp_path / name) for name in ("old.db", "new.db"))
    async with open_store(old, clock=clock) as store:
        moving = asyncio.create_task(commands.start(old, new, lambda _: None, budget=None))
        try:
            while await store.books() is None:
                assert not moving.done(), moving.result()
                await asyncio.sleep(LOOK_S)
            yield store, old
            await commands.ask(new, "finished", lambda _: None)
            await moving
        finally:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
    async with SqliteStore.open(new.path, clock=clock) as there:
        assert (await audit(there, clock=clock)).ok


@pytest.mark.slow
@pytest.mark.parametrize("is_broken_off", [False, True])
async def test_an_import_goes_on(
    export: Path, clock: FakeClock, moved: tuple[MovingStore, SqliteAddress], is_broken_off: bool
) -> None:
    store, old = moved
    pausing = Pausing(store)
    shown: list[str] = []
    async with asyncio.timeout(TIMEOUT_S):
        importing = asyncio.create_task(WorkspaceImport(pausing, clock, export).run())
        await pausing.is_reached.wait()
        if is_broken_off:
            importing.cancel()
            with suppress(asyncio.CancelledError):
                await importing
        await commands.ask(old, "switched", lambda _: None)
        pausing.may_go_on.set()
        if is_broken_off:
            again = WorkspaceImport(store, clock, export, lambda what, *_: shown.append(what))
            importing = asyncio.create_task(again.run())
        assert (await importing).is_new
    assert "rooms" not in shown, "these were in already"
    assert await reckon_workspace(store, "acme") == read_manifest(export)
