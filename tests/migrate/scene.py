"""Stores with something in them."""

from __future__ import annotations

from tidings.storage.interface import Item, Store
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MEMBERS


async def fill(store: Store, count: int) -> None:
    """So many entries of ten rooms, and a member, an inbox row and a total of each of ten users."""
    entries: list[Item] = [
        {
            "room": f"w#room{number % 10}",
            "seq": number // 10 + 1,
            "id": f"ent_{number:06}",
            "type": "text",
            "sender_id": f"user{number % 10}",
            "client_id": f"c{number}",
            "text": f"message {number} " * 5,
            "created_at": 1_700_000_000_000 + number,
        }
        for number in range(count)
    ]
    await store.put_many(ENTRIES, entries)
    users = [f"user{number}" for number in range(10)]
    await store.put_many(
        MEMBERS,
        [{"room": f"w#room{n}", "user_id": user, "role": "member"} for n, user in enumerate(users)],
    )
    await store.put_many(
        INBOXES,
        [
            {"user": f"w#{user}", "room_id": f"room{n}", "kind": "group", "feed": 1, "unread": n}
            for n, user in enumerate(users)
        ],
    )
    await store.put_many(
        BADGES, [{"user": f"w#{user}", "unread": 1, "version": 1} for user in users]
    )
