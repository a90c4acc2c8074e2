from __future__ import annotations

import pytest

from tests.storage.contract import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()
