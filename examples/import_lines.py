"""Bring a history into a room: JSON lines such as {"user": "ada", "text": "Hello"}.

    python examples/import_lines.py http://127.0.0.1:8080 tk_… room_… history.jsonl

Running it again adds nothing: a line's `client_id` is made from its place in the file. Users and
their memberships have to exist.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tidings.client import Client, Problem


async def main(url: str, key: str, room_id: str, path: str) -> None:
    """Post every line as its user, in order."""
    file = Path(path)
    text = await asyncio.to_thread(file.read_text)
    async with Client(url, key) as server:
        for number, line in enumerate(text.splitlines(), 1):
            message = json.loads(line)
            try:
                entry = await server.post_message(
                    room_id,
                    message["text"],
                    as_user=message["user"],
                    client_id=f"{file.stem}-{number}",
                )
            except Problem as problem:
                print(f"line {number}: {problem}")
            else:
                print(f"line {number} is entry {entry.seq}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
