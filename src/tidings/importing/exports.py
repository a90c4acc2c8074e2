"""`tidings export`: a workspace as it is, written while it is in use.

On the embedded store all of it is one moment. Elsewhere each room is exact at one head of its own,
a user's counts are those that follow from that and from where they have read, and their totals are
the sums of these: an audit of the export finds nothing, whatever was written meanwhile. Members of
large rooms are exported as the fan-out that is under way will leave them.

Memory is bounded by the largest room: some 60 bytes an entry, some 700 a member.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec

from tidings import wire
from tidings.chat.attachments import ABOUT, STORED, place_of
from tidings.chat.audit import consistent
from tidings.chat.marks import parse
from tidings.chat.proofs import Log
from tidings.chat.rows import (
    Participation,
    participation_from_item,
    participation_to_item,
)
from tidings.errors import Conflict, NotFound
from tidings.importing.exported import (
    BADGE,
    BLOB,
    BYTES_LEFT_OUT,
    ENTRY,
    FANOUT,
    INBOX,
    KINDS,
    LEFT_OUT,
    MANIFEST,
    MEMBER,
    RECEIPT,
    ROOM,
    SHARED_SECRET_ALGORITHMS,
    USER,
    WORKSPACE,
    Kind,
    Line,
    Manifest,
    Writing,
    encode,
)
from tidings.importing.roomcuts import Cut, cut_room, pages
from tidings.importing.scratch import Scratch
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Position, Store, Table
from tidings.storage.tables import (
    BADGES,
    BLOBS,
    INBOXES,
    ROOMS,
    USERS,
    WORKSPACES,
    blob_key,
    room_key,
    user_key,
)

PART_SUFFIX = ".part"
"""Ends the names of files that are not whole yet."""
FOLDER_MODE = 0o700
"""What a team has said is for whoever exports it alone, until they say otherwise."""
WRITE_BUFFER_BYTES = 256 * 1024

Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, how much of it, of how much)"""


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Nobody looks."""


async def export_workspace(
    store: Store, workspace: str, folder: Path, progress: Progress = _tell_nobody
) -> Manifest:
    """Write the workspace into the folder, which is made, or empty; all of it or nothing is there.

    Raises NotFound; Conflict for a folder that holds something; Unavailable; OSError.
    """
    _prepare(folder)
    with _files(folder) as writings:
        manifest = await _export(store, workspace, writings, progress)
    _write_durably(folder / MANIFEST, msgspec.json.format(encode(manifest), indent=2) + b"\n")
    _sync(folder)
    return manifest


async def reckon_workspace(
    store: Store, workspace: str, progress: Progress = _tell_nobody
) -> Manifest:
    """The manifest that an export would have, without its files. Raises NotFound; Unavailable."""
    writings = {kind.name: Writing(kind) for kind in KINDS}
    return await _export(store, workspace, writings, progress)


async def _export(
    store: Store, workspace: str, writings: Mapping[str, Writing], progress: Progress
) -> Manifest:
    with Scratch() as scratch:
        async with consistent(store) as view:
            await _Export(view, workspace, writings, scratch, progress).run()
    files = {name: writing.portion for name, writing in writings.items()}
    return Manifest(workspace, files, left_out=LEFT_OUT | BYTES_LEFT_OUT).sealed()


class _Export:
    """One pass: room by room in the order of their ids, then user by user."""

    def __init__(
        self,
        store: Store,
        workspace: str,
        writings: Mapping[str, Writing],
        scratch: Scratch,
        progress: Progress,
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._writings = writings
        self._scratch = scratch
        self._progress = progress

    async def run(self) -> None:
        item = await self._store.get(WORKSPACES, (self._workspace,))
        if item is None:
            raise NotFound(f"There is no workspace {self._workspace}.")
        if item.get("jwt_algorithm") in SHARED_SECRET_ALGORITHMS:
            item = item | {"jwt_algorithm": None, "jwt_key": None}
        self._add(WORKSPACE, item)
        await self._note_ids(ROOMS, "rooms")
        total = self._scratch.count_ids("rooms")
        done = 0
        for room_ids in self._scratch.ids("rooms"):
            for room_id in room_ids:
                await self._room(room_id)
                done += 1
                self._progress("rooms", done, total)
        await self._note_ids(BLOBS, "blobs")
        for blob_ids in self._scratch.ids("blobs"):
            for blob_id in blob_ids:
                await self._blob(blob_id)
        # Later than the rooms, so that everybody who is in one is there.
        await self._note_ids(USERS, "users")
        total = self._scratch.count_ids("users")
        done = 0
        for user_ids in self._scratch.ids("users"):
            await self._users(user_ids)
            done += len(user_ids)
            self._progress("users", done, total)

    def _add(self, kind: Kind, item: Item) -> None:
        self._writings[kind.name].add(item)

    async def _note_ids(self, table: Table, kind: str) -> None:
        prefix = f"{self._workspace}#"
        after: Position | None = None
        while True:
            page = await self._store.scan(table, after=after)
            keys = (item[table.partition] for item in page.items)
            ids = (key[len(prefix) :] for key in keys if key.startswith(prefix))
            self._scratch.add_ids(kind, ids)
            after = page.after
            if after is None:
                return

    # A room, as of one head.

    async def _room(self, room_id: str) -> None:
        key = room_key(self._workspace, room_id)
        cut = await cut_room(self._store, key, self._scratch)
        if cut is None:
            return
        self._scratch.set_head(room_id, cut.room.head)
        is_founding = cut.fanout is not None
        self._add(ROOM, cut.item | {"is_fanning": True if is_founding else None})
        if cut.fanout is not None:
            self._add(FANOUT, cut.fanout)
        for user_id in sorted(cut.members):
            self._add(MEMBER, cut.members[user_id])
        log, gone, newest = self._write_log()
        for line in self._scratch.receipts():
            self._writings[RECEIPT.name].add_encoded(line)
        await self._inboxes(cut, log, sorted({*cut.members, *gone}), newest)

    def _write_log(self) -> tuple[Log, set[str], Line | None]:
        """Write the entries; what counts rest on, who ever left, and the newest message."""
        log = Log()
        gone: set[str] = set()
        newest: Line | None = None
        writing = self._writings[ENTRY.name]
        for line in self._scratch.lines():
            writing.add_encoded(line)
            entry = msgspec.json.decode(line, type=Line)
            log.add(entry)
            if entry["type"] in wire.COUNTABLE_TYPES:
                newest = entry
            elif entry["type"] == "left":
                gone.add((entry.get("data") or {}).get("user_id") or "")
        log.seal()
        return log, gone - {""}, newest

    async def _inboxes(self, cut: Cut, log: Log, user_ids: list[str], newest: Line | None) -> None:
        room_id = cut.room.room_id
        for start in range(0, len(user_ids), PAGE_ITEMS_MAX):
            some = user_ids[start : start + PAGE_ITEMS_MAX]
            self._scratch.add_ids("users", iter(some))
            keys = [(user_key(self._workspace, user_id), room_id) for user_id in some]
            items = await self._store.get_many(INBOXES, keys)
            for user_id, item in zip(some, items, strict=True):
                if item is None:
                    continue
                row = participation_from_item(item)
                member = cut.members.get(user_id)
                settle(row, user_id, cut.room.head, log, newest, member)
                if not row.is_left and not row.is_muted and row.unread:
                    self._scratch.add_total(user_id, row.unread, row.mentions)
                settled = participation_to_item(row, self._workspace, user_id)
                self._add(INBOX, item | settled)

    # Blobs, and which of the exported entries hold them.

    async def _blob(self, blob_id: str) -> None:
        is_stored = False
        async for rows in pages(self._store, BLOBS, blob_key(self._workspace, blob_id)):
            for row in rows:
                if row["place"] == ABOUT:
                    is_stored = row["state"] == STORED
                    is_fit = is_stored
                else:
                    room_id, seq = place_of(row["place"])
                    is_fit = is_stored and seq <= self._scratch.head(room_id)
                if is_fit:
                    self._add(BLOB, row)

    # Users with their totals.

    async def _users(self, user_ids: list[str]) -> None:
        keys = [(user_key(self._workspace, user_id),) for user_id in user_ids]
        people = await self._store.get_many(USERS, keys)
        badges = await self._store.get_many(BADGES, keys)
        for user_id, person, badge in zip(user_ids, people, badges, strict=True):
            if person is not None:
                self._add(USER, person)
            if badge is not None:
                unread, mentions = self._scratch.total(user_id)
                self._add(BADGE, badge | {"unread": unread, "mentions": mentions})


def settle(
    row: Participation, user_id: str, head: int, log: Log, newest: Line | None, member: Item | None
) -> None:
    """Make the row what it is at that head, whenever it was read; the same again changes nothing.

    `newest` is the last message of the log, `member` the user's member row at that head, if any.
    """
    is_other = row.counted_seq != head
    row.is_left = member is None
    if member is None:
        row.counted_seq = min(row.counted_seq, head)
        row.joined_seq = min(row.joined_seq, row.counted_seq)
    else:
        row.counted_seq = head
        row.joined_seq = member["joined_seq"]
    row.read_seq = min(max(row.read_seq, row.joined_seq), row.counted_seq)
    if member is None:
        row.unread = row.mentions = 0
        row.is_muted = False
        row.preview, row.preview_seq = None, 0
    else:
        row.unread = log.unread(user_id, row.read_seq, head)
        row.mentions = log.mentions(user_id, row.read_seq, head)
        if is_other:
            _preview(row, newest)
    if not row.unread:
        row.unread_feed = None
    elif row.unread_feed is None:
        row.unread_feed = row.feed
    known = [pair for pair in parse(row.marks) if pair[1] <= row.counted_seq]
    row.marks = " ".join(f"{version}:{seq}" for version, seq in known)


def _preview(row: Participation, newest: Line | None) -> None:
    if newest is None or newest["seq"] <= row.joined_seq:
        row.preview, row.preview_seq = None, 0
        return
    text: str | None = newest.get("text")
    row.preview = None if text is None else text[: wire.PREVIEW_CHARACTERS_MAX]
    row.preview_seq = newest["seq"]
    row.active_at = newest["created_at"]


def _prepare(folder: Path) -> None:
    folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty.")


@contextmanager
def _files(folder: Path) -> Iterator[dict[str, Writing]]:
    """A file for each kind, durable under its own name on leaving; none of them after an error."""
    parts = {kind.name: folder / f"{kind.file}{PART_SUFFIX}" for kind in KINDS}
    try:
        with ExitStack() as open_files:
            files = {
                name: open_files.enter_context(path.open("xb", buffering=WRITE_BUFFER_BYTES))
                for name, path in parts.items()
            }
            yield {kind.name: Writing(kind, files[kind.name]) for kind in KINDS}
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for path in parts.values():
            path.unlink(missing_ok=True)
        raise
    for path in parts.values():
        path.rename(path.with_suffix(""))


def _write_durably(path: Path, text: bytes) -> None:
    part = path.with_name(path.name + PART_SUFFIX)
    with part.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
