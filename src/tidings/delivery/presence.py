"""Who is online: devices are counted where they are, and companions are told of changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NoReturn, TypeAlias

import msgspec
import structlog

from tidings.chat.updates import Signal
from tidings.delivery.bus import Bus
from tidings.delivery.whereabouts import Device, Whereabouts
from tidings.errors import TidingsError

OFFLINE_AFTER_S = 5.0
"""How long a device that is gone still counts as connected: a reconnect or the next poll."""
CHANGES_MAX = 10_000
"""Changes that wait to be told; past it the newest are not told (presence is no promise)."""
TELL_DEADLINE_S = 5.0
LOOK_DEADLINE_S = 60.0
"""For finding out who was connected to a node that is gone."""

PRESENCE_TOPIC = "presence"
"""Of the bus."""

Companions: TypeAlias = Callable[[str, str], Awaitable[list[str]]]
"""(workspace, user id) to the ids of those who are told of the user's coming and going."""
_User: TypeAlias = tuple[str, str]

_log = structlog.get_logger(__name__)
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bool, list[str]]).decode


class Presence:
    """Knows who has a device, and tells companions when that changes and stays changed.

    A companion who is online already is in turn told to the user who just came. Between nodes
    that is told over the bus; what is asked for rests on the rows of `Whereabouts` alone.
    """

    def __init__(
        self, signal: Signal, signal_here: Signal, bus: Bus, whereabouts: Whereabouts | None
    ) -> None:
        """`signal` reaches devices at all nodes, `signal_here` those at this one."""
        self._signal = signal
        self._signal_here = signal_here
        self._bus = bus
        self._whereabouts = whereabouts
        self._counts: Counter[Device] = Counter()
        """Connections and polls of each device."""
        self._leaving: dict[Device, float] = {}
        """When devices that are gone count as such, in the order of time."""
        self._devices: dict[_User, set[str]] = {}
        """The session ids of each user's devices, those that are leaving among them."""
        self._announced: set[_User] = set()
        self._changed: dict[_User, None] = {}
        self._has_changes = asyncio.Event()
        self.on_gone: list[Callable[[Device], None]] = []
        """Each hears of a device that is not connected to this node any more."""
        bus.on(PRESENCE_TOPIC, self._take)

    @property
    def is_shared(self) -> bool:
        """Whether users may have devices at other nodes."""
        return self._whereabouts is not None and self._whereabouts.is_shared

    def is_here(self, workspace: str, user_id: str) -> bool:
        """Whether the user has a device at this node, or had one a moment ago."""
        return (workspace, user_id) in self._devices

    async def online(self, workspace: str, user_ids: Collection[str]) -> set[str]:
        """Those of the users who have a device now, or had one a moment ago. Raises Unavailable."""
        here = {user_id for user_id in user_ids if self.is_here(workspace, user_id)}
        if self._whereabouts is None:
            return here
        others = [user_id for user_id in user_ids if user_id not in here]
        return here | await self._whereabouts.find(workspace, others)

    async def online_sessions(self, workspace: str, user_id: str) -> set[str]:
        """The user's devices that are connected now. Raises Unavailable."""
        here = self._devices.get((workspace, user_id), ())
        connected = {each for each in here if (workspace, user_id, each) in self._counts}
        if self._whereabouts is None:
            return connected
        return connected | await self._whereabouts.sessions(workspace, user_id)

    def come(self, device: Device) -> None:
        """A connection or poll of the device is here."""
        self._counts[device] += 1
        if self._counts[device] > 1 or self._leaving.pop(device, None) is not None:
            return
        workspace, user_id, session_id = device
        self._devices.setdefault((workspace, user_id), set()).add(session_id)
        if self._whereabouts is not None:
            self._whereabouts.come(device)
        self._note((workspace, user_id))

    def go(self, device: Device, now_s: float) -> None:
        """A connection or poll of the device has ended."""
        self._counts[device] -= 1
        if not self._counts[device]:
            del self._counts[device]
            self._leaving[device] = now_s + OFFLINE_AFTER_S

    def look(self, now_s: float) -> None:
        """Let devices go that have been away for long enough. Called every second."""
        while self._leaving:
            device, at_s = next(iter(self._leaving.items()))
            if at_s > now_s:
                break
            del self._leaving[device]
            workspace, user_id, session_id = device
            devices = self._devices[workspace, user_id]
            devices.discard(session_id)
            if not devices:
                del self._devices[workspace, user_id]
            if self._whereabouts is not None:
                self._whereabouts.go(device)
            self._note((workspace, user_id))
            for tell in self.on_gone:
                tell(device)
        if self._whereabouts is not None:
            self._whereabouts.look()

    def _note(self, user: _User) -> None:
        is_changed = (user in self._devices) != (user in self._announced)
        if is_changed and len(self._changed) < CHANGES_MAX:
            self._changed[user] = None
            self._has_changes.set()

    async def run(self, companions: Companions) -> NoReturn:
        """Tell changes, one after the other, until cancelled."""
        while True:
            await self._has_changes.wait()
            if not self._changed:
                self._has_changes.clear()
                continue
            user = next(iter(self._changed))
            del self._changed[user]
            is_online = user in self._devices
            if is_online == (user in self._announced):
                continue
            if is_online:
                self._announced.add(user)
            else:
                self._announced.discard(user)
            await self._tell(user, companions, is_online=is_online)

    async def _tell(self, user: _User, companions: Companions, *, is_online: bool) -> None:
        workspace, user_id = user
        try:
            async with asyncio.timeout(TELL_DEADLINE_S):
                if not is_online and await self.online(workspace, [user_id]):
                    return
                everyone = await companions(workspace, user_id)
        except (TidingsError, TimeoutError) as error:
            _log.warning("presence not told", error=str(error))
            return
        self._show(workspace, user_id, everyone, is_online=is_online, answer=self._signal_here)
        if self._bus.is_connected:
            self._bus.send(PRESENCE_TOPIC, _pack((workspace, user_id, is_online, everyone)))

    def _take(self, body: bytes) -> None:
        workspace, user_id, is_online, everyone = _unpack(body)
        self._show(workspace, user_id, everyone, is_online=is_online, answer=self._signal)

    def _show(
        self,
        workspace: str,
        user_id: str,
        everyone: Sequence[str],
        *,
        is_online: bool,
        answer: Signal,
    ) -> None:
        """Tell companions here of the user, and answer the user with those who are here."""
        present = [other for other in everyone if self.is_here(workspace, other)]
        self._signal_here(workspace, present, _frame(user_id, is_online=is_online))
        if is_online:
            for other in present:
                answer(workspace, [user_id], _frame(other, is_online=True))

    async def tell_gone(self, node_id: str, companions: Companions) -> None:
        """Tell of those who were connected to a node that is gone, and did not come to another."""
        if self._whereabouts is None or not self._whereabouts.is_first:
            return
        await asyncio.sleep(OFFLINE_AFTER_S)
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                left = await self._whereabouts.left_by(node_id)
        except (TidingsError, TimeoutError) as error:
            _log.warning("presence not told", error=str(error))
            return
        for user in left:
            await self._tell(user, companions, is_online=False)


def _frame(user_id: str, *, is_online: bool) -> dict[str, object]:
    return {"type": "presence", "user_id": user_id, "is_online": is_online}
