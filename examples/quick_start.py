"""Two people, one room, one message: the whole way through the API in a page.

    python examples/quick_start.py http://127.0.0.1:8080 tk_…

The key is what `tidings keys create` prints.
"""

from __future__ import annotations

import asyncio
import sys

from tidings.client import Client


async def main(url: str, key: str) -> None:
    """Make two users and a room, send a message, and see it arrive, counted and read."""
    async with Client(url, key) as server:
        await server.create_user("Ada Palmer", "manager", user_id="ada")
        await server.create_user("Bo Lind", "customer", user_id="bo")
        room = await server.create_room("direct", members=["ada", "bo"])
        ada_session = await server.create_session("ada")
        bo_session = await server.create_session("bo")
        async with (
            server.as_session(ada_session.token).live() as ada,
            server.as_session(bo_session.token).live() as bo,
        ):
            arriving = bo.entries(room.id)
            await ada.send(room.id, "Good morning! Your bicycle is ready.")
            entry = await anext(arriving)
            print(f"{entry.sender_id} says: {entry.text}")
            print(f"unread: {bo.total.unread}")
            reply = await bo.read(room.id, entry.seq)
            print(f"unread after reading: {reply.total.unread}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
