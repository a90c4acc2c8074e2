"""Running the command line as a person would: another process, its output, its exit code."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

COMMAND_TIMEOUT_S = 120
SERVICE_END_S = 15
LASTING_PORTS = range(20_000, 32_000)


class Outcome(msgspec.Struct, frozen=True):
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        """The last line of standard output."""
        return self.output.splitlines()[-1] if self.output else ""


def clean_environment() -> dict[str, str]:
    """For a process that is to find the modules of this one, and no TIDINGS_ variable."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TIDINGS_")}
    return inherited | {"PYTHONPATH": os.pathsep.join(sys.path)}


def run_tidings(
    *arguments: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> Outcome:
    """Run `tidings` with the arguments, without any TIDINGS_ variable but those given."""
    finished = subprocess.run(
        [sys.executable, "-m", "tidings", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        env=clean_environment() | {"COLUMNS": "100"} | (environment or {}),
        cwd=folder,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def lasting_port() -> int:
    """A port that stays free until a process listens on it, and while that is away.

    Systems give higher ones to outgoing connections, any of which would take its place. Chosen at
    random whatever the tests have sown, or those that run at the same time would choose alike.
    """
    while True:
        port = secrets.choice(LASTING_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Service(msgspec.Struct):
    """A service in another process."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def running_service(store: str, *arguments: str, module: str = "tidings") -> Iterator[Service]:
    """`tidings serve` on the store, from the first request it can answer; ended with SIGTERM.

    Listens on a free port unless the arguments name one. What it prints before it listens may be
    read from `process.stdout` no more. `module` is what runs it; a killed one is well ended too.
    """
    given = arguments if "--port" in arguments else ("--port", "0", *arguments)
    command = [sys.executable, "-m", module, "serve", "--store", store, *given]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean_environment(),
    ) as process:
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:
                printed.append(line)
                if line.startswith("listening on "):
                    yield Service(line.split()[-1], process)
                    break
            else:
                raise AssertionError(f"the service ended early: {''.join(printed)}")
        finally:
            process.terminate()
            process.wait(SERVICE_END_S)
