"""Compares lists that two stores keep of one owner, and makes the new one like the old one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import blake2b

import msgspec

from tidings.conversations.interface import (
    LIST_LIMIT_MAX,
    Conversation,
    Conversations,
    Message,
)
from tidings.conversations.redis_lists import RedisConversations
from tidings.ids import is_id

LINES_MAX = 1_000_000
"""Lines of one list that are compared."""
UNREAD_MENDED_MAX = 100
"""Messages that stand for unread ones which Tidings never got, in one conversation."""


class Difference(msgspec.Struct, frozen=True):
    """What one line says in the old store and in the new one."""

    owner: str
    opponent: str
    reason: str
    old: Conversation | None
    new: Conversation | None


async def compare(old: Conversations, new: Conversations, owner: str) -> list[Difference]:
    """What differs in the two lists of an owner: lines, their order, unread, muted, previews.

    Times are not compared: Tidings stamps what it is told at the moment it is told. Nothing must
    change meanwhile.
    """
    before = [line async for line in _lines(old, owner)]
    after = [line async for line in _lines(new, owner)]
    known = {line.opponent: line for line in after}
    found = []
    for line in before:
        other = known.pop(line.opponent, None)
        if other is None:
            found.append(Difference(owner, line.opponent, "missing", line, None))
        elif line.unread != other.unread:
            found.append(Difference(owner, line.opponent, "unread", line, other))
        elif line.is_muted is not other.is_muted:
            found.append(Difference(owner, line.opponent, "muted", line, other))
        elif line.preview is not None and line.preview != other.preview:
            found.append(Difference(owner, line.opponent, "preview", line, other))
    found += [Difference(owner, each.opponent, "extra", None, each) for each in known.values()]
    if not found:
        for line, other in zip(before, after, strict=True):
            if line.opponent != other.opponent:
                found.append(Difference(owner, line.opponent, "order", line, other))
                break
    return found


async def mend(
    old: RedisConversations, new: Conversations, owner: str, opponent: str, *, filler: str
) -> None:
    """Make one line of the new store say what the old one says, order aside.

    Unread messages that Tidings never got are posted as `filler`, at most UNREAD_MENDED_MAX, since
    every count there is that of messages.
    """
    line, other = await old.get(owner, opponent), await new.get(owner, opponent)
    if line is None:
        if other is not None:
            await new.remove(owner, opponent)
        return
    last = await old.last_message(owner, opponent)
    if other is None or (line.preview is not None and line.preview != other.preview):
        sender = owner if last is not None and last.sender_id == owner else opponent
        receiver = opponent if sender == owner else owner
        text = (last.text if last is not None else None) or filler
        await new.touch(Message(sender, receiver, _id_of(last, line), line.at_ms, text))
        other = await new.get(owner, opponent)
    if other is None:
        return
    unread = other.unread
    if unread > line.unread:
        await new.read(owner, opponent)
        unread = 0
    for number in range(unread, min(line.unread, unread + UNREAD_MENDED_MAX)):
        message_id = f"mended-{line.at_ms}-{number}"
        text = line.preview or filler
        await new.touch(Message(opponent, owner, message_id, line.at_ms, text))
    if line.is_muted is not other.is_muted:
        await new.mute(owner, opponent, muted=line.is_muted)


def _id_of(last: object, line: Conversation) -> str:
    message_id = getattr(last, "message_id", None)
    if isinstance(message_id, str) and is_id(message_id):
        return message_id
    digest = blake2b(f"{message_id}{line.preview}".encode(), digest_size=12).hexdigest()
    return f"mended-{line.at_ms}-{digest}"


async def _lines(lists: Conversations, owner: str) -> AsyncIterator[Conversation]:
    cursor: str | None = None
    for _ in range(LINES_MAX // LIST_LIMIT_MAX):
        page = await lists.list(owner, limit=LIST_LIMIT_MAX, cursor=cursor)
        for line in page.items:
            yield line
        cursor = page.next
        if cursor is None:
            return
