"""Our own way for the benchmark of hot spots: the chat of one node, in process, on DynamoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from benchmarks.plain_way import Lost
from tidings import wire
from tidings.chat.chat import Chat
from tidings.chat.updates import UserUpdate
from tidings.clock import system_clock
from tidings.cursors import Cursors
from tidings.errors import Unavailable
from tidings.ids import IdMaker
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.people import People
from tidings.storage.interface import Store
from tidings.storage.tables import BADGES, user_key

WORKSPACE = "acme"
PREPARED_AT_ONCE = 20
"""Users or rooms made at once before the run."""
ATTEMPTS_MAX = 6
"""Of one message, each of up to ten seconds: as long as the plain way may take."""
_KEY = Caller(workspace=WORKSPACE, kind="api_key", credential_id="key", scopes=ALL_SCOPES)


class TidingsWay:
    """One node that sends messages; what its devices would be told is counted."""

    name = "tidings"

    def __init__(self, store: Store, kind: wire.RoomKind) -> None:
        self.raised = 0.0
        self._store = store
        self._kind = kind
        self._heads: dict[tuple[str, str], int] = {}
        self._rooms: Mapping[str, Sequence[str]] = {}
        self._roles: dict[str, wire.Role] = {}
        self._sent = 0
        clock = system_clock
        ids, cursors = IdMaker(clock), Cursors(b"a secret of the benchmark")
        self._people = People(store, clock, ids, cursors, policy=None)
        self._chat = Chat(
            store, clock, ids, cursors, self._people.users, self._publish, lambda *_: None
        )

    def _publish(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        for update in updates:
            for room in update.rooms:
                key = (update.user_id, room.room_id)
                advanced = room.head - self._heads.get(key, 0)
                self._heads[key] = room.head
                self.raised += advanced / len(self._rooms[room.room_id])

    def _role(self, user_id: str) -> wire.Role:
        return self._roles.get(user_id, "manager")

    async def open(self, rooms: Mapping[str, Sequence[str]]) -> None:
        """Make the users and rooms; rooms are members by room id.

        In support rooms the first member is the manager and the second the customer.
        """
        self._rooms = rooms
        if self._kind == "support":
            self._roles |= {members[1]: "customer" for members in rooms.values()}
        gate = asyncio.Semaphore(PREPARED_AT_ONCE)
        await self._people.workspaces.create("Acme", WORKSPACE)

        async def make_user(user_id: str) -> None:
            async with gate:
                body = wire.CreateUser(role=self._role(user_id), name=user_id, id=user_id)
                await self._people.users.create(_KEY, body)

        async def make_room(room_id: str, members: Sequence[str]) -> None:
            async with gate:
                body = wire.CreateRoom(kind=self._kind, id=room_id, member_ids=list(members))
                await self._chat.rooms.create(_KEY, body)

        async with asyncio.TaskGroup() as group:
            for user_id in dict.fromkeys(user for users in rooms.values() for user in users):
                group.create_task(make_user(user_id))
        async with asyncio.TaskGroup() as group:
            for room_id, members in rooms.items():
                group.create_task(make_room(room_id, members))

    async def send(self, room_id: str, sender_id: str, text: str) -> None:
        """One message, durable on return; in a large room its badges may follow. Raises Lost.

        Where the service asks for it, it is sent again under the same id, as clients do.
        """
        self._sent += 1
        caller = Caller(
            WORKSPACE, "session", sender_id, sender_id, self._role(sender_id), sender_id
        )
        body = wire.PostMessage(client_id=f"c{self._sent}", text=text)
        for _ in range(ATTEMPTS_MAX):
            try:
                await self._chat.messages.post(caller, room_id, body)
            except Unavailable:
                continue
            return
        raise Lost(f"a message was refused {ATTEMPTS_MAX} times")

    async def settle(self) -> None:
        """Wait until all badges have followed."""
        await self._chat.commits.settle()

    async def totals(self, users: Sequence[str]) -> list[int]:
        """What each user has unread."""
        keys = [(user_key(WORKSPACE, user_id),) for user_id in users]
        items = await self._store.get_many(BADGES, keys)
        return [item["unread"] if item is not None else 0 for item in items]

    async def close(self) -> None:
        """Stop the node."""
        await self._chat.stop()
