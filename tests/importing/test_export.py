"""A workspace goes out and comes back: the same bytes again, from any engine into any engine."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chat.company import ADA, KEY, MAX, MIA, Company, company
from tests.command_line import run_tidings
from tests.importing.busy import live_through, working
from tests.people.clocks import FakeClock
from tests.storage.suspending import Action, SuspendingStore, Way
from tests.stores import BOTH_STORES, StoreKind, open_store
from tidings import wire
from tidings.blobs.blobs import UNHELD
from tidings.chat.rows import WAKING
from tidings.errors import Conflict, NotFound, TidingsError, Unavailable, ValidationFailed
from tidings.importing.exported import KINDS, LEFT_OUT, MANIFEST, Manifest, encode, read_manifest
from tidings.importing.exports import export_workspace, reckon_workspace
from tidings.importing.workspaces import WorkspaceImport
from tidings.people.rows import hash_token
from tidings.storage.interface import Put, Store, Table
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    RECEIPTS,
    ROOMS,
    SCHEDULE,
    TABLES,
    TOKENS,
    WORKSPACES,
)

STORES = BOTH_STORES

TROUBLE_MAX = 20_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def acme(store_kind: StoreKind, tmp_path: Path, clock: FakeClock) -> AsyncIterator[Company]:
    async with open_store(store_kind, tmp_path, clock) as store, company(store, clock) as made:
        await live_through(made)
        yield made


@asynccontextmanager
async def other_store(folder: Path, clock: FakeClock) -> AsyncIterator[SqliteStore]:
    """An embedded store that holds nothing."""
    folder.mkdir()
    async with SqliteStore.open(folder / "other.db", clock=clock) as store:
        yield store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def rows_in(store: Store) -> int:
    """Rows of all tables but those of the service itself."""
    count = 0
    for table in TABLES:
        if table.name not in ("secrets", "moves"):
            count += len((await store.scan(table)).items)
    return count


async def test_it_comes_back_byte_for_byte(acme: Company, clock: FakeClock, tmp_path: Path) -> None:
    exported, again, thrice = tmp_path / "exported", tmp_path / "again", tmp_path / "thrice"
    manifest = await export_workspace(acme.store, "acme", exported)
    assert manifest.files["entries"].lines > 30
    assert manifest.files["blobs"].lines == 3
    assert exported.stat().st_mode & 0o077 == 0
    assert {name for name, each in manifest.files.items() if not each.lines} == {"fanouts"}
    async with other_store(tmp_path / "other", clock) as store:
        outcome = await WorkspaceImport(store, clock, exported).run()
        assert outcome.is_new
        due = [each["kind"] for each in (await store.scan(SCHEDULE)).items]
        assert sorted(due) == [UNHELD, WAKING]
        await export_workspace(store, "acme", again)
        assert contents(again) == contents(exported)
        clock.forward(60 * 24 * 3600)  # no receipt of it ends
        await export_workspace(store, "acme", thrice)
        assert contents(thrice) == contents(exported)
        assert not (await WorkspaceImport(store, clock, exported).run()).is_new


async def test_it_comes_into_the_store_and_is_used(
    store_kind: StoreKind, clock: FakeClock, tmp_path: Path
) -> None:
    exported, again = tmp_path / "exported", tmp_path / "again"
    async with other_store(tmp_path / "other", clock) as source, company(source, clock) as made:
        await live_through(made)
        await export_workspace(source, "acme", exported)
        badge = await made.inboxes.badge(MAX)
        first = (await made.messages.list(MAX, "town", after=0)).items[0]
    async with (
        open_store(store_kind, tmp_path, clock) as store,
        working(store, clock) as acme,
    ):
        await WorkspaceImport(store, clock, exported).run()
        await export_workspace(store, "acme", again)
        assert contents(again) == contents(exported)
        assert await acme.inboxes.badge(MAX) == badge
        workspace = await acme.people.workspaces.get("acme")
        assert workspace is not None
        assert await store.get(TOKENS, (hash_token(workspace.publishable_key),)) is not None
        clock.forward(40 * 24 * 3600)
        body = wire.PostMessage(client_id=first.client_id, text=first.text, mentions=["max"])
        entry, is_new = await acme.messages.post(ADA, "town", body)
        assert (entry.seq, is_new) == (first.seq, False)
        await acme.say(ADA, "town", "and so it goes on")
        await acme.chat.commits.settle()
        assert (await acme.inboxes.badge(MAX)).unread == badge.unread + 1
        assert (await acme.audit()).ok
        with pytest.raises(Conflict, match="differs"):
            await WorkspaceImport(store, clock, exported).run()


class Unstill(SuspendingStore):
    """A distant store that can't be read as it was at one moment; its first logs take long."""

    snapshot = None  # type: ignore[assignment]
    slow_left = 12

    async def travel(self, way: Way, action: Action, table: Table | None) -> None:
        await super().travel(way, action, table)
        if self.slow_left and way == "answer" and action == "query" and table is ENTRIES:
            self.slow_left -= 1
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(6))
async def test_it_is_sound_whatever_is_written_meanwhile(
    seed: int, clock: FakeClock, tmp_path: Path
) -> None:
    """The import proves that counts follow from logs; here that each log is of one moment."""
    chance = random.Random(seed)
    folder = tmp_path / "exported"
    is_exported = asyncio.Event()
    edits: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    edits["small", 3].append("Number two")

    async def do(acme: Company, number: int) -> None:
        caller, room = chance.choice((ADA, MAX)), chance.choice(("town", "small"))
        seq = chance.randint(1, 8)
        match chance.choices(range(8), (2, 4, 0.1, 1, 1, 2, 2, 4))[0] if number % 40 < 20 else 0:
            case 0:
                await acme.say(caller, room, f"meanwhile {number}", mentions=["max"])
            case 1:
                text = f"edited {number}"
                await acme.messages.edit(caller, room, seq, wire.EditMessage(text=text))
                edits[room, seq].append(text)
            case 2:
                await acme.messages.delete(ADA, room, seq)
            case 3:
                await acme.messages.react(caller, room, seq, "☂", is_given=True)
            case 4:
                await acme.messages.read(caller, room, seq)
            case 5:
                await acme.rooms.add_members(KEY, "small", wire.AddMember(user_id="mia"))
            case 6:
                await acme.rooms.remove_member(MIA, "small", "mia")
            case _:
                await asyncio.sleep(0.001)

    async def trouble(acme: Company) -> None:
        for number in range(TROUBLE_MAX):
            if is_exported.is_set():
                return
            with suppress(TidingsError):  # there was nothing of the kind to do
                await do(acme, number)
        raise AssertionError("the export has no end")

    async with other_store(tmp_path / "busy", clock) as engine, company(engine, clock) as acme:
        await live_through(acme)
        async with asyncio.TaskGroup() as group:
            group.create_task(trouble(acme))
            manifest = await export_workspace(Unstill(engine), "acme", folder)
            is_exported.set()
    entries = [json.loads(line) for line in (folder / "entries.jsonl").read_bytes().splitlines()]
    told = Counter(
        (each["room_id"], each["data"]["seq"]) for each in entries if each["type"] == "edited"
    )
    for entry in entries:
        place = (entry["room_id"], entry["seq"])
        if edits[place] and "deleted_at" not in entry and told[place]:
            assert entry["text"] == edits[place][told[place] - 1]
    async with other_store(tmp_path / "other", clock) as store:
        await WorkspaceImport(store, clock, folder).run()
        assert await reckon_workspace(store, "acme") == manifest


