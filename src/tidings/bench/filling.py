"""Large stores in little time: rows as the service itself would have left them, put in bulk.

`tidings audit` passes on what is filled here. All data is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import msgspec

from tidings.chat import marks as marking
from tidings.chat.rows import (
    Participation,
    RoomRow,
    participation_to_item,
    room_to_item,
)
from tidings.clock import system_clock
from tidings.people.rows import UserRow, user_to_item
from tidings.storage.interface import Item
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    USERS,
    WORKSPACES,
    room_key,
    user_key,
)

ENTRIES_PER_ROOM = 500
RECEIPT_LIFE_S = 30 * 24 * 3600
_WORDS = (
    "the parcel left our house this morning and should reach you on friday before noon",
    "thank you, that was quick, I will look out for it and write if anything is missing",
    "could you send me the invoice again, with the new address of our office on it",
    "of course, you find it in your account under orders, and a copy is on its way",
)


class Pair(msgspec.Struct, frozen=True):
    """A one-to-one room of a filled store."""

    room_id: str
    user_ids: tuple[str, str]


class Life(msgspec.Struct):
    """How far a user's numbers have come."""

    version: int = 0


class Filling:
    """Fills one store: first `pairs` and `crowd`, as often as wanted, then `finish`."""

    def __init__(self, store: SqliteStore, workspace: str) -> None:
        self._store = store
        self._workspace = workspace
        self._now_ms = system_clock()
        self._lives: dict[str, Life] = {}

    @classmethod
    async def of(cls, store: SqliteStore) -> Filling:
        """For the store's only workspace."""
        page = await store.scan(WORKSPACES)
        return cls(store, page.items[0]["workspace"])

    async def pairs(
        self,
        prefix: str,
        entries: int,
        *,
        users: int,
        entries_per_room: int = ENTRIES_PER_ROOM,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Pair]:
        """One-to-one rooms with so many entries in all, everything read; between `users` users."""
        rooms = max(1, entries // entries_per_room)
        distance_max = users - 1
        if rooms > users * distance_max // 2:
            raise ValueError("too many rooms for so few users")
        pairs = []
        for number in range(rooms):
            first, distance = number % users, 1 + number // users
            names = (f"{prefix}-u{first}", f"{prefix}-u{(first + distance) % users}")
            pairs.append(Pair(f"{prefix}-r{number}", names))
        per_room = entries // rooms
        await self._store.put_many(
            ENTRIES, _told(chain.from_iterable(self._log(p, per_room) for p in pairs), progress)
        )
        await self._rooms(pairs, per_room)
        return pairs

    async def crowd(self, user_id: str, rooms: int) -> list[Pair]:
        """A user with so many one-to-one rooms, one entry in each."""
        pairs = [Pair(f"{user_id}-r{n}", (user_id, f"{user_id}-p{n}")) for n in range(rooms)]
        await self._store.put_many(
            ENTRIES, chain.from_iterable(self._log(pair, 1) for pair in pairs)
        )
        await self._rooms(pairs, 1)
        return pairs

    async def finish(self) -> None:
        """Store the users with their totals."""
        await self._store.put_many(USERS, (self._user(user_id) for user_id in self._lives))
        await self._store.put_many(
            BADGES,
            (
                {
                    "user": user_key(self._workspace, user_id),
                    "unread": 0,
                    "mentions": 0,
                    "version": life.version,
                    "read_version": life.version,
                }
                for user_id, life in self._lives.items()
            ),
        )

    async def _rooms(self, pairs: list[Pair], entries: int) -> None:
        await self._store.put_many(
            RECEIPTS, chain.from_iterable(self._receipts(pair, entries) for pair in pairs)
        )
        rows = [(pair, self._row(pair, entries)) for pair in pairs]
        await self._store.put_many(ROOMS, (room_to_item(row) for _, row in rows))
        await self._store.put_many(
            MEMBERS,
            (
                {"room": row.key, "user_id": user_id, "role": "member", "joined_seq": 0}
                for pair, row in rows
                for user_id in pair.user_ids
            ),
        )
        await self._store.put_many(
            INBOXES,
            (
                participation_to_item(
                    self._participation(pair, side, entries), self._workspace, user_id
                )
                for pair in pairs
                for side, user_id in enumerate(pair.user_ids)
            ),
        )

    def _user(self, user_id: str) -> Item:
        return user_to_item(
            UserRow(
                self._workspace,
                user_id,
                f"Person {user_id}",
                "manager",
                created_at=self._now_ms,
                updated_at=self._now_ms,
            )
        )

    def _row(self, pair: Pair, entries: int) -> RoomRow:
        return RoomRow(
            self._workspace,
            pair.room_id,
            "direct",
            self._now_ms,
            created_by=pair.user_ids[0],
            head=entries,
            epoch=1,
            member_count=2,
        )

    def _participation(self, pair: Pair, side: int, entries: int) -> Participation:
        """The user was founded into the room, got each entry in a commit, and read them all."""
        life = self._lives.setdefault(pair.user_ids[side], Life())
        founded = life.version + 1
        feed = founded + entries
        life.version = feed + 1
        return Participation(
            room_id=pair.room_id,
            kind="direct",
            peer_id=pair.user_ids[1 - side],
            read_seq=entries,
            counted_seq=entries,
            preview=_WORDS[entries % len(_WORDS)],
            preview_seq=entries,
            active_at=self._now_ms,
            feed=feed,
            marks=marking.append(marking.append("", founded, 0), feed, entries),
        )

    def _log(self, pair: Pair, entries: int) -> Iterator[Item]:
        room = room_key(self._workspace, pair.room_id)
        for seq in range(1, entries + 1):
            yield {
                "room": room,
                "seq": seq,
                "id": f"ent_{pair.room_id}.{seq}",
                "type": "text",
                "sender_id": pair.user_ids[seq % 2],
                "client_id": f"filled-{seq:08d}",
                "text": _WORDS[seq % len(_WORDS)],
                "created_at": self._now_ms - (entries - seq) * 1000,
            }

    def _receipts(self, pair: Pair, entries: int) -> Iterator[Item]:
        room = room_key(self._workspace, pair.room_id)
        expires_at = self._now_ms // 1000 + RECEIPT_LIFE_S
        for seq in range(1, entries + 1):
            yield {
                "room": room,
                "receipt": f"{pair.user_ids[seq % 2]}#filled-{seq:08d}",
                "seq": seq,
                "body_hash": "0" * 32,
                "expires_at": expires_at,
            }


def _told(items: Iterable[Item], progress: Callable[[int], None]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % 10_000 == 0:
            progress(number)
        yield item


async def filled(
    path: Path,
    *,
    entries: int,
    users: int,
    crowds: dict[str, int] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Pair]:
    """Fill the store, which has a workspace already; the one-to-one rooms of `entries`."""
    async with SqliteStore.open(path) as store:
        filling = await Filling.of(store)
        pairs = await filling.pairs("fill", entries, users=users, progress=progress)
        for user_id, rooms in (crowds or {}).items():
            await filling.crowd(user_id, rooms)
        await filling.finish()
    return pairs
