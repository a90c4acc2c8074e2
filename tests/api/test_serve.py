"""`serve` as a process: it says when it is there, and goes when it is told to."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

STOP_S = 10.0
START = "import os; from tidings import app, config; app.run(config.read_settings({}, os.environ))"


class Process:
    """A service of its own."""

    def __init__(self, process: asyncio.subprocess.Process, said: list[str]) -> None:
        self.process = process
        self.said = said
        self.url = said[-1].removeprefix("listening on ")

    async def stop(self, number: int = signal.SIGTERM) -> float:
        """Seconds that it took to end by itself, well."""
        started = time.monotonic()
        self.process.send_signal(number)
        async with asyncio.timeout(STOP_S + 5):
            assert await self.process.wait() == 0
        return time.monotonic() - started


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Process]:
    environment = {
        **os.environ,
        "TIDINGS_STORE": f"sqlite:///{folder}/a.db",
        "TIDINGS_PORT": "0",
        "TIDINGS_LOG": "json",
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", START, stdout=asyncio.subprocess.PIPE, stderr=log, env=environment
        )
    try:
        assert process.stdout is not None
        said: list[str] = []
        async with asyncio.timeout(60):
            while not said or not said[-1].startswith("listening on "):
                line = await process.stdout.readline()
                assert line, (folder / "log").read_text()
                said.append(line.decode().rstrip("\n"))
        yield Process(process, said)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_first_start_prints_a_key_that_works_and_the_second_none(tmp_path: Path) -> None:
    async with running(tmp_path) as first, aiohttp.ClientSession() as http:
        assert re.fullmatch(r"listening on http://127\.0\.0\.1:[0-9]+", first.said[-1])
        (key,) = re.findall(r"tk_\S+", first.said[0])
        headers = {"Authorization": f"Bearer {key}"}
        async with http.get(first.url + "/v1/users", headers=headers) as response:
            assert response.status == 200
        await first.stop()
    assert key not in (tmp_path / "log").read_text()
    async with running(tmp_path) as second, aiohttp.ClientSession() as http:
        assert len(second.said) == 1
        async with http.get(second.url + "/v1/users", headers=headers) as response:
            assert response.status == 200
        await second.stop(signal.SIGINT)


async def test_a_stop_with_devices_connected_ends_in_time(tmp_path: Path) -> None:
    async with running(tmp_path) as service, aiohttp.ClientSession() as http:
        (key,) = re.findall(r"tk_\S+", service.said[0])
        administrator = {"Authorization": f"Bearer {key}"}
        body = {"id": "ada", "name": "Ada", "role": "manager"}
        async with http.post(
            service.url + "/v1/users", json=body, headers=administrator
        ) as response:
            assert response.status == 201
        tokens = []
        for _ in range(3):
            async with http.post(
                service.url + "/v1/sessions", json={"user_id": "ada"}, headers=administrator
            ) as response:
                tokens.append({"Authorization": f"Bearer {(await response.json())['token']}"})
        address = urlsplit(service.url)
        _, idle = await asyncio.open_connection(address.hostname, address.port)
        idle.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        poll = asyncio.ensure_future(http.get(service.url + "/v1/sync?wait=60", headers=tokens[0]))
        events = await http.get(service.url + "/v1/events", headers=tokens[1])
        socket = await http.ws_connect(
            service.url + "/v1/ws", headers=tokens[2], protocols=("tidings.v1",)
        )
        ready = await socket.receive_json()
        assert ready["type"] == "ready"
        await events.content.readline()
        reading = asyncio.ensure_future(_read_all(socket))
        took_s = await service.stop()
        frames = await reading
        assert "closing" in [
            update["type"] for frame in frames for update in frame.get("updates", [frame])
        ]
        assert socket.close_code == aiohttp.WSCloseCode.GOING_AWAY
        assert b"closing" in await events.content.read()
        async with await poll as polled:
            assert polled.status in (200, 503)
        idle.close()
        await asyncio.gather(idle.wait_closed(), return_exceptions=True)
    assert took_s < STOP_S
    assert "unexpected" not in (tmp_path / "log").read_text()


async def _read_all(socket: aiohttp.ClientWebSocketResponse) -> list[Any]:
    return [message.json() async for message in socket]


async def test_a_taken_port_is_one_clear_failure(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        port = str(urlsplit(service.url).port)
        environment = {
            **os.environ,
            "TIDINGS_STORE": f"sqlite:///{tmp_path}/b.db",
            "TIDINGS_PORT": port,
            "TIDINGS_LOG": "off",
        }
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            START,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        _, errors = await second.communicate()
        assert second.returncode == 1
        assert b"address already in use" in errors.lower()
