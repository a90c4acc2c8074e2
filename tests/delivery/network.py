"""A network between nodes of one process that loses, delays and reorders, by a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tidings.delivery.bus import Handler


class Network:
    """What one bus sends comes out of all others, sooner or later or never."""

    def __init__(self, seed: int, *, loss: float, delay_s_max: float) -> None:
        self.dice = random.Random(seed)
        self.loss = loss
        self.delay_s_max = delay_s_max
        self.buses: list[NetworkBus] = []
        self.lost = 0

    def bus(self) -> NetworkBus:
        """The end of another node."""
        bus = NetworkBus(self)
        self.buses.append(bus)
        return bus


class NetworkBus:
    """A node's end of the network."""

    def __init__(self, network: Network) -> None:
        self.on_gap: Callable[[], None] | None = None
        self.is_connected = True
        self._network = network
        self._handlers: dict[str, Handler] = {}

    def on(self, topic: str, handler: Handler) -> None:
        self._handlers[topic] = handler

    def send(self, topic: str, body: bytes) -> None:
        network, loop = self._network, asyncio.get_running_loop()
        for other in network.buses:
            if other is self:
                continue
            if network.dice.random() < network.loss:
                network.lost += 1
            else:
                delay_s = network.dice.random() ** 3 * network.delay_s_max
                loop.call_later(delay_s, other.take, topic, body)

    def take(self, topic: str, body: bytes) -> None:
        """A message comes out here."""
        if self.is_connected:
            self._handlers[topic](body)

    async def start(self) -> None:
        """It is there already."""

    async def stop(self) -> None:
        """Hear nothing any more."""
        self.is_connected = False
