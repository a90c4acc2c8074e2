"""What each operation costs in read and write units: measured on a scratch store, not estimated."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Awaitable
from datetime import date
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import msgspec

from tidings import wire
from tidings.cli.parts import Parts, administrator, open_parts
from tidings.people.callers import Caller
from tidings.storage.interface import Store
from tidings.storage.metered import Meter, MeteredStore, metering
from tidings.storage.tables import FANOUTS, room_key

TEXT = "Could you tell me when my parcel comes? I shall be at home from four in the afternoon. " * 2
"""A message of the usual length."""
CROWD = 100
"""Members of the large room, whose badges follow in chunks."""
REST_TIMEOUT_S = 30.0
REST_LOOK_S = 0.005
HISTORY = 60
"""Messages that the small room holds when reading is measured."""


class Prices(msgspec.Struct, frozen=True):
    """What a million units cost, and since when."""

    as_of: date
    table_class: str
    region: str
    currency: str
    write_units_per_million: float
    read_units_per_million: float


class Cost(msgspec.Struct, frozen=True):
    """One operation in DynamoDB's units."""

    operation: str
    read_units: float
    write_units: float

    def per_million(self, prices: Prices) -> float:
        """The price of a million such operations, in the currency of the prices."""
        return (
            self.read_units * prices.read_units_per_million
            + self.write_units * prices.write_units_per_million
        )


def latest_prices() -> Prices:
    """The newest of the price files that come with the package."""
    texts = [
        entry.read_text()
        for entry in files("tidings").joinpath("prices").iterdir()
        if entry.name.endswith(".toml")
    ]
    known = [msgspec.convert(tomllib.loads(text), Prices) for text in texts]
    return max(known, key=lambda prices: prices.as_of)


async def measure_costs(folder: Path) -> list[Cost]:
    """Do each operation once on a store in the folder, and say what it took.

    Units are those that DynamoDB would charge, by AWS's published rules for sizes, transactions
    and indexes; the caches of a running service are warm, as they mostly are.
    """
    engines: list[Store] = []

    def metered(engine: Store) -> Store:
        engines.append(engine)
        return MeteredStore(engine)

    url = f"sqlite:///{quote(str(folder / 'costs.db'))}"
    async with open_parts(url, must_exist=False, wrap=metered) as parts:
        with metering() as meter:
            return await _Bill(parts, engines[0], meter).fill()


class _Bill:
    """One meter for everything, since a room's commits are made by a task that lives on."""

    def __init__(self, parts: Parts, engine: Store, meter: Meter) -> None:
        self._parts = parts
        self._engine = engine
        self._meter = meter
        self._costs: list[Cost] = []
        self._count = 0

    async def _charge(self, operation: str, work: Awaitable[object]) -> None:
        read_units, write_units = self._meter.read_units, self._meter.write_units
        await work
        self._costs.append(
            Cost(
                operation,
                self._meter.read_units - read_units,
                self._meter.write_units - write_units,
            )
        )

    def _message(self, **more: object) -> wire.PostMessage:
        self._count += 1
        body = {"client_id": f"cost-{self._count}", "text": TEXT, **more}
        return msgspec.convert(body, wire.PostMessage)

    async def fill(self) -> list[Cost]:
        parts = self._parts
        workspace = (await parts.workspaces.default(None)).id
        admin = administrator(workspace)

        def session(user_id: str, role: wire.Role) -> Caller:
            return Caller(
                workspace=workspace,
                kind="session",
                credential_id=user_id,
                user_id=user_id,
                role=role,
                session_id=user_id,
            )

        ann, ben = session("ann", "manager"), session("ben", "customer")
        user = wire.CreateUser(role="manager", name="Ann", id="ann")
        await self._charge("make a user", parts.users.create(admin, user))
        await parts.users.create(admin, wire.CreateUser(role="customer", name="Ben", id="ben"))
        crowd = [f"member-{number}" for number in range(CROWD)]
        for user_id in crowd:
            body = wire.CreateUser(role="manager", name=user_id, id=user_id)
            await parts.users.create(admin, body)

        chat, messages = parts.chat, parts.chat.messages
        pair = wire.CreateRoom(kind="support", id="pair", member_ids=["ann", "ben"])
        await self._charge("open a support room of two", chat.rooms.create(admin, pair))
        ten = wire.CreateRoom(kind="group", id="ten", member_ids=["ann", *crowd[:9]])
        await chat.rooms.create(admin, ten)
        many = wire.CreateRoom(kind="group", id="many", member_ids=["ann", *crowd[:-1]])
        await chat.rooms.create(admin, many)

        await messages.post(ben, "pair", self._message())
        await self._charge("post to a room of 2", messages.post(ben, "pair", self._message()))
        again = self._message()
        await messages.post(ben, "pair", again)
        await self._charge("the same post again", messages.post(ben, "pair", again))
        await messages.post(ann, "ten", self._message())
        await self._charge("post to a room of 10", messages.post(ann, "ten", self._message()))
        await messages.post(ann, "many", self._message())
        await self._until_rest(workspace)
        await self._charge(
            f"post to a room of {CROWD}, badges and all", self._crowded(ann, workspace)
        )
        entry, _ = await messages.post(ben, "pair", self._message())
        edited = wire.EditMessage(text=TEXT.upper())
        await self._charge("edit a message", messages.edit(ben, "pair", entry.seq, edited))
        await self._charge(
            "react to a message", messages.react(ann, "pair", entry.seq, "👍", is_given=True)
        )
        await self._charge("delete a message", messages.delete(ben, "pair", entry.seq))
        for _ in range(HISTORY):
            await messages.post(ben, "pair", self._message())
        head = (await chat.rooms.get(ann, "pair")).head
        await self._charge(f"mark {HISTORY} messages as read", messages.read(ann, "pair", head))
        await self._charge("mark as read again", messages.read(ann, "pair", head))
        await self._charge("the newest 50 entries", messages.list(ann, "pair", limit=50))
        inbox = chat.inboxes.list(ann, status=None, kind=None, unread=False, limit=25, cursor=None)
        await self._charge("a page of the inbox", inbox)
        await self._charge("a badge", chat.inboxes.badge(ann))
        device = wire.CreateSession(user_id="ann")
        opening = parts.credentials.create_session(admin, device, None, "127.0.0.1")
        await self._charge("sign a device in", opening)
        return self._costs

    async def _crowded(self, sender: Caller, workspace: str) -> None:
        await self._parts.chat.messages.post(sender, "many", self._message())
        await self._until_rest(workspace)

    async def _until_rest(self, workspace: str) -> None:
        """Wait until the large room's members have caught up; looking costs nothing here."""
        room = (room_key(workspace, "many"),)
        async with asyncio.timeout(REST_TIMEOUT_S):
            while await self._engine.get(FANOUTS, room) is not None:  # noqa: ASYNC110  # no event
                await asyncio.sleep(REST_LOOK_S)
