"""Captures of DynamoDB tables by their streams, on the engine of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.engines import dynamo_tables
from tests.migrate.shards import ShardedStreams
from tests.storage.contract import SetClock, scan_all
from tidings.config import DynamoAddress
from tidings.migrate import stream_captures
from tidings.migrate.captures import Change
from tidings.migrate.stream_captures import STREAM_LIFE_S, CaptureLost, StreamCapture
from tidings.storage.dynamodb import MARK, DynamoStore
from tidings.storage.expressions import table_name
from tidings.storage.interface import Delete, Key, Put, Update
from tidings.storage.tables import BADGES, ENTRIES, MOVES, ROOMS

pytestmark = pytest.mark.slow
CAPTURED = (ROOMS, ENTRIES, BADGES)


class Place:
    """Tables with a store, and captures of them."""

    def __init__(self, address: DynamoAddress, store: DynamoStore, clock: SetClock) -> None:
        self.address = address
        self.store = store
        self.clock = clock

    @asynccontextmanager
    async def capture(self) -> AsyncIterator[StreamCapture]:
        """Another one, as of another process."""
        capture = StreamCapture(self.store, self.address, tables=CAPTURED, clock=self.clock)
        try:
            yield capture
        finally:
            await capture.close()


@pytest.fixture
async def place(clock: SetClock) -> AsyncIterator[Place]:
    tables = (*CAPTURED, MOVES)
    async with (
        dynamo_tables(tables) as address,
        DynamoStore.open(address, clock=clock, tables=tables) as store,
    ):
        yield Place(address, store, clock)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def keys(changes: list[Change]) -> set[tuple[str, Key]]:
    return {(change.table.name, change.key) for change in changes}


async def test_every_change_is_captured_until_it_is_forgotten_by_whomever(place: Place) -> None:
    store = place.store
    async with place.capture() as capture, place.capture() as another:
        await store.write(Put(ROOMS, {"room": "before"}))
        assert await capture.pending(10) == []
        assert await capture.is_drained()
        await capture.begin()
        await another.begin()
        await store.write(Put(ROOMS, {"room": "a"}), Put(ENTRIES, {"room": "a", "seq": 1}))
        await store.put_many(ENTRIES, [{"room": "a", "seq": seq} for seq in (2, 3)])
        await store.write(Update(BADGES, ("é",), add={"unread": 1}))
        await store.write(Update(ROOMS, ("a",), set={"title": "x"}))
        await store.write(Delete(ROOMS, ("before",)))
        expected = {
            ("entries", ("a", 1)),
            ("entries", ("a", 2)),
            ("entries", ("a", 3)),
            ("badges", ("é",)),
            ("rooms", ("a",)),
            ("rooms", ("before",)),
        }
        changes = await capture.pending(10)
        assert keys(changes) == expected
        assert len(await capture.pending(2)) == 2
        assert await capture.lag() == 6
        assert not await capture.is_drained()
        await store.write(Put(ENTRIES, {"room": "a", "seq": 2, "text": "again"}))
        again = await capture.pending(10)
        await capture.forget(changes)
        assert keys(await capture.pending(10)) == {("entries", ("a", 2))}
        assert keys(await another.pending(10)) >= {("entries", ("a", 2))}
        await capture.forget(again)
        assert await capture.is_drained()
        assert await scan_all(store, ROOMS) == [{"room": "a", "title": "x"}]
        async with place.capture() as later:
            assert await later.pending(10) == []
            await store.write(Put(ROOMS, {"room": "c"}))
            assert keys(await later.pending(10)) == {("rooms", ("c",))}
            assert not await later.is_drained()
        async with place.capture() as after_death:
            assert keys(await after_death.pending(10)) == {("rooms", ("c",))}
        await capture.end()
        await capture.end()
        await store.write(Put(ROOMS, {"room": "after"}))
        assert await capture.pending(10) == []
        await capture.begin()
        assert await capture.pending(10) == []


async def test_marks_are_removed_and_seen_by_nobody(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.capture() as capture:
        await capture.begin()
        seen = []

        async def look(*_: object) -> None:
            seen.append(await scan_all(place.store, ENTRIES))
            raise RuntimeError("died here")

        monkeypatch.setattr(capture, "_read", look)
        with pytest.raises(RuntimeError):
            await capture.is_drained()
        assert seen[0] == []
    async with place.capture() as capture:
        assert await capture.is_drained()
        answer = await place.store.calls.call(
            "Scan", {"TableName": table_name(place.address.prefix, ENTRIES)}
        )
        assert answer["Items"] == []
        assert await capture.pending(10) == []
    assert MARK.startswith("~"), "no id begins like that"


async def test_what_waited_for_more_than_a_day_is_lost_loudly(place: Place) -> None:
    async with place.capture() as capture:
        await capture.begin()
        await place.store.write(Put(ROOMS, {"room": "a"}))
        place.clock.now_ms += (STREAM_LIFE_S + 1) * 1000
        with pytest.raises(CaptureLost, match="Roll the move back"):
            await capture.pending(10)


async def test_what_nobody_needed_for_more_than_a_day_is_no_loss(place: Place) -> None:
    """As after a switch that was tried and given up, and is tried again on another day."""
    async with place.capture() as capture:
        await capture.begin(is_unread=True)
        place.clock.now_ms += (STREAM_LIFE_S + 1) * 1000
        await capture.begin(is_unread=True)
        await place.store.write(Put(ROOMS, {"room": "a"}))
        assert keys(await capture.pending(10)) == {("rooms", ("a",))}


async def test_a_stream_that_was_turned_off_has_lost_changes(place: Place) -> None:
    async with place.capture() as capture:
        await capture.begin()
        name = table_name(place.address.prefix, ROOMS)
        for wanted in (
            {"StreamEnabled": False},
            {"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"},
        ):
            await place.store.calls.call(
                "UpdateTable", {"TableName": name, "StreamSpecification": wanted}
            )
        with pytest.raises(CaptureLost, match="turned off"):
            await capture.begin()


async def test_a_stream_that_is_turned_off_under_way_is_not_taken_for_drained(
    place: Place,
) -> None:
    async with place.capture() as capture:
        await capture.begin()
        assert await capture.is_drained()
        name = table_name(place.address.prefix, ROOMS)
        await place.store.calls.call(
            "UpdateTable", {"TableName": name, "StreamSpecification": {"StreamEnabled": False}}
        )
        await place.store.write(Put(ROOMS, {"room": "a"}))
        with pytest.raises(CaptureLost):
            await capture.is_drained()


async def test_who_begins_again_reads_on_where_another_has_come_to(place: Place) -> None:
    async with place.capture() as first, place.capture() as second:
        await first.begin()
        assert await first.pending(10) == []
        await place.store.write(Put(ROOMS, {"room": "a"}))
        await second.begin()
        await second.forget(await second.pending(10))
        await first.begin()
        assert await first.pending(10) == []


async def test_a_stream_of_the_owners_own_stays(place: Place) -> None:
    name = table_name(place.address.prefix, ROOMS)
    wanted = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    await place.store.calls.call("UpdateTable", {"TableName": name, "StreamSpecification": wanted})
    async with place.capture() as capture:
        await capture.begin()
        await place.store.write(Put(ROOMS, {"room": "a"}))
        assert keys(await capture.pending(10)) == {("rooms", ("a",))}
        await capture.end()
    described = await place.store.calls.call("DescribeTable", {"TableName": name})
    assert described["Table"]["StreamSpecification"]["StreamEnabled"]


async def test_an_iterator_that_expired_is_renewed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.capture() as capture:
        await capture.begin()
        await place.store.write(Put(ROOMS, {"room": "a"}))
        await capture.forget(await capture.pending(10))
        for stream in (await capture._load()).values():
            for shard in stream.shards.values():
                shard.iterator = _expired(shard.iterator)
        await place.store.write(Put(ROOMS, {"room": "b"}))
        await capture.pending(10)
        assert keys(await capture.pending(10)) == {("rooms", ("b",))}
    assert stream_captures.RECORDS_MAX == 1_000


def _expired(iterator: str | None) -> str:
    """The iterator as if it had been handed out long ago; of this engine's own form."""
    import base64

    import msgspec

    assert iterator is not None
    content = msgspec.json.decode(base64.urlsafe_b64decode(iterator))
    return base64.urlsafe_b64encode(msgspec.json.encode(content | {"i": 0})).decode()


async def test_shards_that_split_are_read_parents_first_and_to_their_ends(place: Place) -> None:
    """Marks have to be seen in every shard that is open, those that began meanwhile too."""
    async with ShardedStreams(place.address).serving() as streams:
        capture = StreamCapture(
            place.store, place.address, tables=CAPTURED, clock=place.clock, streams=streams.address
        )
        await capture.begin()
        written: set[tuple[str, Key]] = set()
        copied: set[tuple[str, Key]] = set()
        for round_number in range(6):
            rooms = [{"room": f"{round_number}-{number}"} for number in range(5)]
            await place.store.put_many(ROOMS, rooms)
            written |= {("rooms", (room["room"],)) for room in rooms}
            changes = await capture.pending(4)
            copied |= keys(changes)
            await capture.forget(changes)
        assert not await capture.is_drained()
        await capture.close()
        later = StreamCapture(
            place.store, place.address, tables=CAPTURED, clock=place.clock, streams=streams.address
        )
        while not await later.is_drained():
            changes = await later.pending(100)
            copied |= keys(changes)
            await later.forget(changes)
        assert copied == written
        assert streams.read == {"0", "1", "00", "01", "10", "11"}
        await later.end()
        await later.close()
