"""`tidings import slack`: what becomes of an export, once, whatever is odd in it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import run_tidings
from tests.importing.slack_zips import (
    ANN,
    BEN,
    BOT,
    CLO,
    DAN,
    DEV,
    GENERAL,
    GUEST,
    PAIR,
    SECRET,
    SELF,
    SEVERAL,
    START_S,
    Export,
    conversation,
    large,
    message,
    small,
    ts,
    user,
)
from tests.stores import BOTH_STORES, StoreKind, open_store
from tidings import wire
from tidings.chat.audit import audit
from tidings.chat.rows import badge_from_item
from tidings.cli.parts import Parts, administrator
from tidings.clock import rfc3339, system_clock
from tidings.errors import Unavailable, ValidationFailed
from tidings.ids import pair_room_id
from tidings.importing import slackzips
from tidings.importing.loading import Loading
from tidings.importing.quarantine import Quarantine
from tidings.importing.slack import Progress, SlackImport, SlackReport
from tidings.importing.slackzips import SlackZip
from tidings.storage.interface import Item, Store
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, ROOMS

STORES = BOTH_STORES


@pytest.fixture
async def store(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(store_kind, tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Parts]:
    parts = Parts(store, system_clock)
    await parts.workspaces.default("acme")
    try:
        yield parts
    finally:
        await parts.close()


def quietly(what: str, done: int, total: int) -> None:
    """Show nothing."""


class Imported:
    """What an import did, and what is in its quarantine."""

    def __init__(self, report: SlackReport, odd: list[dict[str, Any]]) -> None:
        self.report = report
        self.odd = odd

    @property
    def reasons(self) -> dict[str, str]:
        return {each["key"]: each["reason"] for each in self.odd}


async def bring(
    store: Store, path: Path, *, is_unread: bool = False, progress: Progress = quietly
) -> Imported:
    """Import, and find everything sound."""
    odd_path = path.with_suffix(".odd.jsonl")
    quarantine = Quarantine(odd_path)
    with SlackZip(path) as export:
        async with (
            opened(store) as parts,
            Loading.open(store, parts.chat.commits, "acme", system_clock, quarantine) as loading,
        ):
            caller = administrator("acme")
            importing = SlackImport(
                export,
                store,
                parts.users,
                loading,
                caller,
                is_unread=is_unread,
                progress=progress,
            )
            report = await importing.run()
    quarantine.close()
    audited = await audit(store)
    assert audited.ok, audited.broken
    lines = odd_path.read_text().splitlines() if odd_path.exists() else []
    assert len(lines) == sum(report.odd.values())
    return Imported(report, [json.loads(line) for line in lines])


async def log(store: Store, room_id: str) -> list[Item]:
    return (await store.query(ENTRIES, f"acme#{room_id}")).items


async def said(store: Store, room_id: str) -> list[tuple[str, str | None]]:
    entries = await log(store, room_id)
    return [(each["sender_id"], each.get("text")) for each in entries if each["type"] == "text"]


async def test_what_becomes_of_an_export(store: Store, tmp_path: Path) -> None:
    imported = await bring(store, small().write(tmp_path / "team.zip"))
    report = imported.report
    assert imported.odd == []
    assert (report.effects.users_made, report.effects.rooms_made) == (7, 6)
    assert (report.joins, report.leaves, report.users_deactivated) == (2, 1, 1)
    assert report.files_linked == 1
    assert report.skipped == {"pinned_item": 1}
    general = await log(store, GENERAL)
    assert [(each["type"], each["sender_id"], each.get("text")) for each in general] == [
        ("joined", ANN, None),
        ("text", ANN, "@Ann set the channel topic: All & sundry"),
        ("joined", CLO, None),
        ("text", ANN, "Hello @here, welcome @Ben <3 see #dev"),
        ("text", BEN, "Thanks"),
        ("text", CLO, "A first draft"),
        ("left", CLO, None),
        ("text", DAN, "plan.pdf: https://files.example.com/plan.pdf"),
        ("text", BOT, "Deploy\ndone in 7 s (http://ci.example.com)"),
        ("text", GUEST, "Also to the channel"),
        ("text", ANN, "* Ann waves"),
    ]
    hello, thanks, draft, plan = (general[index] for index in (3, 4, 5, 7))
    assert hello["mentions"] == [BEN]
    assert (thanks["reply_to"], general[9]["reply_to"]) == (hello["seq"], hello["seq"])
    assert draft["edited_at"] == (START_S + 20) * 1000
    assert draft["reactions"] == {"👍": [ANN, BEN], ":party_parrot:": [ANN]}
    assert plan["data"] == {
        "files": [
            {
                "name": "plan.pdf",
                "size": 1234,
                "type": "application/pdf",
                "url": "https://files.example.com/plan.pdf",
            }
        ]
    }
    assert hello["created_at"] == (START_S + 10) * 1000
    dev = await log(store, DEV)
    assert [each.get("text") for each in dev] == [
        "pushed 3 commits",
        "https://example.com/a?b=1&c=2 and x@y.zz",
        "x" * 8_000,
        "x" * 1_000,
        None,
        None,
        "changed",
    ]
    assert dev[4]["deleted_at"] == (START_S + 20) * 1000
    assert dev[5]["type"] == "deleted"
    assert dev[6]["edited_at"] == (START_S + 21) * 1000
    assert await said(store, pair_room_id(ANN, BEN)) == [(ANN, "psst"), (BEN, "what?")]
    async with opened(store) as parts:
        caller = administrator("acme")
        rooms = {
            room_id: await parts.chat.rooms.get(caller, room_id)
            for room_id in (GENERAL, DEV, SECRET, SELF, SEVERAL)
        }
        users = {
            user_id: await parts.users.get(caller, user_id)
            for user_id in (ANN, CLO, DAN, GUEST, BOT, "B0HOOK")
        }
    assert [room.scope for room in rooms.values()] == [
        "public", "public", "private", "private", "private"
    ]  # fmt: skip
    assert rooms[GENERAL].title == "general"
    assert rooms[SEVERAL].title == "Ann, Ben, Dan Example"
    assert rooms[GENERAL].created_at == rfc3339((START_S - 100) * 1000)
    assert [each.role for each in users.values()] == [
        "manager", "manager", "manager", "customer", "bot", "bot"
    ]  # fmt: skip
    assert [each.name for each in users.values()] == [
        "Ann", "Clo", "Dan Example", "Gus", "Deploybot", "hooky"
    ]  # fmt: skip
    assert users[CLO].is_deactivated
    assert users[ANN].email == "ann@example.com"
    badge = badge_from_item(await store.get(BADGES, (f"acme#{ANN}",)))
    assert (badge.unread, badge.mentions) == (0, 0)


async def test_what_is_imported_may_count_as_unread(store: Store, tmp_path: Path) -> None:
    await bring(store, small().write(tmp_path / "team.zip"), is_unread=True)
    row = await store.get(INBOXES, (f"acme#{BEN}", GENERAL))
    assert row is not None
    assert (row["unread"], row["mentions"]) == (7, 1)


async def test_again_adds_nothing_and_a_newer_export_what_is_new(
    store: Store, tmp_path: Path
) -> None:
    first = await bring(store, small().write(tmp_path / "one.zip"))
    again = await bring(store, small().write(tmp_path / "two.zip", root="export/"))
    effects = again.report.effects
    assert effects.messages_present == first.report.effects.messages_added == 19
    assert (effects.messages_added, effects.users_made, effects.rooms_made) == (0, 0, 0)
    assert (effects.messages_edited, effects.messages_deleted, effects.members_left) == (0, 0, 0)
    assert (effects.reactions_changed, effects.members_joined) == (0, 0)
    assert again.report.users_deactivated == 0
    newer = small()
    newer.users.append(user("U0NEW", "nia"))
    newer.lists["channels"][0]["members"].append("U0NEW")
    newer.lists["channels"].append(conversation("C0NEW", "new", [ANN, BEN]))
    general = newer.talk["general"]
    general[5] = general[5] | {"text": "A second draft"}
    general[3]["reactions"] = [{"name": "wave", "users": [BEN], "count": 1}]
    general.append(message(2 * 86_400, "U0NEW", "Hello, I am new", thread_ts=ts(10)))
    newer.talk["new"] = [message(2 * 86_400, ANN, "a channel of its own")]
    more = await bring(store, newer.write(tmp_path / "three.zip"))
    effects = more.report.effects
    assert (effects.messages_added, effects.rooms_made, effects.users_made) == (2, 1, 1)
    assert (effects.members_joined, effects.reactions_changed) == (1, 1)
    entries = await log(store, GENERAL)
    assert entries[3]["reactions"] == {"👋": [BEN]}
    newest = [each for each in entries if each["type"] == "text"][-1]
    assert (newest["text"], newest["reply_to"]) == ("Hello, I am new", entries[3]["seq"])
    # Also what was edited by one who has left since.
    assert effects.messages_edited == 1
    assert "A second draft" in [each.get("text") for each in entries]
    assert more.odd == []


def _one(*records: Any) -> Export:
    made = Export()
    made.users = [user(ANN, "ann"), user(BEN, "ben")]
    made.lists["channels"] = [conversation(GENERAL, "general", [ANN, BEN])]
    made.files["general/2024-01-01.json"] = json.dumps(records).encode()
    return made


async def test_odd_records_are_told_and_the_rest_is_imported(store: Store, tmp_path: Path) -> None:
    whole = [message(1, ANN, "first"), message(2, BEN, "second"), message(90, BEN, "last")]
    export = _one(
        whole[0],
        "no object",
        message(3, "U0NOBODY", "who am I?"),
        message(4, ANN, "no time") | {"ts": "yesterday"},
        message(5, ANN, "odd text") | {"text": 5},
        message(6, ANN, "") | {"blocks": []},
        {"type": "message", "ts": ts(7), "text": "of nobody"},
        message(8, ANN, "before it", thread_ts=ts(9)),
        message(9, ANN, "circles", thread_ts=ts(8)),
        message(10, ANN, "to nothing", thread_ts=ts(999_999)),
        message(11, ANN, "to itself", thread_ts=ts(11)),
        whole[1],
        whole[1],
        message(12, ANN, "something new", subtype="holograph"),
        message(13, ANN, "half a \ud83d character"),
        {"type": "message", "subtype": "message_deleted", "ts": ts(14), "deleted_ts": ts(777)},
        {"type": "huddle", "ts": ts(15), "user": ANN},
        message(16, ANN, "", blocks=[
            {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": [
                {"type": "text", "text": "from "}, {"type": "text", "text": "blocks"}]}]}]),
        message(17, ANN, "", attachments=[{"title": 5, "text": "still read"}, 7], edited=None),
        whole[2],
    )  # fmt: skip
    export.users += [user(ANN, "ann again"), {"id": 7}, "nobody", {"id": "U0NIL", "profile": None}]
    export.lists["channels"] += [
        conversation(GENERAL, "general", [ANN]),
        conversation("C0GHOST", "ghosts", ["U0GHOST", ANN]),
        {"id": "C0NIL", "name": "nil", "created": None, "creator": None, "members": None},
    ]
    export.files["lost/2024-01-01.json"] = json.dumps([message(1, ANN, "in no list")]).encode()
    export.files["general/2024-01-02.json"] = b'[{"type": "message", "ts": "1700009999.0", "user"'
    export.files["general/2024-01-03.json"] = (
        json.dumps([message(200_000, BEN, "caf\\u00e9")]).encode().replace(b"\\\\u00e9", b"\xe9")
    )
    export.files["general/2024-01-04.json"] = b"{}"
    export.files["general/2024-01-05.json"] = b"[" * 100_000
    export.files["integration_logs.json"] = b"[]"
    imported = await bring(store, export.write(tmp_path / "odd.zip"))
    assert await said(store, GENERAL) == [
        (ANN, "first"),
        (BEN, "second"),
        ("U0NOBODY", "who am I?"),
        (ANN, "before it"),
        (ANN, "circles"),
        (ANN, "to nothing"),
        (ANN, "to itself"),
        (ANN, "something new"),
        (ANN, "half a \N{REPLACEMENT CHARACTER} character"),
        (ANN, "from blocks"),
        (ANN, "still read"),
        (BEN, "last"),
        (BEN, "café"),
    ]
    circles = next(each for each in await log(store, GENERAL) if each.get("text") == "circles")
    assert circles["reply_to"] == circles["seq"] - 1
    day = "general/2024-01-0"
    assert imported.reasons == {
        "users.json:3": "a second user with this id",
        "users.json:4": "Expected `str`, got `int` - at `$.id`",
        "users.json:5": "it is no object",
        "channels.json:2": "a second conversation with this id",
        "lost": "no list names it, so nobody knows who may see it",
        "U0GHOST": "in no list of users, made with that name",
        f"{day}1.json:2": "it is no object",
        f"{day}1.json:4": "a time that is none",
        f"{day}1.json:5": "Expected `str | null`, got `int` - at `$.text`",
        f"{day}1.json:6": "nothing is in it",
        f"{day}1.json:7": "a message of nobody",
        f"slack:{ts(8)}": "replies to what is not before it, kept without",
        f"slack:{ts(10)}": "replies to what is not before it, kept without",
        f"slack:{ts(2)}": "a second message with this key, left out",
        f"{day}1.json:14": "taken as a message, though it is a holograph",
        f"{day}1.json:15": "half a character, replaced",
        f"{day}1.json:17": "no message",
        f"{GENERAL}:{ts(777)}": "a change of no message",
        f"{day}2.json:1": "the file ends within a record, or holds what is none",
        f"{day}3.json:1": "not UTF-8, read as Latin-1",
        f"{day}4.json:1": "the file is no list",
        f"{day}5.json:1": "a record that is nested too deeply",
    }
    assert imported.report.skipped == {"file integration_logs.json": 1}
    again = await bring(store, tmp_path / "odd.zip")
    assert again.report.effects.messages_added == 0


async def test_a_file_that_is_damaged_in_the_zip_is_left_out(store: Store, tmp_path: Path) -> None:
    export = _one(message(1, ANN, "first"))
    export.files["general/2024-01-02.json"] = json.dumps(
        [message(100, ANN, "to be flipped")]
    ).encode()
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as made:  # not compressed
        for name, content in ({"users.json": json.dumps(export.users).encode(),
                               "channels.json": json.dumps(export.lists["channels"]).encode()}
                              | export.files).items():  # fmt: skip
            made.writestr(name, content)
    path.write_bytes(path.read_bytes().replace(b"to be flipped", b"to be fl1pped"))
    imported = await bring(store, path)
    assert await said(store, GENERAL) == [(ANN, "first")]
    assert imported.reasons == {"general/2024-01-02.json": "damaged in the zip, left out"}


def _named(name: str) -> Any:
    def make(path: Path) -> None:
        export = _one()
        export.files[name] = b"[]"
        export.write(path)

    return make


def _cut(path: Path) -> None:
    small().write(path)
    path.write_bytes(path.read_bytes()[:-50])


def _bomb(path: Path) -> None:
    export = _one()
    export.files["general/2024-01-02.json"] = b" " * (3 * 1024 * 1024)
    export.write(path)


def _twice(path: Path) -> None:
    _one().write(path)
    with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("users.json", b"[]")


def _shared(path: Path) -> None:
    """Many files that are the same bytes: their headers name one place."""
    export = _one()
    export.files["general/2024-01-02.json"] = random_bytes()
    export.write(path)
    with zipfile.ZipFile(path, "a") as made:
        first = made.getinfo("general/2024-01-02.json")
        for number in range(50):
            info = zipfile.ZipInfo(f"general/2025-01-{number:02}.json")
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.compress_size, info.file_size = first.compress_size, first.file_size
            info.compress_type = first.compress_type
            made.filelist.append(info)
            made.NameToInfo[info.filename] = info
        made._didModify = True  # type: ignore[attr-defined]


def random_bytes() -> bytes:
    import random

    return random.Random(1).randbytes(50_000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_named("../users.json"), "a file named"),
        (_named("/etc/passwd"), "a file named"),
        (_named("general/../../x.json"), "a file named"),
        (_named("C:/x.json"), "a file named"),
        (_named("general\\x.json"), "a file named"),
        (_named("general/x\n.json"), "a file named"),
        (_cut, "cut short"),
        (_bomb, "unpacked"),
        (_twice, "two files"),
        (_shared, "share their bytes"),
        (lambda path: path.write_bytes(b"no zip"), "no whole zip"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no Slack export"),
    ],
)
def test_zips_that_are_traps_or_torn_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, says: str
) -> None:
    monkeypatch.setattr(slackzips, "UNPACKED_BYTES_FREE", 1024 * 1024)
    path = tmp_path / "trap.zip"
    make(path)
    with pytest.raises(ValidationFailed, match=says):
        SlackZip(path)


async def test_ids_that_are_somebody_elses_are_not_taken(store: Store, tmp_path: Path) -> None:
    async with opened(store) as parts:
        body = wire.CreateUser(role="customer", name="Another Ann", id=ANN)
        await parts.users.create(administrator("acme"), body)
    await bring(store, small().write(tmp_path / "team.zip"))
    assert (await said(store, pair_room_id(f"slack:{ANN}", BEN)))[0] == (f"slack:{ANN}", "psst")
    assert PAIR not in [each["room_id"] for each in (await store.scan(INBOXES)).items]


async def test_a_full_disk_and_a_broken_off_import_leave_a_way_on(tmp_path: Path) -> None:
    path = large(7, people=40, channels=3, messages=1_500).write(tmp_path / "large.zip")
    async with SqliteStore.open(tmp_path / "store.db") as store:
        async with opened(store):
            pass
        writer = store._writer
        writer.pragma("max_page_count", writer.pragma("page_count") + 40)
        with pytest.raises(Unavailable, match="disk is full"):
            await bring(store, path)
        assert (await store.scan(ROOMS)).items == []
        writer.pragma("max_page_count", 1 << 30)
        stopping = Stopping()
        with pytest.raises(Stopping):
            await bring(store, path, progress=stopping)
        assert stopping.told
        imported = await bring(store, path)
        effects = imported.report.effects
        assert effects.messages_added + effects.messages_present == 1_500


class Stopping(Exception):
    """Breaks an import off once it is loading."""

    def __init__(self) -> None:
        self.told = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "Importing":
            self.told += 1
            if self.told == 2:
                raise self


def test_the_command(tmp_path: Path) -> None:
    export = small()
    export.talk["general"].append({"type": "message", "ts": ts(99), "text": "of nobody"})
    export.write(tmp_path / "team.zip")
    store = ("--store", f"sqlite:///{tmp_path}/t.db")
    done = run_tidings("import", "slack", "team.zip", *store, folder=tmp_path)
    assert done.code == 0, done.errors
    assert "a message of nobody" in done.errors
    assert "19" in done.output
    odd = (tmp_path / "team.odd.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in odd] == ["a message of nobody"]
    again = run_tidings("import", "slack", "team.zip", *store, "--json", folder=tmp_path)
    effects = json.loads(again.output)["effects"]
    assert (effects["messages_added"], effects["messages_present"]) == (0, 19)
