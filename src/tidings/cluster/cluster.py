"""The cluster, composed: this node among the others, its leases, and what is due when."""

from __future__ import annotations

import time

from tidings.clock import Clock
from tidings.cluster.leases import Leases
from tidings.cluster.nodes import Monotonic, Nodes
from tidings.cluster.schedule import Schedule
from tidings.ids import IdMaker
from tidings.storage.interface import Store


class Cluster:
    """Makes and holds what one node needs to share work with others.

    One that was never started still works, as a node that the others do not see: leases are then
    moved only by asking for them, and nothing of the schedule is worked by itself.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        *,
        version: str = "",
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self.nodes = Nodes(store, clock, ids, version=version, monotonic=monotonic)
        self.leases = Leases(store, self.nodes.node_id, monotonic=monotonic)
        self.schedule = Schedule(store, clock, self.leases)

    async def start(self) -> None:
        """Join the others, and work what is due. Raises Unavailable."""
        await self.nodes.start()
        await self.leases.start()
        await self.schedule.start()

    async def stop(self) -> None:
        """Leave: others may take over at once what was held here."""
        await self.schedule.stop()
        await self.leases.stop()
        await self.nodes.stop()
