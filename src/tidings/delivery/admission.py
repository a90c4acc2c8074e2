"""Bounds how many devices arrive at the same time, so that a reconnect storm can't drown a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidings.errors import Unavailable

ARRIVALS_MAX = 32
"""Devices that authenticate and catch up at the same time."""
WAITING_MAX = 2_000
"""Devices that wait for that; more are sent away with a time to come back."""


class Admission:
    """A door that a bounded number of devices pass at a time, and a bounded number queue at."""

    def __init__(self, arrivals_max: int = ARRIVALS_MAX, waiting_max: int = WAITING_MAX) -> None:
        self._door = asyncio.Semaphore(arrivals_max)
        self._waiting_max = waiting_max
        self._waiting = 0

    @asynccontextmanager
    async def pass_through(self) -> AsyncIterator[None]:
        """Wait for one's turn, and hold it within. Raises Unavailable if too many wait."""
        if self._door.locked():
            if self._waiting >= self._waiting_max:
                raise Unavailable("Too many devices arrive at once.")
            self._waiting += 1
            try:
                await self._door.acquire()
            finally:
                self._waiting -= 1
        else:
            await self._door.acquire()
        try:
            yield
        finally:
            self._door.release()
