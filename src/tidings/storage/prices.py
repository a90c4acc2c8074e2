"""What AWS charges for units and storage, by its price lists as they were at a date."""

from __future__ import annotations

import tomllib
from datetime import date
from functools import cache
from importlib.resources import files

import msgspec


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What units, capacity and storage cost in one region, and since when."""

    as_of: date
    table_class: str
    region: str
    currency: str
    write_units_per_million: float
    """On demand."""
    read_units_per_million: float
    """On demand."""
    write_capacity_per_hour: float
    """Provisioned: a write unit a second, for an hour."""
    read_capacity_per_hour: float
    """Provisioned: a read unit a second, for an hour."""
    storage_gb_per_month: float
    storage_gb_free: float
    """GB of each month that are not charged."""

    def of_units(self, read_units: float, write_units: float) -> float:
        """What so many units cost on demand, in the currency of the prices."""
        return (
            read_units * self.read_units_per_million + write_units * self.write_units_per_million
        ) / 1_000_000

    def of_capacity(self, reads_per_s: float, writes_per_s: float, hours: float) -> float:
        """What it costs to be ready for so many units a second, for so many hours."""
        return hours * (
            reads_per_s * self.read_capacity_per_hour + writes_per_s * self.write_capacity_per_hour
        )

    def of_storage(self, size_gb: float) -> float:
        """What it costs to keep so much for a month."""
        return max(0.0, size_gb - self.storage_gb_free) * self.storage_gb_per_month


@cache
def latest_prices() -> Prices:
    """The newest of the price files that come with the package."""
    texts = [
        entry.read_text()
        for entry in files("tidings").joinpath("prices").iterdir()
        if entry.name.endswith(".toml")
    ]
    known = [msgspec.convert(tomllib.loads(text), Prices) for text in texts]
    return max(known, key=lambda prices: prices.as_of)
