"""The bus: what nodes tell one another at once. All of it may be lost, and nothing rests on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

Handler: TypeAlias = Callable[[bytes], None]
"""Takes one message. Never blocks; raises msgspec.DecodeError for what it can't read."""


class Bus(Protocol):
    """Messages between the nodes of one store: at most once, in no promised order."""

    on_gap: Callable[[], None] | None
    """Called when messages may have been lost on the way to this node."""

    @property
    def is_connected(self) -> bool:
        """Whether what is sent now reaches other nodes, as far as is known."""
        ...

    def send(self, topic: str, body: bytes) -> None:
        """Send to all other nodes. Never blocks or raises; what does not fit is dropped."""
        ...

    def on(self, topic: str, handler: Handler) -> None:
        """Let the handler have the messages of other nodes; one's own do not come back."""
        ...

    async def start(self) -> None:
        """Begin to send and receive, as soon as that is possible."""
        ...

    async def stop(self) -> None:
        """Send what waits, for a moment, and end."""
        ...


class LocalBus:
    """The bus of a node that has no others to talk to."""

    is_connected = False

    def __init__(self) -> None:
        self.on_gap: Callable[[], None] | None = None

    def send(self, topic: str, body: bytes) -> None:
        """There is nobody."""

    def on(self, topic: str, handler: Handler) -> None:
        """Nothing will come."""

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""
