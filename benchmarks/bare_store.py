"""What the embedded store alone does with the writes of one-to-one messages."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from tidings.storage.interface import Absent, Equals, Put, Store, Update, Write
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS

ROOMS_OPEN = 100
"""Rooms that send at the same time, each with one commit in flight."""
TEXT = "good morning, has the parcel of yesterday been sent already?"


class Pair(msgspec.Struct):
    """A one-to-one room: the first user sends, the second receives."""

    room: str
    room_id: str
    users: tuple[str, str]
    head: int = 0
    version: int = 0

    @classmethod
    def numbered(cls, number: int) -> Pair:
        """The pair of that number; the random part of its ids comes first, as a hash's would."""
        name = f"{number * 2654435761 % 2**32:08x}{number:018}"
        return cls(f"acme#room_{name}", f"room_{name}", (f"acme#usr_a{name}", f"acme#usr_b{name}"))

    def founding(self) -> tuple[Write, ...]:
        """The writes that make the room."""
        return (
            Put(ROOMS, {"room": self.room, "kind": "direct", "head": 0, "epoch": 0}),
            *(
                Put(
                    INBOXES,
                    {"user": user, "room_id": self.room_id, "kind": "direct", "unread": 0}
                    | {"mentions": 0, "read_seq": 0, "counted_seq": 0, "feed": 0},
                )
                for user in self.users
            ),
            *(Put(BADGES, {"user": user, "unread": 0, "version": 0}) for user in self.users),
        )

    def messages(self, count: int) -> tuple[Write, ...]:
        """The write set of the next messages, folded into one commit."""
        head, version, now = self.head, self.version, 1_767_225_600_000 + self.head
        self.head, self.version = head + count, version + 1
        writes: list[Write] = []
        for seq in range(head + 1, self.head + 1):
            client_id = f"c{seq:025}"
            entry: dict[str, object] = {
                "room": self.room,
                "seq": seq,
                "id": f"ent_{seq:026}",
                "type": "text",
            }
            entry |= {"sender_id": self.users[0][5:], "client_id": client_id, "text": TEXT}
            receipt: dict[str, object] = {
                "room": self.room,
                "receipt": f"{self.users[0][5:]}#{client_id}",
            }
            receipt |= {"seq": seq, "body_hash": "0" * 32, "expires_at": now // 1000 + 2_592_000}
            writes.append(Put(ENTRIES, entry | {"created_at": now}, (Absent(),)))
            writes.append(Put(RECEIPTS, receipt, (Absent(),)))
        seen = (Equals("head", head), Equals("epoch", 0))
        writes.append(Update(ROOMS, (self.room,), {"head": self.head}, when=seen))
        for user, unread in zip(self.users, (0, self.head), strict=True):
            row: dict[str, object] = {
                "feed": self.version,
                "counted_seq": self.head,
                "preview": TEXT,
            }
            row |= {"preview_seq": self.head, "active_at": now, "marks": f"{now}:{head}"}
            row |= {"unread": unread, "unread_feed": self.version if unread else None}
            total = {"version": self.version, "unread": unread}
            writes.append(Update(INBOXES, (user, self.room_id), row))
            writes.append(Update(BADGES, (user,), total, when=(Equals("version", version),)))
        return tuple(writes)


async def messages_per_s(store: Store, *, rounds: int, folded: int) -> float:
    """Messages per second with `ROOMS_OPEN` write sets waiting at once, `folded` in each."""
    pairs = [Pair.numbered(number) for number in range(ROOMS_OPEN)]
    for pair in pairs:
        await store.write(*pair.founding())
    spent_s = 0.0
    for _ in range(rounds):
        sets = [pair.messages(folded) for pair in pairs]
        started = time.perf_counter()
        await asyncio.gather(*[store.write(*writes) for writes in sets])
        spent_s += time.perf_counter() - started
    return rounds * ROOMS_OPEN * folded / spent_s


async def bare_store(*, rounds: int = 100, folded: int = 1) -> float:
    """`messages_per_s` of a new embedded store."""
    with tempfile.TemporaryDirectory() as folder:
        async with SqliteStore.open(Path(folder) / "bare.db") as store:
            return await messages_per_s(store, rounds=rounds, folded=folded)


if __name__ == "__main__":
    for messages in (1, 8):
        speed = asyncio.run(bare_store(folded=messages))
        print(f"{messages} in a commit: {speed:,.0f} messages/s")
