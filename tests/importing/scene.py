"""A workspace to load into, and what people see of it afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from tests.stores import StoreKind, open_store
from tidings.chat.audit import audit
from tidings.chat.chat import Chat
from tidings.clock import system_clock
from tidings.cursors import Cursors
from tidings.ids import IdMaker
from tidings.importing.loading import Loading
from tidings.importing.quarantine import Quarantine
from tidings.importing.records import MessageRecord
from tidings.people.people import People
from tidings.storage.interface import Item, Store, Table
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, TABLES, room_key, user_key

WORKSPACE = "acme"


class Scene:
    """One store with its chat, in which nobody else is."""

    def __init__(self, store: Store) -> None:
        ids = IdMaker(system_clock)
        cursors = Cursors(bytes(32))
        people = People(store, system_clock, ids, cursors, policy=None)
        self.store = store
        self.people = people
        self.chat = Chat(store, system_clock, ids, cursors, people.users, _nobody, _nobody)

    @asynccontextmanager
    async def loading(self, quarantine: Quarantine | None = None) -> AsyncIterator[Loading]:
        """An import into the workspace."""
        async with Loading.open(
            self.store, self.chat.commits, WORKSPACE, system_clock, quarantine or Quarantine()
        ) as loading:
            yield loading

    async def inbox(self, user_id: str) -> dict[str, Item]:
        """The user's rows by room."""
        page = await self.store.query(INBOXES, user_key(WORKSPACE, user_id))
        return {item["room_id"]: item for item in page.items}

    async def badge(self, user_id: str) -> Item:
        """The user's totals."""
        item = await self.store.get(BADGES, (user_key(WORKSPACE, user_id),))
        assert item is not None
        return item

    async def items(self, table: Table) -> list[Item]:
        """Everything in a table, in the order of its keys."""
        items: list[Item] = []
        after = None
        while True:
            page = await self.store.scan(table, after=after)
            items += page.items
            if (after := page.after) is None:
                return sorted(items, key=table.key)

    async def log(self, room_id: str) -> list[Item]:
        """The room's entries."""
        return (await self.store.query(ENTRIES, room_key(WORKSPACE, room_id))).items

    async def everything(self) -> dict[str, list[Item]]:
        """All that is stored, but who held which lease."""
        return {each.name: await self.items(each) for each in TABLES if each.name != "leases"}

    async def require_sound(self) -> None:
        """Every invariant holds."""
        await self.chat.commits.settle()
        report = await audit(self.store)
        assert report.ok, msgspec.json.encode(report.broken).decode()


@asynccontextmanager
async def scene(kind: StoreKind, folder: Path) -> AsyncIterator[Scene]:
    """A new one."""
    async with open_store(kind, folder) as store:
        made = Scene(store)
        yield made
        await made.chat.commits.settle()
        await made.chat.stop()


async def told(messages: Sequence[MessageRecord]) -> AsyncIterator[Sequence[MessageRecord]]:
    """The messages as a source gives them: some at a time."""
    for start in range(0, len(messages), 7):
        yield messages[start : start + 7]


def _nobody(*_: object) -> None:
    """No device is connected."""
