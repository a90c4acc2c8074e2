"""Copying between every pair of stores, over a way that throttles and loses answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import pytest

from tests.engines import dynamo_tables
from tests.faults import FaultProxy
from tests.migrate.copies import Someone, contents, fill, write_at_random
from tidings.config import DynamoAddress
from tidings.migrate.captures import Capture
from tidings.migrate.comparing import Comparison
from tidings.migrate.copying import Backfill, Follow
from tidings.migrate.lanes import retire
from tidings.migrate.sets import CopyRefused
from tidings.migrate.sqlite_captures import SqliteCapture
from tidings.migrate.stream_captures import StreamCapture
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.faults import Profile, Rates
from tidings.storage.interface import Delete, Put, Store, Update
from tidings.storage.pacing import Pace
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import ENTRIES, RECEIPTS, ROOMS

pytestmark = pytest.mark.slow
Kind: TypeAlias = Literal["sqlite", "dynamodb"]
TROUBLED = Profile(
    every_table=Rates(throttle=0.04, conflict=0.03, server_error=0.03, lost_answer=0.03, reset=0.02)
)


class Side:
    """One of the two stores; its copiers reach it by another way than its service."""

    def __init__(self, store: Store, capture: Capture, copied: Store, pace: Pace) -> None:
        self.store = store
        self.capture = capture
        self.copied = copied
        self.pace = pace


@asynccontextmanager
async def open_side(kind: Kind, folder: Path, pace: Pace) -> AsyncIterator[Side]:
    """A new, empty store."""
    async with AsyncExitStack() as stack:
        if kind == "sqlite":
            path = folder / "store.db"
            store = await stack.enter_async_context(SqliteStore.open(path))
            file_capture = SqliteCapture(path)
            stack.push_async_callback(file_capture.close)
            yield Side(store, file_capture, store, pace)
            return
        address: DynamoAddress = await stack.enter_async_context(dynamo_tables())
        proxy = await stack.enter_async_context(FaultProxy(address, seed=3).serving())
        proxy.profile = TROUBLED
        proxy.forgets_tokens = True
        direct = await stack.enter_async_context(DynamoStore.open(address))
        troubled = await stack.enter_async_context(DynamoStore.open(proxy.address))
        capture = StreamCapture(direct, address)
        stack.push_async_callback(capture.close)
        yield Side(direct, capture, troubled, pace)


@pytest.mark.parametrize(
    ("here", "there"),
    [("sqlite", "dynamodb"), ("dynamodb", "sqlite"), ("dynamodb", "dynamodb")],
)
async def test_a_store_in_use_is_copied_there_and_back(
    here: Kind, there: Kind, tmp_path: Path
) -> None:
    """Out while it is written to, then back what changed on the other side."""
    pace = Pace(None)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    async with (
        open_side(here, tmp_path / "here", pace) as source,
        open_side(there, tmp_path / "there", pace) as target,
    ):
        await fill(source.store, rooms=6, entries=40)
        await source.store.put_many(RECEIPTS, [{"room": "old", "receipt": "1", "expires_at": 7}])
        await source.capture.begin()
        writing = asyncio.ensure_future(write_at_random(source.store, random.Random(1), 120))
        worker = Someone()
        await Backfill(source.copied, target.copied, name="m#copy", worker=worker, pace=pace).run()
        follow = Follow(
            source.copied,
            target.copied,
            source.capture,
            name="m#out",
            worker=worker,
            pace=pace,
        )
        await follow.take_over()
        following = asyncio.ensure_future(follow.run())
        await writing
        report = await Comparison(source.copied, target.copied, follow).run()
        assert report.is_equal
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await target.capture.begin()
        assert await follow.drain(20.0)
        await retire(target.store, "m#out")
        assert await contents(source.store) == await contents(target.store)
        await source.capture.end()

        back = Follow(
            target.copied,
            source.copied,
            target.capture,
            name="m#back",
            worker=worker,
            pace=pace,
        )
        await back.take_over()
        await write_at_random(target.store, random.Random(2), 60)
        assert await back.drain(20.0)
        assert await contents(source.store) == await contents(target.store)
        await target.capture.end()


async def test_what_only_the_other_engine_refuses_is_named(tmp_path: Path) -> None:
    """DynamoDB takes no empty key; SQLite does."""
    pace = Pace(None)
    async with (
        SqliteStore.open(tmp_path / "store.db") as source,
        open_side("dynamodb", tmp_path, pace) as target,
    ):
        await fill(source, rooms=3, entries=30)
        await source.write(Put(ENTRIES, {"room": "", "seq": 1}))
        backfill = Backfill(source, target.store, name="m", worker=Someone(), pace=pace)
        with pytest.raises(CopyRefused, match="entries"):
            await backfill.run()
        await source.write(Delete(ENTRIES, ("", 1)), Update(ROOMS, ("last",), add={"head": 1}))
        await backfill.run()
        done = await backfill.progress()
        assert done.units >= 2 * done.items
        found = await contents(target.store)
    async with SqliteStore.open(tmp_path / "store.db") as source:
        expected = await contents(source)
    del expected["rooms", ("last",)]  # what came after the copy of its part is the follower's
    found.pop(("rooms", ("last",)), None)
    assert found == expected
