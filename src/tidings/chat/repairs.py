"""Repairs: derived state made anew from log and membership, safely beside a running service.

Each repair is one conditional write. It raises the user's version, so that devices learn of it
and a plan that saw the state before is refused; a repair that lost such a race pauses, reads
again, and at last gives way to rooms that never rest: what it was to mend stays broken for now.
Nothing is invented: a row that was lost begins at the moment of joining, with all since unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import msgspec

from tidings import wire
from tidings.chat import marks as marking
from tidings.chat.proofs import (
    contribution_of,
    is_counted,
    listing_keys,
    marks_wrong,
    room_from_row,
)
from tidings.chat.rows import WAKING, RoomRow, badge_from_item
from tidings.cluster.schedule import plan_due, schedule_key
from tidings.storage.interface import (
    Absent,
    Check,
    ConditionFailed,
    Equals,
    Exists,
    Item,
    Position,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    ROOMS,
    SCHEDULE,
    room_key,
)

ATTEMPTS_MAX = 12
"""Times that a repair reads and writes before it gives way."""
PAUSE_S_MAX = 0.2
"""The longest pause between two attempts; the first is of 1 ms, and each twice the last."""
ROWS_AT_ONCE_MAX = 50
"""Rows of one user in one write."""


async def mend_room(store: Store, room: str) -> int:
    """Make a room's member_count, flag, listing keys and waking right; returns 1 if it changed.

    A flag without a fan-out gets one, so that the members' rows are brought to the head. The
    epoch grows, so that nobody goes on with what they remember of the room.
    """
    return min(1, await _attempt(store, partial(_room_writes, store, room)))


async def _attempt(store: Store, plan: Callable[[], Awaitable[list[Write]]]) -> int:
    """Plan and write until it holds; returns the number of writes, 0 if none or given way."""
    pause_s = 0.001
    for attempt in range(ATTEMPTS_MAX):
        if attempt:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
        writes = await plan()
        if not writes:
            break
        try:
            await store.write(*writes)
        except ConditionFailed:
            continue
        return len(writes)
    return 0


async def _room_writes(store: Store, key: str) -> list[Write]:
    item = await store.get(ROOMS, (key,))
    room = None if item is None else room_from_row(item)
    if item is None or room is None or isinstance(room, str):
        return []
    has_fanout = await store.get(FANOUTS, (key,)) is not None
    wanted: dict[str, Any] = {
        **listing_keys(room),
        "member_count": await _members(store, key),
        "is_fanning": True if has_fanout or room.is_fanning else None,
    }
    changes = _differences(item, wanted)
    writes: list[Write] = []
    if room.wakes_at is not None:
        key_due = schedule_key(WAKING, key, room.wakes_at)
        if await store.get(SCHEDULE, key_due) is None:
            writes.append(plan_due(WAKING, key, room.wakes_at, room.head))
    if room.is_fanning and not has_fanout:
        writes.append(Put(FANOUTS, {"room": key}, (Absent(),)))
    elif changes:
        writes.append(Check(FANOUTS, (key,), (Exists() if has_fanout else Absent(),)))
    if writes:
        unchanged = (Equals("head", room.head), Equals("epoch", room.epoch))
        writes.append(Update(ROOMS, (key,), {**changes, "epoch": room.epoch + 1}, when=unchanged))
    return writes


async def _members(store: Store, room: str) -> int:
    count = 0
    after: Position | None = None
    while True:
        page = await store.query(MEMBERS, room, after=after)
        count += len(page.items)
        after = page.after
        if after is None:
            return count


def _differences(item: Item, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if item.get(name) != value}


async def mend_user(store: Store, user: str, room_ids: Collection[str]) -> int:
    """Make a user's rows of these rooms right, and their totals; returns what was changed.

    What counts as one is a row, or the totals where they alone were wrong.
    """
    mended = 0
    ordered = sorted(room_ids)
    for start in range(0, max(1, len(ordered)), ROWS_AT_ONCE_MAX):
        some = ordered[start : start + ROWS_AT_ONCE_MAX]
        writes = await _attempt(store, partial(_user_writes, store, user, some))
        mended += max(writes - 1, min(1, writes))
    return mended


async def _user_writes(store: Store, user: str, room_ids: list[str]) -> list[Write]:
    badge = await store.get(BADGES, (user,))
    unread, mentions, feed = await _others(store, user, room_ids)
    reached = max(badge_from_item(badge).version, feed)
    rows = [await _row_facts(store, user, room_id) for room_id in room_ids]
    return plan_user(user, badge, reached, (unread, mentions), rows)


async def _others(store: Store, user: str, room_ids: list[str]) -> tuple[int, int, int]:
    """Sums of unread and mentions over the user's other rows, and the greatest feed of all."""
    unread = mentions = feed = 0
    after: Position | None = None
    while True:
        page = await store.query(INBOXES, user, after=after)
        for item in page.items:
            feed = max(feed, item.get("feed") or 0)
            contribution = contribution_of(item)
            if contribution and item["room_id"] not in room_ids:
                unread += contribution[0]
                mentions += contribution[1]
        after = page.after
        if after is None:
            return unread, mentions, feed


class RowToMend(msgspec.Struct, frozen=True):
    """An inbox row as it is stored (or not), and what log and membership say of it."""

    room_id: str
    item: Item | None
    room: RoomRow | None
    """None where the room is not there or makes no sense; the row is then left alone."""
    is_member: bool = False
    peer_id: str | None = None
    joined_seq: int = 0
    read_seq: int = 0
    counted_seq: int = 0
    unread: int = 0
    mentions: int = 0


