"""A real PostgreSQL on a free loopback port, which tests may stop and start."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.command_line import lasting_port

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
SERVER = shutil.which("postgres") or next(
    (str(each / "postgres") for each in FOLDERS if (each / "postgres").exists()), None
)
START_S = 60.0
LOW_USERS = ("postgres", "nobody")
"""Whose rights the server has where the tests run as root, which it refuses."""

needs_postgres = pytest.mark.skipif(SERVER is None, reason="PostgreSQL is not installed")


class PostgresServer:
    """One server with a superuser `owner` and no passwords, at one address for ever."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        self.port = lasting_port()
        self._data = folder / "data"
        self._user = _low_user()
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "wal_level": "logical",
            "fsync": "off",
            "shared_buffers": "64MB",
            "max_replication_slots": "20",
        } | (settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(folder, self._user, -1)
        self._run("initdb", "-D", str(self._data), "-U", "owner", "-A", "trust", "-E", "UTF8",
                  "--no-sync", "--locale=C.UTF-8")  # fmt: skip

    def url(self, database: str = "postgres") -> str:
        """Where a database is."""
        return f"postgresql://owner@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Serve from now on."""
        assert SERVER is not None
        options = [
            word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")
        ]
        self._process = subprocess.Popen(
            [SERVER, "-D", str(self._data), "-p", str(self.port), *options],
            user=self._user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._data,
        )
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End at once, as in a crash."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, each for itself."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        assert SERVER is not None
        subprocess.run(
            [str(Path(SERVER).with_name(program)), *arguments],
            user=self._user,
            check=True,
            capture_output=True,
            cwd="/",
        )


def _low_user() -> int | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    return next(names[name] for name in LOW_USERS if name in names)


@contextmanager
def running_postgres(settings: dict[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server that is ended on leaving, with all that it kept."""
    with tempfile.TemporaryDirectory(prefix="tidings-postgres-") as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder), settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()
