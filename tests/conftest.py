from __future__ import annotations

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.stores import StoreKind, chosen

CROWDED = (
    "tests/test_faults.py",
    "tests/test_move_under_load.py",
    "tests/test_moving_page.py",
    "tests/test_nodes.py",
    "tests/test_nothing_lost.py",
)
"""Modules whose tests each keep a machine busy, most with a dozen processes: never two at once."""


LONG = (*CROWDED, "tests/web/")
"""What takes longest begins, so that the end is not one process alone."""


class Turns(LoadScopeScheduling):  # type: ignore[misc]
    """What runs beside what under `pytest -n`: the tests of a module one after the other, and so
    those of all crowded modules together.

    By names, as xdist decides in a process that knows of no marks.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "crowded" if module in CROWDED else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Turns:
    """Take turns, whatever `--dist` says, in the order of the collection."""
    config.option.loadscopereorder = False
    return Turns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


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
