"""`tidings import workspace`: an exported workspace comes back into any store, whole or not at all.

Every line of every file is read and checked before anything is written. The row of the workspace
itself is written last, after an audit of all the others: until then nobody can name it, no key, no
session and no token of it exists, and nothing of it can be seen. An import that was broken off goes
on where it was with the file it was in; `undo` takes its rows out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import msgspec

from tidings.blobs.blobs import UNHELD, UNHELD_LIFE_S
from tidings.chat.attachments import ABOUT, LEFT_BLOBS, left_subject
from tidings.chat.audit import audit
from tidings.chat.rows import WAKING, room_from_item
from tidings.clock import Clock
from tidings.cluster.schedule import plan_due
from tidings.errors import Conflict
from tidings.importing.exported import (
    BLOB,
    ENTRY,
    KINDS,
    ROOM,
    WORKSPACE,
    Kind,
    read_manifest,
    read_rows,
)
from tidings.importing.exports import reckon_workspace
from tidings.people.rows import TokenRow, hash_token, token_to_item
from tidings.storage.interface import (
    Absent,
    ConditionFailed,
    Delete,
    Equals,
    Item,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.tables import MOVES, SCHEDULE, TOKENS, WORKSPACES

PUT_TOGETHER = 1_000
"""Rows that are read and put at once."""
TAKEN_TOGETHER = 45
"""Rows that one transaction of an undoing takes out; each may have one in the schedule too."""
BROKEN_SHOWN = 3

Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, how much of it, of how much)"""

ROWS = tuple(kind for kind in KINDS if kind is not WORKSPACE)
"""What is put while nobody can see it."""


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Nobody looks."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of an import."""

    workspace: str
    is_new: bool
    """False where the very same workspace was there already."""
    lines: dict[str, int]
    """Rows by kind."""


