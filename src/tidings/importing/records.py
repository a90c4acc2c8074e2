"""What an importer hands to the loader: people, rooms and messages as another system had them.

Times are milliseconds since 1970. A message is known by its `client_id`, which follows from the
other system's own id for it, so that a second import finds what the first one left.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from tidings import wire
from tidings.ids import is_id

READ_ALL = 1 << 62
"""As `read_at`: everything was read."""
_HASH_BYTES = 16


class UserRecord(msgspec.Struct, frozen=True):
    """A person or a program."""

    user_id: str
    name: str
    role: wire.Role = "customer"
    email: str | None = None
    attributes: dict[str, Any] = {}
    created_at: int | None = None


class MemberRecord(msgspec.Struct, frozen=True):
    """Who is in a room, and up to where they have read it; None and None: nothing of it."""

    user_id: str
    role: str = "member"
    read_key: str | None = None
    """The `client_id` of the last message that they have read."""
    read_at: int | None = None
    """They have read what was written up to then; where both are given, the later one."""
    is_muted: bool = False
    active_at: int | None = None
    """The room's place in this person's list, where it differs from the others'."""


class RoomRecord(msgspec.Struct, frozen=True):
    """A room with its present members, each once."""

    room_id: str
    kind: wire.RoomKind
    members: tuple[MemberRecord, ...]
    title: str | None = None
    scope: wire.Scope | None = None
    history: wire.History = "full"
    created_at: int | None = None
    created_by: str | None = None
    status: wire.Status | None = None
    customer_id: str | None = None
    assignee_id: str | None = None
    active_at: int | None = None
    """The last activity, where it is not the last message's time."""


class MessageRecord(msgspec.Struct, frozen=True):
    """One message, or that somebody came or went."""

    client_id: str
    sender_id: str
    created_at: int
    text: str | None = None
    type: Literal["text", "joined", "left"] = "text"
    """`joined` and `left` are about the sender, and count for nobody."""
    reply_to: str | None = None
    """The `client_id` of an earlier message of the room."""
    edited_at: int | None = None
    deleted_at: int | None = None
    mentions: tuple[str, ...] = ()
    reactions: Mapping[str, list[str]] | None = None
    """Emoji to the users who gave it; None where the source does not say."""
    data: Mapping[str, Any] = {}
    """Anything else, such as links to files."""


def fitting_id(text: str, prefix: str) -> str:
    """An id for what another system calls `text`: the same where it may be one, else a hash.

    Two texts have the same id with a probability of 2^-128.
    """
    if is_id(text):
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES)
    return f"{prefix}-{digest.hexdigest()}"
