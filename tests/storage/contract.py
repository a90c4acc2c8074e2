"""What every engine promises, as a test class: inherit it and give it a `store` fixture."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tidings.storage.interface import (
    ITEM_BYTES_MAX,
    PAGE_ITEMS_MAX,
    WRITE_ITEMS_MAX,
    Absent,
    Check,
    Condition,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Failure,
    Item,
    LessThan,
    Position,
    Put,
    Store,
    Table,
    Update,
    Write,
)
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    RECEIPTS,
    ROOMS,
    SECRETS,
    SESSIONS,
    USERS,
)


class SetClock:
    """A clock that stands still until it is set, in milliseconds."""

    def __init__(self, now_ms: int = 1_767_225_600_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    @property
    def now_s(self) -> int:
        return self.now_ms // 1000


def room(number: int = 1, **fields: Any) -> Item:
    return {"room": f"acme#room_{number}", "kind": "group", "head": 0, "epoch": 0, **fields}


def entry(seq: int, **fields: Any) -> Item:
    return {"room": "acme#room_1", "seq": seq, "type": "text", **fields}


def inbox(number: int, **fields: Any) -> Item:
    return {"user": "acme#usr_1", "room_id": f"room_{number:03}", "unread": 0, **fields}


async def failures(store: Store, *writes: Write) -> tuple[Failure, ...]:
    """The failures of a write that must fail."""
    with pytest.raises(ConditionFailed) as caught:
        await store.write(*writes)
    return caught.value.failures


async def scan_all(store: Store, table: Table, *, segments: int = 1, limit: int = 7) -> list[Item]:
    """Every item of the table, segment by segment."""
    items = []
    for segment in range(segments):
        after: Position | None = None
        while True:
            page = await store.scan(
                table, segment=segment, segments=segments, limit=limit, after=after
            )
            assert len(page.items) <= limit
            items += page.items
            if (after := page.after) is None:
                break
    return items


async def query_all(
    store: Store, table: Table, partition: Any, *, limit: int, **arguments: Any
) -> list[Item]:
    """Every item of the query, page by page."""
    items: list[Item] = []
    after: Position | None = None
    while True:
        page = await store.query(table, partition, limit=limit, after=after, **arguments)
        assert len(page.items) <= limit
        items += page.items
        if (after := page.after) is None:
            return items


ROOM = ("acme#room_1",)

# Conditions on room(head=3, title=None): those that hold when it is there, and those that don't.
HOLDING: Sequence[tuple[Condition, ...]] = (
    (Exists(),),
    (Equals("head", 3),),
    (Equals("title", None),),
    (Equals("is_fanning", True),),
    (Equals("tags", ["a", "b"]),),
    (LessThan("head", 4),),
    (LessThan("kind", "h"),),
    (Exists(), Equals("head", 3), LessThan("epoch", 1)),
)
FAILING: Sequence[tuple[Condition, ...]] = (
    (Absent(),),
    (Equals("head", 4),),
    (Equals("head", None),),
    (Equals("title", "x"),),
    (Equals("is_fanning", False),),
    (Equals("tags", ["b", "a"]),),
    (LessThan("head", 3),),
    (LessThan("snoozed_until", 9),),
    (Equals("head", 3), Equals("epoch", 1)),
    (Absent(), Equals("head", 3)),
)
STORED = room(head=3, is_fanning=True, tags=["a", "b"])


class StoreContract:
    """The promises of `tidings.storage.interface`, one test each."""

    # -- items

    async def test_an_item_comes_back_as_it_was_put(self, store: Store) -> None:
        item = {
            "user": "acme#usr_1",
            "user_id": "usr_1",
            "name": "Žofie \x00 \U0001f600",
            "email": "",
            "attributes": {"plan": "pro", "deep": [1, 2.5, None, {"a": True}], "": {}},
            "is_deactivated": False,
            "is_anonymous": True,
            "created_at": -(2**63),
            "updated_at": 2**63 - 1,
        }
        await store.write(Put(USERS, item))
        stored = await store.get(USERS, ("acme#usr_1",))
        assert stored == item
        assert stored is not None
        assert stored["is_anonymous"] is True
        assert stored["is_deactivated"] is False
        await store.write(Put(SECRETS, {"name": "key", "value": b"\x00\xff"}))
        assert await store.get(SECRETS, ("key",)) == {"name": "key", "value": b"\x00\xff"}

    async def test_none_is_a_missing_field(self, store: Store) -> None:
        await store.write(Put(ROOMS, room(title=None, tags=[])))
        assert await store.get(ROOMS, ROOM) == room(tags=[])
        await store.write(Update(ROOMS, ROOM, {"tags": None, "title": "x"}))
        assert await store.get(ROOMS, ROOM) == room(title="x")

    async def test_a_put_replaces_the_whole_item(self, store: Store) -> None:
        await store.write(Put(ROOMS, room(title="old", listing="acme", listed_at=1)))
        await store.write(Put(ROOMS, room(scope="public")))
        assert await store.get(ROOMS, ROOM) == room(scope="public")
        await store.write(Put(ROOMS, room(title="new"), (Equals("scope", "public"),)))
        assert await store.get(ROOMS, ROOM) == room(title="new")

    async def test_what_is_read_belongs_to_the_reader(self, store: Store) -> None:
        await store.write(Put(ROOMS, room(tags=["a"])))
        first = await store.get(ROOMS, ROOM)
        assert first is not None
        first["tags"].append("b")
        assert await store.get(ROOMS, ROOM) == room(tags=["a"])

    async def test_get_many_keeps_the_order_of_the_keys(self, store: Store) -> None:
        await store.write(*[Put(ENTRIES, entry(seq)) for seq in (1, 2, 3)])
        keys = [("acme#room_1", seq) for seq in (3, 9, 1, 3)]
        items = await store.get_many(ENTRIES, keys)
        assert items == [entry(3), None, entry(1), entry(3)]
        assert await store.get_many(ENTRIES, []) == []

    # -- updates

    async def test_an_update_changes_what_it_names(self, store: Store) -> None:
        await store.write(Put(ROOMS, room(title="t", scope="public", tags=["a"])))
        await store.write(
            Update(ROOMS, ROOM, {"title": "u", "tags": ["b"]}, {"head": 2}, ("scope",))
        )
        assert await store.get(ROOMS, ROOM) == room(title="u", head=2, tags=["b"])

    async def test_an_update_makes_the_item(self, store: Store) -> None:
        await store.write(Update(BADGES, ("acme#usr_1",), {"unread": 4}, {"version": 2}))
        assert await store.get(BADGES, ("acme#usr_1",)) == {
            "user": "acme#usr_1",
            "unread": 4,
            "version": 2,
        }
        await store.write(Update(BADGES, ("acme#usr_2",), when=(Absent(),)))
        assert await store.get(BADGES, ("acme#usr_2",)) == {"user": "acme#usr_2"}
        await store.write(Update(BADGES, ("acme#usr_3",)))
        await store.write(Update(BADGES, ("acme#usr_3",)))
        assert await store.get(BADGES, ("acme#usr_3",)) == {"user": "acme#usr_3"}

    async def test_a_conditional_update_makes_nothing(self, store: Store) -> None:
        update = Update(BADGES, ("acme#usr_1",), {"unread": 1}, when=(Exists(),))
        assert await failures(store, update) == (Failure(0, None),)
        assert await store.get(BADGES, ("acme#usr_1",)) is None

    @pytest.mark.parametrize("when", [(), (Exists(),)])
    async def test_add_counts_from_what_is_there(
        self, store: Store, when: tuple[Condition, ...]
    ) -> None:
        await store.write(Put(BADGES, {"user": "acme#usr_1", "unread": 5}))
        await store.write(
            Update(BADGES, ("acme#usr_1",), add={"unread": -2, "mentions": 3}, when=when)
        )
        assert await store.get(BADGES, ("acme#usr_1",)) == {
            "user": "acme#usr_1",
            "unread": 3,
            "mentions": 3,
        }

    async def test_concurrent_adds_are_all_counted(self, store: Store) -> None:
        update = Update(BADGES, ("acme#usr_1",), add={"version": 1})
        await asyncio.gather(*[store.write(update) for _ in range(50)])
        stored = await store.get(BADGES, ("acme#usr_1",))
        assert stored == {"user": "acme#usr_1", "version": 50}

    # -- conditions

    @pytest.mark.parametrize("when", HOLDING)
    @pytest.mark.parametrize("kind", [Put, Update, Delete, Check])
    async def test_conditions_that_hold(
        self, store: Store, kind: type[Write], when: tuple[Condition, ...]
    ) -> None:
        await store.write(Put(ROOMS, STORED))
        await store.write(_write(kind, when), Put(BADGES, {"user": "other"}))
        changed = {
            Put: room(scope="private"),
            Update: STORED | {"scope": "private"},
            Delete: None,
            Check: STORED,
        }
        assert await store.get(ROOMS, ROOM) == changed[kind]
        assert await store.get(BADGES, ("other",)) is not None

    @pytest.mark.parametrize("when", FAILING)
    @pytest.mark.parametrize("kind", [Put, Update, Delete, Check])
    async def test_conditions_that_fail(
        self, store: Store, kind: type[Write], when: tuple[Condition, ...]
    ) -> None:
        await store.write(Put(ROOMS, STORED))
        failed = await failures(store, Put(BADGES, {"user": "other"}), _write(kind, when))
        assert failed == (Failure(1, STORED),)
        assert await store.get(ROOMS, ROOM) == STORED
        assert await store.get(BADGES, ("other",)) is None

    @pytest.mark.parametrize("when", HOLDING)
    @pytest.mark.parametrize("kind", [Put, Update, Delete, Check])
    async def test_only_absence_holds_of_what_is_not_there(
        self, store: Store, kind: type[Write], when: tuple[Condition, ...]
    ) -> None:
        assert await failures(store, _write(kind, when)) == (Failure(0, None),)
        await store.write(_write(kind, (Absent(),)))

    async def test_equal_maps_are_equal_in_any_order(self, store: Store) -> None:
        user = {"user": "u", "attributes": {"a": 1, "b": {"c": 2, "d": [3]}}}
        await store.write(Put(USERS, user))
        same = {"b": {"d": [3], "c": 2}, "a": 1}
        await store.write(Check(USERS, ("u",), (Equals("attributes", same),)))
        other = {"a": 1, "b": {"c": 2, "d": [4]}}
        failed = await failures(store, Check(USERS, ("u",), (Equals("attributes", other),)))
        assert failed == (Failure(0, user),)

    async def test_deleting_nothing_succeeds(self, store: Store) -> None:
        await store.write(Delete(ROOMS, ROOM))
        await store.write(Put(ROOMS, room()))
        await store.write(Delete(ROOMS, ROOM))
        assert await store.get(ROOMS, ROOM) is None

    async def test_all_failures_are_told_and_nothing_changed(self, store: Store) -> None:
        await store.write(Put(ROOMS, room(head=7)), Put(BADGES, {"user": "u", "version": 1}))
        failed = await failures(
            store,
            Update(ROOMS, ROOM, {"head": 9}, when=(Equals("head", 8),)),
            Put(ENTRIES, entry(9), (Absent(),)),
            Update(BADGES, ("u",), {"version": 2}, when=(Equals("version", 1),)),
            Check(BADGES, ("v",), (Exists(),)),
        )
        assert failed == (Failure(0, room(head=7)), Failure(3, None))
        assert await store.get(ENTRIES, ("acme#room_1", 9)) is None
        assert await store.get(BADGES, ("u",)) == {"user": "u", "version": 1}

    async def test_one_wins_a_race(self, store: Store) -> None:
        await store.write(Put(ROOMS, room()))
        results = await asyncio.gather(
            *[
                store.write(
                    Update(ROOMS, ROOM, {"head": 1, "title": f"{n}"}, when=(Equals("head", 0),)),
                    Put(ENTRIES, entry(1, text=f"{n}"), (Absent(),)),
                    Update(BADGES, ("u",), add={"version": 1}),
                )
                for n in range(20)
            ],
            return_exceptions=True,
        )
        winners = [number for number, result in enumerate(results) if result is None]
        assert len(winners) == 1
        won = await store.get(ENTRIES, ("acme#room_1", 1))
        assert won == entry(1, text=str(winners[0]))
        assert await store.get(BADGES, ("u",)) == {"user": "u", "version": 1}
        assert all(isinstance(result, ConditionFailed) for result in results if result is not None)

    async def test_a_failing_set_harms_no_other(self, store: Store) -> None:
        await store.write(Put(ROOMS, room()))
        sets: list[tuple[Write, ...]] = [
            (Put(ENTRIES, entry(number)), Check(ROOMS, ROOM, (Equals("head", number % 2),)))
            for number in range(30)
        ]
        results = await asyncio.gather(*[store.write(*x) for x in sets], return_exceptions=True)
        assert [result is None for result in results] == [n % 2 == 0 for n in range(30)]
        page = await store.query(ENTRIES, "acme#room_1")
        assert [item["seq"] for item in page.items] == list(range(0, 30, 2))

    # -- queries

    @pytest.mark.parametrize("limit", [1, 3, 100])
    @pytest.mark.parametrize("reverse", [False, True])
    async def test_a_query_is_in_the_order_of_the_sort_key(
        self, store: Store, limit: int, reverse: bool
    ) -> None:
        await store.put_many(ENTRIES, [entry(seq) for seq in (10, 9, 1, 100, 2)])
        await store.put_many(ENTRIES, [{"room": "acme#room_2", "seq": 5}])

        async def seqs(**bounds: Any) -> list[int]:
            items = await query_all(
                store, ENTRIES, "acme#room_1", limit=limit, reverse=reverse, **bounds
            )
            return sorted_back([item["seq"] for item in items])

        def sorted_back(found: list[int]) -> list[int]:
            return found[::-1] if reverse else found

        assert await seqs() == [1, 2, 9, 10, 100]
        assert await seqs(low=2, high=10) == [2, 9, 10]
        assert await seqs(low=3) == [9, 10, 100]
        assert await seqs(high=8) == [1, 2]
        assert await seqs(low=11, high=99) == []
        assert await seqs(low=10, high=9) == []

    @pytest.mark.parametrize("limit", [1, 100])
    async def test_a_prefix_is_exact(self, store: Store, limit: int) -> None:
        names = ["a", "a#", "a#1", "a#\U0010ffff", "a#\U0010ffff\U0010ffff", "a$", "b", "\ud7ff"]
        names += ["\ud7ffx", "\ue000", "\U0010ffff", "\U0010ffffz"]
        await store.put_many(RECEIPTS, [{"room": "r", "receipt": name} for name in names])
        for prefix in ["a", "a#", "a#\U0010ffff", "\ud7ff", "\U0010ffff", "b", "c", "", "a#1x"]:
            items = await query_all(store, RECEIPTS, "r", prefix=prefix, limit=limit)
            found = [item["receipt"] for item in items]
            assert found == sorted(name for name in names if name.startswith(prefix))

    @pytest.mark.parametrize("limit", [1, 2, 100])
    @pytest.mark.parametrize("reverse", [False, True])
    async def test_a_local_index_is_another_order(
        self, store: Store, limit: int, reverse: bool
    ) -> None:
        feeds = [5, None, 2, 5, 9, 5]
        await store.put_many(INBOXES, [inbox(n, feed=feed) for n, feed in enumerate(feeds)])
        await store.put_many(INBOXES, [{"user": "acme#usr_2", "room_id": "x", "feed": 1}])

        async def found(**bounds: Any) -> list[tuple[int, str]]:
            items = await query_all(
                store, INBOXES, "acme#usr_1", index="by_feed", limit=limit, reverse=reverse,
                **bounds,
            )  # fmt: skip
            rows = [(item["feed"], item["room_id"]) for item in items]
            assert [row[0] for row in rows] == sorted((r[0] for r in rows), reverse=reverse)
            return sorted(rows)

        fives = [(5, "room_000"), (5, "room_003"), (5, "room_005")]
        assert await found() == [(2, "room_002"), *fives, (9, "room_004")]
        assert await found(low=3, high=5) == fives
        assert await found(low=5) == [*fives, (9, "room_004")]
        assert await found(high=4) == [(2, "room_002")]

    async def test_an_index_follows_its_items(self, store: Store) -> None:
        async def rooms() -> list[str]:
            page = await store.query(INBOXES, "acme#usr_1", index="by_unread")
            return [item["room_id"] for item in page.items]

        await store.put_many(INBOXES, [inbox(1, unread_feed=1), inbox(2, unread_feed=2)])
        assert await rooms() == ["room_001", "room_002"]
        await store.write(Update(INBOXES, ("acme#usr_1", "room_001"), {"unread_feed": 3}))
        assert await rooms() == ["room_002", "room_001"]
        await store.write(Update(INBOXES, ("acme#usr_1", "room_002"), remove=("unread_feed",)))
        assert await rooms() == ["room_001"]
        await store.write(Put(INBOXES, inbox(1)), Put(INBOXES, inbox(2, unread_feed=5)))
        assert await rooms() == ["room_002"]
        await store.write(Delete(INBOXES, ("acme#usr_1", "room_002")))
        assert await rooms() == []

    async def test_an_index_returns_what_it_projects(self, store: Store) -> None:
        await store.write(Put(INBOXES, inbox(1, unread_feed=4, feed=4, preview="hello")))
        page = await store.query(INBOXES, "acme#usr_1", index="by_unread")
        keys = {"user": "acme#usr_1", "room_id": "room_001", "unread_feed": 4}
        assert page.items == [keys]
        page = await store.query(INBOXES, "acme#usr_1", index="by_feed")
        assert page.items == [inbox(1, unread_feed=4, feed=4, preview="hello")]

    @pytest.mark.parametrize("limit", [1, 2, 100])
    async def test_a_global_index_is_another_table(self, store: Store, limit: int) -> None:
        listed = [room(n, listing=f"acme#{n % 2}", listed_at=9 - n % 4) for n in range(8)]
        await store.put_many(ROOMS, listed)
        await store.put_many(ROOMS, [room(8, listing="acme#0"), room(9, listed_at=5)])
        found = await query_all(
            store, ROOMS, "acme#0", index="by_listing", consistent=False, limit=limit, low=8
        )
        expected = [item for item in listed if item["listing"] == "acme#0"]
        expected = [
            {field: item[field] for field in ("room", "listing", "listed_at")}
            for item in expected
            if item["listed_at"] >= 8
        ]
        assert sorted(found, key=_room_name) == sorted(expected, key=_room_name)
        with pytest.raises(ValueError, match="consistent"):
            await store.query(ROOMS, "acme#0", index="by_listing")

    @pytest.mark.parametrize("segments", [1, 2, 5])
    async def test_the_segments_together_are_the_table(self, store: Store, segments: int) -> None:
        items = [{"room": f"acme#room_{n % 9}", "seq": n} for n in range(60)]
        await store.put_many(ENTRIES, items)
        found = await scan_all(store, ENTRIES, segments=segments)
        assert sorted(found, key=_seq) == items

    # -- time to live

    async def test_reads_do_not_see_what_has_expired(self, store: Store, clock: SetClock) -> None:
        def session(name: str, expires_at: int | None) -> Item:
            item = {"user": "u", "session_id": name, "cursor": name}
            return item if expires_at is None else item | {"expires_at": expires_at}

        now = clock.now_s
        stored = [session("a", now), session("b", now + 1), session("c", None)]
        await store.put_many(SESSIONS, stored)
        keys = [("u", name) for name in "abc"]
        for expected in ([None, *stored[1:]], [None, None, stored[2]]):
            alive = [item for item in expected if item is not None]
            assert await store.get_many(SESSIONS, keys) == expected
            assert [await store.get(SESSIONS, key) for key in keys] == expected
            assert await query_all(store, SESSIONS, "u", limit=1) == alive
            assert await scan_all(store, SESSIONS, limit=1) == alive
            clock.now_ms += 1_000

    async def test_conditions_see_what_is_physically_there(
        self, store: Store, clock: SetClock
    ) -> None:
        receipt = {"room": "r", "receipt": "u#1", "seq": 4, "expires_at": clock.now_s - 1}
        await store.write(Put(RECEIPTS, receipt))
        assert await store.get(RECEIPTS, ("r", "u#1")) is None
        failed = await failures(store, Put(RECEIPTS, receipt | {"seq": 5}, (Absent(),)))
        assert failed == (Failure(0, receipt),)
        await store.write(Update(RECEIPTS, ("r", "u#1"), add={"seq": 1}, when=(Exists(),)))
        await store.write(Update(RECEIPTS, ("r", "u#1"), {"expires_at": clock.now_s + 9}))
        stored = await store.get(RECEIPTS, ("r", "u#1"))
        assert stored == receipt | {"seq": 5, "expires_at": clock.now_s + 9}

    # -- what no engine takes

    @pytest.mark.parametrize(
        "writes",
        [
            [Put(ENTRIES, entry(n)) for n in range(WRITE_ITEMS_MAX + 1)],
            [Put(ROOMS, room()), Delete(ROOMS, ROOM)],
            [Update(ROOMS, ROOM, {"head": 1}), Check(ROOMS, ROOM, (Exists(),))],
            [Put(ROOMS, room(colour="red"))],
            [Put(ROOMS, room(head="1"))],
            [Put(ROOMS, room(head=True))],
            [Put(ROOMS, {"kind": "group"})],
            [Put(ROOMS, room(room=None))],
            [Put(ENTRIES, {"room": "r"})],
            [Update(ROOMS, ROOM, {"colour": "red"})],
            [Update(ROOMS, ROOM, {"room": "x"})],
            [Update(ROOMS, ROOM, {"head": 1}, {"head": 1})],
            [Update(ROOMS, ROOM, {"head": 1}, remove=("head",))],
            [Update(ROOMS, ROOM, remove=("colour",))],
            [Update(ROOMS, ROOM, add={"title": 1})],
            [Update(ROOMS, ("r", 1), {"head": 1})],
            [Delete(ENTRIES, ("r",))],
            [Delete(ENTRIES, ("r", "1"))],
            [Check(ROOMS, ROOM, (Equals("colour", "red"),))],
            [Check(ROOMS, ROOM, (Equals("head", "1"),))],
            [Check(ROOMS, ROOM, (LessThan("head", None),))],
            [Put(ENTRIES, entry(1, text="x" * ITEM_BYTES_MAX))],
            [Put(ENTRIES, entry(1, text="é" * (ITEM_BYTES_MAX // 2)))],
            [Put(ENTRIES, entry(n, text="x" * 399_000)) for n in range(11)],
        ],
        ids=lambda writes: repr(writes)[:60],
    )
    async def test_what_no_engine_takes(self, store: Store, writes: list[Write]) -> None:
        with pytest.raises(ValueError, match=r"."):
            await store.write(Put(BADGES, {"user": "other"}), *writes[:WRITE_ITEMS_MAX])
        assert await store.get(BADGES, ("other",)) is None

    async def test_a_large_item_below_the_limit_is_taken(self, store: Store) -> None:
        await store.write(Put(ENTRIES, entry(1, text="x" * (ITEM_BYTES_MAX - 100))))
        stored = await store.get(ENTRIES, ("acme#room_1", 1))
        assert stored is not None
        assert len(stored["text"]) == ITEM_BYTES_MAX - 100

    async def test_reads_out_of_range_are_refused(self, store: Store) -> None:
        for limit in (0, -1, PAGE_ITEMS_MAX + 1):
            with pytest.raises(ValueError, match=r"."):
                await store.query(ENTRIES, "r", limit=limit)
            with pytest.raises(ValueError, match=r"."):
                await store.scan(ENTRIES, limit=limit)
        with pytest.raises(ValueError, match=r"."):
            await store.get_many(ENTRIES, [("r", n) for n in range(PAGE_ITEMS_MAX + 1)])
        with pytest.raises(ValueError, match=r"."):
            await store.get(ENTRIES, ("r",))
        with pytest.raises(ValueError, match=r"."):
            await store.query(ENTRIES, "r", prefix="1")
        with pytest.raises(ValueError, match=r"."):
            await store.query(RECEIPTS, "r", prefix="1", low="1")
        with pytest.raises(ValueError, match=r"."):
            await store.query(ENTRIES, "r", low="1")
        with pytest.raises(ValueError, match=r"."):
            await store.query(ENTRIES, "r", index="by_colour")
        with pytest.raises(ValueError, match=r"."):
            await store.scan(ENTRIES, segment=2, segments=2)

    # -- life

    async def test_a_cancelled_write_is_whole_or_nothing(self, store: Store) -> None:
        tasks = [
            asyncio.ensure_future(
                store.write(
                    Put(ENTRIES, entry(number)),
                    Put(RECEIPTS, {"room": "acme#room_1", "receipt": f"{number:03}"}),
                )
            )
            for number in range(40)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None for result in results[1::2])
        await store.write(Put(ROOMS, room()))  # later than all of them
        entries = await query_all(store, ENTRIES, "acme#room_1", limit=100)
        receipts = await query_all(store, RECEIPTS, "acme#room_1", limit=100)
        assert [item["seq"] for item in entries] == [int(item["receipt"]) for item in receipts]
        assert {item["seq"] for item in entries} >= set(range(1, 40, 2))

    async def test_bulk_puts_replace(self, store: Store) -> None:
        await store.write(Put(ENTRIES, entry(7, text="old", sender_id="usr_1")))
        await store.put_many(ENTRIES, (entry(seq, text="new") for seq in range(1_200)))
        found = await query_all(store, ENTRIES, "acme#room_1", limit=PAGE_ITEMS_MAX)
        assert found == [entry(seq, text="new") for seq in range(1_200)]
        await store.put_many(ENTRIES, [])

    async def test_closing_twice_is_fine(self, store: Store) -> None:
        await store.close()
        await store.close()


def _write(kind: type[Write], when: tuple[Condition, ...]) -> Write:
    if kind is Put:
        return Put(ROOMS, room(scope="private"), when)
    if kind is Update:
        return Update(ROOMS, ROOM, {"scope": "private"}, when=when)
    return Delete(ROOMS, ROOM, when) if kind is Delete else Check(ROOMS, ROOM, when)


def _room_name(item: Item) -> str:
    return str(item["room"])


def _seq(item: Item) -> int:
    return int(item["seq"])
