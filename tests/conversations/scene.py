"""A real Redis and a real service, for tests of conversation lists."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from tests.importing.redis_lists import MAPPING
from tidings.app import Service, listening, open_app
from tidings.client import Client
from tidings.config import Settings
from tidings.conversations import Mapping

ANSWER_S = 20.0
AT_MS = 1_700_000_000_000

JSON_MAPPING = """
[lists]
key = "user:{owner}:dms"
member = "u/{opponent}"
score = "s"
[metadata]
key = "dm/{owner}/{opponent}"
type = "json"
unread = "n"
muted = "quiet"
text = "t"
message_id = "id"
"""


def mapped(text: str = MAPPING) -> Mapping:
    return msgspec.convert(tomllib.loads(text), Mapping)


class Served(msgspec.Struct, frozen=True):
    """A service in this process, and a client with an API key."""

    service: Service
    client: Client


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Served]:
    """A service on the folder's store; it makes the workspace where there is none."""
    settings = Settings(store=f"sqlite:///{folder}/t.db", rate_limit="off")
    async with open_app(settings) as service, listening(service, "127.0.0.1", 0) as url:
        workspace = await service.people.workspaces.default("acme")
        _, key = await service.people.credentials.create_key(workspace.id, "lists")
        async with Client(url, key) as client:
            yield Served(service, client)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    """A client of the server, closed on leaving."""
    redis = Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S)
    try:
        yield redis
    finally:
        await redis.aclose()
