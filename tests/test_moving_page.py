"""Each path of `docs/moving.md` leads where it says: its blocks are run as they stand there.

A section that needs more than a folder and `tidings` has a scene in SCENES, which prepares them and
says what is in the environment of its shell; its last part looks at what came of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.cluster_scene import make_key, make_users
from tests.conversations.moving_scene import lists_in_redis
from tests.engines import new_address, remove_tables, store_url
from tests.importing.moving_scenes import slack_export, workspace_in_use
from tests.importing.shop import shop_in_postgres
from tests.node_processes import running_nodes
from tidings.client import Client
from tidings.wire import LIST_LIMIT_MAX

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text()
SECTION_S = 150.0
PEOPLE = ["ann", "ben", "cem"]

Scene: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Mapping[str, str]]]
"""Makes in a folder what a section finds there; the value is what its shell's environment says."""


@asynccontextmanager
async def running_service(folder: Path) -> AsyncIterator[Mapping[str, str]]:
    """A service at work on the file of the page's beginning, and no tables yet; at the end it still
    has everything, on the file that the page ends with."""
    target = new_address()
    old = f"sqlite:///{folder}/tidings.db"
    async with (
        running_nodes(1, old, folder) as (node,),
        Client(node.url, await make_key(old)) as key,
    ):
        await make_users(key, PEOPLE)
        await key.create_room("group", room_id="team", members=PEOPLE)
        talking = asyncio.create_task(_talk(key))
        try:
            yield {"OLD": "sqlite:///tidings.db", "NEW": store_url(target)}
            entries = (await key.messages("team", limit=LIST_LIMIT_MAX)).items
            texts = [entry.text for entry in entries if entry.text]
            talking.cancel()
            said = (await asyncio.gather(talking, return_exceptions=True))[0]
            assert isinstance(said, asyncio.CancelledError), said
            assert sorted(texts) == sorted(f"number {n}" for n in range(len(texts)))
        finally:
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            await remove_tables(target)


async def _talk(key: Client) -> None:
    number = 0
    while True:
        await key.post_message("team", f"number {number}", as_user=PEOPLE[number % len(PEOPLE)])
        number += 1
        await asyncio.sleep(0.2)


SCENES: dict[str, Scene] = {
    "From one store to another": running_service,
    "From Redis": lists_in_redis,
    "From PostgreSQL": shop_in_postgres,
    "From Slack": slack_export,
    "Moving out": workspace_in_use,
}


def _sections() -> dict[str, list[str]]:
    """The shell blocks of each section, by its heading."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        heading: re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for heading, text in texts.items()
    }


@pytest.mark.parametrize("heading", list(_sections()))
async def test_a_path(heading: str, tmp_path: Path) -> None:
    blocks = _sections()[heading]
    scene = SCENES.get(heading)
    assert scene is not None or not blocks, f"{heading}: SCENES says nothing about it"
    if scene is None:
        return
    commands = tmp_path / "bin"
    commands.mkdir()
    tidings = commands / "tidings"
    tidings.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tidings "$@"\n')
    tidings.chmod(0o755)
    async with scene(tmp_path) as found:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")
        }
        environment |= {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "COLUMNS": "100",
        }
        await _run("\n".join(["set -eu", *blocks]), tmp_path, environment | dict(found))


async def _run(script: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Run it; nothing that it began is left."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECTION_S):
            output, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode == 0, output.decode()[-4_000:]
