"""The DynamoDB that tests run against, which nobody here wrote.

It is ministack, one process for each process of tests, started when it is first asked for; or what
`TIDINGS_TEST_DYNAMODB` names: an endpoint, or a whole address such as `dynamodb://eu-west-2`.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache

import msgspec

from tests.command_line import lasting_port
from tidings.clock import Clock, system_clock
from tidings.config import DynamoAddress, Settings
from tidings.storage import provision
from tidings.storage.calls import Calls, Refused
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.expressions import table_name
from tidings.storage.interface import Table
from tidings.storage.retries import RetryPolicy
from tidings.storage.tables import TABLES

START_S_MAX = 90.0
START_LOOK_S = 0.02
END_S_MAX = 30.0
PATIENT = RetryPolicy(deadline_s=60.0)
"""For tables that a test needs to begin with, however busy the machine is."""

# Ends when its standard input does, and so with the process of the tests, however that ends.
_MINISTACK = """
import os, sys, threading
from ministack.app import main
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
main()
"""


@cache
def engine_address() -> DynamoAddress:
    """The engine, which runs from now on until the tests have ended. The prefix is nobody's."""
    named = os.environ.get("TIDINGS_TEST_DYNAMODB", "")
    if named.startswith("dynamodb:"):
        address = Settings(store=named).store_address
        assert isinstance(address, DynamoAddress)
        return address
    return DynamoAddress("us-east-1", endpoint=named or _start_ministack())


@cache
def s3_endpoint() -> str:
    """What speaks the API of S3: the same process, unless the tests' DynamoDB is another's."""
    return _start_ministack() if os.environ.get("TIDINGS_TEST_DYNAMODB") else _endpoint()


def _endpoint() -> str:
    endpoint = engine_address().endpoint
    assert endpoint is not None
    return endpoint


def _start_ministack() -> str:
    folder = tempfile.mkdtemp(prefix="ministack-")
    port = lasting_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "TMPDIR": folder,
        "S3_DATA_DIR": folder,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "SERVICES": "dynamodb,dynamodbstreams,s3",
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "LOG_LEVEL": "ERROR",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _MINISTACK],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    )

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(END_S_MAX)
        shutil.rmtree(folder)

    atexit.register(end)
    deadline = time.monotonic() + START_S_MAX
    while not _listens(port):
        assert process.poll() is None, "ministack ended at once"
        assert time.monotonic() < deadline, "ministack does not listen"
        time.sleep(START_LOOK_S)
    return f"http://127.0.0.1:{port}"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def new_address(engine: DynamoAddress | None = None) -> DynamoAddress:
    """Tables of one's own on the engine, which are not there yet."""
    prefix = f"test-{secrets.token_hex(6)}"
    return msgspec.structs.replace(engine or engine_address(), prefix=prefix)


def store_url(address: DynamoAddress) -> str:
    """What `--store` takes."""
    return address.url


async def make_tables(address: DynamoAddress, tables: Sequence[Table] = TABLES) -> None:
    """Make the tables at the address; without their time to live.

    The engine would delete what has expired by its own clock, which is not that of the tests.
    """
    lasting = [msgspec.structs.replace(table, expires=None) for table in tables]
    async with Calls.open(address, policy=PATIENT) as calls:
        await provision.create(calls, address, tables=lasting)


async def remove_tables(address: DynamoAddress, tables: Sequence[Table] = TABLES) -> None:
    """Remove those of the tables that are there."""
    async with Calls.open(address, policy=PATIENT) as calls:
        for table in tables:
            try:
                await calls.call("DeleteTable", {"TableName": table_name(address.prefix, table)})
            except Refused as refused:
                if refused.code != "ResourceNotFoundException":
                    raise


@asynccontextmanager
async def dynamo_tables(tables: Sequence[Table] = TABLES) -> AsyncIterator[DynamoAddress]:
    """New, empty tables, which are removed on leaving."""
    address = new_address()
    await make_tables(address, tables)
    try:
        yield address
    finally:
        await remove_tables(address, tables)


@asynccontextmanager
async def dynamo_store(
    clock: Clock = system_clock, tables: Sequence[Table] = TABLES
) -> AsyncIterator[DynamoStore]:
    """A store on new, empty tables, which are removed on leaving."""
    async with (
        dynamo_tables(tables) as address,
        DynamoStore.open(address, clock=clock, tables=tables) as store,
    ):
        yield store
