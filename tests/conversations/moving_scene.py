"""What the runbook "From Redis" finds: a server with lists, and a service that nobody uses yet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.cluster_scene import make_key
from tests.conversations.scene import connected
from tests.importing.redis_lists import Lists
from tests.node_processes import running_nodes
from tests.redis_server import running_redis
from tidings.clock import system_clock

PAIRS = 300
EXAMPLES = Path(__file__).parents[2] / "examples"


@asynccontextmanager
async def lists_in_redis(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """The environment of the runbook's shell; at the end the application found nothing wrong."""
    store = f"sqlite:///{folder}/tidings.db"
    async with (
        running_redis(folder) as server,
        connected(server.url) as redis,
        running_nodes(1, store, folder) as (node,),
    ):
        lists = Lists(redis)
        for number in range(PAIRS):
            at_ms = system_clock() - 1_000_000 + number
            await lists.pair(f"old-{number}", f"old-{number % 7}x", at_ms, unread=number % 3)
        yield {
            "SOURCE": server.url,
            "STORE": store,
            "SERVICE": node.url,
            "TIDINGS_KEY": await make_key(store),
            "EXAMPLES": str(EXAMPLES),
        }
    done = json.loads((folder / "app.log").read_text().splitlines()[-1])
    assert done["stage"] == "tidings"
    assert done["wrong"] == []
    assert done["changes"] > 100
    assert done["slowest_s"] < 5
