"""Loading leaves what the service itself would have left, whatever is loaded, and however often."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.importing.scene import Scene, scene, told
from tests.stores import BOTH_STORES, StoreKind
from tidings.chat.rows import INLINE_MEMBERS_MAX
from tidings.errors import Conflict
from tidings.ids import pair_room_id
from tidings.importing import folding, loading
from tidings.importing.loading import Loading
from tidings.importing.quarantine import Quarantine
from tidings.importing.records import (
    READ_ALL,
    MemberRecord,
    MessageRecord,
    RoomRecord,
    UserRecord,
    fitting_id,
)
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS

STORES = BOTH_STORES
PEOPLE = [f"p{n}" for n in range(12)]


@pytest.fixture
async def place(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(store_kind, tmp_path) as made:
        yield made


def everybody() -> list[UserRecord]:
    return [UserRecord(each, each.upper()) for each in PEOPLE]


def a_room(room_id: str, *members: MemberRecord | str, kind: str = "group") -> RoomRecord:
    records = [MemberRecord(each) if isinstance(each, str) else each for each in members]
    return RoomRecord(room_id, "group" if kind == "group" else "direct", tuple(records))


def a_message(number: int, sender: str, **fields: Any) -> MessageRecord:
    record = MessageRecord(f"m:{number}", sender, 1_700_000_000_000 + number, f"text {number}")
    return msgspec.structs.replace(record, **fields)


class Source:
    """Rooms with messages that follow from a number."""

    def __init__(self, seed: int, rooms: int = 25) -> None:
        chance = random.Random(seed)
        self.rooms: list[tuple[RoomRecord, list[MessageRecord]]] = []
        at = 1_700_000_000_000
        for number in range(rooms):
            members = chance.sample(PEOPLE, chance.randint(1, 5))
            messages: list[MessageRecord] = []
            for index in range(chance.choice([0, 1, 3, 30])):
                at += chance.randint(0, 5_000)
                earlier = messages[chance.randrange(len(messages))].client_id if messages else None
                messages.append(
                    MessageRecord(
                        f"{number}.{index}",
                        chance.choice(members),
                        at,
                        f"text {index}",
                        reply_to=earlier if chance.random() < 0.3 else None,
                        deleted_at=at + 1 if chance.random() < 0.2 else None,
                        edited_at=at + 2 if chance.random() < 0.2 else None,
                        mentions=tuple(chance.sample(members, 1)) if chance.random() < 0.3 else (),
                        reactions={"👍": chance.sample(members, 1)},
                    )
                )
            self.rooms.append(
                (
                    RoomRecord(
                        f"room{number}",
                        "group",
                        tuple(
                            MemberRecord(
                                each,
                                read_key=chance.choice(messages).client_id
                                if messages and chance.random() < 0.7
                                else None,
                                is_muted=chance.random() < 0.2,
                            )
                            for each in members
                        ),
                        title=f"Room {number}",
                    ),
                    messages,
                )
            )

    def unread(self, number: int, user_id: str) -> int:
        """By the source's own rule: what others wrote after what one has read."""
        room, messages = self.rooms[number]
        member = next(each for each in room.members if each.user_id == user_id)
        keys = [message.client_id for message in messages]
        start = keys.index(member.read_key) + 1 if member.read_key else 0
        return sum(
            message.sender_id != user_id and message.deleted_at is None
            for message in messages[start:]
        )


async def load(loading: Loading, source: Source) -> None:
    await loading.add_users(everybody())
    for room, messages in source.rooms:
        await loading.add_room(room, told(messages))
    await loading.publish()


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_loaded_is_what_the_source_has(place: Scene, seed: int) -> None:
    source = Source(seed)
    async with place.loading() as loading:
        await load(loading, source)
    assert not loading.quarantine.counts
    await place.require_sound()
    for number, (room, messages) in enumerate(source.rooms):
        log = [item for item in await place.log(room.room_id) if item["type"] == "text"]
        assert [item["client_id"] for item in log] == [each.client_id for each in messages]
        texts = [None if each.deleted_at else each.text for each in messages]
        assert [item.get("text") for item in log] == texts
        by_seq = {item["seq"]: item["client_id"] for item in log}
        assert [by_seq.get(item.get("reply_to") or 0) for item in log] == [
            each.reply_to for each in messages
        ]
        for member in room.members:
            row = (await place.inbox(member.user_id))[room.room_id]
            assert row["unread"] == source.unread(number, member.user_id)
    for user_id in PEOPLE:
        rows = sorted((await place.inbox(user_id)).values(), key=lambda row: row["feed"])
        assert [row["active_at"] for row in rows] == sorted(row["active_at"] for row in rows)
    made = loading.report
    assert (made.users_made, made.rooms_made) == (len(PEOPLE), len(source.rooms))
    assert made.messages_added == sum(len(messages) for _, messages in source.rooms)