async def test_somebody_is_erased_between_a_log_and_its_receipts(
    clock: FakeClock, tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    async with other_store(tmp_path / "busy", clock) as engine, company(engine, clock) as acme:
        await live_through(acme)

        class Erasing(Unstill):
            is_done = False

            async def travel(self, way: Way, action: Action, table: Table | None) -> None:
                if table is RECEIPTS and not self.is_done:
                    self.is_done = True
                    await acme.people.users.delete(KEY, "max", erase=True)
                    await acme.chat.erasures.erase("acme", "max")

        store = Erasing(engine)
        await export_workspace(store, "acme", folder)
        assert store.is_done
    assert b"Number" not in (folder / "entries.jsonl").read_bytes()
    async with other_store(tmp_path / "other", clock) as store_after:
        await WorkspaceImport(store_after, clock, folder).run()


async def test_a_room_that_is_still_being_made_is_made_on(clock: FakeClock, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    crowd = [f"crowd{number:02}" for number in range(80)]
    async with other_store(tmp_path / "one", clock) as store, company(store, clock) as acme:
        await acme.add_users(dict.fromkeys(crowd, "manager"))
        making = asyncio.ensure_future(acme.open("group", *crowd, id="town"))
        while await store.get(ROOMS, ("acme#town",)) is None:
            await asyncio.sleep(0)
        await export_workspace(store, "acme", exported)
        await making
    async with other_store(tmp_path / "two", clock) as store, working(store, clock) as acme:
        await WorkspaceImport(store, clock, exported).run()
        assert (await acme.rooms.get(KEY, "town")).member_count < len(crowd)
        await acme.chat.start()
        async with asyncio.timeout(60):
            while (await acme.rooms.get(KEY, "town")).member_count < len(crowd):
                await asyncio.sleep(0.01)
        await acme.chat.commits.settle()
        assert (await acme.audit()).ok


async def test_no_secret_is_in_it(clock: FakeClock, tmp_path: Path) -> None:
    async with other_store(tmp_path / "one", clock) as store, company(store, clock) as acme:
        await live_through(acme)
        _, key = await acme.people.credentials.create_key("acme", "a key")
        body = wire.CreateSession(user_id="max")
        session = await acme.people.credentials.create_session(KEY, body)
        await export_workspace(store, "acme", tmp_path / "exported")
    everything = b"".join(contents(tmp_path / "exported").values()).decode()
    for secret in (key, session.token):
        assert secret not in everything
        assert hash_token(secret) not in everything
    assert "s" * 64 not in everything
    assert "HS256" not in everything
    assert "Number two" in everything


def test_every_table_is_exported_or_left_out_for_a_reason() -> None:
    exported = {kind.table.name for kind in KINDS}
    assert exported.isdisjoint(LEFT_OUT)
    assert exported | LEFT_OUT.keys() == {table.name for table in TABLES}


# What an import refuses.


@pytest.fixture
async def export(clock: FakeClock, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    async with other_store(tmp_path / "source", clock) as store, company(store, clock) as made:
        await live_through(made)
        await export_workspace(store, "acme", folder)
    return folder


def _flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _drop_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


@pytest.mark.parametrize("damage", [_flip, _shorten, _drop_a_line, Path.unlink])
@pytest.mark.parametrize("file", ["entries.jsonl", "badges.jsonl", MANIFEST])
async def test_damage_is_refused_before_anything_is_written(
    export: Path, clock: FakeClock, tmp_path: Path, damage: Any, file: str
) -> None:
    damage(export / file)
    async with other_store(tmp_path / "other", clock) as store:
        with pytest.raises((ValidationFailed, NotFound), match=file):
            await WorkspaceImport(store, clock, export).run()
        assert await rows_in(store) == 0


def _forge(folder: Path, file: str, change: Any) -> None:
    """Change an export so that its hashes hold."""
    import hashlib

    path = folder / file
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(lines)
    path.write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    manifest = read_manifest(folder)
    text = path.read_bytes()
    name = file.partition(".")[0]
    portion = type(manifest.files[name])(
        file, len(lines), len(text), hashlib.sha256(text).hexdigest()
    )
    forged = Manifest(manifest.workspace, manifest.files | {name: portion}).sealed()
    (folder / MANIFEST).write_bytes(encode(forged))


@pytest.mark.parametrize(
    ("file", "change", "error", "says"),
    [
        ("badges.jsonl", {"unread": 99}, Conflict, "badge.unread"),
        ("rooms.jsonl", {"head": 1}, Conflict, "log."),
        ("entries.jsonl", {"seq": 5}, ValidationFailed, "not after"),
        ("members.jsonl", {"user_id": "a-nobody"}, Conflict, "member"),
        ("members.jsonl", {"room_id": "evil#x"}, ValidationFailed, "room_id is no id"),
        ("users.jsonl", {"user_id": 7}, ValidationFailed, "user_id is no str"),
        ("users.jsonl", {"erasing": "globex"}, ValidationFailed, "erasing"),
        ("users.jsonl", {"workspace": "globex"}, ValidationFailed, "unknown field"),
        ("entries.jsonl", {"seq": "1"}, ValidationFailed, "seq is no int"),
        ("entries.jsonl", {"text": 1}, ValidationFailed, "text is no str"),
        ("entries.jsonl", {"surprise": 1}, ValidationFailed, "unknown field surprise"),
        ("workspace.jsonl", {"workspace": "globex"}, Conflict, "another workspace"),
    ],
)
async def test_what_does_not_hold_is_not_let_in(
    export: Path,
    clock: FakeClock,
    tmp_path: Path,
    file: str,
    change: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    _forge(export, file, lambda lines: lines[0].update(change))
    async with other_store(tmp_path / "other", clock) as store:
        with pytest.raises(error, match=says):
            await WorkspaceImport(store, clock, export).run()
        assert await rows_in(store) == 0


class Stopped(Exception):
    """Somebody broke it off."""


def _stopping(at: str) -> Any:
    def show(what: str, done: int, total: int) -> None:
        if what == at:
            raise Stopped

    return show


@pytest.mark.parametrize("at", ["users", "rooms", "entries", "inboxes", "badges"])
async def test_a_broken_off_import_is_not_seen_and_goes_on(
    export: Path, clock: FakeClock, tmp_path: Path, at: str
) -> None:
    async with other_store(tmp_path / "other", clock) as store:
        with pytest.raises(Stopped):
            await WorkspaceImport(store, clock, export, _stopping(at)).run()
        assert await store.get(WORKSPACES, ("acme",)) is None
        assert (await WorkspaceImport(store, clock, export).run()).is_new
        assert await reckon_workspace(store, "acme") == read_manifest(export)


async def test_an_unfinished_import_is_taken_out_by_its_own_folder_alone(
    export: Path, clock: FakeClock, tmp_path: Path
) -> None:
    newer = tmp_path / "newer"
    async with SqliteStore.open(tmp_path / "source" / "other.db", clock=clock) as store:
        await store.write(Put(BADGES, {"user": "acme#late", "unread": 0, "mentions": 0,
                                       "version": 1, "read_version": 0}))  # fmt: skip
        async with working(store, clock) as made:
            await made.add_users({"late": "manager"})
        await export_workspace(store, "acme", newer)
    async with other_store(tmp_path / "other", clock) as store:
        with pytest.raises(Stopped):
            await WorkspaceImport(store, clock, export, _stopping("inboxes")).run()
        with pytest.raises(Conflict, match="--undo"):
            await WorkspaceImport(store, clock, newer).run()
        with pytest.raises(Conflict, match="--undo"):
            await WorkspaceImport(store, clock, newer).undo()
        assert await WorkspaceImport(store, clock, export).undo() > 100
        assert await rows_in(store) == 0
        assert (await WorkspaceImport(store, clock, newer).run()).is_new
        with pytest.raises(Conflict, match="in use"):
            await WorkspaceImport(store, clock, newer).undo()


async def test_an_export_is_there_whole_or_not_at_all(clock: FakeClock, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    async with other_store(tmp_path / "one", clock) as store, company(store, clock) as acme:
        await live_through(acme)
        with pytest.raises(Stopped):
            await export_workspace(store, "acme", folder, _stopping("users"))
        assert contents(folder) == {}
        with pytest.raises(NotFound):
            await export_workspace(store, "globex", folder)
        await export_workspace(store, "acme", folder)
        with pytest.raises(Conflict, match="not empty"):
            await export_workspace(store, "acme", folder)


async def test_a_full_disk_leaves_a_way_on(export: Path, clock: FakeClock, tmp_path: Path) -> None:
    async with other_store(tmp_path / "other", clock) as store:
        writer = store._writer
        writer.pragma("max_page_count", writer.pragma("page_count"))
        with pytest.raises(Unavailable, match="disk is full"):
            await WorkspaceImport(store, clock, export).run()
        writer.pragma("max_page_count", 1 << 30)
        assert (await WorkspaceImport(store, clock, export).run()).is_new


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    """The page on moving has them run by a shell."""

    def run(*arguments: str) -> tuple[int, str, str]:
        outcome = run_tidings(*arguments, folder=tmp_path)
        return outcome.code, outcome.output, outcome.errors

    one, two = ("--store", "sqlite:///one.db"), ("--store", "sqlite:///two.db")
    assert run("keys", "create", *one, "--workspace", "acme")[0] == 0
    assert run("users", "create", "Ann", "--id", "ann", "--role", "admin", *one)[0] == 0
    code, shown, _ = run("export", "out", *one)
    assert (code, "users.jsonl" in shown) == (0, True)
    for expected in ("", "the very same"):
        code, _, told = run("import", "workspace", "out", *two)
        assert (code, expected in told) == (0, True)
    assert run("export", "again", *two)[0] == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert run("audit", *two)[0] == 0
    assert run("export", "out", *one) == (1, "", "tidings: out is not empty.\n")
    code, _, told = run("import", "workspace", "out", "--undo", *two)
    assert (code, "in use" in told) == (1, True)
    code, _, told = run("import", "workspace", "elsewhere", *two)
    assert (code, "manifest.json" in told) == (1, True)


async def test_an_export_onto_a_full_disk_leaves_nothing(clock: FakeClock, tmp_path: Path) -> None:
    """The limit of a file's size stands for that of a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "exported"
    async with other_store(tmp_path / "one", clock) as store, company(store, clock) as acme:
        await live_through(acme)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                await export_workspace(store, "acme", folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(folder) == {}
        await export_workspace(store, "acme", folder)
