"""Nodes: which instances of the service run now, as each of them sees it.

A node writes its row every second and watches the rows of the others. Whether one is still there
is told by its counter moving, measured on the observer's own monotonic clock: no two clocks are
ever compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import msgspec
import structlog

from tidings.clock import Clock
from tidings.errors import TidingsError
from tidings.ids import IdMaker
from tidings.storage.interface import ConditionFailed, Delete, Equals, Item, Put, Store
from tidings.storage.tables import NODES

BEAT_S = 1.0
"""How often a node writes its row, and reads those of the others."""
NODE_SILENT_S = 5.0
"""A node whose row did not move for so long is down."""
PASSED_S_MAX = 2.0
"""What the time between two looks counts at most: an observer that was frozen, or whose store did
not answer, has not seen silence."""
CALL_TIMEOUT_S = 2.0
"""For each write and read of a beat; the next beat tries again."""
NODES_MAX = 1_000
"""Nodes of one service."""
SERVICE = "tidings"
"""The partition of all rows: the prefix of its tables sets services apart."""

Monotonic: TypeAlias = Callable[[], float]
"""Returns seconds that never go back and that nobody sets."""

Figures: TypeAlias = dict[str, float | list[float]]
"""What a process tells of itself, by `tidings.metrics.Metrics.figures`."""

_log = structlog.get_logger(__name__)


class Node(msgspec.Struct, frozen=True):
    """One instance of the service."""

    node_id: str
    address: str
    """Host and port where it listens; empty before it does."""
    version: str
    started_at: int
    is_draining: bool = False
    """It is being stopped: it takes nobody new."""
    silent_s: float = 0.0
    """For how long it has not been heard of."""
    figures: Figures = {}
    """What it did since it started."""


class _Sight(msgspec.Struct):
    """What was last seen of a row."""

    node: Node
    beat: int
    silent_s: float


class Nodes:
    """This node, and its view of the others.

    The view is as old as the last look, and it is believed while the store does not answer. A
    node that was never started is in nobody's view, and still sees itself as live.
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
        self._store = store
        self._monotonic = monotonic
        self._own = Node(ids.new("node"), address="", version=version, started_at=clock())
        self._beat = 0
        self._sights: dict[str, _Sight] = {}
        self._looked_at_s: float | None = None
        self._looking = asyncio.Lock()
        self._failing: set[str] = set()
        self._has_news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_gone: list[Callable[[str], None]] = []
        """Each is called with the id of a node that was live and is not any more."""
        self.figures: Callable[[], Figures] = dict
        """Asked with each beat, which carries them to the other nodes; a row with them is still
        one write unit."""

    @property
    def node_id(self) -> str:
        """The id of this node, made anew with every start."""
        return self._own.node_id

    @property
    def live(self) -> list[Node]:
        """All nodes that live, this one among them, oldest first."""
        others = [
            msgspec.structs.replace(sight.node, silent_s=sight.silent_s)
            for node_id, sight in self._sights.items()
            if sight.silent_s < NODE_SILENT_S and node_id != self.node_id
        ]
        return sorted([*others, self._own], key=lambda node: node.node_id)

    def is_live(self, node_id: str) -> bool:
        """Whether the node was there at the last look; this one always is."""
        sight = self._sights.get(node_id)
        return node_id == self.node_id or (sight is not None and sight.silent_s < NODE_SILENT_S)

    def announce(self, address: str) -> None:
        """Say where this node listens, with a beat that comes at once."""
        self._own = msgspec.structs.replace(self._own, address=address)
        self._has_news.set()

    def drain(self) -> None:
        """Say that this node is being stopped, with a beat that comes at once."""
        self._own = msgspec.structs.replace(self._own, is_draining=True)
        self._has_news.set()

    async def start(self) -> None:
        """Be seen, and see, from now on. Raises Unavailable."""
        await self.beat()
        await self.look()
        self._task = asyncio.get_running_loop().create_task(self._keep_beating())

    async def stop(self) -> None:
        """Leave at once, so that others need not wait for silence. Also where never started."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._attempt("leave", self._leave)

    async def beat(self) -> None:
        """Write this node's row, the whole of it: others may have removed it.

        Raises Unavailable.
        """
        self._beat += 1
        own = self._own = msgspec.structs.replace(self._own, figures=self.figures())
        row: Item = {
            "service": SERVICE,
            "node_id": own.node_id,
            "address": own.address,
            "version": own.version,
            "started_at": own.started_at,
            "beat": self._beat,
            "is_draining": own.is_draining or None,
            "figures": own.figures or None,
        }
        await self._store.write(Put(NODES, row))

    async def look(self) -> None:
        """Read all rows now, and remove those of nodes that are down. Raises Unavailable."""
        async with self._looking:
            page = await self._store.query(NODES, SERVICE, limit=NODES_MAX)
            gone, silent = self._see(page.items)
        for node_id in gone:
            for tell in self.on_gone:
                tell(node_id)
        for sight in silent:
            await self._remove(sight)

    def _see(self, items: list[Item]) -> tuple[list[str], list[_Sight]]:
        """Take in the rows; who is gone since the last look, and whose rows may go."""
        now_s = self._monotonic()
        before_s = now_s if self._looked_at_s is None else self._looked_at_s
        passed_s = min(now_s - before_s, PASSED_S_MAX)
        self._looked_at_s = now_s
        was_live = {id_ for id_, sight in self._sights.items() if sight.silent_s < NODE_SILENT_S}
        sights: dict[str, _Sight] = {}
        for item in items:
            known = self._sights.get(item["node_id"])
            has_moved = known is None or known.beat != item["beat"]
            silent_s = 0.0 if known is None or has_moved else known.silent_s + passed_s
            sights[item["node_id"]] = _Sight(node_from_item(item), item["beat"], silent_s)
        self._sights = sights
        gone = [id_ for id_ in was_live if id_ != self.node_id and not self.is_live(id_)]
        silent = [
            sight
            for sight in sights.values()
            if sight.silent_s >= NODE_SILENT_S and sight.node.node_id != self.node_id
        ]
        return gone, silent

    async def _remove(self, sight: _Sight) -> None:
        key = (SERVICE, sight.node.node_id)
        try:
            await self._store.write(Delete(NODES, key, when=(Equals("beat", sight.beat),)))
        except ConditionFailed:
            return  # it moved, or somebody else was first
        _log.info("node_removed", node_id=sight.node.node_id, address=sight.node.address)

    async def _leave(self) -> None:
        await self._store.write(Delete(NODES, (SERVICE, self.node_id)))

    async def _keep_beating(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._has_news.wait()
            self._has_news.clear()
            await asyncio.gather(self._attempt("beat", self.beat), self._attempt("look", self.look))

    async def _attempt(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, or say once that it does not work; the next beat tries again."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await work()
        except (TidingsError, TimeoutError) as error:
            if what not in self._failing:
                self._failing.add(what)
                _log.warning("node_failed", what=what, error=str(error))
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="nodes")
        else:
            self._failing.discard(what)


def node_from_item(item: Item) -> Node:
    """The stored row as a value."""
    return Node(
        node_id=item["node_id"],
        address=item.get("address") or "",
        version=item.get("version") or "",
        started_at=item["started_at"],
        is_draining=bool(item.get("is_draining")),
        figures=item.get("figures") or {},
    )


async def read_nodes(store: Store) -> dict[str, tuple[Node, int]]:
    """All rows by node id, each with its counter: for an observer that is no node itself."""
    page = await store.query(NODES, SERVICE, limit=NODES_MAX)
    return {item["node_id"]: (node_from_item(item), item["beat"]) for item in page.items}
