"""Which engine serves the address of a store; nothing else picks one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from tidings.clock import Clock, system_clock
from tidings.config import DynamoAddress, Settings, SqliteAddress, StoreAddress
from tidings.errors import NotFound
from tidings.metrics import Metrics
from tidings.storage.interface import Store
from tidings.storage.metered import CostSource, MeteredStore
from tidings.storage.moves import GUARD_SLOTS_MAX
from tidings.storage.moving import MovingStore
from tidings.storage.retries import Kind
from tidings.storage.sqlite import MMAP_BYTES, SqliteStore
from tidings.storage.standing import Stack

COMMAND_SLOTS = 8
"""Write sets that a command may have under way while a move is."""
SWEEP_INTERVAL_S = 300.0
"""How often expired items are deleted; reads don't see them in between."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_store(
    address: StoreAddress,
    *,
    clock: Clock = system_clock,
    metrics: Metrics | None = None,
    must_exist: bool = False,
    is_priced: bool = True,
    wrap: Callable[[Store], Store] = lambda engine: engine,
) -> AsyncIterator[MovingStore]:
    """What serves whoever was given that address: the store there, or the one that it moved to.

    Every engine that is opened is `wrap`ped, and metered above that if `is_priced`. Raises what
    `open_engine` does, and Conflict where another address is to be used.
    """

    @asynccontextmanager
    async def opening(url: str) -> AsyncIterator[Stack]:
        is_given = url == address.url
        wanted = address if is_given else Settings(store=url).store_address
        must = must_exist or not is_given  # whoever begins a move makes what it leads to
        async with open_engine(wanted, clock=clock, metrics=metrics, must_exist=must) as bare:
            engine = wrap(bare)
            store, source = priced(engine, wanted)
            slots = _slots(wanted, is_serving=metrics is not None)
            yield Stack(store if is_priced else engine, engine, source, slots)

    on_shadow = None if metrics is None else metrics.shadow_read
    store = await MovingStore.open(address.url, opening, on_shadow=on_shadow)
    try:
        yield store
    finally:
        await store.close()


def _slots(address: StoreAddress, *, is_serving: bool) -> int:
    """The embedded store takes write sets one after the other, so one guard does for all."""
    if isinstance(address, SqliteAddress):
        return 1
    return GUARD_SLOTS_MAX if is_serving else COMMAND_SLOTS


@asynccontextmanager
async def open_engine(
    address: StoreAddress,
    *,
    clock: Clock = system_clock,
    metrics: Metrics | None = None,
    must_exist: bool = False,
    on_retry: Callable[[Kind], None] | None = None,
) -> AsyncIterator[Store]:
    """The bare store at the address, which is closed on leaving; for who serves: `open_store`.

    With `metrics` it serves for long: it counts there, and keeps itself clean. `on_retry` hears of
    calls that are made again, in place of `metrics`. Unless it `must_exist`, the embedded store is
    made where it is missing, and so are the tables on an engine that is not AWS; those on AWS cost
    money and are made by `tidings tables create` alone. Raises NotFound for a missing store;
    Conflict for one that is not ours, or can't do what we need;
    Unavailable for one that can't be opened.
    """
    match address:
        case SqliteAddress(path):
            if must_exist and not path.is_file():
                raise NotFound(f"There is no store at {path}.")
            path.parent.mkdir(parents=True, exist_ok=True)
            # A command that goes through all of a large file is to need little memory for it.
            mmap_bytes = 0 if metrics is None else MMAP_BYTES
            engine = SqliteStore.open(path, clock=clock, mmap_bytes=mmap_bytes)
            try:
                if metrics is None:
                    yield engine
                else:
                    engine.on_batch = metrics.store_batch
                    async with _sweeping(engine, metrics):
                        yield engine
            finally:
                await engine.close()
        case DynamoAddress():
            # Here, since importing it takes longer than most commands on the embedded store.
            from tidings.storage import provision
            from tidings.storage.dynamodb import DynamoStore

            if on_retry is None and metrics is not None:
                on_retry = metrics.store_retry
            async with DynamoStore.open(address, clock=clock, on_retry=on_retry) as store:
                if not (address.is_aws or must_exist):
                    await provision.create(store.calls, address)
                await provision.require(store.calls, address)
                yield store


def priced(engine: Store, address: StoreAddress) -> tuple[Store, CostSource]:
    """The engine as what tells its prices, and who knows them.

    AWS says with each answer what it consumed; what only speaks the API may say anything, or
    nothing, and is metered as the embedded store is.
    """
    if isinstance(address, DynamoAddress) and address.is_aws:
        return engine, "consumed"
    return MeteredStore(engine, is_near=isinstance(address, SqliteAddress)), "metered"


@asynccontextmanager
async def _sweeping(engine: SqliteStore, metrics: Metrics) -> AsyncIterator[None]:
    """Delete expired items now and then, until left."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await engine.sweep()
            except Exception:  # noqa: BLE001  # the root of a task
                metrics.unexpected("sweep")
                _log.exception("unexpected", place="sweep")

    task = asyncio.ensure_future(sweep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
