"""The service under measurement: a process of its own on a store of its own, on its own core."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SERVICE_CORE = 0
LOAD_CORE = 1
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 15.0
_LISTENING = re.compile(rb"listening on (http://\S+)")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def can_pin() -> bool:
    """Whether there are two cores to tell apart."""
    return hasattr(os, "sched_setaffinity") and {SERVICE_CORE, LOAD_CORE} <= os.sched_getaffinity(0)


def pin_self() -> None:
    """Keep this process, the load generator, off the service's core."""
    os.sched_setaffinity(0, {LOAD_CORE})


def pin_to_service_core() -> None:
    """Called in a new process before it becomes the service (or a floor of it)."""
    os.sched_setaffinity(0, {SERVICE_CORE})


def environment(scratch: Path) -> dict[str, str]:
    """The environment without settings that would change what is measured.

    Compiled modules are kept in `scratch`, whatever the environment says of them, since those that
    are installed are compiled, too.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {"PYTHONPYCACHEPREFIX": str(scratch / "compiled")}


class Service:
    """A running service."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, started_at: float) -> None:
        self.process = process
        self.url = url
        self.started_at = started_at
        """`time.perf_counter()` at the moment before the process was made."""

    @property
    def memory_bytes(self) -> int:
        """Resident memory now."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def processor_s(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@asynccontextmanager
async def running(store: Path, *, is_pinned: bool) -> AsyncIterator[Service]:
    """Start a service on the store and stop it at the end. Raises RuntimeError if it does not."""
    log_path = store.with_suffix(".log")
    with log_path.open("ab") as log:
        started_at = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tidings", "serve", "--store", f"sqlite:///{store}"),
            *("--port", "0", "--rate-limit", "off"),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=environment(store.parent),
            preexec_fn=pin_to_service_core if is_pinned else None,
        )
    drain: asyncio.Task[None] | None = None
    try:
        url = await _address(process, log_path)
        drain = asyncio.create_task(_drain(process))
        yield Service(process, url, started_at)
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if drain is not None:
            await drain


async def _address(process: asyncio.subprocess.Process, log_path: Path) -> str:
    if process.stdout is not None:
        async with asyncio.timeout(START_DEADLINE_S):
            async for line in process.stdout:
                if found := _LISTENING.search(line):
                    return found[1].decode()
    tail = await asyncio.to_thread(log_path.read_text, errors="replace")
    raise RuntimeError(f"the service did not start:\n{tail[-2_000:]}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    if process.stdout is not None:
        while await process.stdout.read(65_536):
            pass


async def create_key(store: Path) -> str:
    """An API key for the store, as a script gets one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tidings", "keys", "create", "--store", f"sqlite:///{store}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(store.parent),
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"no key: {errors.decode(errors='replace')[-2_000:]}")
    return output.decode().split()[-1]


async def python_on_service_core(
    code: str, *, folder: Path, scratch: Path, is_pinned: bool, deadline_s: float
) -> str:
    """Run a piece of Python in `folder` where the service runs, and return what it prints.

    Temporary files go to `scratch`.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(scratch) | {"TMPDIR": str(scratch)},
        preexec_fn=pin_to_service_core if is_pinned else None,
    )
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise RuntimeError(errors.decode(errors="replace")[-2_000:])
    return output.decode()
