"""An application that keeps conversation lists in Redis, and goes over to Tidings while it runs.

    python examples/conversation_lists.py REDIS_URL MAPPING.toml TIDINGS_URL API_KEY

People write to each other, read, mute and remove conversations, without a pause. Which store
decides is said by `tidings lists stage`; the application does not know and is not restarted. On
SIGTERM or SIGINT it ends and prints what it did, how long the slowest change took, and whether
every list is as it should be, which it knows since it kept count.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path

from tidings.client import Client
from tidings.conversations import (
    Away,
    Conversations,
    Message,
    MovingConversations,
    RedisConversations,
    TidingsConversations,
    open_redis,
    read_mapping,
)

PEOPLE = [f"user-{number}" for number in range(12)]
PAUSE_S = 0.01
TRIES = 5


class Application:
    """Does things at random, one after the other, and remembers what lists should look like."""

    def __init__(self, lists: Conversations) -> None:
        self.lists = lists
        self.order: dict[str, list[str]] = {name: [] for name in PEOPLE}
        self.unread: dict[tuple[str, str], int] = {}
        self.muted: set[tuple[str, str]] = set()
        self.started_ms = time.time_ns() // 1_000_000
        self.changes = 0
        self.slowest_s = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        actions = [self.write, self.write, self.read, self.mute, self.remove]
        while not stopping.is_set():
            one, other = random.sample(PEOPLE, 2)
            started_s = time.monotonic()
            (action,) = random.sample(actions, 1)
            await action(one, other)
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
            self.changes += 1
            await asyncio.sleep(PAUSE_S)

    async def write(self, one: str, other: str) -> None:
        text = f"message {self.changes}"
        message_id = f"m-{self.started_ms}-{self.changes}"
        message = Message(one, other, message_id, time.time_ns() // 1_000_000, text)
        for _ in range(TRIES):
            try:
                await self.lists.touch(message)
                break
            except Away:
                await asyncio.sleep(1)
        for owner, opponent in ((one, other), (other, one)):
            if opponent in self.order[owner]:
                self.order[owner].remove(opponent)
            self.order[owner].insert(0, opponent)
        self.unread[other, one] = self.unread.get((other, one), 0) + 1

    async def read(self, one: str, other: str) -> None:
        await self.lists.read(one, other)
        self.unread.pop((one, other), None)

    async def mute(self, one: str, other: str) -> None:
        if other in self.order[one]:
            await self.lists.mute(one, other, muted=True)
            self.muted.add((one, other))

    async def remove(self, one: str, other: str) -> None:
        if other in self.order[one] and len(self.order[one]) > 5:
            await self.lists.remove(one, other)
            self.order[one].remove(other)
            self.unread.pop((one, other), None)
            self.muted.discard((one, other))

    async def wrong(self) -> list[str]:
        """Lists that are not what they should be."""
        found = []
        for owner, expected in self.order.items():
            lines = (await self.lists.list(owner, limit=100)).items
            now = [(line.opponent, line.unread, line.is_muted) for line in lines]
            then = [
                (name, self.unread.get((owner, name), 0), (owner, name) in self.muted)
                for name in expected
            ]
            if now != then or await self.lists.count(owner) != len(expected):
                found.append(f"{owner}: {now} instead of {then}")
        return found


async def main() -> None:
    redis_url, mapping, url, key = sys.argv[1:]
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with open_redis(redis_url, 5) as redis, Client(url, key) as client:
        old = RedisConversations(redis, read_mapping(Path(mapping)))
        async with MovingConversations(old, TidingsConversations(client)) as lists:
            application = Application(lists)
            print("running", flush=True)
            await application.run(stopping)
            wrong = await application.wrong()
            stage = (await lists.stages.now()).name
    print(
        json.dumps(
            {
                "stage": stage,
                "changes": application.changes,
                "lines": sum(map(len, application.order.values())),
                "slowest_s": round(application.slowest_s, 3),
                "wrong": wrong,
            }
        )
    )


asyncio.run(main())
