"""What an import from Redis did."""

from __future__ import annotations

from collections import Counter

import msgspec


class Report(msgspec.Struct):
    """What an import did: counts of effects, not of attempts."""

    lists: int = 0
    members: int = 0
    """Lines of all lists in Redis; the keys are not counted."""
    lines_added: int = 0
    lines_present: int = 0
    lines_hidden: int = 0
    """Of the other side, where only one of the two has the conversation on their list."""
    rooms_made: int = 0
    rooms_present: int = 0
    messages_added: int = 0
    users_made: int = 0
    users_present: int = 0
    unread_in_source: int = 0
    unread_carried: int = 0
    operations_seen: int = 0
    """Noted operations whose effect was there already when their conversation was read."""
    left_out: Counter[str] = msgspec.field(default_factory=Counter)
    changed: Counter[str] = msgspec.field(default_factory=Counter)
    """What came along otherwise than it was, by reason."""
