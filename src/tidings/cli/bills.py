"""The monthly bill of a described load: measured units, multiplied and priced."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidings.storage.prices import Prices

HOURS_PER_MONTH = 730
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3_600
MONTHS_KEPT = 12
"""For how long messages are kept, where nobody says how much is stored."""
BYTES_PER_GB = 1_000_000_000


class Load(msgspec.Struct, frozen=True):
    """What a service is to carry in a month."""

    messages: int
    members: int
    """People in the room of a message, its sender too."""
    reads_per_message: float
    """Read marks that one message leads to, over all its readers."""
    openings_per_message: float
    """How often somebody opens the app: badge, a page of the inbox, newest entries of a room."""
    peak: float | None
    """None on demand; provisioned, how many times the mean rate there is capacity for."""
    storage_gb: float | None = None
    """None for the messages of MONTHS_KEPT months."""


class Spending(msgspec.Struct, frozen=True):
    """Units of one thing that is done, those of index writes once and doubled in transactions."""

    what: str
    read_units: float
    write_units: float
    write_units_doubled: float


class Measured(msgspec.Struct, frozen=True):
    """What was measured of the things that a load is made of."""

    message: Spending
    reading: Spending
    """A read mark, and the next message's part of it: something is unread again."""
    opening: Spending
    message_bytes: int
    """What a message leaves in the store for good, with what AWS adds to each item."""


class Charge(msgspec.Struct, frozen=True):
    """One line of the bill."""

    what: str
    times: float | None
    read_units: float
    write_units: float
    write_units_doubled: float
    price: float
    price_doubled: float


def monthly_bill(load: Load, measured: Measured, prices: Prices) -> Sequence[Charge]:
    """The lines of the bill, their sum last; each has a price with index writes counted once and
    one with them doubled.
    """
    lines = [
        _charge(measured.message, load.messages, load, prices),
        _charge(measured.reading, load.messages * load.reads_per_message, load, prices),
        _charge(measured.opening, load.messages * load.openings_per_message, load, prices),
    ]
    stored_gb = load.storage_gb
    if stored_gb is None:
        stored_gb = load.messages * MONTHS_KEPT * measured.message_bytes / BYTES_PER_GB
    storage = prices.of_storage(stored_gb)
    lines.append(Charge(f"{stored_gb:,.1f} GB stored", None, 0, 0, 0, storage, storage))
    return [*lines, _sum(lines)]


def _charge(spending: Spending, times: float, load: Load, prices: Prices) -> Charge:
    reads = spending.read_units * times
    once, doubled = spending.write_units * times, spending.write_units_doubled * times

    def price(writes: float) -> float:
        if load.peak is None:
            return prices.of_units(reads, writes)
        share = load.peak / SECONDS_PER_MONTH
        return prices.of_capacity(reads * share, writes * share, HOURS_PER_MONTH)

    return Charge(spending.what, times, reads, once, doubled, price(once), price(doubled))


def _sum(lines: Sequence[Charge]) -> Charge:
    return Charge(
        "together",
        None,
        sum(line.read_units for line in lines),
        sum(line.write_units for line in lines),
        sum(line.write_units_doubled for line in lines),
        sum(line.price for line in lines),
        sum(line.price_doubled for line in lines),
    )
