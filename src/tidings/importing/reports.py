"""What an import did: counts of effects, not of attempts."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct):
    """Effects of one run. `present` is what was there already and says the same."""

    users_made: int = 0
    users_present: int = 0
    rooms_made: int = 0
    rooms_present: int = 0
    members_joined: int = 0
    """Into rooms that were there already."""
    members_left: int = 0
    messages_added: int = 0
    messages_present: int = 0
    messages_edited: int = 0
    messages_deleted: int = 0
    reactions_changed: int = 0
    reads_moved: int = 0
    odd: dict[str, int] = {}
    """Records that were not taken, or not as they were, by kind and reason."""
