"""What can be asked of a room: each command is a value that a plan applies in its turn.

Everything that is random or depends on time (entry ids, stamps) is in the command already, so
that planning is a pure function.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from tidings import wire
from tidings.chat.attachments import Stored
from tidings.chat.rows import RoomRow
from tidings.chat.updates import PostedEntry


class Post(msgspec.Struct, frozen=True):
    """Append a message; exactly once per (sender, client_id). Answers `Posted`."""

    sender_id: str
    client_id: str
    body_hash: str
    entry_id: str
    at: int
    text: str | None = None
    type: wire.EntryType = "text"
    blobs: list[Stored] = []
    unfit_blobs: tuple[str, ...] = ()
    """Blobs that the author may not attach, or that are not there: the message is refused, unless
    it was accepted before."""
    reply_to: int | None = None
    mentions: list[str] = []
    receipt_expires_at: int | None = None
    """Seconds since 1970; None for imports, whose receipts stay."""
    is_joining: bool = False
    """A manager who posts in a support room becomes a member."""
    is_reopening: bool = False
    """A customer who writes in a snoozed or closed conversation opens it again."""
    imported: dict[str, Any] = {}
    """Fields that a message from elsewhere has already: `edited_at`, `reactions`, `data`."""

    @property
    def receipt(self) -> str:
        """Sort key of the receipt."""
        return f"{self.sender_id}#{self.client_id}"


class Edit(msgspec.Struct, frozen=True):
    """Give one's own message another text. Answers the edited `wire.Entry`."""

    actor_id: str
    seq: int
    text: str
    entry_id: str
    at: int
    is_imported: bool = False
    """It was edited elsewhere: its author may have left here meanwhile."""


class Erase(msgspec.Struct, frozen=True):
    """Take the content from a message and everything personal, keeping its place and count.

    Nothing is appended: it is for the erasure of a person, not of a message.
    """

    seqs: tuple[int, ...]
    at: int


class Remove(msgspec.Struct, frozen=True):
    """Delete a message: one's own, or any as a moderator. Answers the deleted `wire.Entry`."""

    actor_id: str
    seq: int
    entry_id: str
    at: int
    is_moderator: bool = False


class React(msgspec.Struct, frozen=True):
    """Give a reaction to a message or take it back. Answers the `wire.Entry`."""

    actor_id: str
    seq: int
    emoji: str
    is_given: bool
    entry_id: str
    at: int


class Read(msgspec.Struct, frozen=True):
    """Move one's read mark forward. Answers `ReadMark`; not yet `is_complete` after a step."""

    user_id: str
    seq: int


class Join(msgspec.Struct, frozen=True):
    """Make a user a member. Answers True, or False where they are one already."""

    user_id: str
    actor_id: str | None
    entry_id: str
    at: int
    role: str = "member"


class Leave(msgspec.Struct, frozen=True):
    """End a membership. Answers True, or False where there is none."""

    user_id: str
    actor_id: str | None
    entry_id: str
    at: int


class Change(msgspec.Struct, frozen=True):
    """Change what a room is; an assignee becomes a member. Answers the `RoomRow`."""

    actor_id: str | None
    changes: dict[str, Any]
    """Fields of RoomRow: title, scope, status, assignee_id, snoozed_until."""
    entry_id: str
    join_entry_id: str
    at: int


class Wake(msgspec.Struct, frozen=True):
    """End a snooze whose time has come. Answers True, or False where there is none."""

    entry_id: str
    at: int


class Mute(msgspec.Struct, frozen=True):
    """Leave a room out of one's total, or take it in again. Answers True if that was new."""

    user_id: str
    is_muted: bool


class Hide(msgspec.Struct, frozen=True):
    """Take a room off one's list until something new comes, or put it back.

    Answers True if that was new.
    """

    user_id: str
    is_hidden: bool


