"""A real Redis (or Valkey) on a free loopback port, which tests may stop, freeze and start."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.command_line import lasting_port

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
START_S = 60.0

needs_redis = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed")


class RedisServer:
    """One server that keeps nothing on disk and its address for ever."""

    def __init__(self, folder: Path) -> None:
        self.port = lasting_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Serve from now on."""
        assert SERVER is not None
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "save": "",
            "appendonly": "no",
            "dir": str(self._folder),
        }
        self._process = await asyncio.create_subprocess_exec(
            SERVER,
            *[word for name, value in options.items() for word in (f"--{name}", value)],
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(START_S):
            while not await self._answers():
                await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"PING\r\n")
        is_there = (await reader.readline()).startswith(b"+PONG")
        writer.close()
        await writer.wait_closed()
        return is_there

    def freeze(self) -> None:
        """Hang: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self) -> None:
        """End at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def running_redis(folder: Path) -> AsyncIterator[RedisServer]:
    """A server that is ended on leaving, in whatever state it is."""
    server = RedisServer(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