class WorkspaceImport:
    """Brings one export into a store. Safe beside a running service, and safe to break off."""

    def __init__(
        self, store: Store, clock: Clock, folder: Path, progress: Progress = _tell_nobody
    ) -> None:
        """Reads the manifest. Raises NotFound, ValidationFailed."""
        self._store = store
        self._clock = clock
        self._folder = folder
        self._progress = progress
        self._manifest = read_manifest(folder)

    async def run(self) -> Outcome:
        """Import it; where the same workspace is there already, nothing happens.

        Raises ValidationFailed for an export that is damaged, and Conflict where another workspace
        has its id, where another export of it was begun here, or where its own counts do not
        follow from its own log: nothing is left in the store then.
        """
        manifest = self._manifest
        lines = {name: portion.lines for name, portion in manifest.files.items()}
        workspace = await self._check_files()
        if await self._store.get(WORKSPACES, (manifest.workspace,)) is not None:
            await self._compare()
            return Outcome(manifest.workspace, is_new=False, lines=lines)
        done = await self._begin()
        for kind in ROWS:
            if kind.name not in done:
                await self._put(kind)
                done.append(kind.name)
                await self._store.write(Update(MOVES, self._mark, set={"data": self._noted(done)}))
        await self._prove()
        await self._open(workspace)
        return Outcome(manifest.workspace, is_new=True, lines=lines)

    async def undo(self) -> int:
        """Take the rows of an import that was not finished out again; how many there were at most.

        Raises Conflict for a workspace that is open, and where it was not this export.
        """
        if await self._store.get(WORKSPACES, (self._manifest.workspace,)) is not None:
            raise Conflict("The import was finished: this workspace is in use.")
        await self._begin()
        taken = 0
        for kind in reversed(ROWS):
            taken += await self._take(kind)
        await self._store.write(Delete(MOVES, self._mark))
        return taken

    # The export.

    async def _check_files(self) -> Item:
        """Read all of it once; the row of the workspace. Raises ValidationFailed."""
        total = sum(portion.lines for portion in self._manifest.files.values())
        done = 0
        workspace: Item = {}
        for kind in KINDS:
            for item in self._rows(kind):
                done += 1
                if done % PUT_TOGETHER == 0:
                    self._progress("checked", done, total)
                    await asyncio.sleep(0)
                if kind is WORKSPACE:
                    workspace = item
        self._progress("checked", total, total)
        if workspace.get("workspace") != self._manifest.workspace:
            raise Conflict(f"{self._folder} is the export of another workspace than it says.")
        return workspace

    def _rows(self, kind: Kind) -> Iterator[Item]:
        return read_rows(self._folder, self._manifest, kind)

    # The store.

    @property
    def _mark(self) -> tuple[str, str]:
        """Where it is noted that an import is under way, and how far it came."""
        return (f"imports/{self._manifest.workspace}", "workspace")

    def _noted(self, done: list[str]) -> Item:
        return {"sha256": self._manifest.sha256, "done": done}

    async def _begin(self) -> list[str]:
        """Note that this export is coming in; the kinds that are in already. Raises Conflict."""
        part, item = self._mark
        try:
            await self._store.write(
                Put(
                    MOVES,
                    {"part": part, "item": item, "data": self._noted([])},
                    when=(Absent(),),
                )
            )
        except ConditionFailed:
            marked = await self._store.get(MOVES, self._mark)
            noted = (marked or {}).get("data") or {}
            if noted.get("sha256") != self._manifest.sha256:
                raise Conflict(
                    f"Another export of {self._manifest.workspace} was begun here and not"
                    " finished: finish it first, or take it out with --undo, from its own folder."
                ) from None
            done: list[str] = noted["done"]
            return done
        return []

    async def _compare(self) -> None:
        """Raises Conflict unless the workspace in the store has the same export."""
        there = await reckon_workspace(self._store, self._manifest.workspace, self._progress)
        others = [
            name for name, portion in self._manifest.files.items() if there.files[name] != portion
        ]
        if not others:
            return
        raise Conflict(
            f"The workspace {self._manifest.workspace} is in this store already, and differs from"
            f" the export in {', '.join(others)}: nothing was changed."
        )

    async def _put(self, kind: Kind) -> None:
        total = self._manifest.files[kind.name].lines
        done = 0
        rows = self._rows(kind)
        while some := list(islice(rows, PUT_TOGETHER)):
            await self._store.put_many(kind.table, some)
            await self._store.put_many(SCHEDULE, [each.item for each in due_of(kind, some)])
            done += len(some)
            self._progress(kind.name, done, total)

    async def _take(self, kind: Kind) -> int:
        taken = 0
        rows = self._rows(kind)
        while some := list(islice(rows, TAKEN_TOGETHER)):
            writes: list[Write] = [Delete(kind.table, kind.table.key(item)) for item in some]
            writes += [Delete(SCHEDULE, SCHEDULE.key(each.item)) for each in due_of(kind, some)]
            await self._store.write(*writes)
            taken += len(some)
        return taken

    async def _prove(self) -> None:
        """Raises Conflict, with all taken out again, where the invariants do not hold."""
        report = await audit(
            self._store,
            workspace=self._manifest.workspace,
            progress=lambda what, done: self._progress(f"audited {what}", done, 0),
            clock=self._clock,
        )
        if report.ok:
            return
        await self.undo()
        found = "; ".join(
            f"{each.invariant} in {each.room_id or each.user_id}: {each.detail}"
            for each in report.broken[:BROKEN_SHOWN]
        )
        raise Conflict(
            f"The export does not hold what it should ({report.broken_count} findings: {found});"
            " nothing was imported."
        )

    async def _open(self, workspace: Item) -> None:
        """Let the workspace be seen, and its publishable key name it. Raises Conflict."""
        named_by = TokenRow(
            hash_token(workspace["publishable_key"]),
            "publishable",
            workspace["workspace"],
            workspace["created_at"],
        )
        part, item = self._mark
        try:
            await self._store.write(
                Put(WORKSPACES, workspace, when=(Absent(),)),
                Put(TOKENS, token_to_item(named_by), when=(Absent(),)),
                Delete(MOVES, (part, item), when=(Equals("item", item),)),
            )
        except ConditionFailed as failed:
            raise Conflict(
                "Another workspace of this store has the same publishable key, or this one was"
                " opened meanwhile."
            ) from failed


def due_of(kind: Kind, items: list[Item]) -> Iterator[Put]:
    """What the schedule has for these rows: it is in no export, since it follows from them."""
    for item in items:
        if kind is ROOM:
            room = room_from_item(item)
            if room.wakes_at is not None:
                yield plan_due(WAKING, room.key, room.wakes_at, room.head)
        elif kind is ENTRY and item.get("left_blobs"):
            subject = left_subject(item["room"], item["seq"])
            yield plan_due(LEFT_BLOBS, subject, item["created_at"], item["seq"])
        elif kind is BLOB and item["place"] == ABOUT and not item["attached"]:
            due_ms = item["created_at"] + UNHELD_LIFE_S * 1000
            yield plan_due(UNHELD, item["blob"], due_ms, 0)
