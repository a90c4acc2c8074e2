"""The examples, run as a reader would run them, against a real service."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.client.service import served, session

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, errors.decode()) == (0, "")
    return output.decode()


async def test_quick_start(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        printed = await run("quick_start.py", str(server.url), server.token or "")
    assert printed.splitlines() == [
        "ada says: Good morning! Your bicycle is ready.",
        "unread: 1",
        "unread after reading: 0",
    ]


async def test_import_lines_adds_nothing_the_second_time(tmp_path: Path) -> None:
    lines = [{"user": "ada", "text": "Hello"}, {"user": "bo", "text": "Hi"}]
    file = tmp_path / "history.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    async with served(tmp_path) as server:
        for user_id in ("ada", "bo"):
            await session(server, user_id)
        room = await server.create_room("direct", members=["ada", "bo"])
        for _ in range(2):
            printed = await run(
                "import_lines.py", str(server.url), server.token or "", room.id, str(file)
            )
            assert printed == "line 1 is entry 1\nline 2 is entry 2\n"
        assert (await server.room(room.id)).head == 2


@pytest.mark.slow
async def test_the_echo_bot_answers_once_however_often_it_restarts(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        ada = await session(server, "ada")
        bot = await session(server, "echo", "bot")
        room = await server.create_room("direct", members=["ada", "echo"])
        async with ada.live() as device:
            answers = device.entries(room.id)
            for number in range(3):
                # said while the bot is away: it waits in the bot's queue
                await device.send(room.id, f"hello {number}")
                process = await asyncio.create_subprocess_exec(
                    sys.executable, str(EXAMPLES / "echo_bot.py"), str(server.url), bot.token or ""
                )
                try:
                    async with asyncio.timeout(60):
                        async for answer in answers:
                            if answer.sender_id == "echo":
                                assert answer.text == f"hello {number}"
                                break
                finally:
                    process.send_signal(signal.SIGKILL if number == 1 else signal.SIGTERM)
                    await process.wait()
        log = await server.as_session(ada.token or "").messages(room.id)
        said = [(entry.sender_id, entry.text) for entry in log.items]
        assert said == [
            (sender, f"hello {number}") for number in range(3) for sender in ("ada", "echo")
        ]
