"""Rate limits: how often one credential may call, and how often strangers may open sessions.

A limit of 50 calls a second with bursts of 100 is a moving window: at most 100 calls in any 2
seconds. Windows live in the process, so with several nodes each counts for itself.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

import msgspec
from limits import (
    RateLimitItem,
    RateLimitItemPerHour,
    RateLimitItemPerMinute,
    RateLimitItemPerSecond,
    parse,
)
from limits.storage import MovingWindowSupport, Storage
from limits.strategies import MovingWindowRateLimiter

from tidings.errors import RateLimited, ValidationFailed
from tidings.people.callers import Caller

BURST_S = 2
"""The window in which a credential's calls are counted: a burst is what it holds."""
WINDOWS_MAX = 20_000
"""Windows kept; past it the one that was used longest ago starts anew."""
API_KEY_FACTOR = 10
"""How many times the calls of a session an API key may make."""
UPLOAD_UNIT_BYTES = 1024 * 1024
STRANGER_PREFIX_BITS = 64
"""Bits of an IPv6 address that are counted as one address: what one household is given."""

Monotonic = Callable[[], float]
"""Seconds of a clock that never goes back."""


class Policy(msgspec.Struct, frozen=True):
    """What each kind of caller may do."""

    session: RateLimitItem
    """Calls and frames of one session."""
    api_key: RateLimitItem
    """Calls of one API or operator key."""
    visits_per_address: RateLimitItem = RateLimitItemPerMinute(30)
    """Anonymous sessions opened from one address."""
    visits_per_origin: RateLimitItem = RateLimitItemPerMinute(1_200)
    """Anonymous sessions opened from one of a workspace's allowed origins."""
    visits_per_workspace: RateLimitItem = RateLimitItemPerMinute(3_000)
    """Anonymous sessions opened in one workspace."""
    exchanges_per_address: RateLimitItem = RateLimitItemPerMinute(300)
    """Identity tokens sent from one address."""
    uploads_per_user: RateLimitItem = RateLimitItemPerHour(1_000)
    """Megabytes of files that one user begins to upload; each file counts as one at least."""


class Standing(msgspec.Struct, frozen=True):
    """Where a caller stands after a call, as the RateLimit headers tell it (IETF draft)."""

    name: str
    """Which policy: `session` or `api_key`."""
    limit: int
    window_s: int
    remaining: int
    reset_s: float
    """Seconds until the oldest call leaves the window and gives its place back."""

    @property
    def policy(self) -> str:
        """The value of `RateLimit-Policy`."""
        return f'"{self.name}";q={self.limit};w={self.window_s}'

    @property
    def text(self) -> str:
        """The value of `RateLimit`."""
        return f'"{self.name}";r={self.remaining};t={math.ceil(self.reset_s)}'


def parse_policy(text: str) -> Policy | None:
    """The policy of a text such as `50/second`; None for `off`, which limits nothing at all.

    The number is what a session may do on average; it may do BURST_S times that at once, and an
    API key API_KEY_FACTOR times that. Raises ValidationFailed.
    """
    if text.strip().lower() == "off":
        return None
    try:
        average = parse(text)
    except ValueError as error:
        raise ValidationFailed("A rate limit is a text such as 50/second, or off.") from error
    if average.amount < 1 or average.get_expiry() < 1:
        raise ValidationFailed("A rate limit allows at least one call in a second or longer.")
    return policy_of(average.amount, average.get_expiry())


def policy_of(calls: int, per_s: int = 1) -> Policy:
    """The policy that lets a session make that many calls on average."""
    return Policy(
        session=RateLimitItemPerSecond(calls * BURST_S, per_s * BURST_S, "session"),
        api_key=RateLimitItemPerSecond(
            calls * API_KEY_FACTOR * BURST_S, per_s * BURST_S, "api_key"
        ),
    )


DEFAULT_POLICY = policy_of(50)


