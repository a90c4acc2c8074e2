"""How fast something grows, over the last seconds."""

from __future__ import annotations

from collections import deque

from tidings.cluster.nodes import Monotonic

RATE_S = 10.0
"""Rates are those of so many seconds."""
SEEN_EVERY_S = 1.0


class Rate:
    """What a total grew by a second, as far as it was seen."""

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._seen: deque[tuple[float, float]] = deque()

    @property
    def is_due(self) -> bool:
        """Whether it is time to look at the total again."""
        return not self._seen or self._monotonic() - self._seen[-1][0] >= SEEN_EVERY_S

    def see(self, total: float) -> float:
        """The rate, given the total now."""
        now_s = self._monotonic()
        self._seen.append((now_s, total))
        while now_s - self._seen[0][0] > RATE_S:
            self._seen.popleft()
        since_s, before = self._seen[0]
        return (total - before) / (now_s - since_s) if now_s > since_s else 0.0