async def test_a_second_run_adds_nothing(place: Scene) -> None:
    source = Source(7)
    async with place.loading() as first:
        await load(first, source)
    before = await place.everything()
    async with place.loading() as second:
        await load(second, source)
    assert await place.everything() == before
    report = second.report
    assert (report.messages_added, report.rooms_made, report.users_made) == (0, 0, 0)
    assert (report.messages_edited, report.messages_deleted, report.reads_moved) == (0, 0, 0)
    assert report.messages_present == first.report.messages_added


async def test_what_the_source_changed_since_is_brought_along(place: Scene) -> None:
    people = ("p1", "p2", "p3")
    texts = [a_message(n, people[n % 3]) for n in range(10)]
    async with place.loading() as loading:
        await loading.add_users(everybody())
        await loading.add_room(a_room("r", *people), told(texts))
        await loading.publish()
        texts[3] = a_message(3, "p1", text="another", edited_at=1_700_000_001_000)
        texts[4] = a_message(4, "p2", deleted_at=1_700_000_002_000)
        texts[5] = a_message(5, "p3", reactions={"👍": ["p1"]})
        texts.append(a_message(10, "p2", reply_to="m:9"))
        texts.append(a_message(11, "p4"))  # no member of it, then or now
        members = (MemberRecord("p1", read_key="m:9"), MemberRecord("p2", is_muted=True))
        later = a_room("r", *members, "p3", "p5")
        await loading.add_room(later, told(texts))
        await loading.publish()
    await place.require_sound()
    log = {each["client_id"]: each for each in await place.log("r") if each.get("client_id")}
    assert log["m:3"]["text"] == "another"
    assert log["m:4"]["deleted_at"] == 1_700_000_002_000
    assert log["m:5"]["reactions"] == {"👍": ["p1"]}
    assert log["m:10"]["reply_to"] == log["m:9"]["seq"]
    assert log["m:11"]["sender_id"] == "p4"
    row = (await place.inbox("p1"))["r"]
    assert (row["unread"], row["read_seq"]) == (2, log["m:9"]["seq"])
    assert (await place.inbox("p2"))["r"]["is_muted"]
    assert (await place.inbox("p4"))["r"]["is_left"]
    assert "r" in await place.inbox("p5")


