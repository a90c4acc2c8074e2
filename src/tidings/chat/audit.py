"""The audit: proves from the data alone that the invariants of the architecture hold.

It reads one consistent snapshot where the store can give one; on any other store it should run
at rest, since it may take for broken what a commit changed while it was reading.

Memory is bounded by the largest room, not by the store: about 40 bytes an entry of that one room
(100 while its client ids are compared), a page of each table, about 200 bytes for each user with
something unread, and the names of the rooms whose log is broken.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from tidings.chat.proofs import (
    BADGE_CHECKS,
    ENTRY_CHECKS,
    MEMBER_CHECKS,
    ROOM_CHECKS,
    ROW_CHECKS,
    BadgeFacts,
    Log,
    MemberFacts,
    RoomFacts,
    RowFacts,
    contribution_of,
    room_from_row,
    row_from_item,
)
from tidings.chat.repairs import mend_room, mend_user
from tidings.chat.rows import WAKING, RoomRow, badge_from_item
from tidings.clock import Clock, system_clock
from tidings.cluster.schedule import schedule_key
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Key, Page, Position, Store, Table
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    SCHEDULE,
    USERS,
    room_key,
    user_key,
)

BROKEN_LISTED_MAX = 1_000
"""Findings that a report holds; more are counted."""
MENDS_MAX = 10_000
"""Rooms, and rows of users, that one round of repair mends."""
REPAIR_ROUNDS_MAX = 10
"""Audits with repair before what is still broken is reported as it is."""
RECEIPT_LIFE_S = 30 * 24 * 3600
"""How long an accepted message has a receipt, unless the service was told otherwise."""

Progress: TypeAlias = Callable[[str, int], None]
"""Told after each page what was checked and how many of it so far: ("entries", 12000)."""


class Broken(msgspec.Struct, frozen=True, omit_defaults=True):
    """An invariant that does not hold, and where."""

    invariant: str
    detail: str
    workspace: str
    room_id: str | None = None
    user_id: str | None = None
    seq: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What an audit found. `ok`: every invariant holds (with repair: now)."""

    ok: bool
    checked: dict[str, int]
    """How many rooms, entries, receipts, members, inboxes and badges were looked at."""
    broken: list[Broken]
    """At most BROKEN_LISTED_MAX of them."""
    broken_count: int
    mended: int = 0
    """Rooms and rows of users that a repair changed."""


@runtime_checkable
class HasSnapshot(Protocol):
    """A store that can be read as it was at one moment."""

    def snapshot(self) -> AbstractAsyncContextManager[Store]:
        """The store as it is now, whatever is written meanwhile."""
        ...


@asynccontextmanager
async def consistent(store: Store) -> AsyncIterator[Store]:
    """A snapshot of the store, or the store itself where it has none."""
    if isinstance(store, HasSnapshot):
        async with store.snapshot() as view:
            yield view
    else:
        yield store


async def audit(
    store: Store,
    *,
    repair: bool = False,
    workspace: str | None = None,
    progress: Progress | None = None,
    clock: Clock = system_clock,
    receipt_life_s: int = RECEIPT_LIFE_S,
) -> Report:
    """Check every invariant, of one workspace or of all.

    With `repair`, counts, totals, participation and flags are derived anew from log and
    membership wherever they disagree, safely beside a running service, until an audit is clean
    or finds nothing more that it can mend. The log, the receipts and the membership are never
    touched: what is broken there stays in the report, with the rows of a room whose log is
    broken, and so does what changed too fast to be mended. `clock` says which receipts must
    still be there; it should be the store's. Raises Unavailable where the store can't be reached.
    """
    mended = 0
    rounds = REPAIR_ROUNDS_MAX if repair else 0
    while True:
        async with consistent(store) as view:
            audited = _Audit(view, workspace, progress, clock(), receipt_life_s)
            await audited.run()
        if not audited.broken_count or not rounds:
            break
        rounds -= 1
        changed = await audited.mend(store)
        if not changed:
            break
        mended += changed
    return Report(
        ok=not audited.broken_count,
        checked=audited.checked,
        broken=audited.broken,
        broken_count=audited.broken_count,
        mended=mended,
    )


