"""A room with its log and its members as they were at one head, from a store that goes on changing.

Whatever changes a room moves its head or its epoch: posts, edits, reactions and deletions append an
entry, joins and leaves do both, an erasure and a founding raise the epoch alone. So a room that was
read whole is exact at the head it had before, unless an entry that came meanwhile names an older
one, or somebody came or left; then that is read again, until nothing of the kind came meanwhile.
Plain posts never delay it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from tidings.chat.proofs import named_seq
from tidings.chat.rows import RoomRow, room_from_item
from tidings.errors import Unavailable
from tidings.importing.exported import ENTRY, RECEIPT, encode
from tidings.importing.scratch import Scratch
from tidings.storage.interface import PAGE_ITEMS_MAX, Item, Position, Store, Table
from tidings.storage.tables import ENTRIES, FANOUTS, MEMBERS, RECEIPTS, ROOMS

CUTS_MAX = 50
"""Times that a room is read from its start, since somebody was erased from it meanwhile."""
ROUNDS_MAX = 1_000
"""Rounds of one such time, each as long as it takes to read what came in the one before."""
CUT_PAUSE_S = 0.2
_MOVING_TYPES = frozenset({"joined", "left"})
_NAMING_TYPES = frozenset({"edited", "deleted", "reaction"})


class Cut(msgspec.Struct, frozen=True):
    """A room at one head; its entries and receipts are in the scratch."""

    item: Item
    room: RoomRow
    members: dict[str, Item]
    """By user id, in its order."""
    fanout: Item | None
    """While the room is being made."""


async def cut_room(store: Store, key: str, scratch: Scratch) -> Cut | None:
    """The room as it was at one moment since the call; None where there is none any more.

    Over a snapshot the first look is the last. Raises Unavailable for one that does not hold still.
    """
    for _ in range(CUTS_MAX):
        scratch.drop_lines()
        cutting = _Cutting(store, key, scratch)
        try:
            return await cutting.run()
        except _Restarted:
            await asyncio.sleep(CUT_PAUSE_S)
    raise Unavailable(f"The room {key.partition('#')[2]} is changing too fast to be exported.")


class _Restarted(Exception):
    """What was read is of no use any more."""


class _Cutting:
    def __init__(self, store: Store, key: str, scratch: Scratch) -> None:
        self._store = store
        self._key = key
        self._scratch = scratch
        self._named: set[int] = set()
        """Entries that were changed after they were read."""
        self._moved = 0
        """Entries of the last round that tell of a change of membership."""

    async def run(self) -> Cut | None:
        before = await self._store.get(ROOMS, (self._key,))
        if before is None:
            return None
        await self._read_log(0, before["head"])
        members, fanout = await self._members(), await self._fanout()
        for _ in range(ROUNDS_MAX):
            now = await self._store.get(ROOMS, (self._key,))
            if now is None:
                return None
            await self._read_log(before["head"], now["head"])
            if now["epoch"] != before["epoch"] + self._moved:
                raise _Restarted
            if not self._named and not self._moved:
                self._scratch.drop_lines(after=before["head"])
                await self._read_receipts(before["head"])
                await self._require_epoch(now)
                return Cut(before, room_from_item(before), members, fanout)
            await self._read_again()
            if self._moved:
                members = await self._members()
            before, fanout = now, await self._fanout()
        raise _Restarted

    async def _read_log(self, after: int, head: int) -> None:
        """Take in the entries (after, head], and note what they say of those before."""
        self._named.clear()
        self._moved = 0
        if head <= after:
            return
        async for entries in pages(self._store, ENTRIES, self._key, low=after + 1, high=head):
            for entry in entries:
                self._put(entry)
                if after and entry["type"] in _MOVING_TYPES:
                    self._moved += 1
                if after and entry["type"] in _NAMING_TYPES:
                    seq = named_seq(entry)
                    if seq is not None and 1 <= seq <= after:
                        self._named.add(seq)

    async def _read_again(self) -> None:
        seqs = sorted(self._named)
        for start in range(0, len(seqs), PAGE_ITEMS_MAX):
            keys = [(self._key, seq) for seq in seqs[start : start + PAGE_ITEMS_MAX]]
            for entry in await self._store.get_many(ENTRIES, keys):
                if entry is not None:
                    self._put(entry)

    def _put(self, entry: Item) -> None:
        self._scratch.put_line(entry["seq"], encode(ENTRY.to_line(entry)))

    async def _read_receipts(self, head: int) -> None:
        async for receipts in pages(self._store, RECEIPTS, self._key):
            for receipt in receipts:
                if receipt["seq"] <= head:
                    self._scratch.add_receipt(encode(RECEIPT.to_line(receipt)))

    async def _require_epoch(self, seen: Item) -> None:
        """Raises _Restarted where somebody was erased since: their receipts may be gone."""
        now = await self._store.get(ROOMS, (self._key,))
        if now is None or now["epoch"] == seen["epoch"]:
            return
        moved = 0
        low, high = seen["head"] + 1, now["head"]
        async for entries in pages(self._store, ENTRIES, self._key, low=low, high=high):
            moved += sum(entry["type"] in _MOVING_TYPES for entry in entries)
        if now["epoch"] != seen["epoch"] + moved:
            raise _Restarted

    async def _members(self) -> dict[str, Item]:
        found: dict[str, Item] = {}
        async for members in pages(self._store, MEMBERS, self._key):
            found |= {member["user_id"]: member for member in members}
        return found

    async def _fanout(self) -> Item | None:
        item = await self._store.get(FANOUTS, (self._key,))
        return item if item is not None and item.get("founding") else None


async def pages(
    store: Store, table: Table, partition: str, *, low: int | None = None, high: int | None = None
) -> AsyncIterator[list[Item]]:
    """All items of one partition within bounds, ascending, page by page."""
    after: Position | None = None
    while True:
        page = await store.query(table, partition, low=low, high=high, after=after)
        yield page.items
        after = page.after
        await asyncio.sleep(0)  # a page may have been read at once
        if after is None:
            return
