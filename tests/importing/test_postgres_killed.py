"""An import from PostgreSQL that is killed at any moment is run again, and all of it is right."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import apsw
import pytest

from tests.command_line import clean_environment
from tests.importing.scene import WORKSPACE, Scene
from tests.importing.shop import Application, Shop
from tests.postgres_server import needs_postgres, running_postgres
from tidings.chat.audit import audit
from tidings.storage.sqlite import SqliteStore

pytestmark = [needs_postgres, pytest.mark.slow]

CHATS, MESSAGES = 200, 4_000
LOOK_S = 0.005
STAGE_S_MAX = 60.0
DICE = random.Random()

LOADING = "SELECT count(*) FROM entries", 0.3
PUBLISHING = "SELECT count(*) FROM rooms", 0.05
FOLLOWING = "SELECT count(*) FROM moves WHERE stage = 'loaded'", 1.5
"""What there is of a stage as soon as it has begun, and for about how long it goes on, in s."""

HIDDEN = {"entries.room", "receipts.room"}
"""All that may be odd between two runs: logs that nobody sees, since their rooms are not there."""


class Import:
    """`tidings import postgres` of a shop into a file, run by run."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self._shop = shop
        self._folder = folder
        self.path = folder / "tidings.db"

    async def _begin(self, *options: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tidings", "import", "postgres", str(self._shop.mapping_path),
            "--from", self._shop.url, "--store", f"sqlite:///{self.path}",
            "--workspace", WORKSPACE, "--json", *options,
            cwd=self._folder,
            env=clean_environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def killed_in(self, stage: tuple[str, float]) -> None:
        """A run that is killed at a random moment of the stage."""
        query, duration_s = stage
        process = await self._begin("--follow")
        try:
            async with asyncio.timeout(STAGE_S_MAX):
                while not self.count(query):
                    assert process.returncode is None, await process.communicate()
                    await asyncio.sleep(LOOK_S)
            await asyncio.sleep(DICE.uniform(0, duration_s))
        finally:
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        with apsw.Connection(str(self.path)) as file:  # as if so long had passed as leases last
            file.execute("DELETE FROM leases")

    async def ended(self) -> dict[str, dict[str, int]]:
        """What a run reports that goes on until all is caught up."""
        process = await self._begin("--until-caught-up")
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        told: dict[str, dict[str, int]] = json.loads(output)
        return told

    def count(self, query: str) -> int:
        """What the file says; 0 as long as it is not there."""
        with suppress(apsw.CantOpenError, apsw.BusyError, apsw.SQLError):
            file = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                return int(file.execute(query).get)
            finally:
                file.close()
        return 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Scene]:
        """What is in the file."""
        async with SqliteStore.open(self.path) as store:
            yield Scene(store)


async def test_it_is_killed_at_every_stage_and_run_again(tmp_path: Path) -> None:
    with running_postgres() as server:
        shop = Shop(server, "shop", tmp_path)
        shop.create()
        shop.fill(CHATS, MESSAGES)
        application = Application(shop)

        async def write() -> None:
            while True:
                await application.run(1)
                await asyncio.sleep(0.02)

        writing = asyncio.create_task(write())
        run = Import(shop, tmp_path)
        try:
            for stage in (LOADING, PUBLISHING, FOLLOWING):
                await run.killed_in(stage)
                async with run.place() as place:
                    report = await audit(place.store)
                assert {each.invariant for each in report.broken} <= HIDDEN
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        told = await run.ended()
        assert told["counts"]["compared"] > CHATS
        assert told["counts"]["differing"] == 0
        async with run.place() as place:
            await shop.require_same(place)
            before = await place.everything()
        told = await run.ended()
        assert (told["report"]["messages_added"], told["counts"]["differing"]) == (0, 0)
        async with run.place() as place:
            assert await place.everything() == before
        assert application.steps > 0
