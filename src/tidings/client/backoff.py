"""How long to wait before trying again: exponential with full jitter.

The rule is the one that AWS's architecture blog measured best ("Exponential Backoff And Jitter"):
a uniformly random wait between nothing and a bound that doubles, so that many clients which
failed together do not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable

DOUBLINGS_MAX = 16


class Backoff:
    """Waits for one series of attempts; `reset` it after a success."""

    def __init__(
        self,
        *,
        first_s: float,
        most_s: float,
        random_0_1: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._random_0_1 = random_0_1
        self._failures = 0

    def reset(self) -> None:
        """The last attempt succeeded: the next wait is short again."""
        self._failures = 0

    def next_s(self, *, at_least_s: float = 0.0) -> float:
        """Seconds to wait now; `at_least_s` is what the service asked for, jitter comes on top."""
        bound_s: float = min(self._most_s, self._first_s * 2.0**self._failures)
        self._failures = min(self._failures + 1, DOUBLINGS_MAX)
        return at_least_s + bound_s * self._random_0_1()
