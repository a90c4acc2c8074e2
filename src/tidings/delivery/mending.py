"""Mending: devices that missed something are found, and told it from the store.

What nodes tell one another may be late, out of order or lost. A device's version shows it: a jump
at once, and a loss with nothing after it when the versions of users are compared with the store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import NoReturn, TypeAlias

import structlog

from tidings.delivery.audiences import Audience
from tidings.delivery.connections import CloseCode, Connection
from tidings.errors import TidingsError
from tidings.metrics import Metrics

GAP_WAIT_S = 0.1
"""How long an update that is missing may be late before the store is asked instead."""
MENDS_MAX = 64
"""Connections that are mended at the same time; a window of their devices may be unread."""
COMPARED_TOGETHER = 100
"""Users whose versions are read in one call."""
COMPARE_DEADLINE_S = 5.0
COMPARE_PAUSE_S = 1.0
"""After a comparison that failed."""
SWEEP_S = 2.0
"""How often all users' versions are compared while other nodes can't be heard."""
QUIET_SWEEP_S = 60.0
"""The same while they are heard, or where there are none: what a killed node did not tell."""

Mend: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Tells a connection from the store what its device missed. Raises TidingsError and, if the device
is gone, ConnectionError."""
Versions: TypeAlias = Callable[[Sequence[tuple[str, str]], bool], Awaitable[Sequence[int]]]
"""(workspace, user id) pairs to the users' versions; whether they are read consistently."""
FindAudience: TypeAlias = Callable[[str, str], Audience | None]
"""(workspace, user id) to the user's devices on this node."""

_log = structlog.get_logger(__name__)


class Mending:
    """Compares, waits and mends, a bounded number at a time, until stopped."""

    def __init__(self, find: FindAudience, metrics: Metrics) -> None:
        self._find = find
        self._metrics = metrics
        self._behind: dict[Connection, float] = {}
        """When each connection that misses something has waited long enough, in that order."""
        self._is_behind = asyncio.Event()
        self._unsure: dict[tuple[str, str], bool] = {}
        """Users whose versions are to be compared; True: by a consistent read."""
        self._is_unsure = asyncio.Event()
        self._swept_at_s = 0.0

    def ask(self, connection: Connection) -> None:
        """Mend the connection soon, unless it gets what it misses before."""
        due_at_s = asyncio.get_running_loop().time() + GAP_WAIT_S
        self._behind.setdefault(connection, due_at_s)
        self._is_behind.set()

    def compare(self, workspace: str, user_ids: Iterable[str]) -> None:
        """Compare what these users' devices were told with the store, soon and exactly."""
        for user_id in user_ids:
            if self._find(workspace, user_id) is not None:
                self._unsure[workspace, user_id] = True
                self._is_unsure.set()

    def compare_all(self, audiences: Iterable[Audience], *, is_exact: bool) -> None:
        """Compare all of them."""
        for audience in audiences:
            user = (audience.workspace, audience.user_id)
            self._unsure[user] = is_exact or self._unsure.get(user, False)
            self._is_unsure.set()

    def is_sweep_due(self, now_s: float, *, is_heard: bool) -> bool:
        """Whether it is time again to compare all; says so once."""
        interval_s = QUIET_SWEEP_S if is_heard else SWEEP_S
        if now_s - self._swept_at_s < interval_s:
            return False
        self._swept_at_s = now_s
        return True

    async def run_comparisons(self, versions: Versions) -> NoReturn:
        """Compare what is to be compared, until cancelled."""
        while True:
            await self._is_unsure.wait()
            users = list(islice(self._unsure.items(), COMPARED_TOGETHER))
            if not users:
                self._is_unsure.clear()
                continue
            for user, _ in users:
                del self._unsure[user]
            names = [user for user, _ in users]
            try:
                async with asyncio.timeout(COMPARE_DEADLINE_S):
                    found = await versions(names, any(is_exact for _, is_exact in users))
            except (TidingsError, TimeoutError) as error:
                _log.warning("versions_not_compared", error=str(error))
                for user, is_exact in users:
                    self._unsure[user] = is_exact or self._unsure.get(user, False)
                await asyncio.sleep(COMPARE_PAUSE_S)
                continue
            for (workspace, user_id), version in zip(names, found, strict=True):
                audience = self._find(workspace, user_id)
                if audience is not None:
                    audience.expect(version)

    async def run_mends(self, mend: Mend) -> NoReturn:
        """Mend what stays behind, until cancelled."""
        clock_s = asyncio.get_running_loop().time
        free = asyncio.Semaphore(MENDS_MAX)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._is_behind.wait()
                if not self._behind:
                    self._is_behind.clear()
                    continue
                connection, due_at_s = next(iter(self._behind.items()))
                await asyncio.sleep(due_at_s - clock_s())
                await free.acquire()
                del self._behind[connection]
                if connection.is_complete or connection.close_code is not None:
                    free.release()
                else:
                    group.create_task(self._mend(connection, mend, free))
        raise AssertionError("mending goes on until it is cancelled")

    async def _mend(self, connection: Connection, mend: Mend, free: asyncio.Semaphore) -> None:
        try:
            await mend(connection)
            self._metrics.mended()
        except ConnectionError:
            pass  # the device is gone
        except (TidingsError, TimeoutError) as error:
            _log.warning("connection_not_mended", error=str(error))
            connection.fall_behind()
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="mending")
            connection.close(CloseCode.INTERNAL_ERROR, "")
        finally:
            free.release()
