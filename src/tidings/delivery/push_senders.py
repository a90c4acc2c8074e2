"""What a push is and who sends it: one sender for each kind of push service."""

from __future__ import annotations

from typing import Protocol

import msgspec

from tidings import wire


class Subscription(msgspec.Struct, frozen=True):
    """Where a device is reached that is not connected, and what it was last told."""

    workspace: str
    user_id: str
    session_id: str
    kind: str
    endpoint: str
    keys: dict[str, str]
    told_version: int
    """The user's version that the last push was made from."""
    told_unread: int
    """The badge number in it."""


class Notice(msgspec.Struct, frozen=True):
    """One push."""

    topic: str
    """The collapse key: a push service keeps the newest one of a topic for a device that is off."""
    body: bytes
    """JSON, at most BODY_BYTES_MAX."""
    is_urgent: bool
    """Whether the device is to be woken for it."""
    life_s: int
    """How long the push service keeps it for a device that is off."""


BODY_BYTES_MAX = 3_000
"""What every push service takes (RFC 8291 leaves 3,993 bytes)."""


class Gone(Exception):
    """The subscription has ended: there is nobody any more."""


class Refused(Exception):
    """The push service takes this push never, or not from us; another one it may take."""


class TryLater(Exception):
    """The push service did not answer, or is too busy."""

    def __init__(self, detail: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Sender(Protocol):
    """Sends pushes of one kind. What it is told of devices is written by strangers."""

    def check(self, subscription: wire.PushSubscription) -> None:
        """Whether it can send there. Raises ValidationFailed, by field."""
        ...

    async def send(self, subscription: Subscription, notice: Notice) -> None:
        """One attempt, which has a deadline; sent again it takes the place of the first.

        Raises Gone, Refused, TryLater.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
