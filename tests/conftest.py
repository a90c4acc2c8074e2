from __future__ import annotations

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.stores import StoreKind, chosen

CROWDED = (
    "tests/api/test_docs_page.py",
    "tests/test_faults.py",
    "tests/test_move_under_load.py",
    "tests/test_moving_page.py",
    "tests/test_nodes.py",
    "tests/test_nothing_lost.py",
    "tests/web/",
)
"""Tests with many processes, or a browser, of their own: never two of these at once."""


class Turns(LoadScopeScheduling):  # type: ignore[misc]
    """What runs beside what under `pytest -n`: the crowded tests one after the other, any other
    wherever there is room. The crowded ones, which take longest, begin.

    By names, as xdist decides in a process that knows of no marks.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "crowded" if nodeid.startswith(CROWDED) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Turns:
    """Take turns, whatever `--dist` says."""
    return Turns(config, log)


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
