"""Users: making, finding, changing, deactivating and erasing them, as far as the caller may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET

from tidings import wire
from tidings.clock import Clock
from tidings.cursors import Cursors
from tidings.errors import Conflict, Forbidden, NotFound, Unavailable
from tidings.ids import IdMaker
from tidings.people import access
from tidings.people.attributes import merge_attributes
from tidings.people.callers import Caller
from tidings.people.credentials import Credentials
from tidings.people.directory import Directory
from tidings.people.rows import (
    ERASED_NAME,
    UserRow,
    named_user,
    user_from_item,
    visitor,
    whole_user,
)
from tidings.storage.interface import Store
from tidings.storage.tables import USERS

SCANNED_MAX = 2_000
"""Users looked through for one page of a filtered list; a page may be short or empty."""
SCANNED_TOGETHER = 500
ATTEMPTS_MAX = 8
"""How often a change is planned anew because the user changed meanwhile."""

SharesRoom: TypeAlias = Callable[[str, str, str], Awaitable[bool]]
"""(workspace, user id, other user id): whether both are members of one room."""
WhoIsOnline: TypeAlias = Callable[[str, Collection[str]], Awaitable[Collection[str]]]
"""(workspace, user ids): those of them who have a device that is connected."""
Erase: TypeAlias = Callable[[str, str], Awaitable[None]]
"""(workspace, user id): start to erase what the user left in rooms."""


async def shares_no_room(workspace: str, user_id: str, other_id: str) -> bool:
    """There are no rooms."""
    return False


async def nobody_online(workspace: str, user_ids: Collection[str]) -> Collection[str]:
    """Nothing holds connections."""
    return ()


async def leave_to_others(workspace: str, user_id: str) -> None:
    """The mark alone: whoever looks for users being erased does the rest."""


class Users:
    """The users of all workspaces, seen and changed by callers."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        cursors: Cursors,
        directory: Directory,
        credentials: Credentials,
        *,
        shares_room: SharesRoom = shares_no_room,
        who_is_online: WhoIsOnline = nobody_online,
        erase: Erase = leave_to_others,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._cursors = cursors
        self._directory = directory
        self._credentials = credentials
        self._shares_room = shares_room
        self._who_is_online = who_is_online
        self._erase = erase

    async def find(self, workspace: str, user_id: str) -> UserRow | None:
        """The stored user, at most two seconds old; whether one may see them is another matter."""
        return await self._directory.find(workspace, user_id)

    async def find_many(self, workspace: str, user_ids: Iterable[str]) -> dict[str, UserRow]:
        """The stored users among these ids, each at most two seconds old."""
        return await self._directory.find_many(workspace, user_ids)

    async def create(self, caller: Caller, body: wire.CreateUser) -> tuple[wire.User, bool]:
        """Make a user; with the id of a stored one it is that one, unchanged, and False.

        Raises Forbidden; ValidationFailed for attributes beyond their limits.
        """
        if not access.administers_users(caller):
            raise Forbidden
        if body.id is not None and not access.may_choose_user_id(caller):
            raise Forbidden("Only an API key may choose an id.")
        now = self._clock()
        row = UserRow(
            workspace=caller.workspace,
            user_id=body.id or self._ids.new("usr"),
            name=body.name,
            role=body.role,
            email=body.email,
            attributes=merge_attributes({}, body.attributes),
            created_at=now,
            updated_at=now,
        )
        if await self._directory.add(row):
            return await self._whole(row), True
        stored = await self._directory.read(row.workspace, row.user_id)
        if stored is None:
            raise Unavailable("This user was removed just now.")
        return await self._whole(stored), False

    async def get(self, caller: Caller, user_id: str) -> wire.User:
        """The user as the caller sees them. Raises NotFound for whom the caller may not see."""
        row = await self._visible(caller, user_id)
        if access.sight_of(caller, row) == "everything":
            return await self._whole(row)
        return named_user(row)

    async def patch(self, caller: Caller, user_id: str, body: wire.PatchUser) -> wire.User:
        """Change what the body names, by JSON Merge Patch; everything else stays.

        Raises NotFound; Forbidden for a field that the caller may not change; ValidationFailed
        for attributes beyond their limits; Conflict for a user who is being erased.
        """
        named = {
            name: value
            for name in body.__struct_fields__
            if (value := getattr(body, name)) is not UNSET
        }
        seen = await self._visible(caller, user_id)
        if not access.may_change_user(caller, seen, named.keys()):
            raise Forbidden
        if seen.created_at is None and named:
            await self._directory.ensure(caller.workspace, user_id)
        row = await self._change(caller.workspace, user_id, lambda old: patched_user(old, named))
        if row.is_deactivated and "is_deactivated" in named:
            await self._credentials.revoke_all(row.workspace, row.user_id)
        return await self._whole(row)

    async def delete(self, caller: Caller, user_id: str, erase: bool = False) -> None:
        """Deactivate a user: their sessions end, and nothing they wrote is changed.

        With `erase` also take their name and data away, and start to erase what they left in
        rooms. Safe to repeat: a second call goes on where a first one failed. Raises NotFound;
        Forbidden.
        """
        seen = await self._visible(caller, user_id)
        if not access.may_deactivate_user(caller, seen):
            raise Forbidden
        await self._change(caller.workspace, user_id, erased_user if erase else deactivated_user)
        await self._credentials.revoke_all(caller.workspace, user_id)
        if erase:
            await self._erase(caller.workspace, user_id)

    async def finish_erasing(self, workspace: str, user_id: str) -> None:
        """Take the mark away once nothing of the user is left in any room. Safe to repeat."""
        await self._change(
            workspace, user_id, lambda old: msgspec.structs.replace(old, is_erasing=False)
        )

    async def list(
        self,
        caller: Caller,
        *,
        role: wire.Role | None = None,
        online: bool | None = None,
        q: str | None = None,
        limit: int = wire.LIST_LIMIT_DEFAULT,
        cursor: str | None = None,
    ) -> wire.UserList:
        """Users by id, those only who match: role, connected or not, `q` beginning a name, id
        or email in any case.

        A page looks through SCANNED_MAX users at most: it may hold fewer than `limit`, none even,
        and still have a `next`. Raises Forbidden.
        """
        if not access.may_list_users(caller):
            raise Forbidden
        purpose = f"users#{caller.workspace}#{role}#{online}#{q}"
        last = None if cursor is None else str(self._cursors.open(purpose, cursor))
        found: Any = []
        budget = SCANNED_MAX
        while budget > 0:
            page = await self._store.query(
                USERS,
                caller.workspace,
                index="by_workspace",
                low=last,
                limit=min(budget, SCANNED_TOGETHER),
                consistent=False,
            )
            rows = [row for row in map(user_from_item, page.items) if row.user_id != last]
            matching = [row for row in rows if _matches(row, role, q)]
            if online is None:
                matching = matching[: limit - len(found) + 1]
            there = await self._who_is_online(caller.workspace, [row.user_id for row in matching])
            for row in matching:
                is_online = row.user_id in there
                if online not in (None, is_online):
                    continue
                if len(found) == limit:
                    return wire.UserList(found, self._cursors.seal(purpose, last))
                last = row.user_id
                found.append(whole_user(row, is_online=is_online))
            if page.after is None:
                return wire.UserList(found, None)
            last = page.items[-1]["user_id"] if page.items else last
            budget -= len(page.items)
        return wire.UserList(found, self._cursors.seal(purpose, last))

    async def _visible(self, caller: Caller, user_id: str) -> UserRow:
        """The user, if the caller may know of them. Raises Forbidden, NotFound."""
        if not access.may_ask_for_users(caller):
            raise Forbidden
        row = await self._directory.find(caller.workspace, user_id)
        if row is None:
            if user_id != caller.user_id:
                raise NotFound
            row = visitor(caller.workspace, user_id)
        sight = access.sight_of(caller, row)
        if sight == "nothing":
            raise NotFound
        if sight == "name_if_sharing_a_room" and (
            caller.user_id is None
            or not await self._shares_room(caller.workspace, caller.user_id, user_id)
        ):
            raise NotFound
        return row

    async def _change(
        self, workspace: str, user_id: str, change: Callable[[UserRow], UserRow]
    ) -> UserRow:
        for _ in range(ATTEMPTS_MAX):
            old = await self._directory.read(workspace, user_id)
            if old is None:
                raise NotFound
            new = change(old)
            if new == old or await self._directory.replace(old, new):
                return new
        raise Unavailable("This user is changing too fast just now.")

    async def _whole(self, row: UserRow) -> wire.User:
        online = await self._who_is_online(row.workspace, (row.user_id,))
        return whole_user(row, is_online=row.user_id in online)


def patched_user(old: UserRow, named: dict[str, Any]) -> UserRow:
    """The user after the named fields changed. Raises Conflict while they are being erased."""
    if old.is_erasing and named:
        raise Conflict("This user is being erased.")
    if "attributes" in named:
        named = {**named, "attributes": merge_attributes(old.attributes, named["attributes"])}
    return msgspec.structs.replace(old, **named)


def deactivated_user(old: UserRow) -> UserRow:
    """The user who may no longer come in."""
    return msgspec.structs.replace(old, is_deactivated=True)


def erased_user(old: UserRow) -> UserRow:
    """What is left of a user whose data goes, with the mark that rooms still hold some of it."""
    return msgspec.structs.replace(
        old,
        name=ERASED_NAME,
        email=None,
        attributes={},
        is_deactivated=True,
        is_erasing=True,
    )


def _matches(row: UserRow, role: wire.Role | None, q: str | None) -> bool:
    if role is not None and row.role != role:
        return False
    if not q:
        return True
    start = q.casefold()
    return any(
        text.casefold().startswith(start) for text in (row.name, row.user_id, row.email or "")
    )
