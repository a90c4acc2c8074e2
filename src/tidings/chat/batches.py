"""What goes into one transaction: as many commands of rooms that share people as it holds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from tidings.chat import commands
from tidings.chat.commands import Command, changed_users, items_max
from tidings.chat.known import KnownRoom
from tidings.errors import TidingsError
from tidings.storage.interface import SET_ITEMS_MAX
from tidings.storage.metered import Meter
from tidings.storage.tables import user_key


class Waiting(msgspec.Struct):
    """A command on its way."""

    command: Command
    answer: asyncio.Future[Any]
    meter: Meter | None
    deadline: float


class Batch(msgspec.Struct):
    """What goes into one transaction: rooms with the commands that wait for them."""

    workspace: str
    rooms: dict[str, list[Waiting]]
    """By room id."""
    names: set[str]
    """Keys of the rooms and users that no other transaction may touch meanwhile."""
    items: int
    """Most that the plan may write, besides badges."""
    badges: set[str]
    """Keys of the users whose badges change in any case: shared between rooms."""
    size: int = 0
    """Commands at the start: each bears its share of the cost."""
    spent: Meter | None = None
    began_s: float = 0.0
    stands_for: int = 1
    """Commits for which its price is counted."""

    def answer(self, one: Waiting, found: Any) -> None:
        """Give a command its answer and its share of the cost, once."""
        if one.answer.done():
            return
        if one.meter is not None and self.spent is not None:
            one.meter.charge(self.spent, 1 / self.size)
        if isinstance(found, TidingsError):
            one.answer.set_exception(found)
        else:
            one.answer.set_result(found)


def take(
    workspace: str,
    room_id: str,
    key: str,
    queue: deque[Waiting],
    known: KnownRoom | None,
) -> Batch:
    """As many of a room's commands as one transaction holds, at least one."""
    is_inline = known is None or known.members is not None
    is_shut = known is not None and known.row.status in ("snoozed", "closed")
    members = known.members if known is not None else None
    badges = {user_key(workspace, user_id) for user_id in members or ()}
    names = {key} | badges
    # The room, the members' rows, and the fan-out of a room that has one.
    items = 1 + len(badges) + (not is_inline)
    taken: list[Waiting] = []
    for waiting in queue:
        command = waiting.command
        more = items_max(command, is_inline=is_inline, is_shut=is_shut)
        is_alone = isinstance(command, commands.Create | commands.Found)
        if taken and (items + more + len(badges) > SET_ITEMS_MAX or is_alone):
            break
        items += more
        taken.append(waiting)
        names.update(user_key(workspace, user_id) for user_id in changed_users(command))
        is_shut |= isinstance(command, commands.Change)
        if is_alone:
            break
    return Batch(workspace, {room_id: taken}, names, items, badges)


def pack(batch: Batch, batches: Sequence[Batch]) -> bool:
    """Put rooms that share people into one of the transactions, if there is one they fit in."""
    sharing = [other for other in batches if other.names & batch.names]
    if len(sharing) != 1:
        return False
    other, badges = sharing[0], sharing[0].badges | batch.badges
    if other.items + batch.items + len(badges) > SET_ITEMS_MAX:
        return False
    other.rooms |= batch.rooms
    other.names |= batch.names
    other.items += batch.items
    other.badges = badges
    return True


def refuse(queue: deque[Waiting], count: int, error: TidingsError) -> None:
    """Answer the first of a queue, up to the making of the room if that is among them."""
    for _ in range(count):
        if isinstance(queue[0].command, commands.Create):
            return
        answer = queue.popleft().answer
        if not answer.done():
            answer.set_exception(error)
