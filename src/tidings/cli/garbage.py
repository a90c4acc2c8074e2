"""How often Python looks for cycles, in a command through which millions of records go."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_MAX = 50_000
"""So many more objects than before are looked through for cycles."""


@contextmanager
def looking_rarely() -> Iterator[None]:
    """Look for cycles rarely, and not among what is there already.

    By default Python looks whenever 700 objects came, which takes a third of the time where a batch
    of records has thousands that go together. Enter it when everything is imported.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS_MAX, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
