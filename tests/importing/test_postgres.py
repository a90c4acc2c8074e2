"""A real PostgreSQL moves in: all of it, what it writes meanwhile, and in whatever state it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.command_line import run_tidings
from tests.importing.scene import Scene, scene
from tests.importing.shop import Application, Shop
from tests.postgres_server import PostgresServer, needs_postgres, running_postgres
from tests.stores import BOTH_STORES, StoreKind, sized
from tidings.importing.postgres_changes import Decoded
from tidings.importing.postgres_following import Following

STORES = BOTH_STORES
pytestmark = needs_postgres

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as made:
        yield made


@pytest.fixture
def shop(server: PostgresServer, tmp_path: Path) -> Shop:
    made = Shop(server, f"shop{next(_numbers)}", tmp_path)
    made.create()
    return made


@pytest.fixture
async def place(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(store_kind, tmp_path) as made:
        yield made


async def test_all_of_it_moves_in_once(shop: Shop, place: Scene, store_kind: StoreKind) -> None:
    shop.fill(sized(store_kind, 100), sized(store_kind, 1_500))
    async with shop.importing(place) as importing:
        await importing.load()
    assert not importing.loading.quarantine.counts
    assert (importing.counts.compared > sized(store_kind, 200), importing.counts.differing) == (
        True,
        0,
    )
    await shop.require_same(place)
    before = await place.everything()
    async with shop.importing(place) as importing:
        await importing.load()
    assert await place.everything() == before
    assert importing.loading.report.messages_added == 0


async def test_what_is_written_meanwhile_is_caught_up(
    shop: Shop, place: Scene, store_kind: StoreKind
) -> None:
    shop.fill(sized(store_kind, 60), sized(store_kind, 600))
    application = Application(shop)
    async with shop.importing(place) as importing:
        watch = Decoded(shop.mapping, importing.catalogue, f"tidings_{shop.name}")
        async with importing.source.connected() as connection:
            assert await Decoded.hindrance(connection, importing.catalogue) is None
            assert await watch.begin(connection)
        await application.run(sized(store_kind, 40))
        writing = asyncio.create_task(application.run(sized(store_kind, 200)))
        await importing.load()
        following = Following(importing, watch)
        stop = asyncio.Event()
        task = asyncio.create_task(following.run(stop))
        await writing
        stop.set()
        await task
        await following.run(asyncio.Event(), is_ending=True)
    assert importing.counts.differing == 0, importing.loading.quarantine.first
    await shop.require_same(place)
    assert shop.ask("SELECT * FROM pg_replication_slots") == []


def test_the_command_says_what_is_wrong(shop: Shop, tmp_path: Path) -> None:
    shop.map('sender = "sender_id"', 'sender = "author"')
    store = f"sqlite:///{tmp_path}/tidings.db"
    given = ("import", "postgres", str(shop.mapping_path), "--store", store, "--from", shop.url)
    outcome = run_tidings(*given, folder=tmp_path)
    assert outcome.code == 1
    assert "there is no column author; there are" in outcome.errors
    assert "--drop-slot" in run_tidings("import", "postgres", "--help").output
