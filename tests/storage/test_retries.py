"""When a call is made again: pauses, time-outs of attempts, and the end."""

from __future__ import annotations

import pytest

from tidings.errors import Unavailable
from tidings.storage.retries import (
    ATTEMPT_TIMEOUTS_S,
    ATTEMPTS_MAX,
    CALL_DEADLINE_S,
    OPEN_KINDS,
    PAUSES,
    Kind,
    RetryPolicy,
)

TOKEN_LIFE_S = 600.0
"""How long AWS remembers a ClientRequestToken."""


class Watch:
    """A clock that only moves when somebody sleeps, or is told to."""

    def __init__(self, chance: float = 1.0) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.retried: list[Kind] = []
        self.policy = RetryPolicy(
            on_retry=self.retried.append,
            chance=lambda: chance,
            monotonic=lambda: self.now_s,
            sleep=self._sleep,
        )

    async def _sleep(self, pause_s: float) -> None:
        self.slept.append(pause_s)
        self.now_s += pause_s


def test_a_call_ends_long_before_its_token_is_forgotten() -> None:
    assert CALL_DEADLINE_S < TOKEN_LIFE_S / 10


def test_each_kind_has_a_pause() -> None:
    assert set(PAUSES) == set(Kind)
    assert all(0 <= pause.first_s <= pause.most_s for pause in PAUSES.values())


async def test_pauses_double_for_each_kind_by_itself_up_to_the_most() -> None:
    watch = Watch()
    retries = watch.policy.begin("PutItem")
    for _ in range(6):
        await retries.again(Kind.CONFLICT)
    await retries.again(Kind.THROTTLE)
    assert watch.slept == [0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.05]
    assert watch.retried == [Kind.CONFLICT] * 6 + [Kind.THROTTLE]
    assert retries.failed_by(Kind.CONFLICT) == 6


async def test_a_pause_is_anything_from_nothing_up() -> None:
    watch = Watch(chance=0.25)
    retries = watch.policy.begin("PutItem")
    await retries.again(Kind.THROTTLE)
    await retries.again(Kind.THROTTLE)
    assert watch.slept == [0.0125, 0.025]


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_call_is_given_up_within_its_deadline(kind: Kind) -> None:
    watch = Watch()
    began_s = watch.now_s
    retries = watch.policy.begin("PutItem")

    async def fail_for_ever() -> None:
        while True:
            await retries.again(kind)

    with pytest.raises(Unavailable, match=kind.value):
        await fail_for_ever()
    assert watch.now_s - began_s < CALL_DEADLINE_S
    assert retries.attempts <= ATTEMPTS_MAX
    assert len(watch.retried) == retries.attempts - 1


async def test_no_attempt_begins_when_the_time_is_over() -> None:
    watch = Watch(chance=0.0)
    retries = watch.policy.begin("PutItem")
    watch.now_s += CALL_DEADLINE_S
    assert retries.remaining_s == 0
    with pytest.raises(Unavailable):
        await retries.again(Kind.RESET)
    assert watch.slept == []


async def test_attempts_get_longer_after_hangs_alone() -> None:
    watch = Watch(chance=0.0)
    retries = watch.policy.begin("PutItem")
    assert retries.attempt_timeout_s == ATTEMPT_TIMEOUTS_S[0]
    await retries.again(Kind.THROTTLE)
    assert retries.attempt_timeout_s == ATTEMPT_TIMEOUTS_S[0]
    await retries.again(Kind.HANG)
    assert retries.attempt_timeout_s == ATTEMPT_TIMEOUTS_S[1]
    await retries.again(Kind.LOST_ANSWER)
    assert retries.attempt_timeout_s == ATTEMPT_TIMEOUTS_S[2]


async def test_an_attempt_never_outlasts_its_call() -> None:
    watch = Watch()
    retries = watch.policy.begin("PutItem")
    watch.now_s += CALL_DEADLINE_S - 0.3
    assert retries.attempt_timeout_s == pytest.approx(0.3)


@pytest.mark.parametrize("kind", list(Kind))
async def test_the_outcome_is_open_once_a_write_may_have_been_applied(kind: Kind) -> None:
    retries = Watch().policy.begin("PutItem")
    assert not retries.is_outcome_open
    await retries.again(kind)
    await retries.again(Kind.THROTTLE)
    assert retries.is_outcome_open == (kind in OPEN_KINDS)
