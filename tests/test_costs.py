"""docs/costs.md tells what the meter tells, for every call that has a price."""

from __future__ import annotations

from difflib import ndiff

import pytest

from tests.costs import Book
from tests.costs_page import PAGE, measured_page
from tidings.api.sections import SECTIONS

pytestmark = pytest.mark.slow

UNITS_ONE_TO_ONE_MAX = 20
"""Write units of a message between two, with the writes of indexes counted once."""
WITHOUT_A_PRICE = {("GET", "/v1/ws"), ("GET", "/v1/events"), ("GET", "/v1/migration")}
"""They stay open and have no reply that could tell one, or look into the books of a move, which no
meter sees."""


@pytest.fixture(scope="module")
def measured() -> tuple[Book, str]:
    return measured_page()


def test_the_page_is_what_the_meter_says(measured: tuple[Book, str]) -> None:
    written = PAGE.read_text() if PAGE.exists() else ""
    differing = [
        line
        for line in ndiff(written.splitlines(), measured[1].splitlines())
        if line.startswith(("- ", "+ "))
    ]
    assert not differing, "\n".join(["run `make costs` and look at the difference:", *differing])


def test_every_call_with_a_price_is_on_the_page(measured: tuple[Book, str]) -> None:
    endpoints = [endpoint for section in SECTIONS for endpoint in section.endpoints]
    priced = {(each.method, each.path) for each in endpoints if each.is_metered}
    assert priced - WITHOUT_A_PRICE - measured[0].calls == set()
    for method, path in priced - WITHOUT_A_PRICE:
        assert f"`{method} {path}`" in measured[1], (method, path)


def test_a_message_between_two_is_within_its_price(measured: tuple[Book, str]) -> None:
    totals = {share.name: share.total for share in measured[0].shares}
    assert totals["direct room: after a pause"][0] <= UNITS_ONE_TO_ONE_MAX
    assert totals["support room: one more"][0] <= UNITS_ONE_TO_ONE_MAX
