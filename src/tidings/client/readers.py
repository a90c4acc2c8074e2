"""Whoever reads a device's updates, each at their own pace within a bound."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from tidings import wire
from tidings.client.frames import EntryUpdate, Update
from tidings.client.problems import ClientError

UPDATES_MAX = 10_000
"""Updates that wait for one reader."""


class UpdatesLost(ClientError):
    """This reader was too slow for its updates. The device's state is right all the same."""


class Updates:
    """The updates of a device for one reader: an async iterator over a bounded queue.

    Raises `UpdatesLost` for a reader that is UPDATES_MAX behind, and, after the last update, what
    ended the device.
    """

    __slots__ = ("__weakref__", "_failure", "_is_lost", "_updates", "_waiting")

    def __init__(self, failure: Callable[[], Exception | None]) -> None:
        """`failure` tells what ended the device, if it has ended."""
        self._failure = failure
        self._updates: deque[Update] = deque()
        self._is_lost = False
        self._waiting: asyncio.Future[None] | None = None

    def put(self, update: Update) -> None:
        """Called by the device."""
        if len(self._updates) >= UPDATES_MAX:
            self._is_lost = True
        else:
            self._updates.append(update)
        self.wake()

    def wake(self) -> None:
        """Called by the device when it ended."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        while not self._updates:
            if self._is_lost:
                raise UpdatesLost(f"{UPDATES_MAX} updates behind")
            if (failure := self._failure()) is not None:
                raise failure
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._updates.popleft()


async def entries_of(updates: Updates, room_id: str | None) -> AsyncIterator[wire.Entry]:
    """The new entries among the updates, of one room or of all."""
    async for update in updates:
        if isinstance(update, EntryUpdate) and room_id in (None, update.entry.room_id):
            yield update.entry
