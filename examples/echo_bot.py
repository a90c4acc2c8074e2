"""A bot that repeats what it is told, exactly once, however often it or the service restarts.

    python examples/echo_bot.py http://127.0.0.1:8080 ts_…

The token is that of a session of the bot's user. What was said while the bot was away is waiting
in the session's queue; an answer's `client_id` is made from the message's id, so answering the
same message again does nothing.
"""

from __future__ import annotations

import asyncio
import sys

from tidings.client import Client


async def main(url: str, token: str) -> None:
    """Answer until stopped."""
    async with Client(url, token) as client:
        me = await client.me()
        device = client.live()
        entries = device.entries()
        async with device:
            async for entry in entries:
                if entry.type == "text" and entry.sender_id != me.id:
                    await device.send(entry.room_id, entry.text, client_id=f"echo-{entry.id}")
                    await device.read(entry.room_id, entry.seq)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:3]))
    except KeyboardInterrupt:
        print("bye")