class Create(msgspec.Struct, frozen=True):
    """Make the room with its first members. Answers (RoomRow, is_new)."""

    room: RoomRow
    founders: tuple[tuple[str, str], ...]
    """(user, role) of at most FOUNDERS_INLINE_MAX members, who join without an entry."""
    founding: tuple[str, ...] = ()
    """Further founders: they join in chunks, remembered in the `fanouts` item until done."""
    at: int = 0


class Found(msgspec.Struct, frozen=True):
    """Let the next founders of a large new room join. Answers the number left."""

    founding: tuple[str, ...]
    """All that were left before this step."""
    at: int


Command: TypeAlias = (
    Post
    | Edit
    | Erase
    | Remove
    | React
    | Read
    | Join
    | Leave
    | Change
    | Wake
    | Mute
    | Hide
    | Create
    | Found
)

FOUNDERS_INLINE_MAX = 30
"""Founders who join in one transaction: three items each."""


class Posted(msgspec.Struct, frozen=True):
    """The entry that a post led to, and whether it is new or the first one again."""

    entry: PostedEntry
    is_new: bool


class ReadMark(msgspec.Struct, frozen=True):
    """A user's counts after a read command, in the room and in total."""

    read_seq: int
    unread: int
    mentions: int
    total_unread: int
    total_mentions: int
    version: int
    is_complete: bool = True
    is_moved: bool = False


def named_users(command: Command) -> tuple[str, ...]:
    """Users whose rows the command needs to see, besides those that are members anyway."""
    match command:
        case Post(sender_id=sender, mentions=mentions):
            return (sender, *mentions)
        case Edit(actor_id=actor) | Remove(actor_id=actor) | React(actor_id=actor):
            return (actor,)
        case Read(user_id=user) | Mute(user_id=user) | Hide(user_id=user):
            return (user,)
        case Join(user_id=user) | Leave(user_id=user):
            return (user,)
        case Change(changes=changes):
            assignee = changes.get("assignee_id")
            return (assignee,) if assignee else ()
        case Create(founders=founders):
            return tuple(user for user, _ in founders)
        case Found(founding=founding):
            return founding[:FOUNDERS_INLINE_MAX]
        case Erase() | Wake():
            return ()


def changed_users(command: Command) -> tuple[str, ...]:
    """Users whose rows the command may change, besides those that are members anyway.

    Who posts is looked at and not changed: the log of a large room goes on while its members'
    rows are brought up to it.
    """
    match command:
        case Post(is_joining=False) | Edit() | Remove() | React():
            return ()
        case Post(sender_id=sender):
            return (sender,)
        case _:
            return named_users(command)


def named_seqs(command: Command) -> tuple[int, ...]:
    """Entries whose present content the command needs to see."""
    match command:
        case Edit(seq=seq) | Remove(seq=seq) | React(seq=seq):
            return (seq,)
        case Erase(seqs=seqs):
            return seqs
        case _:
            return ()


def items_max(command: Command, *, is_inline: bool, is_shut: bool) -> int:
    """Most items that the command can add to a transaction, besides the room and its members' rows.

    `is_shut` says that the room may be snoozed or closed when the command's turn comes.
    """
    match command:
        case Post(is_joining=True, blobs=blobs):
            # two or three entries, a receipt, member, inbox, badge, fan-out
            return 8 + 2 * len(blobs)
        case Post(is_reopening=True, blobs=blobs) if is_shut:
            # two entries, a receipt, the end of the snooze in the schedule
            return 4 + 2 * len(blobs)
        case Post(blobs=blobs):
            return 2 + 2 * len(blobs)
        case Edit() | React():
            return 2
        case Remove():
            return 3  # the blobs that it lets go of are in the schedule
        case Erase(seqs=seqs):
            return 2 * len(seqs)
        case Read() | Mute() | Hide():
            return 0 if is_inline else 2
        case Join() | Leave():
            return 5
        case Change():
            return 8  # who is assigned may join, and a snooze may take the place of another
        case Wake():
            return 2
        case Create(founders=founders):
            return 1 + 3 * len(founders)
        case Found(founding=founding):
            return 3 * min(len(founding), FOUNDERS_INLINE_MAX)
