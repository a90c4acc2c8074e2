"""Where the service's time goes under a load, by py-spy if it is there."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidings.bench.figures import Say
from tidings.bench.services import Service

if TYPE_CHECKING:
    from tidings.bench.doors import Options

SAMPLES_PER_S = 200
SHOWN_MAX = 40
STOP_DEADLINE_S = 30.0
_IDLE = frozenset({"Condition.wait (threading.py)", "_worker (futures/thread.py)"})
"""Where threads wait for work, which py-spy does not always know to be idle."""


def _program() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@asynccontextmanager
async def profiled(options: Options, service: Service, name: str, say: Say) -> AsyncIterator[None]:
    """Sample the service meanwhile, and write a summary by function to the output folder."""
    program = _program() if options.is_profiling else None
    if program is None:
        if options.is_profiling:
            say("no py-spy here: not profiled")
        yield
        return
    raw = options.folder / f"profile-{name}.raw"
    seconds = int(options.runs * options.seconds) + 1
    process = await asyncio.create_subprocess_exec(
        program,
        *("record", "--pid", str(service.process.pid), "--duration", str(seconds)),
        *("--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(raw)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
        async with asyncio.timeout(STOP_DEADLINE_S):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    say(summary(await asyncio.to_thread(raw.read_text)))


def summary(raw: str) -> str:
    """Functions by the share of samples they were running in (own), and called in (total)."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples = 0
    for line in raw.splitlines():
        stack, _, count_text = line.rpartition(" ")
        count = int(count_text)
        frames = [_function(frame) for frame in stack.split(";")]
        if frames[-1] in _IDLE:
            continue
        samples += count
        own[frames[-1]] += count
        for frame in set(frames):
            total[frame] += count
    lines = [f"{samples} samples", "   own  total"]
    for frame, count in own.most_common(SHOWN_MAX):
        lines.append(f"{count / samples:6.1%} {total[frame] / samples:6.1%}  {frame}")
    return "\n".join(lines)


def _function(frame: str) -> str:
    """`name (file.py)` without the line and without the machine's folders."""
    name, _, place = frame.partition(" (")
    path = Path(place.rstrip(")").rpartition(":")[0] or place.rstrip(")"))
    return f"{name} ({'/'.join(path.parts[-2:])})"
