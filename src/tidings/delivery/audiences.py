"""The devices of one user on this node: live connections, and long polls that wait."""

from __future__ import annotations

import asyncio
from collections import deque

from tidings.chat.updates import UserUpdate
from tidings.delivery.connections import Connection
from tidings.errors import TidingsError


class Poll:
    """A long poll that waits: woken by news, or ended by an error."""

    __slots__ = ("_began_at_s", "_error", "_news", "version")

    def __init__(self) -> None:
        self.version = 0
        """The version that it last read."""
        self._began_at_s = asyncio.get_running_loop().time()
        self._news = asyncio.Event()
        self._error: TidingsError | None = None

    @property
    def age_s(self) -> float:
        """How long ago it began."""
        return asyncio.get_running_loop().time() - self._began_at_s

    def wake(self) -> None:
        """There is something to read."""
        self._news.set()

    def end(self, error: TidingsError) -> None:
        """Let the poll raise the error."""
        self._error = error
        self._news.set()

    def clear(self) -> None:
        """Forget the news so far: what they told of is about to be read."""
        if self._error is None:
            self._news.clear()

    async def wait(self, timeout_s: float) -> bool:
        """Whether there was news before the time was up. Raises the error that ended it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return False
        if self._error is not None:
            raise self._error
        return True


class Audience:
    """The devices of one user on this node."""

    __slots__ = ("connections", "cursor", "lane", "polls", "user_id", "version", "workspace")

    def __init__(self, workspace: str, user_id: str) -> None:
        self.workspace = workspace
        self.user_id = user_id
        self.connections: list[Connection] = []
        self.polls: dict[str, Poll] = {}
        """The waiting poll of each session."""
        self.lane: deque[UserUpdate] | None = None
        """Updates that wait their turn while an inbox row is being read."""
        self.version = 0
        self.cursor = ""
        """The cursor of `version`, the last that was told."""

    def expect(self, version: int) -> None:
        """The user has this version: whoever was not told of it is told soon."""
        for connection in tuple(self.connections):
            connection.expect(version)
        for poll in self.polls.values():
            if poll.version < version:
                poll.wake()

    def send_behind(self) -> None:
        """End all connections: their devices have to catch up."""
        for connection in tuple(self.connections):
            connection.fall_behind()
