"""What comes in and goes out needs no more memory the more there is of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.importing.slack_zips import large
from tests.importing.test_slack import bring
from tests.people.clocks import FakeClock
from tidings.bench.filling import filled
from tidings.clock import system_clock
from tidings.ids import IdMaker
from tidings.importing.exports import export_workspace
from tidings.importing.workspaces import WorkspaceImport
from tidings.people.workspaces import Workspaces
from tidings.storage.sqlite import SqliteStore

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """What Python's objects take at one time; SQLite's caches have limits of their own."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size_bytes


async def test_an_export_and_its_way_back(tmp_path: Path) -> None:
    source, folder = tmp_path / "source.db", tmp_path / "exported"
    async with SqliteStore.open(source) as store:
        await Workspaces(store, system_clock, IdMaker(system_clock)).create("Acme", "acme")
    await filled(source, entries=12_000, users=100)
    async with SqliteStore.open(source) as store:
        with at_most(4 * MIB):
            await export_workspace(store, "acme", folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) > 4 * MIB
    async with SqliteStore.open(tmp_path / "target.db") as store:
        with at_most(4 * MIB):
            await WorkspaceImport(store, FakeClock(), folder).run()


async def test_a_slack_export(tmp_path: Path) -> None:
    path = large(1, people=50, channels=10, messages=6_000).write(tmp_path / "large.zip")
    async with SqliteStore.open(tmp_path / "store.db") as store:
        with at_most(8 * MIB):
            imported = await bring(store, path)
    assert imported.report.effects.messages_added == 6_000
