"""Conversation lists for an application that moves them from Redis to Tidings without a stop.

    lists = MovingConversations(
        RedisConversations(redis, read_mapping(Path("mapping.toml"))),
        TidingsConversations(Client("http://127.0.0.1:8080", "tk_…")),
    )
    async with lists:
        await lists.touch(Message("ann", "ben", "m1", 1_700_000_000_000, "Hello"))
        print(await lists.list("ben"))

One interface (`Conversations`), and three that have it: over Redis, over Tidings, and over both.
Which of them decides is changed while the application runs (`stages`).
"""

from __future__ import annotations

from tidings.conversations.interface import (
    Away,
    Conversation,
    Conversations,
    ConversationsError,
    Message,
    Page,
    Refused,
)
from tidings.conversations.journal import Journal
from tidings.conversations.mapping import Mapping, MappingRefused, read_mapping
from tidings.conversations.mending import Difference, compare, mend
from tidings.conversations.moving import MovingConversations
from tidings.conversations.redis_lists import RedisConversations, open_redis
from tidings.conversations.stages import Stage, StageName, Stages
from tidings.conversations.tidings_lists import TidingsConversations

__all__ = [
    "Away",
    "Conversation",
    "Conversations",
    "ConversationsError",
    "Difference",
    "Journal",
    "Mapping",
    "MappingRefused",
    "Message",
    "MovingConversations",
    "Page",
    "RedisConversations",
    "Refused",
    "Stage",
    "StageName",
    "Stages",
    "TidingsConversations",
    "compare",
    "mend",
    "open_redis",
    "read_mapping",
]