class _Audit:
    """One pass over everything: room by room, then row by row, then user by user."""

    def __init__(
        self,
        store: Store,
        workspace: str | None,
        progress: Progress | None,
        now_ms: int,
        receipt_life_s: int,
    ) -> None:
        self._store = store
        self._prefix = "" if workspace is None else f"{workspace}#"
        self._progress = progress
        self._receipt_life_ms = receipt_life_s * 1000
        self._receipts_due_from_ms = now_ms - self._receipt_life_ms
        self.checked = dict.fromkeys(
            ("rooms", "entries", "receipts", "members", "inboxes", "badges"), 0
        )
        self.broken: list[Broken] = []
        self.broken_count = 0
        self._sums: dict[str, tuple[int, int]] = {}
        """User to the unread and mentions of their rows, where these are not zero."""
        self._rooms_to_mend: set[str] = set()
        self._rows_to_mend: defaultdict[str, set[str]] = defaultdict(set)
        """User to the rooms whose rows are broken; none where only the totals are."""
        self._unsound_rooms: set[str] = set()
        """Rooms whose log is broken: a count made anew from it would hide what is lost."""

    async def run(self) -> None:
        """Check everything."""
        async for items in self._pages(ROOMS):
            for item in items:
                await self._room(item)
            self._count("rooms", len(items))
        async for items in self._pages(INBOXES):
            await self._rows(items)
            self._count("inboxes", len(items))
        async for items in self._pages(BADGES):
            for item in items:
                self._badge(item)
            self._count("badges", len(items))
        for table in (MEMBERS, ENTRIES, RECEIPTS, FANOUTS):
            async for items in self._pages(table):
                await self._orphans(table, items)

    async def mend(self, store: Store) -> int:
        """Mend what this pass found; returns how many rooms and rows were changed."""
        mended = 0
        for room in sorted(self._rooms_to_mend):
            mended += await mend_room(store, room)
        for user, room_ids in sorted(self._rows_to_mend.items()):
            mended += await mend_user(store, user, room_ids)
        return mended

    # A room: its log, its receipts, its members.

    async def _room(self, item: Item) -> None:
        room = room_from_row(item)
        if isinstance(room, str):
            self._found("room.fields", room, room=item["room"])
            return
        log = await self._log(room)
        await self._receipts(room, log)
        members = await self._members(room, log)
        has_fanout = await self._store.get(FANOUTS, (room.key,)) is not None
        is_scheduled = await self._is_scheduled(room)
        facts = RoomFacts(item, room, log, members, has_fanout, is_scheduled)
        for invariant, check in ROOM_CHECKS.items():
            if detail := check(facts):
                self._found(invariant, detail, room=room.key)
                self._note_room(room.key)

    async def _is_scheduled(self, room: RoomRow) -> bool:
        if room.wakes_at is None:
            return False
        key = schedule_key(WAKING, room.key, room.wakes_at)
        return await self._store.get(SCHEDULE, key) is not None

    async def _log(self, room: RoomRow) -> Log:
        log = Log()
        async for entries in self._partition(ENTRIES, room.key):
            for entry in entries:
                self._entry(room, log, entry)
            self._count("entries", len(entries))
        log.seal()
        for seq, detail in log.deletions_unmatched():
            self._found_in_log("entry.deleted", detail, room, seq)
        if log.last_seq != room.head:
            self._unsound_rooms.add(room.key)
        return log

    def _entry(self, room: RoomRow, log: Log, entry: Item) -> None:
        seq: int = entry["seq"]
        if seq != log.last_seq + 1:
            self._found_in_log("log.sequence", f"after {log.last_seq} comes {seq}", room, seq)
        is_sound = True
        for invariant, check in ENTRY_CHECKS.items():
            if detail := check(entry):
                self._found_in_log(invariant, detail, room, seq)
                is_sound = is_sound and invariant != "entry.fields"
        if is_sound:
            log.add(entry, is_receipt_due=self._is_receipt_due(entry))
        else:
            log.skip(entry)

    def _is_receipt_due(self, entry: Item) -> bool:
        created_at: int = entry["created_at"]
        is_erased = "erased" in (entry.get("data") or {})  # its receipt goes with the person
        is_kept = entry.get("deleted_at") is None and not is_erased
        return is_kept and created_at > self._receipts_due_from_ms

    async def _receipts(self, room: RoomRow, log: Log) -> None:
        async for receipts in self._partition(RECEIPTS, room.key):
            for receipt in receipts:
                seq = receipt.get("seq") or 0
                if not log.take_receipt(receipt["receipt"], seq):
                    detail = f"receipt {receipt['receipt']} of another entry"
                    self._found("receipt.entry", detail, room=room.key, seq=seq)
            self._count("receipts", len(receipts))
        for seq in log.receipts_missing():
            self._found("entry.receipt", "no receipt", room=room.key, seq=seq)
        for seqs in log.repeated_keys():
            await self._repeated(room, seqs)

    async def _repeated(self, room: RoomRow, seqs: list[int]) -> None:
        keys = [(room.key, seq) for seq in seqs]
        firsts: dict[tuple[Any, Any], Item] = {}
        for entry in await self._get_many(ENTRIES, keys):
            if entry is None:
                continue
            sent_as = (entry.get("sender_id"), entry.get("client_id"))
            first = firsts.get(sent_as)
            if first and entry["created_at"] - first["created_at"] < self._receipt_life_ms:
                detail = f"sent as {sent_as[1]} of {sent_as[0]}, as {first['seq']} was"
                self._found("entry.client_id", detail, room=room.key, seq=entry["seq"])
            firsts[sent_as] = entry

    async def _members(self, room: RoomRow, log: Log) -> int:
        count = 0
        async for members in self._partition(MEMBERS, room.key):
            users = [user_key(room.workspace, member["user_id"]) for member in members]
            rows = await self._get_many(INBOXES, [(user, room.room_id) for user in users])
            people = await self._get_many(USERS, [(user,) for user in users])
            for member, user, item, person in zip(members, users, rows, people, strict=True):
                self._member(room, log, member, user, item, has_user=person is not None)
            count += len(members)
            self._count("members", len(members))
        return count

    def _member(
        self, room: RoomRow, log: Log, member: Item, user: str, item: Item | None, *, has_user: bool
    ) -> None:
        row = None if item is None else row_from_item(item)
        if isinstance(row, str):
            return  # reported with the other rows
        facts = MemberFacts(
            user_id=member["user_id"],
            joined_seq=member.get("joined_seq") or 0,
            room=room,
            log=log,
            row=row,
            has_user=has_user,
        )
        for invariant, check in MEMBER_CHECKS.items():
            if detail := check(facts):
                self._found(invariant, detail, room=room.key, user=user)
                self._note_row(user, room.room_id)

    # Inbox rows, whatever the members say.

    async def _rows(self, items: Sequence[Item]) -> None:
        places = [
            (room_key(item["user"].partition("#")[0], item["room_id"]), item["user"])
            for item in items
        ]
        rooms = await self._by_key(ROOMS, {room for room, _ in places})
        badges = await self._by_key(BADGES, {user for _, user in places})
        members = await self._get_many(
            MEMBERS, [(room, user.partition("#")[2]) for room, user in places]
        )
        for item, member, (room, user) in zip(items, members, places, strict=True):
            self._row(item, member, rooms.get(room), badges.get(user))

    def _row(
        self, item: Item, member: Item | None, room_item: Item | None, badge: Item | None
    ) -> None:
        user: str = item["user"]
        workspace, _, user_id = user.partition("#")
        if contribution := contribution_of(item):
            unread, mentions = self._sums.get(user, (0, 0))
            self._sums[user] = (unread + contribution[0], mentions + contribution[1])
        row = row_from_item(item)
        if isinstance(row, str):
            room = room_key(workspace, item["room_id"])
            self._found("inbox.fields", row, room=room, user=user)
            self._note_row(user, item["room_id"])
            return
        room_row = None if room_item is None else room_from_row(room_item)
        if isinstance(room_row, str):
            return  # the room was reported
        facts = RowFacts(
            user_id=user_id,
            row=row,
            room=room_row,
            joined_seq=None if member is None else member.get("joined_seq") or 0,
            badge=None if badge is None else badge_from_item(badge),
        )
        for invariant, check in ROW_CHECKS.items():
            if detail := check(facts):
                self._found(invariant, detail, room=room_key(workspace, row.room_id), user=user)
                self._note_row(user, row.room_id)

    # Totals.

    def _badge(self, item: Item) -> None:
        user: str = item["user"]
        unread, mentions = self._sums.pop(user, (0, 0))
        facts = BadgeFacts(badge_from_item(item), unread, mentions)
        for invariant, check in BADGE_CHECKS.items():
            if detail := check(facts):
                self._found(invariant, detail, user=user)
                self._note_row(user, None)

    # Rows of rooms that do not exist.

    async def _orphans(self, table: Table, items: Sequence[Item]) -> None:
        keys = {item["room"] for item in items}
        rooms = await self._by_key(ROOMS, keys)
        for room in sorted(keys - rooms.keys()):
            self._found(f"{table.name}.room", f"{table.name} of no room", room=room)

    # Reading.

    async def _pages(self, table: Table) -> AsyncIterator[list[Item]]:
        """All items of the audited workspaces, page by page."""
        after: Position | None = None
        while True:
            page = await self._store.scan(table, after=after)
            yield [item for item in page.items if item[table.partition].startswith(self._prefix)]
            after = await _next(page)
            if after is None:
                break

    async def _partition(self, table: Table, partition: str) -> AsyncIterator[list[Item]]:
        """All items of one partition, ascending, page by page."""
        after: Position | None = None
        while True:
            page = await self._store.query(table, partition, after=after)
            yield page.items
            after = await _next(page)
            if after is None:
                break

    async def _get_many(self, table: Table, keys: Sequence[Key]) -> list[Item | None]:
        items: list[Item | None] = []
        for start in range(0, len(keys), PAGE_ITEMS_MAX):
            items += await self._store.get_many(table, keys[start : start + PAGE_ITEMS_MAX])
        return items

    async def _by_key(self, table: Table, partitions: set[str]) -> dict[str, Item]:
        ordered = sorted(partitions)
        items = await self._get_many(table, [(partition,) for partition in ordered])
        return {
            partition: item
            for partition, item in zip(ordered, items, strict=True)
            if item is not None
        }

    # Findings.

    def _count(self, name: str, number: int) -> None:
        self.checked[name] += number
        if self._progress is not None:
            self._progress(name, self.checked[name])

    def _found(
        self,
        invariant: str,
        detail: str,
        *,
        room: str | None = None,
        user: str | None = None,
        seq: int | None = None,
    ) -> None:
        self.broken_count += 1
        if len(self.broken) < BROKEN_LISTED_MAX:
            workspace, _, room_id = (room or "").partition("#")
            user_workspace, _, user_id = (user or "").partition("#")
            self.broken.append(
                Broken(
                    invariant=invariant,
                    detail=detail,
                    workspace=workspace or user_workspace,
                    room_id=room_id or None,
                    user_id=user_id or None,
                    seq=seq,
                )
            )

    def _found_in_log(self, invariant: str, detail: str, room: RoomRow, seq: int) -> None:
        self._found(invariant, detail, room=room.key, seq=seq)
        self._unsound_rooms.add(room.key)

    def _note_room(self, room: str) -> None:
        if len(self._rooms_to_mend) < MENDS_MAX:
            self._rooms_to_mend.add(room)

    def _note_row(self, user: str, room_id: str | None) -> None:
        if room_id is not None:
            workspace = user.partition("#")[0]
            if room_key(workspace, room_id) in self._unsound_rooms:
                return
        if len(self._rows_to_mend) < MENDS_MAX:
            rooms = self._rows_to_mend[user]
            if room_id is not None:
                rooms.add(room_id)


async def _next(page: Page) -> Position | None:
    """Where the next page starts; lets other tasks run, since a page may have been read at once."""
    await asyncio.sleep(0)
    return page.after
