"""The page on scale says what the computation says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import scale

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.mark.slow
@pytest.mark.parametrize("table", scale.TABLES, ids=lambda table: table.__name__)
def test_a_table_of_the_page_is_as_computed(table: Callable[[], str]) -> None:
    assert table() in PAGE.read_text(), "python -m benchmarks.scale prints the tables"
