"""Explains a badge: which entries stand behind the number, and whether the log agrees with it."""

from __future__ import annotations

import msgspec

from tidings import wire
from tidings.chat.audit import consistent
from tidings.chat.proofs import contribution_of, is_counted
from tidings.chat.rows import badge_from_item, participation_from_item, room_from_item
from tidings.clock import rfc3339
from tidings.errors import NotFound
from tidings.storage.interface import Item, Position, Store
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, ROOMS, room_key, user_key

ENTRIES_LISTED_MAX = 1_000
"""Entries in each list of an explanation, the oldest first; more are counted."""
TEXT_CHARACTERS_MAX = 80


class Behind(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry that counts in a badge, or did until it was deleted."""

    seq: int
    sender_id: str | None
    created_at: wire.Timestamp
    type: wire.EntryType
    text: str
    """The first TEXT_CHARACTERS_MAX characters; a deleted entry has none."""
    is_mention: bool = False
    deleted_seq: int | None = None


class Explanation(msgspec.Struct, frozen=True):
    """A user's badge of one room: what is stored, and what the log says of the same moment."""

    workspace: str
    user_id: str
    room_id: str
    head: int
    read_seq: int
    counted_seq: int
    """The counts stand for the log up to here: the head, or where a fan-out has come to."""
    unread: int
    """As stored; so are the mentions."""
    mentions: int
    entries: list[Behind]
    """What is unread, ascending, at most ENTRIES_LISTED_MAX."""
    deleted: list[Behind]
    """What would be unread had it not been deleted, ascending, at most ENTRIES_LISTED_MAX."""
    counted_unread: int
    """By the log; so are the mentions."""
    counted_mentions: int
    deleted_count: int
    is_agreeing: bool
    """Whether what is stored is what the log says."""
    is_muted: bool
    is_left: bool
    contribution: wire.Total
    """What this room adds to the user's total; its version is the user's."""
    total: wire.Total


async def explain(store: Store, workspace: str, user_id: str, room_id: str) -> Explanation:
    """List the entries behind a user's badge of a room, from one snapshot where there is one.

    For operators: it asks nobody whether they may see it. Raises NotFound where the user never
    was in the room.
    """
    user, room = user_key(workspace, user_id), room_key(workspace, room_id)
    async with consistent(store) as view:
        badge = badge_from_item(await view.get(BADGES, (user,)))
        room_item = await view.get(ROOMS, (room,))
        row_item = await view.get(INBOXES, (user, room_id))
        if room_item is None or row_item is None:
            raise NotFound(f"{user_id} never was in room {room_id}")
        row = participation_from_item(row_item)
        found = _Found(user_id, row.counted_seq)
        if not row.is_left and row.read_seq < row.counted_seq:
            await found.read(view, room, row.read_seq)
    unread, mentions = contribution_of(row_item) or (0, 0)
    return Explanation(
        workspace=workspace,
        user_id=user_id,
        room_id=room_id,
        head=room_from_item(room_item).head,
        read_seq=row.read_seq,
        counted_seq=row.counted_seq,
        unread=row.unread,
        mentions=row.mentions,
        entries=found.entries,
        deleted=found.deleted,
        counted_unread=found.unread,
        counted_mentions=found.mentions,
        deleted_count=found.deleted_count,
        is_agreeing=(row.unread, row.mentions) == (found.unread, found.mentions),
        is_muted=row.is_muted,
        is_left=row.is_left,
        contribution=wire.Total(unread, mentions, badge.version),
        total=wire.Total(badge.unread, badge.mentions, badge.version),
    )


class _Found:
    """The entries behind the badge, as they are come upon."""

    def __init__(self, user_id: str, counted_seq: int) -> None:
        self._user_id = user_id
        self._counted_seq = counted_seq
        self.entries: list[Behind] = []
        self.deleted: list[Behind] = []
        self.unread = 0
        self.mentions = 0
        self.deleted_count = 0

    async def read(self, view: Store, room: str, read_seq: int) -> None:
        """Go through the log after the read mark."""
        after: Position | None = None
        while True:
            page = await view.query(
                ENTRIES, room, low=read_seq + 1, high=self._counted_seq, after=after
            )
            for item in page.items:
                self._take(item)
            after = page.after
            if after is None:
                break

    def _take(self, item: Item) -> None:
        is_mention = self._user_id in (item.get("mentions") or ())
        if is_counted(item, self._user_id, self._counted_seq):
            self.unread += 1
            self.mentions += is_mention
            if len(self.entries) < ENTRIES_LISTED_MAX:
                self.entries.append(_behind(item, is_mention))
        elif is_counted({**item, "deleted_seq": None}, self._user_id, self._counted_seq):
            self.deleted_count += 1
            if len(self.deleted) < ENTRIES_LISTED_MAX:
                self.deleted.append(_behind(item, is_mention))


def _behind(item: Item, is_mention: bool) -> Behind:
    return Behind(
        seq=item["seq"],
        sender_id=item.get("sender_id"),
        created_at=rfc3339(item["created_at"]),
        type=item["type"],
        text=(item.get("text") or "")[:TEXT_CHARACTERS_MAX],
        is_mention=is_mention,
        deleted_seq=item.get("deleted_seq"),
    )
