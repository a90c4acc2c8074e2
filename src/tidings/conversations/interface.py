"""What an application does with conversation lists, wherever they are kept.

A conversation is between two. Each of the two has a list of their own, newest first, and for each
line what belongs to them alone: how much is unread, and whether it is muted.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeAlias

import msgspec

from tidings.ids import is_id
from tidings.wire import PREVIEW_CHARACTERS_MAX, TEXT_CHARACTERS_MAX

LIST_LIMIT_DEFAULT = 25
LIST_LIMIT_MAX = 500


class ConversationsError(Exception):
    """Everything that conversation lists raise on purpose."""


class Away(ConversationsError):
    """The store can't be reached just now: whether the change was made is not known.

    Making it again does no harm.
    """


class Refused(ConversationsError):
    """The store does not take this, now or later; the text says why."""


class Message(msgspec.Struct, frozen=True):
    """That somebody wrote to somebody. Raises ValueError for what no store takes."""

    sender_id: str
    receiver_id: str
    message_id: str
    """The message is the same one wherever it has this id and sender."""
    at_ms: int
    text: str
    """What the list shows of it; 1 to TEXT_CHARACTERS_MAX characters."""

    def __post_init__(self) -> None:
        for name in ("sender_id", "receiver_id", "message_id"):
            _check_id(name, getattr(self, name))
        if self.sender_id == self.receiver_id:
            raise ValueError("a conversation is between two")
        if not 1 <= len(self.text) <= TEXT_CHARACTERS_MAX:
            raise ValueError(f"a text has 1 to {TEXT_CHARACTERS_MAX} characters")


class Touch(msgspec.Struct, frozen=True, tag="touch"):
    """Somebody wrote: both lists begin with the conversation, and the receiver has one unread."""

    message: Message

    @property
    def users(self) -> tuple[str, str]:
        """Whose lists it changes."""
        return self.message.sender_id, self.message.receiver_id

    @property
    def pair(self) -> tuple[str, str]:
        """Whose conversation it is."""
        return self.users


class _Owned(msgspec.Struct, frozen=True):
    owner: str
    opponent: str

    def __post_init__(self) -> None:
        _check_id("owner", self.owner)
        _check_id("opponent", self.opponent)

    @property
    def users(self) -> tuple[str, ...]:
        """Whose lists it changes."""
        return (self.owner,)

    @property
    def pair(self) -> tuple[str, str]:
        """Whose conversation it is."""
        return self.owner, self.opponent


class Remove(_Owned, frozen=True, tag="remove"):
    """Take a conversation off the owner's list; what was unread or muted is forgotten."""


class Read(_Owned, frozen=True, tag="read"):
    """The owner has read everything in it."""


class Mute(_Owned, frozen=True, tag="mute"):
    """Mute it for its owner, or end that."""

    is_muted: bool


Operation: TypeAlias = Touch | Remove | Read | Mute


class Conversation(msgspec.Struct, frozen=True):
    """One line of somebody's list."""

    opponent: str
    at_ms: int
    """When something was written last."""
    unread: int = 0
    preview: str | None = None
    """Of the last message, at most PREVIEW_CHARACTERS_MAX characters."""
    is_muted: bool = False


class Page(msgspec.Struct, frozen=True):
    """Some lines, newest first, and where to go on; None at the end."""

    items: list[Conversation]
    next: str | None


class Conversations(Protocol):
    """The lists of everybody.

    What is not in the list can't be muted, read or removed: that changes nothing. Everything may
    be done twice without harm. Raises Away, Refused; ValueError for ids that no store takes.
    """

    async def touch(self, message: Message) -> None:
        """Somebody wrote. The same message again changes nothing, unless others came between."""
        ...

    async def remove(self, owner: str, opponent: str) -> None:
        """Take it off the owner's list; it comes back with the next message."""
        ...

    async def read(self, owner: str, opponent: str) -> None:
        """Nothing in it is unread any more."""
        ...

    async def mute(self, owner: str, opponent: str, *, muted: bool) -> None:
        """Mute it for its owner, or end that."""
        ...

    async def get(self, owner: str, opponent: str) -> Conversation | None:
        """One line of the owner's list, or None where it isn't there."""
        ...

    async def list(
        self, owner: str, *, limit: int = LIST_LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page:
        """The newest `limit` lines after the cursor. Raises ValueError for a limit out of range."""
        ...

    async def count(self, owner: str) -> int:
        """How many lines the owner's list has."""
        ...

    async def apply(self, operation: Operation) -> None:
        """Carry out a change that was made into a value."""
        ...

    async def close(self) -> None:
        """Let go of what was opened."""
        ...


class Operations:
    """The changes of `Conversations` by way of `apply`."""

    async def apply(self, operation: Operation) -> None:
        """Carry out one change."""
        raise NotImplementedError

    async def touch(self, message: Message) -> None:
        """Somebody wrote."""
        await self.apply(Touch(message))

    async def remove(self, owner: str, opponent: str) -> None:
        """Take it off the owner's list."""
        await self.apply(Remove(owner, opponent))

    async def read(self, owner: str, opponent: str) -> None:
        """Nothing in it is unread any more."""
        await self.apply(Read(owner, opponent))

    async def mute(self, owner: str, opponent: str, *, muted: bool) -> None:
        """Mute it for its owner, or end that."""
        await self.apply(Mute(owner, opponent, muted))

    async def close(self) -> None:
        """Let go of what was opened."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def preview_of(text: str) -> str:
    """What a list shows of a text."""
    return text[:PREVIEW_CHARACTERS_MAX]


def check_limit(limit: int) -> None:
    """Raises ValueError."""
    if not 1 <= limit <= LIST_LIMIT_MAX:
        raise ValueError(f"a page has 1 to {LIST_LIMIT_MAX} lines")


def _check_id(name: str, value: str) -> None:
    if not is_id(value):
        raise ValueError(f"{name}: 1 to 64 characters of A-Z a-z 0-9 . _ : -")
