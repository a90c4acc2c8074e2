"""Rate limits: what fits, what is refused and for how long, and how much memory it may take."""

from __future__ import annotations

import threading

import msgspec
import pytest
from limits import RateLimitItemPerSecond
from limits.strategies import MovingWindowRateLimiter

from tests.people.clocks import FakeClock
from tidings.errors import RateLimited, ValidationFailed
from tidings.people.callers import Caller
from tidings.people.limits import (
    DEFAULT_POLICY,
    MemoryWindows,
    RateLimits,
    network_of,
    parse_policy,
)


def _session(session_id: str) -> Caller:
    return Caller(
        workspace="acme",
        kind="session",
        credential_id=session_id,
        user_id="cleo",
        role="customer",
        session_id=session_id,
    )


KEY = Caller(workspace="acme", kind="api_key", credential_id="key_1")


def _limits(clock: FakeClock) -> RateLimits:
    return RateLimits(DEFAULT_POLICY, monotonic=clock.monotonic)


def test_a_burst_fits_and_one_more_does_not(clock: FakeClock) -> None:
    limits = _limits(clock)
    for number in range(100):
        standing = limits.hit(_session("ses_1"))
        assert standing is not None
        assert standing.remaining == 99 - number
    with pytest.raises(RateLimited) as refused:
        limits.hit(_session("ses_1"))
    assert refused.value.retry_after_s == 2
    limits.count(_session("ses_2"))  # another session is another matter
    clock.forward(refused.value.retry_after_s)
    limits.count(_session("ses_1"))


def test_fifty_a_second_always_fit(clock: FakeClock) -> None:
    limits = _limits(clock)
    for _ in range(1_000):
        limits.count(_session("ses_1"))
        clock.forward(0.02)


def test_never_more_than_a_burst_in_any_window(clock: FakeClock) -> None:
    limits = _limits(clock)
    taken: list[float] = []
    for step in range(2_000):
        try:
            limits.count(_session("ses_1"))
            taken.append(clock.monotonic())
        except RateLimited:
            pass
        clock.forward(0.003 if step % 7 else 0.05)
    for start in taken:
        assert sum(start <= time < start + 2 for time in taken) <= 100
    assert len(taken) > 500


def test_refused_calls_cost_nothing(clock: FakeClock) -> None:
    limits = _limits(clock)
    for _ in range(100):
        limits.count(_session("ses_1"))
    clock.forward(1.9)
    for _ in range(50):
        with pytest.raises(RateLimited):
            limits.count(_session("ses_1"))
    clock.forward(0.1)
    for _ in range(100):
        limits.count(_session("ses_1"))


def test_an_api_key_may_do_ten_times_as_much(clock: FakeClock) -> None:
    limits = _limits(clock)
    for _ in range(1_000):
        limits.count(KEY)
    with pytest.raises(RateLimited):
        limits.count(KEY)


def test_what_the_headers_say(clock: FakeClock) -> None:
    limits = _limits(clock)
    limits.hit(_session("ses_1"))
    clock.forward(0.5)
    standing = limits.hit(_session("ses_1"))
    assert standing is not None
    assert standing.policy == '"session";q=100;w=2'
    assert standing.text == '"session";r=98;t=2'
    assert limits.standing(_session("ses_1")) == standing
    unused = limits.standing(KEY)
    assert unused is not None
    assert (unused.policy, unused.remaining) == ('"api_key";q=1000;w=2', 1_000)


def test_a_policy_from_text(clock: FakeClock) -> None:
    assert parse_policy("off") is None
    assert parse_policy("50/second") == DEFAULT_POLICY
    policy = parse_policy("600/minute")
    assert policy is not None
    assert (policy.session.amount, policy.session.get_expiry()) == (1_200, 120)
    for text in ("", "many", "50", "50/fortnight", "-1/second", "0/second"):
        with pytest.raises(ValidationFailed):
            parse_policy(text)


def test_off_limits_nothing() -> None:
    limits = RateLimits(None)
    for _ in range(5_000):
        limits.count_visit("acme", "192.0.2.1", None)
        limits.count_exchange("192.0.2.1")
        assert limits.hit(_session("ses_1")) is None


def _visits(limits: RateLimits, address: str, origin: str | None, most: int) -> int:
    for count in range(most):
        try:
            limits.count_visit("acme", address, origin)
        except RateLimited:
            return count
    return most


def test_visits_are_limited_by_address_origin_and_workspace(clock: FakeClock) -> None:
    limits = _limits(clock)
    assert _visits(limits, "192.0.2.1", None, 100) == 30
    assert _visits(limits, "2001:db8::1", None, 100) == 30
    assert _visits(limits, "2001:db8::ffff", None, 100) == 0
    assert _visits(limits, "2001:db8:1::1", None, 100) == 30
    counts = [_visits(limits, f"10.0.{n}.1", "https://a.example", 30) for n in range(50)]
    assert sum(counts) == 1_200
    counts = [_visits(limits, f"10.1.{n}.1", None, 30) for n in range(100)]
    assert sum(counts) + 90 + 1_200 == 3_000
    clock.forward(60)
    assert _visits(limits, "192.0.2.1", None, 100) == 30


def test_what_a_user_uploads_in_an_hour_is_limited(clock: FakeClock) -> None:
    limits = _limits(clock)
    ann = msgspec.structs.replace(_session("ses_1"), user_id="ann")
    for _ in range(38):
        limits.count_upload(ann, 25 * 1024 * 1024)
    for _ in range(12):
        limits.count_upload(msgspec.structs.replace(ann, session_id="ses_2"), 1)
    with pytest.raises(RateLimited) as refused:
        limits.count_upload(ann, 1)
    assert 0 < refused.value.retry_after_s <= 3_600
    limits.count_upload(msgspec.structs.replace(ann, user_id="ben"), 1)
    clock.forward(3_600)
    limits.count_upload(ann, 1)


def test_one_address() -> None:
    assert network_of("192.0.2.1") == network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("2001:db8::1") == network_of("2001:db8::2") != network_of("2001:db8:0:1::1")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of(None) == network_of("nonsense") == "unknown"


def test_windows_are_bounded_and_start_no_thread(clock: FakeClock) -> None:
    windows = MemoryWindows(clock.monotonic, size_max=100)
    limiter = MovingWindowRateLimiter(windows)
    item = RateLimitItemPerSecond(2, 2)
    threads = threading.active_count()
    for number in range(1_000):
        assert limiter.hit(item, f"ses_{number}")
        assert limiter.hit(item, "always in use") == (number < 2)
    assert len(windows) == 100
    clock.forward(10)
    for number in range(60):
        limiter.hit(item, f"ses_new_{number}")
    assert len(windows) <= 60
    assert threading.active_count() == threads
