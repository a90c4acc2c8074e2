"""When a call to a store is made again, and when it is given up.

Failures are told apart by what they say about the call: whether it was applied, and how soon it is
worth another attempt. Pauses grow with each failure of the same kind and are drawn between nothing
and that ("Exponential Backoff And Jitter", AWS Architecture Blog: full jitter). A call ends within
its deadline, whatever happens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import structlog

from tidings.errors import Unavailable

CALL_DEADLINE_S = 5.0
"""How long one call may take with all its attempts; far below the life of a request token."""
ATTEMPTS_MAX = 100
"""Attempts of one call, should none of them take any time."""
ATTEMPT_TIMEOUTS_S = (1.0, 2.0, 4.0)
"""How long an attempt may take: the first, one after a hang, and any later one."""

_log = structlog.get_logger(__name__)


class Kind(StrEnum):
    """Why an attempt failed."""

    CONFLICT = "conflict"
    """Another transaction is at one of the items. Nothing was applied."""
    THROTTLE = "throttle"
    """A table, an index or a partition is at its limit. Nothing was applied."""
    IN_PROGRESS = "in_progress"
    """An earlier attempt with the same token is still being worked on."""
    SERVER_ERROR = "server_error"
    """An answer of 500 or above. A write may have been applied."""
    UNREACHABLE = "unreachable"
    """No connection was made. Nothing was sent."""
    RESET = "reset"
    """The connection broke during a read."""
    HANG = "hang"
    """A read had no answer in time."""
    LOST_ANSWER = "lost_answer"
    """A write had no answer, in time or because the connection broke. It may have been applied."""
    SIGNATURE = "signature"
    """The signature was refused, and the clock or the keys it was made with were corrected."""


OPEN_KINDS = frozenset({Kind.SERVER_ERROR, Kind.LOST_ANSWER, Kind.IN_PROGRESS})
"""After these a write may have been applied."""


class Pause(msgspec.Struct, frozen=True):
    """At most `first_s` the first time, twice that the next, and so on up to `most_s`."""

    first_s: float
    most_s: float


PAUSES: Mapping[Kind, Pause] = {
    # Whoever holds the item is done within milliseconds.
    Kind.CONFLICT: Pause(0.01, 0.2),
    # Limits count by the second.
    Kind.THROTTLE: Pause(0.05, 2.0),
    Kind.IN_PROGRESS: Pause(0.05, 0.5),
    Kind.SERVER_ERROR: Pause(0.025, 1.0),
    Kind.UNREACHABLE: Pause(0.025, 1.0),
    Kind.RESET: Pause(0.01, 0.5),
    # The time-out was the pause.
    Kind.HANG: Pause(0.01, 0.1),
    Kind.LOST_ANSWER: Pause(0.01, 0.2),
    Kind.SIGNATURE: Pause(0.0, 0.0),
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How calls are repeated. `on_retry` hears the kind of each failure that is tried again."""

    deadline_s: float = CALL_DEADLINE_S
    on_retry: Callable[[Kind], None] | None = None
    chance: Callable[[], float] = random.random
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep

    def begin(self, action: str) -> Retries:
        """The attempts of one call that starts now; `action` is what logs call it."""
        return Retries(self, action, self.monotonic() + self.deadline_s)


@dataclass(slots=True)
class Retries:
    """The attempts of one call."""

    policy: RetryPolicy
    action: str
    deadline: float
    attempts: int = 0
    """Attempts that failed."""
    _failures: Counter[Kind] = field(default_factory=Counter)

    @property
    def remaining_s(self) -> float:
        """How much of the call's time is left, never less than nothing."""
        return max(0.0, self.deadline - self.policy.monotonic())

    @property
    def attempt_timeout_s(self) -> float:
        """How long the next attempt may take."""
        hangs = self._failures[Kind.HANG] + self._failures[Kind.LOST_ANSWER]
        timeout_s = ATTEMPT_TIMEOUTS_S[min(hangs, len(ATTEMPT_TIMEOUTS_S) - 1)]
        return min(timeout_s, self.remaining_s)

    @property
    def is_outcome_open(self) -> bool:
        """Whether an attempt so far, if it was a write's, may have been applied."""
        return any(kind in OPEN_KINDS for kind in self._failures)

    def failed_by(self, kind: Kind) -> int:
        """How many attempts failed in that way."""
        return self._failures[kind]

    async def again(self, kind: Kind) -> None:
        """Wait until the next attempt, after one that failed in that way.

        Logs and counts it. Raises Unavailable where the time does not suffice for another one.
        """
        self.attempts += 1
        self._failures[kind] += 1
        pause = PAUSES[kind]
        ceiling_s = min(pause.most_s, pause.first_s * 2.0 ** (self._failures[kind] - 1))
        pause_s = ceiling_s * self.policy.chance()
        if pause_s >= self.remaining_s or self.attempts >= ATTEMPTS_MAX:
            _log.warning(
                "store_given_up", action=self.action, kind=kind.value, attempts=self.attempts
            )
            raise Unavailable(f"The store can't do this in time: {kind}.")
        _log.info(
            "store_retry",
            action=self.action,
            kind=kind.value,
            attempt=self.attempts,
            pause_ms=round(pause_s * 1000, 1),
        )
        if self.policy.on_retry is not None:
            self.policy.on_retry(kind)
        await self.policy.sleep(pause_s)
