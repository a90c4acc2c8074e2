"""Leases: work that one node at a time does, whoever it is.

A lease is a row that names its holder, moves with the holder's beats, and carries a fence that is
one higher with each taking. Who sees it stand still for LEASE_S, on their own monotonic clock, may
take it. The holder stops believing in it well before. A process that was frozen between looking at
its lease and writing is what the fence is for: whoever keeps the number with the work can refuse
an older one.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog

from tidings.cluster.nodes import Monotonic
from tidings.errors import TidingsError
from tidings.storage.interface import (
    Absent,
    Condition,
    ConditionFailed,
    Equals,
    Put,
    Store,
    Update,
)
from tidings.storage.tables import LEASES

LEASE_S = 10.0
"""How long others leave a lease that does not move to its holder."""
HELD_S = 6.0
"""How long a holder believes in its lease after it sent the last beat that was written."""
LEASE_BEAT_S = 2.0

_log = structlog.get_logger(__name__)


class Lease:
    """A lease that this node took; it ends by itself where no beat is written in time."""

    def __init__(self, name: str, fence: int, monotonic: Monotonic) -> None:
        self.name = name
        self.fence = fence
        """Higher than that of every earlier holder."""
        self._monotonic = monotonic
        self._beat = 0
        self._sent_at_s = monotonic()
        self._until_s = 0.0

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have it yet: ask before each step of the work."""
        return self._monotonic() < self._until_s

    @property
    def is_beat_due(self) -> bool:
        """Whether it is time to move the row."""
        return self._monotonic() - self._sent_at_s >= LEASE_BEAT_S

    def send(self) -> int:
        """The next beat, whose time counts from now."""
        self._sent_at_s = self._monotonic()
        self._beat += 1
        return self._beat

    def written(self) -> None:
        """The last beat is in the store."""
        self._until_s = self._sent_at_s + HELD_S

    def end(self) -> None:
        """Nothing is held any more."""
        self._until_s = 0.0


class Leases:
    """The leases that this node holds, and what it has seen of the others'."""

    def __init__(
        self, store: Store, node_id: str, *, monotonic: Monotonic = time.monotonic
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._monotonic = monotonic
        self._held: dict[str, Lease] = {}
        self._watched: dict[str, tuple[tuple[int, int], float]] = {}
        """Fence and beat of another's lease, and since when they stand there."""
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def hold(self, name: str) -> Lease | None:
        """The lease, taken if it is free; None while another node has it.

        To be asked again and again by whoever wants it: that is how a lease that stands still is
        noticed. Raises Unavailable where the store does not answer and nothing is held.
        """
        async with self._turn:
            lease = self._held.get(name)
            if lease is None or not lease.is_held:
                return await self._take(name)
            if lease.is_beat_due:
                await self._move(lease)
            return self._held.get(name)

    async def release(self, name: str) -> None:
        """Let others have it at once. Raises Unavailable; then it ends by itself."""
        async with self._turn:
            lease = self._held.pop(name, None)
            if lease is None:
                return
            lease.end()
            seen = (Equals("fence", lease.fence), Equals("node_id", self._node_id))
            with suppress(ConditionFailed):  # it may have been taken over
                await self._store.write(Update(LEASES, (name,), remove=("node_id",), when=seen))

    async def start(self) -> None:
        """Move what is held from now on, however long a step of the work takes."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Release everything. Also where nothing was started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for name in list(self._held):
            try:
                await self.release(name)
            except TidingsError as error:
                _log.warning("lease_not_released", name=name, detail=error.detail)

    async def _take(self, name: str) -> Lease | None:
        self._held.pop(name, None)
        item = await self._store.get(LEASES, (name,))
        when: tuple[Condition, ...] = (Absent(),)
        fence = 0
        if item is not None:
            fence, beat = item["fence"], item["beat"]
            is_free = item.get("node_id") in (None, self._node_id)
            if not is_free and not self._stands_still(name, (fence, beat)):
                return None
            when = (Equals("fence", fence), Equals("beat", beat))
        lease = Lease(name, fence + 1, self._monotonic)
        row = {
            "name": name,
            "node_id": self._node_id,
            "fence": lease.fence,
            "beat": lease.send(),
        }
        try:
            await self._store.write(Put(LEASES, row, when=when))
        except ConditionFailed:
            return None
        lease.written()
        self._held[name] = lease
        self._watched.pop(name, None)
        _log.debug("lease_taken", name=name, fence=lease.fence)
        return lease

    def _stands_still(self, name: str, seen: tuple[int, int]) -> bool:
        now_s = self._monotonic()
        watched = self._watched.get(name)
        if watched is None or watched[0] != seen:
            self._watched[name] = (seen, now_s)
            return False
        return now_s - watched[1] >= LEASE_S

    async def _move(self, lease: Lease) -> None:
        """Move the row; a lease that was lost ends, one that can't be moved runs out."""
        seen = (Equals("fence", lease.fence), Equals("node_id", self._node_id))
        try:
            await self._store.write(
                Update(LEASES, (lease.name,), set={"beat": lease.send()}, when=seen)
            )
        except ConditionFailed:
            del self._held[lease.name]
            lease.end()
            _log.warning("lease_lost", name=lease.name, fence=lease.fence)
        except TidingsError as error:
            _log.warning("lease_not_moved", name=lease.name, detail=error.detail)
        else:
            lease.written()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LEASE_BEAT_S)
            try:
                async with self._turn:
                    for lease in list(self._held.values()):
                        if lease.is_held:
                            await self._move(lease)
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="leases")
