"""The audit passes what is consistent, names what is broken, and mends what can be derived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chat.worlds import RECEIPT_LIFE_S, START_MS, World, small_world
from tests.stores import EVERY_STORE, StoreKind, chosen, open_store
from tidings.chat.audit import BROKEN_LISTED_MAX, Report, audit
from tidings.chat.explain import ENTRIES_LISTED_MAX, explain
from tidings.chat.proofs import (
    BADGE_CHECKS,
    ENTRY_CHECKS,
    MEMBER_CHECKS,
    ROOM_CHECKS,
    ROW_CHECKS,
)
from tidings.errors import NotFound
from tidings.storage.interface import (
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Put,
    Store,
    Table,
    Update,
    Write,
)
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    LISTING_SHARDS,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    USERS,
)

AUDITS_MIN = 10
BUSY_S = 60.0
"""By then an audit has met a message that was sent beside it."""


def clock() -> int:
    return START_MS + 1_000


everywhere = pytest.mark.parametrize("store_kind", chosen(EVERY_STORE), indirect=True)
"""On every store; most tests here are about rules, and the embedded one will do."""


@pytest.fixture
async def store(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(store_kind, tmp_path, clock) as opened:
        yield opened


def names(report: Report) -> set[str]:
    return {broken.invariant for broken in report.broken}


async def everything(store: Store) -> list[Item]:
    """All items of the tables that an audit looks at."""
    tables = (ROOMS, MEMBERS, ENTRIES, RECEIPTS, INBOXES, BADGES, FANOUTS, USERS)
    return [item for table in tables for item in (await store.scan(table)).items]


@everywhere
async def test_a_consistent_store_passes(store: Store) -> None:
    await small_world().fill(store)
    report = await audit(store, clock=clock)
    assert report == Report(
        ok=True,
        checked={
            "rooms": 4,
            "entries": 16,
            "receipts": 11,
            "members": 11,
            "inboxes": 12,
            "badges": 4,
        },
        broken=[],
        broken_count=0,
    )


async def test_an_empty_store_passes(store: Store) -> None:
    report = await audit(store, clock=clock)
    assert report.ok
    assert set(report.checked.values()) == {0}


async def test_a_repair_of_a_consistent_store_writes_nothing(store: Store) -> None:
    await small_world().fill(store)
    before = await everything(store)
    report = await audit(store, repair=True, clock=clock)
    assert report.ok
    assert report.mended == 0
    assert await everything(store) == before


# One corruption each: (what is found, the writes). What can be derived again is mended.


def _set(table: Table, *key: Any, **fields: Any) -> Write:
    return Update(table, key, fields)


TEAM, PAIR, HELP, HALL = "acme#team", "acme#pair", "acme#help", "acme#hall"
MESSAGE: Item = {
    "room": TEAM,
    "id": "ent_x",
    "type": "text",
    "sender_id": "bob",
    "created_at": START_MS,
}
ROW: Item = {
    "user": "acme#dan",
    "kind": "group",
    "unread": 0,
    "mentions": 0,
    "read_seq": 0,
    "counted_seq": 0,
    "joined_seq": 0,
    "active_at": START_MS,
    "feed": 1,
    "marks": "",
}

MENDABLE: dict[str, tuple[set[str], list[Write]]] = {
    "unread too high": (
        {"inbox.unread", "badge.unread"},
        [_set(INBOXES, "acme#ann", "team", unread=9)],
    ),
    "unread too low": (
        {"inbox.unread", "badge.unread"},
        [_set(INBOXES, "acme#ann", "team", unread=1)],
    ),
    "unread wrong in a room that is not in the total": (
        {"inbox.unread"},
        [_set(INBOXES, "acme#bob", "pair", unread=1)],
    ),
    "unread negative": (
        {"inbox.fields", "badge.unread"},
        [_set(INBOXES, "acme#ann", "team", unread=-1)],
    ),
    "unread lost": (
        {"inbox.fields", "badge.unread"},
        [_set(INBOXES, "acme#ann", "team", unread=None)],
    ),
    "a deletion not yet counted taken off": (
        {"inbox.unread", "badge.unread"},
        [_set(INBOXES, "acme#cat", "hall", unread=1)],
    ),
    "mentions": (
        {"inbox.mentions", "badge.mentions"},
        [_set(INBOXES, "acme#ann", "team", mentions=0)],
    ),
    "total unread": ({"badge.unread"}, [_set(BADGES, "acme#ann", unread=40)]),
    "total mentions": ({"badge.mentions"}, [_set(BADGES, "acme#ann", mentions=0)]),
    "read_version above version": (
        {"badge.versions"},
        [_set(BADGES, "acme#ann", read_version=1_000)],
    ),
    "version fell behind the rows": (
        {"inbox.feed", "inbox.marks"},
        [_set(BADGES, "acme#dan", version=2)],
    ),
    "badge lost": ({"badge.exists"}, [Delete(BADGES, ("acme#dan",))]),
    "unread_feed lost": (
        {"inbox.unread_feed"},
        [_set(INBOXES, "acme#ann", "team", unread_feed=None)],
    ),
    "unread_feed of nothing": (
        {"inbox.unread_feed"},
        [_set(INBOXES, "acme#ann", "hall", unread_feed=1)],
    ),
    "unread_feed above feed": (
        {"inbox.unread_feed"},
        [_set(INBOXES, "acme#ann", "team", unread_feed=900)],
    ),
    "feed zero": (
        {"inbox.feed", "inbox.unread_feed"},
        [_set(INBOXES, "acme#ann", "team", feed=0)],
    ),
    "marks unreadable": ({"inbox.marks"}, [_set(INBOXES, "acme#ann", "team", marks="1:2 x")]),
    "marks descending": ({"inbox.marks"}, [_set(INBOXES, "acme#ann", "team", marks="5:2 4:3")]),
    "marks too many": (
        {"inbox.marks"},
        [_set(INBOXES, "acme#ann", "team", marks=" ".join(f"{n}:{n}" for n in range(1, 30)))],
    ),
    "marks beyond counted_seq": (
        {"inbox.marks"},
        [_set(INBOXES, "acme#ann", "team", marks="1:0 2:7")],
    ),
    "marks beyond version": (
        {"inbox.marks"},
        [_set(INBOXES, "acme#ann", "team", marks="1:0 200:6")],
    ),
    "preview too long": (
        {"inbox.preview"},
        [_set(INBOXES, "acme#ann", "team", preview="x" * 121)],
    ),
    "preview_seq in the future": (
        {"inbox.preview"},
        [_set(INBOXES, "acme#ann", "team", preview_seq=7)],
    ),
    "counted_seq behind at rest": (
        {"inbox.counted", "inbox.marks", "inbox.unread"},
        [_set(INBOXES, "acme#bob", "team", counted_seq=5)],
    ),
    "counted_seq above head": (
        {"inbox.counted"},
        [_set(INBOXES, "acme#bob", "team", counted_seq=9)],
    ),
    "read_seq above counted_seq": (
        {"inbox.read", "badge.unread"},
        [_set(INBOXES, "acme#cat", "team", read_seq=9, unread=0, unread_feed=None)],
    ),
    "read_seq before joining": (
        {"inbox.read"},
        [_set(INBOXES, "acme#dan", "team", read_seq=3)],
    ),
    "joined_seq of the row": (
        {"inbox.member"},
        [_set(INBOXES, "acme#dan", "team", joined_seq=3)],
    ),
    "kind of the row": ({"inbox.room"}, [_set(INBOXES, "acme#dan", "team", kind="support")]),
    "left row with counts": (
        {"inbox.left"},
        [_set(INBOXES, "acme#dan", "help", unread=1)],
    ),
    "left row with an unread_feed": (
        {"inbox.unread_feed"},
        [_set(INBOXES, "acme#dan", "help", unread_feed=1)],
    ),
    "inbox row lost": (
        {"member.inbox", "badge.unread", "badge.mentions"},
        [Delete(INBOXES, ("acme#ann", "team"))],
    ),
    "inbox row of a direct room lost": (
        {"member.inbox", "badge.unread"},
        [Delete(INBOXES, ("acme#ann", "pair"))],
    ),
    "inbox row left, but a member": (
        {"member.inbox", "inbox.left", "inbox.unread_feed", "badge.unread", "badge.mentions"},
        [_set(INBOXES, "acme#ann", "team", is_left=True)],
    ),
    "inbox row without membership": (
        {"inbox.member", "room.member_count"},
        [Delete(MEMBERS, (TEAM, "ann"))],
    ),
    "inbox row of a stranger": (
        {"inbox.member"},
        [Put(INBOXES, {**ROW, "room_id": "pair", "kind": "direct", "counted_seq": 3})],
    ),
    "member_count": ({"room.member_count"}, [_set(ROOMS, TEAM, member_count=3)]),
    "listing of a room": ({"room.listing"}, [_set(ROOMS, HELP, listing="acme#support#closed#0")]),
    "listing of a room that has none": ({"room.listing"}, [_set(ROOMS, TEAM, waiting="acme#0")]),
    "nothing wakes a snoozed room": (
        {"room.waking"},
        [
            _set(
                ROOMS,
                HELP,
                status="snoozed",
                snoozed_until=START_MS,
                listing=f"acme#support#snoozed#{crc32(b'help') % LISTING_SHARDS}",
            )
        ],
    ),
    "is_fanning without fan-out": ({"room.fanning"}, [Delete(FANOUTS, (HALL,))]),
    "fan-out unannounced": (
        {"room.fanning", "inbox.counted"},
        [_set(ROOMS, HALL, is_fanning=None)],
    ),
}

LASTING: dict[str, tuple[set[str], list[Write]]] = {
    "a hole in a log": ({"log.sequence", "member.joined"}, [Delete(ENTRIES, (TEAM, 4))]),
    "the last entry lost": ({"log.head", "entry.deleted"}, [Delete(ENTRIES, (HALL, 3))]),
    "an entry above head": ({"log.head"}, [Put(ENTRIES, {**MESSAGE, "seq": 7})]),
    "sequence 0": ({"log.sequence", "entry.fields"}, [Put(ENTRIES, {**MESSAGE, "seq": 0})]),
    "an entry of no type": (
        {"entry.fields", "inbox.unread", "receipt.entry"},
        [_set(ENTRIES, TEAM, 6, type="shout")],
    ),
    "an entry of no time": (
        {"entry.fields", "inbox.unread", "receipt.entry"},
        [_set(ENTRIES, TEAM, 6, created_at=None)],
    ),
    "a message of nobody": (
        {"entry.fields", "inbox.unread", "receipt.entry"},
        [_set(ENTRIES, TEAM, 6, sender_id=None)],
    ),
    "a reply to what comes later": ({"entry.reply"}, [_set(ENTRIES, TEAM, 6, reply_to=6)]),
    "a deletion of nothing": (
        {"entry.names", "entry.deleted"},
        [_set(ENTRIES, TEAM, 3, data=None)],
    ),
    "a deletion of what comes later": (
        {"entry.names", "entry.deleted"},
        [_set(ENTRIES, TEAM, 3, data={"seq": 4})],
    ),
    "an edit of nothing": (
        {"entry.names", "inbox.counted"},
        [Put(ENTRIES, {**MESSAGE, "seq": 7, "type": "edited"}), _set(ROOMS, TEAM, head=7)],
    ),
    "deleted by another entry": ({"entry.deleted"}, [_set(ENTRIES, TEAM, 2, deleted_seq=4)]),
    "deleted without a time": (
        {"entry.fields", "entry.deleted", "receipt.entry"},
        [_set(ENTRIES, TEAM, 2, deleted_at=None)],
    ),
    "not deleted": (
        {"entry.deleted"},
        [_set(ENTRIES, TEAM, 2, deleted_seq=None, deleted_at=None, type="status")],
    ),
    "the same message twice": (
        {"entry.client_id", "entry.receipt", "inbox.unread", "receipt.entry"},
        [
            _set(ENTRIES, TEAM, 6, sender_id="bob", client_id="c5"),
            _set(RECEIPTS, TEAM, "cat#c6", seq=5),
        ],
    ),
    "a receipt of another entry": (
        {"receipt.entry", "entry.receipt"},
        [_set(RECEIPTS, TEAM, "cat#c6", seq=5)],
    ),
    "a receipt of an entry that takes none": (
        {"receipt.entry", "entry.receipt"},
        [_set(RECEIPTS, TEAM, "cat#c6", seq=4)],
    ),
    "a receipt lost": ({"entry.receipt"}, [Delete(RECEIPTS, (TEAM, "cat#c6"))]),
    "joined_seq of a member": (
        {"member.joined", "inbox.member"},
        [_set(MEMBERS, TEAM, "dan", joined_seq=5)],
    ),
    "a member who is nobody": ({"member.user"}, [Delete(USERS, ("acme#dan",))]),
    "a direct room of one": (
        {"room.direct", "inbox.member", "room.member_count"},
        [Delete(MEMBERS, (PAIR, "ann"))],
    ),
    "an epoch that stood still": ({"room.epoch"}, [_set(ROOMS, TEAM, epoch=0)]),
    "a room of no kind": ({"room.fields"}, [_set(ROOMS, TEAM, kind="party")]),
    "a support room without status": ({"room.fields"}, [_set(ROOMS, HELP, status=None)]),
    "a room lost": (
        {"entries.room", "inbox.room", "members.room", "receipts.room"},
        [Delete(ROOMS, (TEAM,))],
    ),
    "a row of no room": (
        {"inbox.room"},
        [Put(INBOXES, {**ROW, "room_id": "nowhere", "is_left": True})],
    ),
    "entries of no room": (
        {"entries.room"},
        [Put(ENTRIES, {**MESSAGE, "room": "acme#x", "seq": 1})],
    ),
    "members of no room": (
        {"members.room"},
        [Put(MEMBERS, {"room": "acme#x", "user_id": "ann", "joined_seq": 0})],
    ),
    "receipts of no room": (
        {"receipts.room"},
        [Put(RECEIPTS, {"room": "acme#x", "receipt": "ann#c", "seq": 1})],
    ),
    "fan-out of no room": ({"fanouts.room"}, [Put(FANOUTS, {"room": "acme#x"})]),
}


@pytest.mark.parametrize("what", MENDABLE)
async def test_derived_state_is_named_and_mended(store: Store, what: str) -> None:
    expected, writes = MENDABLE[what]
    await small_world().fill(store)
    await store.write(*writes)
    before = await everything(store)
    found = await audit(store, clock=clock)
    assert not found.ok
    assert names(found) == expected, sorted(names(found))
    assert await everything(store) == before  # an audit alone changes nothing
    log_before = (await store.scan(ENTRIES)).items

    mended = await audit(store, repair=True, clock=clock)
    assert mended.ok, mended.broken
    assert mended.mended > 0
    assert (await audit(store, clock=clock)).ok
    assert (await store.scan(ENTRIES)).items == log_before


@everywhere
@pytest.mark.parametrize("what", [*MENDABLE][::5])
async def test_every_store_is_mended(store: Store, what: str) -> None:
    _, writes = MENDABLE[what]
    await small_world().fill(store)
    await store.write(*writes)
    assert not (await audit(store, clock=clock)).ok
    assert (await audit(store, repair=True, clock=clock)).ok
    assert (await audit(store, clock=clock)).ok


@pytest.mark.parametrize("what", MENDABLE)
async def test_a_repair_raises_the_version_of_whom_it_concerns(store: Store, what: str) -> None:
    _, writes = MENDABLE[what]
    await small_world().fill(store)
    await store.write(*writes)
    rows_before = {INBOXES.key(row): row for row in (await store.scan(INBOXES)).items}
    badges_before = {badge["user"]: badge for badge in (await store.scan(BADGES)).items}
    await audit(store, repair=True, clock=clock)
    badges = {badge["user"]: badge for badge in (await store.scan(BADGES)).items}
    concerned = {
        row["user"]
        for row in (await store.scan(INBOXES)).items
        if rows_before.get(INBOXES.key(row)) != row
    }
    concerned |= {user for user, badge in badges.items() if badge != badges_before.get(user)}
    for user in concerned:
        before = badges_before.get(user, {"version": 0})
        assert badges[user]["version"] > before["version"]
        assert badges[user]["read_version"] == badges[user]["version"]


@pytest.mark.parametrize("what", LASTING)
async def test_what_cannot_be_derived_is_named_and_left_alone(store: Store, what: str) -> None:
    expected, writes = LASTING[what]
    await small_world().fill(store)
    await store.write(*writes)
    found = await audit(store, clock=clock)
    assert names(found) == expected, sorted(names(found))
    kept = (ENTRIES, RECEIPTS, MEMBERS)
    before = [(await store.scan(table)).items for table in kept]
    after_repair = await audit(store, repair=True, clock=clock)
    assert not after_repair.ok
    assert names(after_repair) & expected
    assert [(await store.scan(table)).items for table in kept] == before


async def test_counts_are_not_made_anew_from_a_broken_log(store: Store) -> None:
    await small_world().fill(store)
    await store.write(
        Delete(ENTRIES, (TEAM, 5)),
        _set(INBOXES, "acme#ann", "pair", unread=9),
    )
    rows = [row for row in (await store.scan(INBOXES)).items if row["room_id"] == "team"]
    report = await audit(store, repair=True, clock=clock)
    assert {broken.room_id for broken in report.broken} == {"team"}
    assert {"log.sequence", "inbox.unread", "inbox.mentions"} <= names(report)
    after = [row for row in (await store.scan(INBOXES)).items if row["room_id"] == "team"]
    assert after == rows
    assert (await explain(store, "acme", "ann", "pair")).is_agreeing


def test_every_check_has_a_corruption_that_it_finds() -> None:
    checks = {*ENTRY_CHECKS, *ROOM_CHECKS, *MEMBER_CHECKS, *ROW_CHECKS, *BADGE_CHECKS}
    found = set().union(*(expected for expected, _ in (*MENDABLE.values(), *LASTING.values())))
    assert checks <= found


async def test_findings_say_where(store: Store) -> None:
    await small_world().fill(store)
    await store.write(Delete(ENTRIES, (TEAM, 4)), _set(INBOXES, "acme#bob", "pair", unread=0))
    found = {broken.invariant: broken for broken in (await audit(store, clock=clock)).broken}
    hole, unread = found["log.sequence"], found["inbox.unread"]
    assert (hole.workspace, hole.room_id, hole.user_id, hole.seq) == ("acme", "team", None, 5)
    assert (unread.workspace, unread.room_id, unread.user_id) == ("acme", "pair", "bob")
    assert msgspec.json.decode(msgspec.json.encode(hole)) == {
        "invariant": "log.sequence",
        "detail": "after 3 comes 5",
        "workspace": "acme",
        "room_id": "team",
        "seq": 5,
    }


async def test_findings_are_bounded_and_counted(store: Store) -> None:
    await small_world().fill(store)
    number = BROKEN_LISTED_MAX + 50
    await store.put_many(
        ENTRIES, [{**MESSAGE, "room": f"acme#x{n}", "seq": 1} for n in range(number)]
    )
    report = await audit(store, clock=clock)
    assert report.broken_count == number
    assert len(report.broken) == BROKEN_LISTED_MAX


async def test_one_workspace_alone(store: Store) -> None:
    await small_world().fill(store)
    await store.write(Put(ENTRIES, {**MESSAGE, "room": "beta#x", "seq": 1}))
    assert (await audit(store, workspace="acme", clock=clock)).ok
    assert names(await audit(store, workspace="beta", clock=clock)) == {"entries.room"}
    assert not (await audit(store, clock=clock)).ok


async def test_a_workspace_is_not_a_prefix_of_another(store: Store) -> None:
    await store.write(Put(ENTRIES, {**MESSAGE, "room": "acme2#x", "seq": 1}))
    assert (await audit(store, workspace="acme", clock=clock)).ok


async def test_progress_only_grows_to_what_was_checked(store: Store) -> None:
    await small_world().fill(store)
    seen: dict[str, list[int]] = {}
    report = await audit(
        store, clock=clock, progress=lambda name, count: seen.setdefault(name, []).append(count)
    )
    assert {name: counts[-1] for name, counts in seen.items()} == report.checked
    assert all(counts == sorted(counts) for counts in seen.values())


# A client_id is one entry for its receipt's life, and no longer.


async def repeated_after(store: Store, seconds: int) -> Report:
    """An audit right after ann sent the same client_id twice, so many seconds apart."""
    world = World()
    world.add_user("ann")
    world.add_user("bob")
    world.open("pair", "ann", "bob", kind="direct")
    world.post("pair", "ann", client_id="again")
    world.now_ms += seconds * 1000
    world.post("pair", "ann", client_id="again")
    await world.fill(store)
    return await audit(store, clock=lambda: world.now_ms)


@everywhere
async def test_a_client_id_may_come_again_after_its_receipt_expired(store: Store) -> None:
    assert (await repeated_after(store, RECEIPT_LIFE_S)).ok


@everywhere
async def test_a_client_id_may_not_come_again_before(store: Store) -> None:
    assert names(await repeated_after(store, RECEIPT_LIFE_S - 1)) >= {"entry.client_id"}


async def test_an_expired_receipt_is_not_missed(tmp_path: Path) -> None:
    def later() -> int:
        return START_MS + (RECEIPT_LIFE_S + 1) * 1000

    async with SqliteStore.open(tmp_path / "later.db", clock=later) as store:
        await small_world().fill(store)
        report = await audit(store, clock=later)
        assert report.ok
        assert report.checked["receipts"] == 0


# Any history.


class Step(msgspec.Struct, frozen=True):
    """What a random history does next."""

    action: str
    user: str
    choice: int


steps = st.lists(
    st.builds(
        Step,
        action=st.sampled_from(
            ["post", "post", "mention", "delete", "read", "join", "leave", "mute"]
        ),
        user=st.sampled_from(["ann", "bob", "cat", "dan"]),
        choice=st.integers(0, 30),
    ),
    max_size=40,
)


def lived(history: list[Step]) -> World:
    """The world after a history; steps that make no sense there are left out."""
    world = World()
    for user in ("ann", "bob", "cat", "dan"):
        world.add_user(user)
    world.open("team", "ann", "bob")
    world.open("yard", "ann", "cat", "dan")
    for step in history:
        room = ("team", "yard")[step.choice % 2]
        is_member = step.user in world.members(room)
        messages = [
            entry["seq"]
            for entry in world.log(room)
            if entry["type"] == "text" and entry.get("deleted_at") is None
        ]
        match step.action:
            case "join" if not is_member:
                world.join(room, step.user)
            case "leave" if is_member:
                world.leave(room, step.user)
            case "post" if is_member:
                world.post(room, step.user)
            case "mention" if is_member:
                world.post(room, step.user, mentions=world.members(room)[: 1 + step.choice % 3])
            case "delete" if messages:
                world.delete(room, messages[step.choice % len(messages)])
            case "read" if is_member:
                head = world.room_item(room)["head"]
                world.read(room, step.user, min(head, step.choice))
            case "mute" if is_member:
                world.mute(room, step.user)
            case _:
                pass
    return world


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=steps, spoils=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), max_size=4)
)
async def test_any_history_passes_and_any_wrong_count_is_mended(
    tmp_path_factory: pytest.TempPathFactory, history: list[Step], spoils: list[tuple[int, int]]
) -> None:
    world = lived(history)
    path = tmp_path_factory.mktemp("history") / "world.db"
    async with SqliteStore.open(path, clock=clock) as store:
        await world.fill(store)
        assert (await audit(store, clock=clock)).broken == []
        rows = sorted(world.items["inboxes"])
        for place, unread in spoils:
            await store.write(_set(INBOXES, *rows[place % len(rows)], unread=unread))
        stored = {INBOXES.key(row): row["unread"] for row in (await store.scan(INBOXES)).items}
        is_right = stored == {key: world.items["inboxes"][key]["unread"] for key in rows}
        assert (await audit(store, clock=clock)).ok == is_right
        await audit(store, repair=True, clock=clock)
        mended = {INBOXES.key(row): row["unread"] for row in (await store.scan(INBOXES)).items}
        assert mended == {key: world.items["inboxes"][key]["unread"] for key in rows}


# Large rooms.


def large_world(members: int, messages: int) -> World:
    """One room at rest: every member read a different part of it, rows made without replay."""
    world = World()
    users = [f"u{number:05}" for number in range(members)]
    for user in users:
        world.add_user(user)
    world.put(
        ROOMS,
        room="acme#plaza",
        kind="group",
        scope="private",
        created_at=START_MS,
        head=0,
        epoch=1,
        member_count=members,
    )
    for number in range(messages):
        world.append_message("plaza", users[number % 10])
    for number, user in enumerate(users):
        read = number % (messages + 1)
        own = sum(1 for seq in range(read + 1, messages + 1) if (seq - 1) % 10 == number)
        unread = messages - read - own
        key = f"acme#{user}"
        world.put(MEMBERS, room="acme#plaza", user_id=user, role="member", joined_seq=0)
        world.put(
            INBOXES,
            user=key,
            room_id="plaza",
            kind="group",
            unread=unread,
            mentions=0,
            read_seq=read,
            counted_seq=messages,
            joined_seq=0,
            active_at=START_MS,
            feed=2,
            unread_feed=2 if unread else None,
            marks=f"1:0 2:{messages}",
        )
        world.put(BADGES, user=key, unread=unread, mentions=0, version=2, read_version=0)
    return world


async def test_a_large_room_passes_and_is_mended(store: Store) -> None:
    await large_world(2_500, 1_200).fill(store)
    assert (await audit(store, clock=clock)).ok
    for number in (7, 1_100, 2_400):
        await store.write(_set(INBOXES, f"acme#u{number:05}", "plaza", unread=1_300))
    found = await audit(store, clock=clock)
    assert sorted(b.user_id or "" for b in found.broken if b.invariant == "inbox.unread") == [
        "u00007",
        "u01100",
        "u02400",
    ]
    report = await audit(store, repair=True, clock=clock)
    assert report.ok
    assert report.mended == 3


@pytest.mark.slow
async def test_a_room_of_ten_thousand(store: Store) -> None:
    await large_world(10_000, 3_000).fill(store)
    report = await audit(store, clock=clock)
    assert report.ok
    assert report.checked["members"] == 10_000


async def test_a_user_with_more_broken_rows_than_one_write_holds(store: Store) -> None:
    world = World()
    world.add_user("ann")
    world.add_user("bob")
    for number in range(120):
        world.open(f"r{number}", "ann", "bob")
    await world.fill(store)
    for number in range(120):
        await store.write(_set(INBOXES, "acme#ann", f"r{number}", unread=3, unread_feed=1))
    report = await audit(store, repair=True, clock=clock)
    assert report.ok
    assert report.mended == 120
    assert (await store.get(BADGES, ("acme#ann",)) or {})["unread"] == 0


# Beside a running service.


async def post_fairly(store: Store, number: int) -> None:
    """One message of ann's in the room of her and bob, committed as the architecture says."""
    while True:
        room = await store.get(ROOMS, (PAIR,)) or {}
        seq = room["head"] + 1
        client_id = f"live{number}"
        entry = {**MESSAGE, "room": PAIR, "seq": seq, "sender_id": "ann", "client_id": client_id}
        receipt = {"room": PAIR, "receipt": f"ann#{client_id}", "seq": seq, "body_hash": "h"}
        unchanged = (Equals("head", room["head"]), Equals("epoch", room["epoch"]))
        writes: list[Write] = [
            Put(ENTRIES, entry),
            Put(RECEIPTS, receipt),
            Update(ROOMS, (PAIR,), {"head": seq}, when=unchanged),
        ]
        for user in ("acme#ann", "acme#bob"):
            badge = await store.get(BADGES, (user,)) or {}
            row = await store.get(INBOXES, (user, "pair")) or {}
            version = badge["version"] + 1
            new = int(user == "acme#bob")
            unread = row["unread"] + new
            fields = {
                "counted_seq": seq,
                "unread": unread,
                "feed": version,
                "unread_feed": (row.get("unread_feed") or version) if unread else None,
            }
            total = badge["unread"] + (0 if row.get("is_muted") else new)
            seen = (Equals("version", badge["version"]),)
            writes.append(Update(INBOXES, (user, "pair"), fields))
            writes.append(Update(BADGES, (user,), {"version": version, "unread": total}, when=seen))
        try:
            await store.write(*writes)
        except ConditionFailed:
            continue
        return