@pytest.mark.parametrize("breaks_at", [1, 10, 24])
async def test_a_broken_load_shows_nothing_and_goes_on(
    place: Scene, breaks_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ITEMS_WAITING_MAX", 40)
    source = Source(5)

    class Died(Exception):
        pass

    async def dying(messages: Sequence[MessageRecord]) -> AsyncIterator[Sequence[MessageRecord]]:
        yield messages[: len(messages) // 2]
        raise Died

    async def load_until_it_dies() -> None:
        async with place.loading() as first:
            await first.add_users(everybody())
            for room, messages in source.rooms[:breaks_at]:
                await first.add_room(room, told(messages))
            room, messages = source.rooms[breaks_at]
            await first.add_room(room, dying(messages))

    with pytest.raises(Died):
        await load_until_it_dies()
    assert not await place.items(BADGES)
    assert not await place.items(INBOXES)
    assert not await place.items(ROOMS)
    # Meanwhile the source has lost the end of each log.
    for _, messages in source.rooms:
        del messages[20:]
    for index, (room, messages) in enumerate(source.rooms):
        keys = {each.client_id for each in messages}
        kept = tuple(each for each in room.members if each.read_key in keys)
        source.rooms[index] = (
            RoomRecord(room.room_id, room.kind, kept or room.members[:0]),
            [each for each in messages if each.reply_to is None or each.reply_to in keys],
        )
    async with place.loading() as second:
        await load(second, source)
    await place.require_sound()
    texts = sum(len(messages) for _, messages in source.rooms)
    assert sum(item["type"] == "text" for item in await place.items(ENTRIES)) == texts
    assert len(await place.items(RECEIPTS)) == texts


async def test_publishing_is_whole_beside_people_who_go_on(place: Scene) -> None:
    """Every total is the sum of its rows while rooms become visible one after the other."""
    async with place.loading() as loading:
        await loading.add_users(everybody())
        for number in range(60):
            pair = PEOPLE[number % 5], PEOPLE[6 + number % 6]
            room = a_room(f"r{number}", *pair)
            await loading.add_room(room, told([a_message(n, pair[0]) for n in range(3)]))
            if number == 30:
                await loading.publish()
        publishing = asyncio.create_task(loading.publish())
        while not publishing.done():
            for number in range(5):
                messages = [a_message(1000 + number, PEOPLE[number])]
                await loading.adding.messages(a_room(f"r{number}", PEOPLE[number]), messages)
            await asyncio.sleep(0)
        await publishing
    assert not loading.quarantine.counts
    await place.require_sound()
    assert len(await place.items(ROOMS)) == 60


async def test_large_rooms_go_through_the_commits(place: Scene) -> None:
    crowd = [f"c{n}" for n in range(INLINE_MEMBERS_MAX + 10)]
    members = [MemberRecord(each, read_key="m:4") for each in crowd]
    async with place.loading() as loading:
        await loading.add_users([UserRecord(each, each) for each in crowd])
        messages = [a_message(n, crowd[n]) for n in range(8)]
        messages[7] = a_message(7, crowd[7], edited_at=5, data={"links": [{"url": "x"}]})
        await loading.add_room(a_room("large", *members), told(messages))
        await loading.publish()
    await place.require_sound()
    assert (await place.inbox("c0"))["large"]["unread"] == 3
    assert (await place.inbox("c6"))["large"]["unread"] == 2
    last = (await place.log("large"))[-1]
    assert (last["edited_at"], last["data"]) == (5, {"links": [{"url": "x"}]})


async def test_odd_messages_are_named_and_the_rest_is_kept(tmp_path: Path, place: Scene) -> None:
    path = tmp_path / "odd.jsonl"
    quarantine = Quarantine(path)
    messages = [
        a_message(0, "p1"),
        a_message(0, "p2"),  # a key twice
        a_message(2, "p1", reply_to="m:3"),  # a cycle
        a_message(3, "p1", reply_to="m:2"),
        a_message(4, "p1", reply_to="m:4"),
        a_message(5, "p1", reply_to="nowhere"),
        a_message(6, "p1", text="x" * 9_000),
        a_message(7, "p1", created_at=-5),
        a_message(8, "p1", created_at=4_000_000_000_000),
    ]
    async with place.loading(quarantine) as loading:
        await loading.add_users(everybody())
        await loading.add_room(
            a_room("r", MemberRecord("p1", read_key="gone"), "p2"), told(messages)
        )
        await loading.publish()
    quarantine.close()
    await place.require_sound()
    reasons = sorted(quarantine.counts)
    assert [(kind, quarantine.counts[kind, reason]) for kind, reason in reasons] == [
        ("member", 1),
        ("message", 1),
        ("message", 1),
        ("message", 1),
        ("message", 1),
        ("message", 3),
    ]
    assert len(path.read_text().splitlines()) == 8
    assert [item["client_id"] for item in await place.log("r")] == [
        "m:0", "m:2", "m:3", "m:4", "m:5", "m:6", "m:7", "m:8",
    ]  # fmt: skip


async def test_replies_to_what_is_long_ago_are_found(
    place: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "KEYS_REMEMBERED_MAX", 5)
    messages = [a_message(n, "p1") for n in range(40)] + [a_message(40, "p2", reply_to="m:2")]
    async with place.loading() as loading:
        await loading.add_users(everybody())
        await loading.add_room(a_room("r", "p1", "p2"), told(messages))
        await loading.publish()
    assert (await place.log("r"))[-1]["reply_to"] == 3


async def test_each_list_keeps_its_own_order(place: Scene) -> None:
    """A pair's room may stand in another place in each of the two lists."""
    rooms = [
        RoomRecord(
            pair_room_id("p0", other),
            "direct",
            (MemberRecord("p0", active_at=1_000 * mine), MemberRecord(other, active_at=5_000)),
        )
        for other, mine in (("p1", 3), ("p2", 1), ("p3", 2))
    ]
    async with place.loading() as loading:
        await loading.add_users(everybody())
        await loading.add_rooms([(room, []) for room in rooms])
        await loading.publish()
    await place.require_sound()
    rows = sorted((await place.inbox("p0")).values(), key=lambda row: row["feed"])
    assert [row["peer_id"] for row in rows] == ["p2", "p3", "p1"]


async def test_read_until_a_time(place: Scene) -> None:
    messages = [a_message(n, "p1") for n in range(5)]
    members = (
        MemberRecord("p2", read_at=messages[2].created_at),
        MemberRecord("p3", read_at=READ_ALL),
        MemberRecord("p4"),
    )
    async with place.loading() as loading:
        await loading.add_users(everybody())
        await loading.add_room(a_room("r", "p1", *members), told(messages))
        await loading.publish()
        again = (MemberRecord("p4", read_at=messages[3].created_at), *members[:2])
        await loading.add_room(a_room("r", "p1", *again), told(messages))
    unread = [(await place.inbox(each))["r"]["unread"] for each in ("p1", "p2", "p3", "p4")]
    assert unread == [0, 2, 0, 1]
    await place.require_sound()


async def test_one_import_at_a_time(place: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LEASE_TRIES", 2)
    monkeypatch.setattr(loading, "LEASE_PAUSE_S", 0.01)
    async with place.loading():
        with pytest.raises(Conflict, match="under way"):
            async with place.loading():
                raise AssertionError("two imports at one time")
    async with place.loading():
        pass


def test_ids_that_do_not_fit_are_hashed() -> None:
    assert fitting_id("a-b.c:1", "u") == "a-b.c:1"
    assert fitting_id("a b", "u").startswith("u-")
    assert fitting_id("a b", "u") == fitting_id("a b", "u") != fitting_id("a c", "u")
    assert len(fitting_id("x" * 100, "pg-u")) <= 64
