"""Conversation lists of an application of its own, as it would write them to Redis."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

MAPPING = """\
[lists]
key = "convs:{owner}"

[metadata]
key = "conv:{owner}:{opponent}"
unread = "unread"
muted = "muted"
text = "last_text"
sender = "last_from"
message_id = "last_id"
"""


class Lists:
    """Writes what such an application has written."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    async def line(self, owner: str, opponent: str, score: float, **fields: str | int) -> None:
        """One line of a list, with its metadata."""
        await self.redis.zadd(f"convs:{owner}", {opponent: score})
        if fields:
            await self.redis.hset(f"conv:{owner}:{opponent}", mapping=fields)

    async def pair(
        self, one: str, other: str, score: float, *, text: str = "hello", unread: int = 0
    ) -> None:
        """A conversation in which `one` wrote last and `other` has so much unread."""
        last = {"last_text": text, "last_from": one, "last_id": f"m-{one}-{other}-{score}"}
        await self.line(one, other, score, unread=0, **last)
        await self.line(other, one, score, unread=unread, **last)