async def test_an_audit_sees_one_moment_of_a_store_that_is_written_to(store: Store) -> None:
    await small_world().fill(store)
    is_over = asyncio.Event()

    async def send() -> None:
        for number in count():
            if is_over.is_set():
                return
            await post_fairly(store, number)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        entries: list[int] = []
        async with asyncio.timeout(BUSY_S):
            while len(entries) < AUDITS_MIN or entries[-1] == entries[0]:
                report = await audit(store, clock=clock)
                assert report.ok, report.broken
                entries.append(report.checked["entries"])
        is_over.set()
    assert entries == sorted(entries)
    assert (await audit(store, clock=clock)).ok


async def test_a_repair_beside_a_service_loses_no_count(store: Store) -> None:
    await small_world().fill(store)
    await store.write(
        _set(INBOXES, "acme#ann", "pair", unread=7),
        _set(INBOXES, "acme#bob", "pair", unread=70),
        _set(BADGES, "acme#bob", unread=5, mentions=9),
    )

    async def send() -> None:
        for number in range(60):
            await post_fairly(store, number)
            await asyncio.sleep(number % 3 * 0.001)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        report = await audit(store, repair=True, clock=clock)
    assert report.ok, report.broken
    final = await audit(store, clock=clock)
    assert final.ok, final.broken
    assert (await store.get(INBOXES, ("acme#bob", "pair")) or {})["unread"] == 62


