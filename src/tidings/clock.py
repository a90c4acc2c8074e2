"""Time as an argument: milliseconds since 1970 for people to read, and RFC 3339 at the border."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], int]
"""Returns the present time in milliseconds since 1970-01-01T00:00:00Z."""
_SECONDS = tuple(f"{second:02d}." for second in range(60))


def system_clock() -> int:
    """The machine's wall clock, in milliseconds. Nothing that is promised rests on it."""
    return time.time_ns() // 1_000_000


@lru_cache(maxsize=1_024)
def _day(days: int) -> str:
    return datetime.fromtimestamp(days * 86_400, UTC).strftime("%Y-%m-%d")


@lru_cache(maxsize=1_024)
def _minute(minutes: int) -> str:
    days, minutes = divmod(minutes, 1_440)
    return f"{_day(days)}T{minutes // 60:02d}:{minutes % 60:02d}:"


def rfc3339(time_ms: int) -> str:
    """Write a time as RFC 3339 in UTC with milliseconds, such as `2026-11-23T10:12:01.000Z`.

    A page of a log has as many times as entries: what they share, the minute at least, is written
    once.
    """
    minutes, milliseconds = divmod(time_ms, 60_000)
    return f"{_minute(minutes)}{_SECONDS[milliseconds // 1000]}{milliseconds % 1000:03d}Z"


def parse_rfc3339(text: str) -> int:
    """Read an RFC 3339 time as milliseconds since 1970. Raises ValueError without an offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, such as Z")
    return int(moment.timestamp() * 1000)
