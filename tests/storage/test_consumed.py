"""`ConsumedCapacity` as the API reference describes it, charged to a meter."""

from __future__ import annotations

from typing import Any

import pytest

from tidings.storage.consumed import charge_consumed
from tidings.storage.metered import Meter, Place

INBOXES, BY_FEED = Place("inboxes", None), Place("inboxes", "by_feed")


def _charged(consumed: Any, kind: Any = "write") -> Meter:
    meter = Meter()
    charge_consumed(meter, consumed, kind=kind, prefix="acme.")
    return meter


def test_a_transaction_tells_reads_from_writes() -> None:
    meter = _charged(
        [
            {
                "TableName": "acme.inboxes",
                "CapacityUnits": 8.0,
                "WriteCapacityUnits": 8.0,
                "Table": {"CapacityUnits": 4.0, "WriteCapacityUnits": 4.0},
                "LocalSecondaryIndexes": {
                    "by_feed": {"CapacityUnits": 4.0, "WriteCapacityUnits": 4.0}
                },
            },
            {  # the second time that a token came: a read of what was written
                "TableName": "acme.badges",
                "CapacityUnits": 2.0,
                "ReadCapacityUnits": 2.0,
                "Table": {"CapacityUnits": 2.0, "ReadCapacityUnits": 2.0},
            },
        ]
    )
    assert (meter.read_units, meter.write_units, meter.requests) == (2, 8, 1)
    assert (meter.places[INBOXES].write, meter.places[BY_FEED].write) == (4, 4)
    assert meter.places[Place("badges", None)].read == 2


@pytest.mark.parametrize(("kind", "units"), [("read", (2.5, 0)), ("write", (0, 2.5))])
def test_other_calls_report_what_they_do(kind: str, units: tuple[float, float]) -> None:
    meter = _charged(
        {
            "TableName": "acme.rooms",
            "CapacityUnits": 2.5,
            "Table": {"CapacityUnits": 0.0},
            "GlobalSecondaryIndexes": {"by_listing": {"CapacityUnits": 2.5}},
        },
        kind,
    )
    assert (meter.read_units, meter.write_units) == units
    assert set(meter.places) == {Place("rooms", None), Place("rooms", "by_listing")}


def test_totals_alone_are_the_tables() -> None:
    meter = _charged({"TableName": "acme.inboxes", "CapacityUnits": 3.0}, "read")
    assert meter.places[INBOXES].read == 3


def test_who_reports_nothing_was_asked_all_the_same() -> None:
    assert _charged(None).requests == 1
    assert _charged([]).write_units == 0
    charge_consumed(None, {"TableName": "x", "CapacityUnits": 1.0}, kind="read")
