"""An asyncio client for Tidings: typed calls, and devices that miss nothing and send once.

    async with Client("http://127.0.0.1:8080", token="ts_…") as client:
        print(await client.badge())
        async with client.live() as device:
            await device.send("room_1", "Hello")
            async for update in device.updates():
                print(update)

It knows the service by the public contract only (`tidings.wire`).
"""

from __future__ import annotations

from tidings.client.calls import Client
from tidings.client.device import Device, Way
from tidings.client.files import download, upload
from tidings.client.frames import (
    BadgeUpdate,
    EntryUpdate,
    PresenceUpdate,
    QueueUpdate,
    ReaderUpdate,
    ReadUpdate,
    RoomUpdate,
    Row,
    TypingUpdate,
    Update,
)
from tidings.client.outbox import OutboxFull
from tidings.client.problems import (
    ClientError,
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    NotFound,
    Problem,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unreachable,
    ValidationFailed,
)
from tidings.client.readers import Updates, UpdatesLost
from tidings.client.state import LocalRoom, State

__all__ = [
    "BadgeUpdate",
    "Client",
    "ClientError",
    "Conflict",
    "Device",
    "EntryUpdate",
    "Forbidden",
    "IdempotencyMismatch",
    "LocalRoom",
    "NotFound",
    "OutboxFull",
    "PresenceUpdate",
    "Problem",
    "QueueUpdate",
    "RateLimited",
    "ReadUpdate",
    "ReaderUpdate",
    "RoomUpdate",
    "Row",
    "State",
    "TooLarge",
    "TypingUpdate",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "Update",
    "Updates",
    "UpdatesLost",
    "ValidationFailed",
    "Way",
    "download",
    "upload",
]
