"""What the endpoints call: the features of one service, put together by `tidings.app`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidings import wire
    from tidings.blobs.blobs import Blobs
    from tidings.chat.chat import Chat
    from tidings.clock import Clock
    from tidings.cluster.nodes import Nodes
    from tidings.delivery.events import Events
    from tidings.delivery.push import Pushes
    from tidings.delivery.syncs import Syncs
    from tidings.delivery.websocket import Sockets
    from tidings.metrics import Metrics
    from tidings.people.credentials import Credentials
    from tidings.people.limits import RateLimits
    from tidings.people.users import Users
    from tidings.storage.metered import CostSource


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one running service."""

    clock: Clock
    users: Users
    credentials: Credentials
    limits: RateLimits
    chat: Chat
    blobs: Blobs
    syncs: Syncs
    sockets: Sockets
    events: Events
    pushes: Pushes
    push_key: Callable[[], str]
    """Tells the public key of web push."""
    metrics: Metrics
    cost_source: Callable[[], CostSource]
    """Where the prices come from that replies tell."""
    nodes: Nodes
    migration: Callable[[], Awaitable[wire.Migration | None]]
    """How far the move to another store is; None where there was none. Raises Unavailable."""
    check_ready: Callable[[], Awaitable[None]]
    """Returns when store and bus answer. Raises Unavailable."""
