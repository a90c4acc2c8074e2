"""Conversation lists in Tidings, over its public API: direct rooms and the inboxes of their two."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tidings import wire
from tidings.client import Client
from tidings.client.problems import (
    NotFound,
    Problem,
    Unauthorized,
    Unreachable,
    ValidationFailed,
)
from tidings.clock import parse_rfc3339
from tidings.conversations.interface import (
    LIST_LIMIT_DEFAULT,
    LIST_LIMIT_MAX,
    Away,
    Conversation,
    Message,
    Mute,
    Operation,
    Operations,
    Page,
    Read,
    Refused,
    Remove,
    Touch,
    check_limit,
)
from tidings.ids import pair_room_id

SESSIONS_MAX = 10_000
"""Sessions of owners that are kept; a process opens one for each owner that it asks for."""
ROOMS_MAX = 100_000
"""Rooms that are known to be there."""
PAGES_MAX = 2_000
"""Pages of a list that is counted."""

T = TypeVar("T")


class TidingsConversations(Operations):
    """The lists in Tidings. A list is the inbox of its owner, as far as it has direct rooms.

    `client` has an API key with the scopes for users, rooms, messages and sessions. Who is not
    there yet is made with their first message, with `role` and their id as a name.
    """

    def __init__(self, client: Client, *, role: wire.Role = "customer") -> None:
        self.client = client
        self._role: wire.Role = role
        self._sessions: OrderedDict[str, Client] = OrderedDict()
        self._rooms: OrderedDict[str, None] = OrderedDict()

    async def apply(self, operation: Operation) -> None:
        """Carry out one change."""
        async with _translated():
            match operation:
                case Touch(message=message):
                    await self._touch(message)
                case Remove(owner=owner, opponent=opponent):
                    await self._as_owner(owner, lambda me: _remove(me, owner, opponent))
                case Read(owner=owner, opponent=opponent):
                    await self._as_owner(owner, lambda me: _read(me, owner, opponent))
                case Mute(owner=owner, opponent=opponent, is_muted=muted):
                    await self._as_owner(owner, lambda me: _mute(me, owner, opponent, muted))

    async def get(self, owner: str, opponent: str) -> Conversation | None:
        """One line of the owner's list, or None where it isn't there."""
        async with _translated():
            row = await self._as_owner(owner, lambda me: _row(me, owner, opponent))
        return None if row is None else _line(row)

    async def list(
        self, owner: str, *, limit: int = LIST_LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page:
        """The newest `limit` lines after the cursor."""
        check_limit(limit)
        items: list[Conversation] = []
        for _ in range(PAGES_MAX):
            page = await self._page(owner, limit - len(items), cursor)
            items += [_line(item) for item in page.items]
            cursor = page.next
            if cursor is None or len(items) == limit:
                break
        return Page(items, cursor)

    async def count(self, owner: str) -> int:
        """How many lines the owner's list has: a call for every LIST_LIMIT_MAX of them."""
        count = 0
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await self._page(owner, LIST_LIMIT_MAX, cursor)
            count += len(page.items)
            cursor = page.next
            if cursor is None:
                return count
        raise Refused(f"A list of more than {count} lines is not counted.")

    async def close(self) -> None:
        """Forget the sessions; the client is the application's own."""
        self._sessions.clear()

    async def _page(self, owner: str, limit: int, cursor: str | None) -> wire.InboxList:
        async with _translated():
            page = await self._as_owner(
                owner, lambda me: me.inbox(kind="direct", limit=limit, cursor=cursor)
            )
        return page or wire.InboxList([], None)

    async def _touch(self, message: Message) -> None:
        room_id = pair_room_id(message.sender_id, message.receiver_id)
        if room_id not in self._rooms:
            await self._make_room(message.sender_id, message.receiver_id)
            self._rooms[room_id] = None
            if len(self._rooms) > ROOMS_MAX:
                self._rooms.popitem(last=False)
        await self.client.post_message(
            room_id, message.text, client_id=message.message_id, as_user=message.sender_id
        )

    async def _make_room(self, *user_ids: str) -> None:
        try:
            await self.client.create_room("direct", members=user_ids)
        except ValidationFailed:  # somebody is not there yet
            for user_id in user_ids:
                await self.client.create_user(user_id, self._role, user_id=user_id)
            await self.client.create_room("direct", members=user_ids)

    async def _as_owner(self, owner: str, call: Callable[[Client], Awaitable[T]]) -> T | None:
        """What a call of the owner's session returns; None where there is no such owner or room."""
        session = self._sessions.get(owner)
        try:
            if session is not None:
                self._sessions.move_to_end(owner)
                try:
                    return await call(session)
                except Unauthorized:  # it has expired, or was revoked
                    del self._sessions[owner]
            return await call(await self._session(owner))
        except NotFound:
            return None

    async def _session(self, owner: str) -> Client:
        device = wire.Device(name="conversations")
        opened = await self.client.create_session(owner, device=device)
        session = self._sessions[owner] = self.client.as_session(opened.token)
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session


async def _row(me: Client, owner: str, opponent: str) -> wire.InboxItem | None:
    row = await me.inbox_row(pair_room_id(owner, opponent))
    return None if row.hidden else row


async def _remove(me: Client, owner: str, opponent: str) -> None:
    """What comes while it is under way is above the head that was hidden, and shows it again."""
    row = await _row(me, owner, opponent)
    if row is not None:
        hidden = await me.hide(row.room_id)
        if hidden.unread:
            await me.read(row.room_id, hidden.head)
        if hidden.muted:
            await me.mute(row.room_id, muted=False)


async def _read(me: Client, owner: str, opponent: str) -> None:
    row = await _row(me, owner, opponent)
    if row is not None and row.unread:
        await me.read(row.room_id, row.head)


async def _mute(me: Client, owner: str, opponent: str, muted: bool) -> None:
    row = await _row(me, owner, opponent)
    if row is not None and row.muted is not muted:
        await me.mute(row.room_id, muted=muted)


def _line(item: wire.InboxItem) -> Conversation:
    return Conversation(
        opponent=item.with_[0].id,
        at_ms=parse_rfc3339(item.updated_at),
        unread=item.unread,
        preview=item.preview,
        is_muted=item.muted,
    )


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """The errors of the client as those of conversation lists."""
    try:
        yield
    except Unreachable as error:
        raise Away(f"Tidings: {error}") from error
    except Problem as problem:
        if problem.is_passing or problem.status >= 500:
            raise Away(f"Tidings: {problem}") from problem
        raise Refused(f"Tidings: {problem}") from problem
