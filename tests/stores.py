"""The stores that the service's own tests run on.

A test module that says `STORES = EVERY_STORE` runs on each of them, by the fixture `store_kind`;
any other on the embedded one alone. `TIDINGS_TEST_STORES=dynamodb` leaves out what is not named,
`TIDINGS_TEST_LARGE=1` does as much on a network store as on the embedded one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import pytest

from tests.engines import dynamo_store, dynamo_tables, store_url
from tests.storage.suspending import SuspendingStore
from tidings.clock import Clock, system_clock
from tidings.engines import open_engine
from tidings.storage.interface import Store
from tidings.storage.sqlite import SqliteStore

StoreKind: TypeAlias = Literal["sqlite", "suspending", "dynamodb"]
"""`suspending`: the embedded store as far away as a network store, answering in any order."""

EVERY_STORE: tuple[StoreKind, ...] = get_args(StoreKind)
BOTH_STORES: tuple[StoreKind, ...] = ("sqlite", "dynamodb")

SMALLER = 5
"""How many times less the large tests do on a network store, unless told otherwise."""


def sized(kind: StoreKind, count: int) -> int:
    """How often a test does something that it does `count` times on the embedded store."""
    is_large = kind != "dynamodb" or os.environ.get("TIDINGS_TEST_LARGE")
    return count if is_large else max(1, count // SMALLER)


def chosen(kinds: tuple[StoreKind, ...]) -> list[Any]:
    """Parameters of `store_kind`: what is wanted of these, the slow one marked as such."""
    wanted = os.environ.get("TIDINGS_TEST_STORES", ",".join(EVERY_STORE)).split(",")
    return [
        pytest.param(kind, marks=[pytest.mark.slow] if kind == "dynamodb" else [])
        for kind in kinds
        if kind in wanted
    ]


@asynccontextmanager
async def open_store(
    kind: StoreKind, folder: Path, clock: Clock = system_clock
) -> AsyncIterator[Store]:
    """A new and empty store."""
    if kind == "dynamodb":
        async with dynamo_store(clock) as distant:
            yield distant
        return
    async with SqliteStore.open(folder / "store.db", clock=clock) as store:
        yield SuspendingStore(store) if kind == "suspending" else store


@asynccontextmanager
async def store_address(
    kind: StoreKind, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """What `--store` takes for a new store; services of this process open it as the kind says."""
    if kind == "dynamodb":
        async with dynamo_tables() as address:
            yield store_url(address)
        return
    if kind == "suspending":
        monkeypatch.setattr("tidings.engines.open_engine", _suspended(open_engine))
    yield f"sqlite:///{folder}/store.db"


def _suspended(
    opening: Callable[..., AbstractAsyncContextManager[Store]],
) -> Callable[..., AbstractAsyncContextManager[Store]]:
    @asynccontextmanager
    async def open_suspended(*given: Any, **named: Any) -> AsyncIterator[Store]:
        async with opening(*given, **named) as engine:
            assert isinstance(engine, SqliteStore)
            yield SuspendingStore(engine)

    return open_suspended
