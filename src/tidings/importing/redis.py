"""`tidings import redis`: conversation lists become direct rooms and inboxes, in the lists' order.

Into a workspace without rooms all is put in bulk: first the rooms with their logs, then list by
list the rows and the totals. The workspace must not be used meanwhile, and a mark in the store says
that it is being loaded: whoever finds the mark of an import that was broken off removes what that
one left, and begins anew. Into a workspace that has rooms each conversation goes by the service's
own commits; those that are there already stay as they are. So a second run adds what is new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from tidings.chat.chat import Chat
from tidings.clock import Clock
from tidings.conversations.journal import Journal
from tidings.conversations.mapping import Mapping
from tidings.errors import Unavailable
from tidings.importing.redis_adding import Adding
from tidings.importing.redis_loading import Loading, Progress
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_people import People
from tidings.importing.redis_puts import Pace, Price, Puts
from tidings.importing.redis_report import Report
from tidings.importing.redis_source import RedisSource, Restarted
from tidings.storage.interface import PAGE_ITEMS_MAX, Store, Update
from tidings.storage.tables import MOVES, ROOMS

LOADING, LOADED = "loading", "loaded"
READINGS_MAX = 5
"""How often a server is read from the beginning that is started anew meanwhile."""


class RedisImport:
    """One import into one workspace."""

    def __init__(
        self,
        store: Store,
        chat: Chat,
        workspace: str,
        mapping: Mapping,
        oddities: Oddities,
        *,
        clock: Clock,
        journal: Journal | None = None,
        pace: Pace | None = None,
        price: Price = lambda table, item: 0,
    ) -> None:
        """`journal` is where a move notes operations, if one is under way.

        `pace` and `price` keep the writes within a budget; only what is put in bulk is paced.
        """
        self.report = Report()
        self._store = store
        self._workspace = workspace
        self._mapping = mapping
        self._oddities = oddities
        self._journal = journal
        people = People(store, workspace, mapping, oddities, self.report, clock)
        self._loading = Loading(
            store,
            workspace,
            mapping,
            oddities,
            self.report,
            people,
            clock,
            journal,
            Puts(store, pace, price),
        )
        self._adding = Adding(
            store, chat, workspace, mapping, oddities, self.report, people, clock, journal
        )

    async def run(self, redis: Redis, progress: Progress | None = None) -> Report:
        """Import all lists of the server.

        Raises Conflict where somebody used the workspace while it was loaded, Unavailable where
        the server or the store is away for long: running it again goes on from what is there.
        """
        show = progress or (lambda what, done: None)
        mark = ("imports", self._workspace)
        stage = ((await self._store.get(MOVES, mark)) or {}).get("stage")
        if stage == LOADING:
            show("Removing what a broken import left", 0)
            await self._loading.remove_all()
        if stage == LOADING or not await self._is_used():
            await self._note(mark, LOADING)
            source = await self._read_all(redis, self._loading.run, show)
            await self._note(mark, LOADED)
        else:
            source = await self._read_all(redis, self._adding.run, show)
        report = self.report
        report.lists, report.members = source.owners, source.members
        report.left_out, report.changed = self._oddities.left_out, self._oddities.changed
        return report

    async def _read_all(
        self,
        redis: Redis,
        run: Callable[[RedisSource, Progress], Awaitable[None]],
        show: Progress,
    ) -> RedisSource:
        """Run with all that the server has, from the beginning where it was started anew."""
        key = "" if self._journal is None else self._journal.key
        for _ in range(READINGS_MAX):
            source = RedisSource(redis, self._mapping, self._oddities, key)
            try:
                await run(source, show)
            except Restarted:
                continue
            return source
        raise Unavailable(f"Redis was started anew {READINGS_MAX} times while it was read.")

    async def _note(self, mark: tuple[str, str], stage: str) -> None:
        await self._store.write(Update(MOVES, mark, set={"stage": stage}, add={"epoch": 1}))

    async def _is_used(self) -> bool:
        """Whether the workspace has rooms. Looks at all rooms of the store at worst."""
        after = None
        while True:
            page = await self._store.scan(ROOMS, limit=PAGE_ITEMS_MAX, after=after)
            if any(item["room"].startswith(f"{self._workspace}#") for item in page.items):
                return True
            if (after := page.after) is None:
                return False
