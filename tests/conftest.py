from __future__ import annotations

import pytest

from tests.stores import StoreKind, chosen


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> StoreKind:
    """Which store a test runs on."""
    kind: StoreKind = getattr(request, "param", "sqlite")
    return kind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module on the stores that it names."""
    kinds = getattr(metafunc.module, "STORES", None)
    if kinds is not None and "store_kind" in metafunc.fixturenames:
        metafunc.parametrize("store_kind", chosen(kinds), indirect=True)
