"""What the sections on Slack and on moving out find in their folders."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.cluster_scene import make_key, make_users
from tests.command_line import run_tidings
from tests.importing.slack_zips import small
from tests.node_processes import running_nodes
from tidings.client import Client


@asynccontextmanager
async def slack_export(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """An export, and a service at work on the store that it goes into."""
    small().write(folder / "export.zip")
    store = f"sqlite:///{folder}/tidings.db"
    async with running_nodes(1, store, folder) as (node,):
        yield {}
        command = ("keys", "create", "--store", store, "--workspace", "team")
        made = await asyncio.to_thread(run_tidings, *command)
        async with Client(node.url, made.last_line) as key:
            assert (await key.messages("C0GEN")).head == 11
    report = json.loads((folder / "report.json").read_text())
    assert report["effects"]["messages_added"] == 0
    assert report["effects"]["messages_present"] == 19


@asynccontextmanager
async def workspace_in_use(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """A service at work on a store with some talk."""
    store = f"sqlite:///{folder}/tidings.db"
    async with (
        running_nodes(1, store, folder) as (node,),
        Client(node.url, await make_key(store)) as key,
    ):
        await make_users(key, ["ann", "ben"])
        await key.create_room("group", room_id="team", members=["ann", "ben"])
        for number in range(20):
            await key.post_message("team", f"number {number}", as_user="ann")
        yield {}
        assert len((folder / "again" / "entries.jsonl").read_text().splitlines()) == 20
