"""The directory of users: their rows, a short-lived lookup of them, and how they change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tidings.clock import Clock
from tidings.people.lookups import Lookups
from tidings.people.rows import UserRow, user_from_item, user_to_item, visitor
from tidings.storage.interface import Absent, ConditionFailed, Equals, Item, Put, Store, Update
from tidings.storage.tables import USERS, user_key

CACHE_MS = 1_500
"""How long a changed role, name or deactivation may go unseen by another node."""
CACHE_USERS_MAX = 10_000


class Directory:
    """Finds users and keeps what was found for CACHE_MS; changes made here are seen at once."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lookups = Lookups(self._load, clock, ttl_ms=CACHE_MS, size_max=CACHE_USERS_MAX)

    async def find(self, workspace: str, user_id: str) -> UserRow | None:
        """The stored user, at most CACHE_MS old."""
        return await self._lookups.get(user_key(workspace, user_id))

    async def find_many(self, workspace: str, user_ids: Iterable[str]) -> dict[str, UserRow]:
        """The stored users among these, each at most CACHE_MS old."""
        found = await self._lookups.get_many([user_key(workspace, each) for each in user_ids])
        return {row.user_id: row for row in found.values() if row is not None}

    async def read(self, workspace: str, user_id: str) -> UserRow | None:
        """The stored user as they are now."""
        item = await self._store.get(USERS, (user_key(workspace, user_id),))
        return None if item is None else user_from_item(item)

    async def add(self, row: UserRow) -> bool:
        """Store a new user. False where one with the same id is stored already."""
        try:
            await self._store.write(plan_new_user(row))
        except ConditionFailed:
            return False
        finally:
            self.forget(row.workspace, row.user_id)
        return True

    async def replace(self, old: UserRow, new: UserRow) -> bool:
        """Store the changed user. False where the stored one is no longer `old`."""
        try:
            await self._store.write(plan_changed_user(old, new, now=self._clock()))
        except ConditionFailed:
            return False
        finally:
            self.forget(old.workspace, old.user_id)
        return True

    async def ensure(self, workspace: str, user_id: str) -> None:
        """Store the anonymous customer who is not stored yet; anybody else is left alone."""
        if await self.find(workspace, user_id) is None:
            now = self._clock()
            row = visitor(workspace, user_id)
            await self.add(msgspec.structs.replace(row, created_at=now, updated_at=now))

    def forget(self, workspace: str, user_id: str) -> None:
        """The stored user changed in a write of somebody else's."""
        self._lookups.forget(user_key(workspace, user_id))

    async def _load(self, keys: Sequence[str]) -> Sequence[UserRow | None]:
        items = await self._store.get_many(USERS, [(key,) for key in keys])
        return [None if item is None else user_from_item(item) for item in items]


def plan_new_user(row: UserRow) -> Put:
    """The write of a user who must not exist yet."""
    return Put(USERS, user_to_item(row), when=(Absent(),))


def plan_changed_user(old: UserRow, new: UserRow, *, now: int) -> Update:
    """The write of what differs, on the condition that the stored user is still `old`.

    `updated_at` grows with it whatever the clock says, so the write's own success makes its
    condition false.
    """
    before, after = user_to_item(old), user_to_item(new)
    changes: Item = {name: after[name] for name in after if after[name] != before[name]}
    changes["updated_at"] = max(now, old.updated_at + 1)
    return Update(
        USERS,
        (before["user"],),
        set=changes,
        when=(Equals("updated_at", old.updated_at),),
    )
