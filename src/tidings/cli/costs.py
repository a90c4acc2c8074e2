"""What each operation costs in read and write units: measured on a scratch store, not estimated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from tidings import wire
from tidings.cli.bills import Measured, Spending
from tidings.cli.parts import Parts, administrator, open_parts
from tidings.people.callers import Caller
from tidings.storage.metered import Meter, MeteredStore, metering
from tidings.storage.sizes import item_bytes
from tidings.storage.tables import ENTRIES, room_key

TEXT = "Could you tell me when my parcel comes? I shall be at home from four in the afternoon. " * 2
"""A message of the usual length."""
CROWD = 100
"""Members of the large room, whose badges follow in chunks."""
HISTORY = 60
"""Messages that the small room holds when reading is measured."""
PAGE_ENTRIES = 50
PAGE_ROOMS = 25
ITEM_OVERHEAD_BYTES = 100
"""What AWS adds to the size of each item that it stores."""


class Cost(msgspec.Struct, frozen=True):
    """One operation in DynamoDB's units; write units with index writes counted once, and doubled.

    AWS does not publish which of the two a transaction is charged.
    """

    operation: str
    read_units: float
    write_units: float
    write_units_doubled: float
    requests: int


async def measure_costs(folder: Path) -> list[Cost]:
    """Do each operation once on a store in the folder, and say what it took.

    Units are those that DynamoDB would charge, by AWS's published rules for sizes, transactions
    and indexes; the caches of a running service are warm, as they mostly are.
    """
    async with _open_scratch(folder) as scratch:
        return await _Bill(scratch).fill()


async def measure_load(folder: Path, members: int) -> Measured:
    """What a message in a room of so many members takes with all that follows, what marking it as
    read does, and what opening the app does; measured on a store in the folder.
    """
    async with _open_scratch(folder) as scratch:
        chat, messages = scratch.parts.chat, scratch.parts.chat.messages
        people = [await scratch.user(f"member-{number}") for number in range(members)]
        sender, reader = people[0], people[-1]
        await scratch.room("room", people)
        for _ in range(HISTORY):
            await messages.post(sender, "room", scratch.message())
        message = await scratch.spent(messages.post(sender, "room", scratch.message()))
        head = (await chat.rooms.get(sender, "room")).head
        mark = await scratch.spent(messages.read(reader, "room", head))
        begun = (await scratch.spent(messages.post(sender, "room", scratch.message()))).since(
            message
        )
        mark.charge(begun, 1)
        for number in range(PAGE_ROOMS - 1):
            await scratch.room(f"room-{number}", people[:2])
            await messages.post(sender, f"room-{number}", scratch.message())
        listing = chat.inboxes.list(
            reader, status=None, kind=None, unread=False, limit=PAGE_ROOMS, cursor=None
        )
        opening = await scratch.spent(chat.inboxes.badge(reader))
        opening.charge(await scratch.spent(listing), 1)
        newest = messages.list(reader, "room", limit=PAGE_ENTRIES)
        opening.charge(await scratch.spent(newest), 1)
        entry = await scratch.parts.store.get(ENTRIES, (room_key(sender.workspace, "room"), head))
        return Measured(
            _spending(f"a message to {members:,}", message),
            _spending("a read mark", mark),
            _spending("an opening of the app", opening),
            item_bytes(entry or {}) + ITEM_OVERHEAD_BYTES,
        )


def _spending(what: str, spent: Meter) -> Spending:
    return Spending(what, spent.read_units, spent.write_units_once, spent.write_units)


class _Scratch:
    """A metered store with one workspace. One meter counts everything, since commits and what
    follows them are made by tasks that live on."""

    def __init__(self, parts: Parts, meter: Meter, workspace: str) -> None:
        self.parts = parts
        self.admin = administrator(workspace)
        self._meter = meter
        self._count = 0

    async def spent(self, work: Awaitable[object]) -> Meter:
        """What the work takes, until the members of large rooms have caught up."""
        settle = self.parts.chat.commits.settle
        await settle()
        before = self._meter.copy()
        await work
        await settle()
        return self._meter.since(before)

    def message(self) -> wire.PostMessage:
        """A message that was not posted before."""
        self._count += 1
        body = {"client_id": f"cost-{self._count}", "text": TEXT}
        return msgspec.convert(body, wire.PostMessage)

    async def user(self, user_id: str, role: wire.Role = "manager") -> Caller:
        """A session of a new user."""
        body = wire.CreateUser(role=role, name=user_id.title(), id=user_id)
        await self.parts.users.create(self.admin, body)
        return self.session(user_id, role)

    def session(self, user_id: str, role: wire.Role) -> Caller:
        """A session of a user."""
        return Caller(
            workspace=self.admin.workspace,
            kind="session",
            credential_id=user_id,
            user_id=user_id,
            role=role,
            session_id=user_id,
        )

    async def room(self, room_id: str, members: Sequence[Caller]) -> None:
        """A new team room."""
        member_ids = [member.user_id or "" for member in members]
        body = wire.CreateRoom(kind="group", id=room_id, member_ids=member_ids)
        await self.spent(self.parts.chat.rooms.create(self.admin, body))


@asynccontextmanager
async def _open_scratch(folder: Path) -> AsyncIterator[_Scratch]:
    url = f"sqlite:///{quote(str(folder / 'costs.db'))}"
    with metering() as meter:
        async with open_parts(url, must_exist=False, wrap=MeteredStore) as parts:
            workspace = (await parts.workspaces.default(None)).id
            yield _Scratch(parts, meter, workspace)


class _Bill:
    """Every operation once."""

    def __init__(self, scratch: _Scratch) -> None:
        self._scratch = scratch
        self._costs: list[Cost] = []

    async def _charge(self, operation: str, work: Awaitable[object]) -> None:
        spent = await self._scratch.spent(work)
        self._costs.append(
            Cost(
                operation,
                spent.read_units,
                spent.write_units_once,
                spent.write_units,
                spent.requests,
            )
        )

    async def fill(self) -> list[Cost]:
        """The costs, in the order of a user's life."""
        scratch, parts = self._scratch, self._scratch.parts
        admin, message = scratch.admin, scratch.message
        ann, ben = scratch.session("ann", "manager"), await scratch.user("ben", "customer")
        user = wire.CreateUser(role="manager", name="Ann", id="ann")
        await self._charge("make a user", parts.users.create(admin, user))
        crowd = [await scratch.user(f"member-{number}") for number in range(CROWD)]

        chat, messages = parts.chat, parts.chat.messages
        pair = wire.CreateRoom(kind="support", id="pair", member_ids=["ann", "ben"])
        await self._charge("open a support room of two", chat.rooms.create(admin, pair))
        await scratch.room("ten", [ann, *crowd[:9]])
        await scratch.room("many", [ann, *crowd[:-1]])

        await messages.post(ben, "pair", message())
        await self._charge("post to a room of 2", messages.post(ben, "pair", message()))
        again = message()
        await messages.post(ben, "pair", again)
        await self._charge("the same post again", messages.post(ben, "pair", again))
        await messages.post(ann, "ten", message())
        await self._charge("post to a room of 10", messages.post(ann, "ten", message()))
        await scratch.spent(messages.post(ann, "many", message()))
        crowded = messages.post(ann, "many", message())
        await self._charge(f"post to a room of {CROWD}, badges and all", crowded)
        entry, _ = await messages.post(ben, "pair", message())
        edited = wire.EditMessage(text=TEXT.upper())
        await self._charge("edit a message", messages.edit(ben, "pair", entry.seq, edited))
        await self._charge(
            "react to a message", messages.react(ann, "pair", entry.seq, "👍", is_given=True)
        )
        await self._charge("delete a message", messages.delete(ben, "pair", entry.seq))
        for _ in range(HISTORY):
            await messages.post(ben, "pair", message())
        head = (await chat.rooms.get(ann, "pair")).head
        await self._charge(f"mark {HISTORY} messages as read", messages.read(ann, "pair", head))
        await self._charge("mark as read again", messages.read(ann, "pair", head))
        newest = messages.list(ann, "pair", limit=PAGE_ENTRIES)
        await self._charge(f"the newest {PAGE_ENTRIES} entries", newest)
        inbox = chat.inboxes.list(
            ann, status=None, kind=None, unread=False, limit=PAGE_ROOMS, cursor=None
        )
        await self._charge("a page of the inbox", inbox)
        await self._charge("a badge", chat.inboxes.badge(ann))
        device = wire.CreateSession(user_id="ann")
        opening = parts.credentials.create_session(admin, device, None, "127.0.0.1")
        await self._charge("sign a device in", opening)
        return self._costs
