"""Clocks that tests move."""

from __future__ import annotations

START_MS = 4_102_444_800_000
"""The year 2100: an engine that deletes what has expired goes by the clock on the wall."""


class FakeClock:
    """Milliseconds since 1970 that stand still until moved."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def monotonic(self) -> float:
        """The same clock in seconds."""
        return self.now_ms / 1000

    def forward(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
