"""Files that entries link to, as the log sees them: what an entry holds, and who holds a blob.

A blob has a row that says what it is, and one for each entry that links to it, written in the
transaction of that entry. An entry that loses its content keeps the ids of its blobs in
`left_blobs`, and an item of the schedule lets `tidings.blobs` see whether anybody still holds them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from tidings import wire
from tidings.people.callers import Caller
from tidings.storage.interface import Equals, Item, Put, Update, Write
from tidings.storage.tables import BLOBS, blob_key

ABOUT = "about"
"""The place of the row that says what the blob is; it comes before those of the entries."""
HELD = "in#"
"""Begins the places of the entries that link to the blob."""
STORED = "stored"
"""The state of a blob whose bytes are there: only such a one can be attached."""
LEFT_BLOBS = "left_blobs"
"""What the schedule calls an entry that has let go of its blobs; its subject is the entry."""

Stored: TypeAlias = dict[str, Any]
"""What an entry keeps of a blob."""


class Fitness(msgspec.Struct, frozen=True):
    """Which blobs a message may link to: all of them, or those that it may not."""

    blobs: list[Stored] = []
    unfit: tuple[str, ...] = ()


Attachable: TypeAlias = Callable[[Caller, Caller, Sequence[str]], Awaitable[Fitness]]
"""(who calls, who is the author, blob ids): looks up what an entry is to keep of its blobs."""


async def no_blobs(caller: Caller, author: Caller, blob_ids: Sequence[str]) -> Fitness:
    """Where no blobs are stored none can be attached."""
    return Fitness(unfit=tuple(blob_ids))


def place_in(room_id: str, seq: int | None = None) -> str:
    """The place of an entry in a blob's rows; without `seq`, how those of the room begin."""
    return f"{HELD}{room_id}#{'' if seq is None else seq}"


def place_of(place: str) -> tuple[str, int]:
    """(room id, seq) of an entry's place."""
    _, room_id, seq = place.split("#")
    return room_id, int(seq)


def plan_holding(workspace: str, room_id: str, seq: int, blob_id: str) -> Write:
    """The entry holds the blob from now on."""
    item: Item = {"blob": blob_key(workspace, blob_id), "place": place_in(room_id, seq)}
    return Put(BLOBS, item)


def plan_attached(workspace: str, blob_id: str, count: int) -> Write:
    """As many more entries hold the blob: fails where its bytes are not there, or are going.

    `attached` only grows, so that whoever saw that nobody holds the blob can be refused.
    """
    key = (blob_key(workspace, blob_id), ABOUT)
    return Update(BLOBS, key, add={"attached": count}, when=(Equals("state", STORED),))


def left_subject(room_key: str, seq: int) -> str:
    """What the schedule calls an entry."""
    return f"{room_key}#{seq}"


def attachment_to_wire(blob: Stored, room_id: str) -> wire.Attachment:
    """What an entry of the room keeps of a blob, as its readers see it."""
    url = f"/v1/blobs/{blob['blob_id']}?room_id={room_id}"
    return wire.Attachment(
        blob_id=blob["blob_id"],
        name=blob["name"],
        type=blob["type"],
        size=blob["size"],
        url=url,
        width=blob.get("width"),
        height=blob.get("height"),
        thumbnail_url=f"{url}&thumbnail=true" if blob.get("has_thumbnail") else None,
    )
