"""Whereabouts: which device is connected to which node, for nodes that share a store.

A node writes a row when a device comes and removes it when the device went, each once; nothing is
written while it stays. Rows of a node that is down count for nothing, and expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import NoReturn, Protocol, TypeAlias
from zlib import crc32

import structlog

from tidings.clock import Clock
from tidings.errors import TidingsError
from tidings.storage.interface import Delete, Item, Position, Store
from tidings.storage.tables import PRESENCE, PRESENCE_SHARDS

ROWS_TOGETHER = 25
"""Rows that are written or removed at the same time."""
FAILURE_PAUSE_S = 1.0
LIFE_S = 24 * 3600
"""After so long a row expires, unless it was written anew; half of it is when that is done."""
LOOKED_UP_TOGETHER = 8
"""Users who are looked up one by one; of more, their neighbours by id are read along."""
PAGES_MAX = 20
"""Pages of one range of users; beyond it users count as offline."""
_AFTER_SEPARATOR = "$"
"""The character after `#`, and before all that ids are made of."""

Device: TypeAlias = tuple[str, str, str]
"""(workspace, user id, session id)."""

_log = structlog.get_logger(__name__)


class Peer(Protocol):
    """A node."""

    @property
    def node_id(self) -> str:
        """Its id, made anew with every start."""
        ...


class Peers(Protocol):
    """What is known of the nodes of a store (`cluster.nodes.Nodes`)."""

    @property
    def node_id(self) -> str:
        """This node."""
        ...

    @property
    def live(self) -> Sequence[Peer]:
        """All that are up, this one among them, in an order that all agree on."""
        ...

    def is_live(self, node_id: str) -> bool:
        """Whether the node is up."""
        ...


class Alone:
    """A node without others."""

    def __init__(self, node_id: str = "node_alone") -> None:
        self.node_id = node_id

    @property
    def live(self) -> Sequence[Peer]:
        return (self,)

    def is_live(self, node_id: str) -> bool:
        """Only this one is."""
        return node_id == self.node_id


class Whereabouts:
    """The rows of this node's devices, and a look at those of others.

    Where there are no other nodes nothing is written or read.
    """

    def __init__(self, store: Store, clock: Clock, peers: Peers) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._here: dict[Device, None] = {}
        self._stored: dict[Device, int] = {}
        """When the row of each device was written, in that order; 0 while that is not known."""
        self._changed: dict[Device, None] = {}
        self._has_changes = asyncio.Event()
        self._was_shared = False

    @property
    def is_shared(self) -> bool:
        """Whether there are other nodes."""
        return len(self._peers.live) > 1

    @property
    def is_first(self) -> bool:
        """Whether this node does what one of all nodes has to do; now and then none or two."""
        return self._peers.live[0].node_id == self._peers.node_id

    def come(self, device: Device) -> None:
        """The device is connected to this node."""
        self._here[device] = None
        if self.is_shared:
            self._note((device,))

    def go(self, device: Device) -> None:
        """The device is connected to this node no more."""
        self._here.pop(device, None)
        if device in self._stored:
            self._note((device,))

    def look(self) -> None:
        """See whether others have come to know of this node's devices, and which rows are old."""
        is_shared = self.is_shared
        if is_shared and not self._was_shared:
            self._note(device for device in self._here if device not in self._stored)
        self._was_shared = is_shared
        oldest_at = self._clock() - LIFE_S * 1000 // 2
        for device, stored_at in list(islice(self._stored.items(), ROWS_TOGETHER)):
            if 0 < stored_at < oldest_at:
                self._stored[device] = 0
                self._note((device,))

    def _note(self, devices: Iterable[Device]) -> None:
        self._changed.update(dict.fromkeys(devices))
        if self._changed:
            self._has_changes.set()

    async def run(self) -> NoReturn:
        """Write and remove rows, until cancelled."""
        while True:
            await self._has_changes.wait()
            devices = list(islice(self._changed, ROWS_TOGETHER))
            if not devices:
                self._has_changes.clear()
                continue
            try:
                await self._store_rows([d for d in devices if d in self._here])
                gone = [d for d in devices if d not in self._here and d in self._stored]
                await asyncio.gather(*map(self._remove_row, gone))
            except TidingsError as error:
                _log.warning("presence_not_stored", error=str(error))
                await asyncio.sleep(FAILURE_PAUSE_S)
            else:
                for device in devices:
                    stored_at = self._stored.get(device)
                    if stored_at if device in self._here else stored_at is None:
                        self._changed.pop(device, None)

    async def _store_rows(self, devices: Sequence[Device]) -> None:
        now = self._clock()
        missing = [device for device in devices if not self._stored.get(device)]
        if missing:
            self._stored.update(dict.fromkeys(missing, 0))
            await self._store.put_many(PRESENCE, [self._row(device, now) for device in missing])
            for device in missing:
                del self._stored[device]
                self._stored[device] = now

    async def _remove_row(self, device: Device) -> None:
        row = self._row(device, 0)
        await self._store.write(Delete(PRESENCE, PRESENCE.key(row)))
        self._stored.pop(device, None)

    def _row(self, device: Device, now: int) -> Item:
        workspace, user_id, session_id = device
        return {
            "users": _shard(workspace, user_id),
            "place": f"{user_id}#{self._peers.node_id}#{session_id}",
            "since": now,
            "expires_at": now // 1000 + LIFE_S,
        }

    async def find(self, workspace: str, user_ids: Collection[str]) -> set[str]:
        """Those of the users who have a device at another node. Best for neighbours by id."""
        if not self.is_shared or not user_ids:
            return set()
        if len(user_ids) <= LOOKED_UP_TOGETHER:
            pages = await asyncio.gather(*(self.sessions(workspace, each) for each in user_ids))
            return {user for user, sessions in zip(user_ids, pages, strict=True) if sessions}
        low, high = min(user_ids), max(user_ids)
        shards = range(PRESENCE_SHARDS)
        found = await asyncio.gather(
            *(self._places(f"{workspace}#{shard}", low, high) for shard in shards)
        )
        return {place[0] for places in found for place in places}.intersection(user_ids)

    async def sessions(self, workspace: str, user_id: str) -> set[str]:
        """The user's devices at other nodes."""
        if not self.is_shared:
            return set()
        places = await self._places(_shard(workspace, user_id), user_id, user_id)
        return {session_id for _, session_id in places}

    async def _places(self, shard: str, low: str, high: str) -> list[tuple[str, str]]:
        """(user id, session id) of devices at other nodes, of users with ids in a range."""
        found: list[tuple[str, str]] = []
        after: Position | None = None
        for _ in range(PAGES_MAX):
            page = await self._store.query(
                PRESENCE,
                shard,
                low=f"{low}#",
                high=f"{high}{_AFTER_SEPARATOR}",
                after=after,
                consistent=False,
            )
            for item in page.items:
                user_id, node_id, session_id = item["place"].split("#")
                if node_id != self._peers.node_id and self._peers.is_live(node_id):
                    found.append((user_id, session_id))
            after = page.after
            if after is None:
                break
        return found

    async def left_by(self, node_id: str) -> set[tuple[str, str]]:
        """(workspace, user id) of all who had devices at a node that is gone."""
        left: set[tuple[str, str]] = set()
        after: Position | None = None
        while True:
            page = await self._store.scan(PRESENCE, after=after)
            for item in page.items:
                user_id, its_node_id, _ = item["place"].split("#")
                if its_node_id == node_id:
                    left.add((item["users"].partition("#")[0], user_id))
            after = page.after
            if after is None:
                return left


def _shard(workspace: str, user_id: str) -> str:
    return f"{workspace}#{crc32(user_id.encode()) % PRESENCE_SHARDS}"
