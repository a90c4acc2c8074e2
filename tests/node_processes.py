"""Nodes as processes of their own that can be killed, frozen and restarted, behind one address."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.command_line import clean_environment, lasting_port

START_S = 90.0
END_S = 15.0
PROBE_EVERY_S = 0.25
PROBE_S = 1.0
CHUNK_BYTES = 65_536


class Node:
    """`tidings serve` at one port for ever, whichever process it is just now."""

    def __init__(self, store: str, bus: str, log: Path) -> None:
        self.port = lasting_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.exit_codes: list[int] = []
        """How its processes ended."""
        self.store = store
        """Where its next process works."""
        files = f"file:{log.parent}/files"
        self._arguments = ("--bus", bus, "--blobs", files, "--port", str(self.port))
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The present one."""
        assert self._process is not None, "the node was not started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start a process, and wait until it serves requests."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tidings", "serve", "--store", self.store, *self._arguments),
                *("--rate-limit", "off", "--log", "json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=clean_environment(),
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            async for line in self.process.stdout:
                if line.startswith(b"listening on "):
                    return
        raise AssertionError(f"the node did not start: {self._log.read_text()[-2_000:]}")

    async def kill(self) -> None:
        """End the process as a crash does."""
        self.process.kill()
        await self._ended()

    async def end(self) -> None:
        """End the process as planned."""
        self.process.terminate()
        await self._ended()

    async def restart(self) -> None:
        """End the process as planned, and start another."""
        await self.end()
        await self.start()

    async def close(self) -> None:
        """See to it that no process is left. Raises TimeoutError if it did not end as planned."""
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            await self._ended()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise

    async def _ended(self) -> None:
        async with asyncio.timeout(END_S):
            self.exit_codes.append(await self.process.wait())

    def freeze(self) -> None:
        """Stop the process in the middle of whatever it does; connections to it stay."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, as if no time had passed."""
        os.kill(self.process.pid, signal.SIGCONT)

    def faults(self) -> list[dict[str, Any]]:
        """What the node itself calls unexpected, from all its logs."""
        lines = self._log.read_bytes().splitlines() if self._log.exists() else []
        events = [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]
        return [event for event in events if event.get("event") == "unexpected"]


class Balancer:
    """One address before several nodes: each connection goes to the next one that is ready.

    It asks `/readyz`, and a connection that a node refuses goes to another. Connections that are
    there are left alone, also those to a node that answers no more.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.url = ""
        self._is_ready = dict.fromkeys(ports, True)
        self._turns = itertools.count()
        self._joined: set[asyncio.Task[None]] = set()

    def _in_turn(self) -> Iterator[int]:
        """The ready nodes, another one first each time; then the others, for want of better."""
        ports = list(self._is_ready)
        first = next(self._turns) % len(ports)
        turned = ports[first:] + ports[:first]
        yield from sorted(turned, key=lambda port: not self._is_ready[port])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._joined.add(task)
        try:
            await asyncio.wait((task,))
        finally:
            self._joined.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for port in self._in_turn():
            try:
                there, back = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                continue
            try:
                await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
            finally:
                back.transport.abort()
            return

    async def _probe(self, http: aiohttp.ClientSession, port: int) -> None:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{port}/readyz") as reply:
                    self._is_ready[port] = reply.status == 200
            except (aiohttp.ClientError, TimeoutError):
                self._is_ready[port] = False
            await asyncio.sleep(PROBE_EVERY_S)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Balancer]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        timeout = aiohttp.ClientTimeout(total=PROBE_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            probes = [asyncio.create_task(self._probe(http, port)) for port in self._is_ready]
            try:
                yield self
            finally:
                server.close()
                for task in [*probes, *self._joined]:
                    task.cancel()
                await asyncio.gather(*probes, *self._joined, return_exceptions=True)
                await asyncio.sleep(0)  # for those who wait for them


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on bytes, and the end of them, at once: a half-open connection helps nobody here."""
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def running_nodes(
    count: int, store: str, folder: Path, *, bus: str = "local:"
) -> AsyncIterator[list[Node]]:
    """That many nodes on one store; what they log goes to the folder."""
    nodes = [Node(store, bus, folder / f"node{number}.log") for number in range(count)]
    try:
        await nodes[0].start()  # the first one makes what the store needs
        await asyncio.gather(*[node.start() for node in nodes[1:]])
        yield nodes
    finally:
        await asyncio.gather(*[node.close() for node in nodes])
