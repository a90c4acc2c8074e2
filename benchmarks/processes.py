"""The processes that a benchmark on DynamoDB needs: an engine, and the proxy before it."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import aiohttp
import msgspec

from tests.command_line import lasting_port

START_S_MAX = 30.0
_LOOK_S = 0.1
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Engine(msgspec.Struct, frozen=True):
    """A local engine in a process of its own."""

    url: str
    pid: int

    def processor_s(self) -> float:
        """Processor time that it has used."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS_PER_S


@asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    """A new ministack with nothing in it, on a free port of this machine."""
    port = lasting_port()
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("ministack"),
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": folder,
                "TMPDIR": folder,
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(port),
                "SERVICES": "dynamodb,dynamodbstreams",
                "SFTP_ENABLED": "0",
                "IOT_MTLS_ENABLED": "0",
                "LOG_LEVEL": "ERROR",
            },
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            async with asyncio.timeout(START_S_MAX):
                await _until_ready(f"{url}/_ministack/health")
            yield Engine(url, process.pid)
        finally:
            process.terminate()
            await process.wait()


async def _until_ready(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def proxied(engine_url: str, network_s: float, service_s: float) -> AsyncIterator[str]:
    """The proxy before an engine, with its two delays; its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.aws_like_proxy",
        engine_url,
        f"--network={network_s}",
        f"--service={service_s}",
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()
