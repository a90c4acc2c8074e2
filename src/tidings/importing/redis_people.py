"""The people of an import: made where they are not there yet."""

from __future__ import annotations

from collections.abc import Mapping as Names

from tidings import wire
from tidings.clock import Clock
from tidings.conversations.mapping import Mapping
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_report import Report
from tidings.importing.redis_source import RedisSource
from tidings.people.rows import UserRow, user_to_item
from tidings.storage.interface import Item, Store
from tidings.storage.tables import USERS, user_key


class People:
    """Who is in the workspace, and who is to be."""

    def __init__(
        self,
        store: Store,
        workspace: str,
        mapping: Mapping,
        oddities: Oddities,
        report: Report,
        clock: Clock,
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._role: wire.Role = "customer" if mapping.people is None else mapping.people.role
        self._oddities = oddities
        self._report = report
        self._clock = clock

    async def missing(self, source: RedisSource, people: Names[str, str]) -> list[Item]:
        """The rows of those who are not there; `people` are what Redis calls them, by id."""
        keys = [(user_key(self._workspace, user_id),) for user_id in people]
        found = await self._store.get_many(USERS, keys)
        missing = [user_id for user_id, item in zip(people, found, strict=True) if item is None]
        names = await source.names([people[user_id] for user_id in missing])
        for user_id in missing:
            if user_id != people[user_id]:
                reason = "its name is no id, and became a hash"
                self._oddities.add("person", people[user_id], reason, detail=user_id)
        self._report.users_made += len(missing)
        self._report.users_present += len(people) - len(missing)
        now_ms = self._clock()
        return [
            user_to_item(
                UserRow(
                    workspace=self._workspace,
                    user_id=user_id,
                    name=(name or people[user_id])[: wire.NAME_CHARACTERS_MAX],
                    role=self._role,
                    created_at=now_ms,
                    updated_at=now_ms,
                )
            )
            for user_id, name in zip(missing, names, strict=True)
        ]
