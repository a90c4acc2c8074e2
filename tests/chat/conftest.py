from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chat.company import Company, company
from tests.people.clocks import FakeClock
from tests.stores import StoreKind, open_store


@pytest.fixture
async def acme(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Company]:
    clock = FakeClock()
    async with open_store(store_kind, tmp_path, clock) as store, company(store, clock) as made:
        yield made