class WithoutSnapshot:
    """A store as one that can't be read as of one moment."""

    def __init__(self, store: Store) -> None:
        for name in ("get", "get_many", "query", "scan", "write"):
            setattr(self, name, getattr(store, name))


async def test_a_store_without_snapshots_is_audited_at_rest(store: Store) -> None:
    await small_world().fill(store)
    plain: Any = WithoutSnapshot(store)
    assert (await audit(plain, clock=clock)).ok
    await store.write(_set(BADGES, "acme#ann", unread=40))
    assert (await audit(plain, repair=True, clock=clock)).ok


# Explaining one badge.


@everywhere
async def test_a_badge_is_explained_by_its_entries(store: Store) -> None:
    await small_world().fill(store)
    explanation = await explain(store, "acme", "ann", "team")
    assert [(entry.seq, entry.sender_id, entry.is_mention) for entry in explanation.entries] == [
        (5, "bob", True),
        (6, "cat", False),
    ]
    assert (explanation.unread, explanation.counted_unread) == (2, 2)
    assert (explanation.mentions, explanation.counted_mentions) == (1, 1)
    assert explanation.is_agreeing
    assert explanation.contribution.unread == 2
    assert explanation.total.unread == 3


async def test_what_was_deleted_is_told(store: Store) -> None:
    await small_world().fill(store)
    explanation = await explain(store, "acme", "cat", "team")
    assert [(entry.seq, entry.deleted_seq) for entry in explanation.deleted] == [(2, 3)]
    assert [entry.seq for entry in explanation.entries] == [1, 5]


