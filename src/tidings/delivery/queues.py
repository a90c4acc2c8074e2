"""The durable queue of each session: where it is, sealed into cursors, and what it acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import msgspec
import structlog

from tidings.chat.rows import badge_from_item
from tidings.cursors import Cursors
from tidings.errors import TidingsError, ValidationFailed
from tidings.people.callers import Caller
from tidings.storage.interface import Store
from tidings.storage.tables import BADGES, user_key

POSITIONS_MAX = 50
"""Rooms whose position one cursor carries."""
CURSOR_CHARACTERS_MAX = 8_192
SEEN_WRITE_INTERVAL_S = 1.0
"""What `seen` frames acknowledge is written at most this often per session."""
SESSIONS_MAX = 20_000
"""Sessions whose acknowledged position is remembered in memory."""

_log = structlog.get_logger(__name__)


class Position(msgspec.Struct, frozen=True):
    """Where a device is: rooms that stood still since `version` were handed to it as they are.

    While a catch-up goes on, in several replies, a room may move on before it was its turn;
    `base` is the version up to which the device has every entry of every room.
    """

    version: int
    base: int
    read_version: int
    """Up to which the device knows of read marks."""
    rooms: Mapping[str, int] = {}
    """For rooms in the last replies, the sequence up to which the device has everything."""


def complete(version: int, rooms: Mapping[str, int] | None = None) -> Position:
    """The position of a device that has everything up to the version."""
    return Position(version, version, version, rooms or {})


def purpose(workspace: str, user_id: str) -> str:
    """What a cursor of this user's queues is sealed for."""
    return f"sync#{workspace}#{user_id}"


def seal(cursors: Cursors, workspace: str, user_id: str, position: Position) -> str:
    """The position as an opaque cursor, as short as may be."""
    value: list[object] = [position.version]
    if position != complete(position.version):
        value += [position.base, position.read_version, dict(position.rooms)]
    return cursors.seal(purpose(workspace, user_id), value)


def unseal(cursors: Cursors, workspace: str, user_id: str, text: str) -> Position:
    """The position of a cursor. Raises ValidationFailed for one that is not this user's."""
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise ValidationFailed("This cursor is not one that the service gave out.")
    value = cursors.open(purpose(workspace, user_id), text)
    return complete(value[0]) if len(value) == 1 else Position(*value)


class Acknowledgements(Protocol):
    """Where acknowledged cursors are kept (`people.credentials.Credentials`)."""

    async def acknowledge(self, caller: Caller, cursor: str) -> None:
        """Store the cursor durably with the caller's session."""
        ...

    async def acknowledged(self, caller: Caller) -> str | None:
        """The stored cursor of the caller's session."""
        ...


class Queues:
    """What sessions acknowledged. It only ever moves forward."""

    def __init__(self, cursors: Cursors, acknowledgements: Acknowledgements) -> None:
        self._cursors = cursors
        self._acknowledgements = acknowledgements
        self._known: OrderedDict[tuple[str, str, str], tuple[Position, str]] = OrderedDict()
        self._unwritten: dict[tuple[str, str, str], tuple[Caller, str]] = {}
        self._writing: asyncio.Task[None] | None = None

    def open(self, caller: Caller, text: str) -> Position:
        """The position of a cursor of the caller. Raises ValidationFailed."""
        return unseal(self._cursors, caller.workspace, caller.user_id or "", text)

    def seal(self, caller: Caller, position: Position) -> str:
        """The cursor of a position of the caller."""
        return seal(self._cursors, caller.workspace, caller.user_id or "", position)

    async def acknowledged(self, caller: Caller) -> Position | None:
        """Where the caller's session last acknowledged; None if it never did."""
        key = _key(caller)
        known = self._known.get(key)
        if known is None:
            text = await self._acknowledgements.acknowledged(caller)
            if text is None:
                return None
            try:
                known = (self.open(caller, text), text)
            except ValidationFailed:
                return None  # sealed with another secret: a store that was put together anew
            self._remember(key, known)
        return known[0]

    async def acknowledge(self, caller: Caller, text: str) -> Position:
        """Acknowledge durably, with a write only if the queue moved. Raises ValidationFailed."""
        position = self.open(caller, text)
        if await self._has_moved(caller, position, text):
            key = _key(caller)
            self._unwritten.pop(key, None)
            self._remember(key, (position, text))  # first, so that writes come in order
            try:
                await self._acknowledgements.acknowledge(caller, text)
            except BaseException:
                self._known.pop(key, None)
                raise
        return position

    async def see(self, caller: Caller, text: str) -> Position:
        """Acknowledge soon: until it is written, a crash can only lead to sending again."""
        position = self.open(caller, text)
        if await self._has_moved(caller, position, text):
            key = _key(caller)
            self._unwritten[key] = (caller, text)
            self._remember(key, (position, text))
            if self._writing is None:
                self._writing = asyncio.create_task(self._write_later())
        return position

    async def _has_moved(self, caller: Caller, position: Position, text: str) -> bool:
        before = await self.acknowledged(caller)
        if before is None:
            return True
        return before.version < position.version or (
            before.version == position.version and self._known[_key(caller)][1] != text
        )

    def _remember(self, key: tuple[str, str, str], known: tuple[Position, str]) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > SESSIONS_MAX:
            oldest = next(iter(self._known))
            if oldest not in self._unwritten:
                del self._known[oldest]
            else:
                self._known.move_to_end(oldest)

    async def _write_later(self) -> None:
        try:
            while self._unwritten:
                await asyncio.sleep(SEEN_WRITE_INTERVAL_S)
                await self.flush()
        except Exception:  # noqa: BLE001 - the root of a task
            _log.exception("acknowledgements not written")
        finally:
            self._writing = None

    async def flush(self) -> None:
        """Write what was seen and is not written yet."""
        unwritten, self._unwritten = self._unwritten, {}
        for caller, text in unwritten.values():
            try:
                await self._acknowledgements.acknowledge(caller, text)
            except TidingsError as error:
                _log.warning("acknowledgement not written", error=str(error))

    async def stop(self) -> None:
        """Write what is left and end."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self.flush()


def _key(caller: Caller) -> tuple[str, str, str]:
    return (caller.workspace, caller.user_id or "", caller.session_id or "")


async def first_cursor(store: Store, cursors: Cursors, workspace: str, user_id: str) -> str:
    """The cursor at which the queue of a session made now begins."""
    badge = badge_from_item(await store.get(BADGES, (user_key(workspace, user_id),)))
    return seal(cursors, workspace, user_id, complete(badge.version))
