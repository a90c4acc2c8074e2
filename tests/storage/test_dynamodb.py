"""The DynamoDB engine keeps the contract, and what it promises beyond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import settings

from tests.engines import dynamo_store, make_tables, new_address, remove_tables
from tests.storage.contract import SetClock, StoreContract
from tests.storage.machine import TABLES, StoreMachine
from tidings.clock import Clock
from tidings.storage.dynamodb import DynamoStore
from tidings.storage.interface import Store
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    INBOXES,
    RECEIPTS,
    ROOMS,
    SECRETS,
    SESSIONS,
    USERS,
)

CONTRACT_TABLES = (BADGES, ENTRIES, INBOXES, RECEIPTS, ROOMS, SECRETS, SESSIONS, USERS)


@pytest.fixture
async def store(clock: SetClock) -> AsyncIterator[DynamoStore]:
    async with dynamo_store(clock, CONTRACT_TABLES) as store:
        yield store


class TestDynamo(StoreContract):
    pass


class DynamoEngine:
    """Tables of its own; after a crash, what was asked of the engine before."""

    def __init__(self) -> None:
        self.address = new_address()
        self.is_made = False

    async def open(self, clock: Clock) -> Store:
        if not self.is_made:
            await make_tables(self.address, TABLES)
            self.is_made = True
        return DynamoStore.open(self.address, clock=clock, tables=TABLES)

    async def crash(self, store: Store) -> None:
        assert isinstance(store, DynamoStore)
        await store.calls.close()

    def remove(self) -> None:
        asyncio.run(remove_tables(self.address, TABLES))


class DynamoMachine(StoreMachine):
    new_engine = DynamoEngine


TestDynamoMachine = DynamoMachine.TestCase
TestDynamoMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
