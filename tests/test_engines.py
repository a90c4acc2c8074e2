"""The engine of an address, and who tells its prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidings.config import DynamoAddress, SqliteAddress, StoreAddress
from tidings.engines import open_engine, priced
from tidings.storage.metered import CostSource, metering
from tidings.storage.tables import SECRETS


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (SqliteAddress(Path("any.db")), "metered"),
        (DynamoAddress("eu-west-1", endpoint="http://127.0.0.1:8000"), "metered"),
        (DynamoAddress("eu-west-1"), "consumed"),
    ],
)
async def test_who_tells_the_price(
    tmp_path: Path, address: StoreAddress, source: CostSource
) -> None:
    """Whichever engine it is, nothing is told twice: what reports by itself is not metered."""
    async with open_engine(SqliteAddress(tmp_path / "store.db")) as engine:
        store, told = priced(engine, address)
        with metering() as meter:
            await store.get(SECRETS, ("cursors",))
        assert told == source
        assert meter.read_units == (1 if source == "metered" else 0)
