"""The newest entries of large rooms, as this node appended them: its fan-outs need not read them.

A run of entries is of commits that followed one another with nobody in between, which their
fences prove. Whatever changes an entry moves the room's head or epoch, so a run holds for every
state of the room from before its first entry up to its last, in the same epoch, and for no other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec

from tidings.chat.rows import RoomRow
from tidings.storage.interface import Item, Put, Update, Write
from tidings.storage.tables import ENTRIES

ROOMS_MAX = 100
ENTRIES_OF_ROOM_MAX = 400
"""More than a pass finds new in a busy room; what is older is read."""


class _Run(msgspec.Struct):
    epoch: int
    head: int
    entries: dict[int, Item]
    """Ascending, up to the head without a hole."""


class Appended:
    """Runs by room; of too many the one that grew longest ago is forgotten."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def note(self, before: RoomRow | None, after: RoomRow, writes: Iterable[Write]) -> None:
        """A commit of this node brought the room from one state to the other."""
        run = self._runs.pop(after.key, None)
        own = [write for write in writes if write.table is ENTRIES and _room(write) == after.key]
        if (
            before is None
            or before.epoch != after.epoch
            or any(isinstance(write, Update) for write in own)
        ):
            return
        if run is None or (run.head, run.epoch) != (before.head, before.epoch):
            run = _Run(after.epoch, after.head, {})
        run.head = after.head
        run.entries |= {write.item["seq"]: write.item for write in own if isinstance(write, Put)}
        for seq in list(run.entries)[: max(0, len(run.entries) - ENTRIES_OF_ROOM_MAX)]:
            del run.entries[seq]
        self._runs[after.key] = run
        if len(self._runs) > ROOMS_MAX:
            self._runs.popitem(last=False)

    def entries(self, room: RoomRow) -> Mapping[int, Item]:
        """Entries, by sequence, that are what a reader would have found with that room or later."""
        run = self._runs.get(room.key)
        if run is None or run.epoch != room.epoch:
            return {}
        first = next(iter(run.entries), run.head + 1)
        return run.entries if first - 1 <= room.head <= run.head else {}

    def forget(self, key: str) -> None:
        """The room is at rest."""
        self._runs.pop(key, None)


def _room(write: Write) -> str:
    room: str = write.item["room"] if isinstance(write, Put) else write.key[0]
    return room