async def _row_facts(store: Store, user: str, room_id: str) -> RowToMend:
    workspace, _, user_id = user.partition("#")
    key = room_key(workspace, room_id)
    item = await store.get(INBOXES, (user, room_id))
    room_item = await store.get(ROOMS, (key,))
    room = None if room_item is None else room_from_row(room_item)
    if room is None or isinstance(room, str):
        return RowToMend(room_id, item, None)
    member = await store.get(MEMBERS, (key, user_id))
    stored = item or {}
    joined_seq = (stored if member is None else member).get("joined_seq") or 0
    joined_seq = min(joined_seq, room.head)
    counted_seq = min(max(stored.get("counted_seq") or 0, joined_seq), room.head)
    if member is not None and not room.is_fanning:
        counted_seq = room.head
    read_seq = min(max(stored.get("read_seq") or 0, joined_seq), counted_seq)
    unread = mentions = 0
    if member is not None:
        unread, mentions = await _fold(store, key, user_id, read_seq, counted_seq)
    return RowToMend(
        room_id=room_id,
        item=item,
        room=room,
        is_member=member is not None,
        peer_id=await _peer(store, key, user_id) if room.kind == "direct" else None,
        joined_seq=joined_seq,
        read_seq=read_seq,
        counted_seq=counted_seq,
        unread=unread,
        mentions=mentions,
    )


async def _fold(
    store: Store, room: str, user_id: str, read_seq: int, counted_seq: int
) -> tuple[int, int]:
    """Unread and mentions of a user who read up to `read_seq`, as of `counted_seq`."""
    unread = mentions = 0
    if read_seq == counted_seq:
        return 0, 0
    after: Position | None = None
    while True:
        page = await store.query(ENTRIES, room, low=read_seq + 1, high=counted_seq, after=after)
        for entry in page.items:
            if is_counted(entry, user_id, counted_seq):
                unread += 1
                mentions += user_id in (entry.get("mentions") or ())
        after = page.after
        if after is None:
            return unread, mentions


async def _peer(store: Store, room: str, user_id: str) -> str | None:
    page = await store.query(MEMBERS, room, limit=2)
    peers = [item["user_id"] for item in page.items if item["user_id"] != user_id]
    return peers[0] if peers else None


def plan_user(
    user: str,
    badge: Item | None,
    reached: int,
    others: tuple[int, int],
    rows: list[RowToMend],
) -> list[Write]:
    """The writes that make rows and totals right, the badge's last; none where all is well.

    `reached` is the greatest version that any of the user's rows speaks of, `others` the sums of
    unread and mentions over the rows that are not in `rows`.
    """
    writes: list[Write] = []
    unread, mentions = others
    totals = badge_from_item(badge)
    version = max(reached, totals.read_version, 0) + 1
    for row in rows:
        wanted = _wanted(row, reached, version)
        write = _row_write(user, row, wanted)
        if write is not None:
            writes.append(write)
        contribution = contribution_of(wanted)
        if contribution:
            unread += contribution[0]
            mentions += contribution[1]
    is_right = (
        badge is not None
        and (totals.unread, totals.mentions) == (unread, mentions)
        and totals.version == version - 1
    )
    if is_right and not writes:
        return []
    if badge is None and not reached and not writes:
        return []
    content = {"unread": unread, "mentions": mentions, "version": version, "read_version": version}
    if badge is None:
        writes.append(Put(BADGES, {"user": user, **content}, (Absent(),)))
    else:
        seen = (Equals("version", totals.version),)
        writes.append(Update(BADGES, (user,), content, when=seen))
    return writes


def _wanted(row: RowToMend, reached: int, version: int) -> Item:
    """The fields that a row should have; those of a room that is not there stay as they are."""
    stored = row.item or {}
    if row.room is None or (row.item is None and not row.is_member):
        return stored
    marks = stored.get("marks") or ""
    if marks_wrong(marks, reached, row.counted_seq):
        marks = ""
    feed = stored.get("feed") or 0
    is_news = (
        row.item is None
        or feed < 1
        or row.counted_seq != stored.get("counted_seq")
        or row.is_member == bool(stored.get("is_left"))
    )
    if is_news or not marks:
        marks = marking.append(marks, version, row.counted_seq)
    if is_news:
        feed = version
    unread_feed = stored.get("unread_feed")
    if unread_feed is None or not 1 <= unread_feed <= feed:
        unread_feed = feed
    preview_seq = min(stored.get("preview_seq") or 0, row.counted_seq)
    return {
        "kind": row.room.kind,
        "peer_id": stored.get("peer_id") or row.peer_id,
        "unread": row.unread,
        "mentions": row.mentions,
        "read_seq": row.read_seq,
        "counted_seq": row.counted_seq,
        "joined_seq": row.joined_seq,
        "is_muted": stored.get("is_muted"),
        "hidden_seq": stored.get("hidden_seq"),
        "is_left": None if row.is_member else True,
        "preview": (stored.get("preview") or "")[: wire.PREVIEW_CHARACTERS_MAX] or None,
        "preview_seq": preview_seq or None,
        "active_at": max(stored.get("active_at") or 0, row.room.created_at),
        "feed": feed,
        "unread_feed": unread_feed if row.unread else None,
        "marks": marks,
    }


def _row_write(user: str, row: RowToMend, wanted: Item) -> Write | None:
    if not wanted:
        return None
    if row.item is None:
        return Put(INBOXES, {"user": user, "room_id": row.room_id, **wanted}, (Absent(),))
    changes = _differences(row.item, wanted)
    if not changes:
        return None
    seen = tuple(Equals(name, row.item.get(name)) for name in ("counted_seq", "read_seq"))
    return Update(INBOXES, (user, row.room_id), changes, when=seen)
