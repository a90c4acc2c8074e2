"""What imports note of themselves, carried over in the moment of a switch.

Such notes stand in the table of a move's own books, which no capture sees and no copy carries: how
far an import is, and that one broke off. With them it goes on in the other store.
"""

from __future__ import annotations

from tidings.errors import Unavailable
from tidings.storage.interface import (
    SET_ITEMS_MAX,
    Check,
    ConditionFailed,
    Delete,
    Item,
    Key,
    LessThan,
    Put,
    Store,
    Write,
)
from tidings.storage.moves import RECORD, Move
from tidings.storage.tables import MOVES

IMPORTS = "imports"
"""Begins the partitions of the notes."""


async def carry_notes(source: Store, destination: Store, sealed: Move) -> None:
    """Make the destination's notes those of the source, where writes are held back by that record.

    Raises Unavailable where the record went on meanwhile: another may have switched since.
    """
    noted, stale = await _notes(source), await _notes(destination)
    writes: list[Write] = [
        Put(MOVES, item) for key, item in noted.items() if stale.get(key) != item
    ]
    writes += [Delete(MOVES, key) for key in stale.keys() - noted.keys()]
    is_same = Check(MOVES, RECORD, (LessThan("epoch", sealed.epoch + 1),))
    for at in range(0, len(writes), SET_ITEMS_MAX):
        try:
            await destination.write(is_same, *writes[at : at + SET_ITEMS_MAX])
        except ConditionFailed as failed:
            raise Unavailable("The move went on while it was being switched.") from failed


async def _notes(store: Store) -> dict[Key, Item]:
    found: dict[Key, Item] = {}
    page = await store.scan(MOVES)
    while True:
        for item in page.items:
            if item["part"].partition("/")[0] == IMPORTS:
                found[MOVES.key(item)] = item
        if page.after is None:
            return found
        page = await store.scan(MOVES, after=page.after)
