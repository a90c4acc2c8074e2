"""Who is online, in memory: companions are told of changes, and nothing is ever written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog

from tidings.chat.updates import Signal
from tidings.errors import TidingsError

OFFLINE_AFTER_S = 5.0
"""How long a user without a device still counts as online: a reconnect or the next poll."""
CHANGES_MAX = 10_000
"""Changes that wait to be told; past it the newest are not told (presence is no promise)."""
COMPANIONS_DEADLINE_S = 5.0

Companions: TypeAlias = Callable[[str, str], Awaitable[list[str]]]
"""(workspace, user id) to the ids of those who are told of the user's coming and going."""
_User: TypeAlias = tuple[str, str]

_log = structlog.get_logger(__name__)


class Presence:
    """Counts who has a device, and tells companions when that changes and stays changed.

    A companion who is online already is in turn told to the user who just came.
    """

    def __init__(self, signal: Signal) -> None:
        self._signal = signal
        self._connected: set[_User] = set()
        self._leaving: dict[_User, float] = {}
        """When users without a device count as offline, in the order of time."""
        self._announced: set[_User] = set()
        self._changed: dict[_User, None] = {}
        self._has_changes = asyncio.Event()

    def is_online(self, workspace: str, user_id: str) -> bool:
        """Whether the user has a device now, or had one a moment ago."""
        user = (workspace, user_id)
        return user in self._connected or user in self._leaving

    def come(self, workspace: str, user_id: str) -> None:
        """The user's first device is here."""
        user = (workspace, user_id)
        self._connected.add(user)
        self._leaving.pop(user, None)
        self._note(user)

    def go(self, workspace: str, user_id: str, now_s: float) -> None:
        """The user's last device is gone."""
        user = (workspace, user_id)
        self._connected.discard(user)
        self._leaving[user] = now_s + OFFLINE_AFTER_S

    def expire(self, now_s: float) -> None:
        """Let those go who have been without a device for long enough."""
        while self._leaving:
            user, at_s = next(iter(self._leaving.items()))
            if at_s > now_s:
                break
            del self._leaving[user]
            self._note(user)

    def _note(self, user: _User) -> None:
        is_changed = (user in self._connected) != (user in self._announced)
        if is_changed and len(self._changed) < CHANGES_MAX:
            self._changed[user] = None
            self._has_changes.set()

    async def run(self, companions: Companions) -> None:
        """Tell changes, one after the other, until cancelled."""
        while True:
            await self._has_changes.wait()
            if not self._changed:
                self._has_changes.clear()
                continue
            user = next(iter(self._changed))
            del self._changed[user]
            await self._tell(user, companions)

    async def _tell(self, user: _User, companions: Companions) -> None:
        is_online = user in self._connected
        if is_online == (user in self._announced):
            return
        if is_online:
            self._announced.add(user)
        else:
            self._announced.discard(user)
        workspace, user_id = user
        try:
            async with asyncio.timeout(COMPANIONS_DEADLINE_S):
                everyone = await companions(workspace, user_id)
        except (TidingsError, TimeoutError) as error:
            _log.warning("presence not told", error=str(error))
            return
        present = [other for other in everyone if (workspace, other) in self._connected]
        self._signal(workspace, present, _frame(user_id, is_online=is_online))
        if is_online:
            for other in present:
                self._signal(workspace, [user_id], _frame(other, is_online=True))


def _frame(user_id: str, *, is_online: bool) -> dict[str, object]:
    return {"type": "presence", "user_id": user_id, "is_online": is_online}
