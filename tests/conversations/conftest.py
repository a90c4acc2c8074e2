"""No test of this folder waits for ever."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator

import pytest

TEST_S_MAX = 120.0


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Fail where a test hangs, and say where every thread is."""

    def fail(*_: object) -> None:
        faulthandler.dump_traceback()
        pytest.fail(f"not over after {TEST_S_MAX:.0f} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, TEST_S_MAX, TEST_S_MAX)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