async def test_a_deletion_that_the_fan_out_has_not_reached_still_counts(
    store: Store,
) -> None:
    await small_world().fill(store)
    behind = await explain(store, "acme", "cat", "hall")
    assert (behind.counted_seq, behind.head) == (2, 3)
    assert ([entry.seq for entry in behind.entries], behind.deleted) == ([1, 2], [])
    reached = await explain(store, "acme", "dan", "hall")
    assert [entry.seq for entry in reached.entries] == [1]
    assert [entry.seq for entry in reached.deleted] == [2]
    assert behind.is_agreeing
    assert reached.is_agreeing


async def test_a_muted_room_adds_nothing(store: Store) -> None:
    await small_world().fill(store)
    explanation = await explain(store, "acme", "bob", "pair")
    assert explanation.is_muted
    assert explanation.unread == 2
    assert explanation.contribution.unread == 0


async def test_a_left_room_has_nothing(store: Store) -> None:
    await small_world().fill(store)
    explanation = await explain(store, "acme", "dan", "help")
    assert explanation.is_left
    assert (explanation.entries, explanation.counted_unread) == ([], 0)
    assert explanation.is_agreeing


async def test_a_wrong_badge_does_not_agree(store: Store) -> None:
    await small_world().fill(store)
    await store.write(_set(INBOXES, "acme#ann", "team", unread=5))
    explanation = await explain(store, "acme", "ann", "team")
    assert not explanation.is_agreeing
    assert (explanation.unread, explanation.counted_unread) == (5, 2)


async def test_texts_are_cut_and_lists_are_bounded(store: Store) -> None:
    world = World()
    world.add_user("ann")
    world.add_user("bob")
    world.open("pair", "ann", "bob", kind="direct")
    for _ in range(ENTRIES_LISTED_MAX + 5):
        world.append_message("pair", "ann")
    world.reach("pair", "bob", ENTRIES_LISTED_MAX + 5)
    world.change(ENTRIES, (PAIR, 1), text="x" * 500)
    await world.fill(store)
    explanation = await explain(store, "acme", "bob", "pair")
    assert len(explanation.entries) == ENTRIES_LISTED_MAX
    assert explanation.counted_unread == ENTRIES_LISTED_MAX + 5
    assert explanation.entries[0].text == "x" * 80


@pytest.mark.parametrize(("user", "room"), [("dan", "pair"), ("nobody", "team"), ("ann", "void")])
async def test_who_never_was_there_is_not_found(store: Store, user: str, room: str) -> None:
    await small_world().fill(store)
    with pytest.raises(NotFound):
        await explain(store, "acme", user, room)