class MemoryWindows(Storage, MovingWindowSupport):
    """Moving windows in memory: at most `size_max`, no threads, the clock an argument.

    The library's own memory storage starts a thread every 10 ms while it is in use and keeps
    windows without a bound. Only moving windows are supported.
    """

    STORAGE_SCHEME = None
    base_exceptions = ValueError

    def __init__(self, monotonic: Monotonic, size_max: int = WINDOWS_MAX) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._size_max = size_max
        self._windows: OrderedDict[str, tuple[int, deque[float]]] = OrderedDict()
        """Length in seconds and the calls counted, by key; the key used last is the last."""

    def __len__(self) -> int:
        return len(self._windows)

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count calls, if they all fit into the window."""
        now = self._monotonic()
        if key in self._windows:
            self._windows.move_to_end(key)
        else:
            self._make_room(now)
            self._windows[key] = (expiry, deque())
        calls = self._counted(key, now - expiry)
        if len(calls) + amount > limit:
            return False
        calls.extend([now] * amount)
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest call in the window was made, and how many calls are in it."""
        now = self._monotonic()
        calls = self._counted(key, now - expiry) if key in self._windows else ()
        return (calls[0] if calls else now), len(calls)

    def _counted(self, key: str, horizon: float) -> deque[float]:
        """The calls of a window after the horizon; what came before no longer counts."""
        calls = self._windows[key][1]
        while calls and calls[0] <= horizon:
            calls.popleft()
        return calls

    def _make_room(self, now: float) -> None:
        """Drop windows that ran out, two for each new one, and the oldest where all are in use."""
        for _ in range(2):
            if not self._windows:
                return
            key, (expiry, calls) = next(iter(self._windows.items()))
            is_over = not calls or calls[-1] <= now - expiry
            if not is_over and len(self._windows) < self._size_max:
                return
            del self._windows[key]

    def clear(self, key: str) -> None:
        """Forget what was counted."""
        self._windows.pop(key, None)

    def reset(self) -> int:
        """Forget everything; how many windows that were."""
        count = len(self._windows)
        self._windows.clear()
        return count

    def check(self) -> bool:
        """Memory is always there."""
        return True

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Fixed windows are not supported."""
        raise NotImplementedError

    def get(self, key: str) -> int:
        """Fixed windows are not supported."""
        raise NotImplementedError

    def get_expiry(self, key: str) -> float:
        """Fixed windows are not supported."""
        raise NotImplementedError


class RateLimits:
    """Counts calls and refuses those past the policy; with no policy it refuses nothing."""

    def __init__(
        self, policy: Policy | None = DEFAULT_POLICY, *, monotonic: Monotonic = time.monotonic
    ) -> None:
        self._policy = policy
        self._monotonic = monotonic
        self._windows = MovingWindowRateLimiter(MemoryWindows(monotonic))

    def count(self, caller: Caller) -> None:
        """Count a call without telling where that leaves the caller: for every frame of a socket.

        Raises RateLimited.
        """
        if self._policy is not None:
            item = self._policy.session if caller.kind == "session" else self._policy.api_key
            if not self._windows.hit(item, caller.credential_id):
                raise self._refused(item, caller.credential_id)

    def hit(self, caller: Caller) -> Standing | None:
        """Count a call; where the caller stands after it, None with no policy.

        Raises RateLimited.
        """
        self.count(caller)
        return self.standing(caller)

    def standing(self, caller: Caller) -> Standing | None:
        """Where the caller stands, without counting: also after a refusal."""
        if self._policy is None:
            return None
        item = self._policy.session if caller.kind == "session" else self._policy.api_key
        reset_at, remaining = self._windows.get_window_stats(item, caller.credential_id)
        return Standing(
            name=item.namespace,
            limit=item.amount,
            window_s=item.get_expiry(),
            remaining=remaining,
            reset_s=max(0.0, reset_at - self._monotonic()),
        )

    def count_visit(self, workspace: str, address: str | None, origin: str | None) -> None:
        """Count an anonymous session; `origin` is one that the workspace allows by name.

        The address comes first, so that one address alone can't use up what all others share.
        Raises RateLimited.
        """
        if self._policy is None:
            return
        self._count(self._policy.visits_per_address, "visit", network_of(address))
        if origin is not None:
            self._count(self._policy.visits_per_origin, "origin", workspace, origin)
        self._count(self._policy.visits_per_workspace, "workspace", workspace)

    def count_exchange(self, address: str | None) -> None:
        """Count an attempt to open a session without a key. Raises RateLimited."""
        if self._policy is not None:
            self._count(self._policy.exchanges_per_address, "exchange", network_of(address))

    def count_upload(self, caller: Caller, size_bytes: int) -> None:
        """Count a file that a user begins to upload; API keys may what they like.

        Raises RateLimited.
        """
        if self._policy is not None and caller.user_id is not None:
            megabytes = 1 + size_bytes // UPLOAD_UNIT_BYTES
            user = ("upload", caller.workspace, caller.user_id)
            self._count(self._policy.uploads_per_user, *user, cost=megabytes)

    def _count(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> None:
        if not self._windows.hit(item, *identifiers, cost=cost):
            raise self._refused(item, *identifiers)

    def _refused(self, item: RateLimitItem, *identifiers: str) -> RateLimited:
        reset_at, _ = self._windows.get_window_stats(item, *identifiers)
        return RateLimited(retry_after_s=max(0.0, reset_at - self._monotonic()))


def network_of(address: str | None) -> str:
    """What counts as one address: an IPv4 address, or the network of an IPv6 one."""
    try:
        parsed = ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{int(parsed) >> (128 - STRANGER_PREFIX_BITS):x}::"
    return str(parsed)
