"""Rooms: making, finding and changing them, and who is in them, as far as a caller may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec import UNSET

from tidings import wire
from tidings.chat import access
from tidings.chat.commands import FOUNDERS_INLINE_MAX, Change, Create, Hide, Join, Leave, Mute
from tidings.chat.commits import Commits
from tidings.chat.inboxes import Inboxes, seen
from tidings.chat.listings import list_rooms, listed, public_listings, support_listings
from tidings.chat.rows import (
    Participation,
    RoomRow,
    participation_from_item,
    room_from_item,
    room_to_wire,
)
from tidings.chat.updates import Signal
from tidings.chat.waiting import Waiting
from tidings.clock import Clock, parse_rfc3339
from tidings.cursors import Cursors
from tidings.errors import Conflict, FieldError, Forbidden, NotFound, ValidationFailed
from tidings.ids import IdMaker, pair_room_id
from tidings.people.callers import Caller
from tidings.people.rows import VISITOR_NAME, UserRow
from tidings.people.users import Users
from tidings.storage.interface import Item, Store
from tidings.storage.tables import INBOXES, MEMBERS, ROOMS, room_key, user_key

JOINING_TOGETHER = 50
"""Members of one call who join at one time."""
TYPING_TOLD_MAX = 500
"""Members of a large room who are told that somebody is typing."""
SUPPORT_FIELDS = ("status", "assignee_id", "snoozed_until")


async def all_are_stored(caller: Caller) -> None:
    """No caller is an anonymous customer who is not stored yet."""


class Rooms:
    """The rooms of all workspaces, seen and changed by callers."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        cursors: Cursors,
        users: Users,
        commits: Commits,
        inboxes: Inboxes,
        waiting: Waiting,
        signal: Signal,
        ensure_stored: Callable[[Caller], Awaitable[None]] = all_are_stored,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._cursors = cursors
        self._users = users
        self._commits = commits
        self._inboxes = inboxes
        self._waiting = waiting
        self._signal = signal
        self._ensure_stored = ensure_stored

    # --- making --------------------------------------------------------------------------------

    async def create(self, caller: Caller, body: wire.CreateRoom) -> tuple[wire.Room, bool]:
        """Make a room, and return once its founders are members.

        The direct room of a pair, and one whose id an API key chose, is made once: where it is
        there already it is the answer, unchanged, with False. Raises Forbidden; ValidationFailed;
        Conflict where the id is that of a room of another kind; Unavailable.
        """
        access.require_creation(
            caller,
            body.kind,
            names_id=body.id is not None,
            names_members=bool(body.member_ids),
        )
        _check_creation(body)
        own_id = () if caller.user_id is None else (caller.user_id,)
        member_ids = tuple(dict.fromkeys((*own_id, *body.member_ids)))
        if body.kind == "direct" and len(member_ids) != 2:
            raise _refused("member_ids", "A direct room has exactly two members.")
        if caller.role == "customer":
            await self._ensure_stored(caller)
        members = await self._active(caller.workspace, member_ids)
        customer_id = _customer_of(members.values()) if body.kind == "support" else None
        if body.about is not None:
            await self._check_about(caller, body.about, members.values())
        now_ms = self._clock()
        room = RoomRow(
            workspace=caller.workspace,
            room_id=pair_room_id(*member_ids) if body.kind == "direct" else self._new_id(body),
            kind=body.kind,
            created_at=now_ms,
            created_by=caller.user_id,
            title=body.title,
            scope=(body.scope or "private") if body.kind == "group" else None,
            history=body.history,
            about=body.about,
            status="open" if body.kind == "support" else None,
            customer_id=customer_id,
        )
        owner_id = caller.user_id if body.kind == "group" else None
        founders = tuple((each, "owner" if each == owner_id else "member") for each in member_ids)
        command = Create(
            room=room,
            founders=founders[:FOUNDERS_INLINE_MAX],
            founding=member_ids[FOUNDERS_INLINE_MAX:],
            at=now_ms,
        )
        made: tuple[RoomRow, bool] = await self._commits.submit(
            caller.workspace, room.room_id, command
        )
        row, is_new = made
        if row.kind != body.kind:
            raise Conflict(f"The room {row.room_id} is there already, and is a {row.kind} room.")
        if command.founding:  # also for one who asks again after a crash
            row = await self._founded(row)
        return room_to_wire(row), is_new

    def _new_id(self, body: wire.CreateRoom) -> str:
        return body.id or self._ids.new("room")

    async def _founded(self, room: RoomRow) -> RoomRow:
        """The room once all its founders are in it. Raises Unavailable where that takes long."""
        await self._commits.founded(room.workspace, room.room_id)
        view = await self._commits.look(room.workspace, room.room_id)
        return room if view is None or view.room is None else view.room

    async def _active(self, workspace: str, user_ids: Sequence[str]) -> Mapping[str, UserRow]:
        """These users. Raises ValidationFailed that names those who are not there or not active."""
        found = await self._users.find_many(workspace, user_ids)
        missing = [
            each for each in user_ids if (row := found.get(each)) is None or row.is_deactivated
        ]
        if missing:
            raise _refused("member_ids", f"There is no such active user: {', '.join(missing)}.")
        return found

    async def _check_about(self, caller: Caller, about: str, members: Iterable[UserRow]) -> None:
        room, own = await self._stored(caller, about)
        if room is None or not access.sees(caller, room, own) or room.kind != "support":
            raise _refused("about", "It names no support room.")
        _check_team(members)

    # --- seeing --------------------------------------------------------------------------------

    async def get(self, caller: Caller, room_id: str) -> wire.Room:
        """The room. Raises NotFound."""
        room, _ = await self._visible(caller, room_id)
        return room_to_wire(room)

    async def list(
        self,
        caller: Caller,
        *,
        kind: wire.RoomKind | None,
        status: wire.Status | None,
        assignee_id: str | None,
        tag: str | None,
        limit: int,
        cursor: str | None,
    ) -> wire.RoomList:
        """Support rooms and public team rooms, newest activity first, members or not.

        `assignee_id` is an id, `me` or `none`; with it or a status there are support rooms only.
        A filtered page may be short and still have a `next`. Raises Forbidden, ValidationFailed.
        """
        if not access.may_list(caller):
            raise Forbidden
        if kind == "direct":
            raise _refused("kind", "Direct rooms are listed in the inboxes of their members.")
        wanted_id = assignee_id
        if assignee_id == "me":
            if caller.user_id is None:
                raise _refused("assignee_id", "An API key is nobody's.")
            wanted_id = caller.user_id
        is_support_only = status is not None or assignee_id is not None
        partitions: Any = []
        if kind in (None, "support"):
            partitions += support_listings(caller.workspace, status)
        if kind == "group" or (kind is None and not is_support_only):
            partitions += public_listings(caller.workspace)
        if kind == "group" and is_support_only:
            raise _refused("kind", "Only support rooms have a status and an assignee.")

        def matches(room: Item) -> bool:
            if assignee_id is not None and room.get("assignee_id") != (
                None if assignee_id == "none" else wanted_id
            ):
                return False
            return tag is None or tag in (room.get("tags") or ())

        purpose = f"rooms#{caller.workspace}#{kind}#{status}#{wanted_id}#{tag}"
        found, next_cursor = await list_rooms(
            self._store,
            self._cursors,
            purpose,
            partitions,
            matches,
            limit=limit,
            cursor=cursor,
        )
        ids = {room.customer_id for room in found if room.customer_id is not None}
        users = await self._users.find_many(caller.workspace, ids)
        customers = {user_id: seen(user, caller.role) for user_id, user in users.items()}
        items = await listed(self._store, caller.workspace, found, customers)
        return wire.RoomList(items, next_cursor)

    async def queue(self, caller: Caller) -> wire.Queue:
        """How many support rooms wait unassigned, by status. Raises Forbidden."""
        if not access.may_list(caller):
            raise Forbidden
        return await self._waiting.count(caller.workspace)

    # --- changing ------------------------------------------------------------------------------

    async def patch(self, caller: Caller, room_id: str, body: wire.PatchRoom) -> wire.Room:
        """Change what the body names; who is assigned becomes a member.

        Raises NotFound; Forbidden; ValidationFailed for a field that the room does not have.
        """
        room, _ = await self._visible(caller, room_id)
        access.require_change(caller)
        now_ms = self._clock()
        changes = plan_patch(room, body, now_ms)
        assignee_id = changes.get("assignee_id")
        if assignee_id is not None:
            assignee = await self._users.find(caller.workspace, assignee_id)
            if (
                assignee is None
                or assignee.is_deactivated
                or assignee.role not in access.TEAM_ROLES
            ):
                raise _refused("assignee_id", "There is no such active manager.")
        if not changes:
            return room_to_wire(room)
        command = Change(
            actor_id=caller.user_id,
            changes=changes,
            entry_id=self._ids.new("ent"),
            join_entry_id=self._ids.new("ent"),
            at=now_ms,
        )
        changed: RoomRow = await self._commits.submit(caller.workspace, room_id, command)
        return room_to_wire(changed)

    # --- members -------------------------------------------------------------------------------

    async def members(
        self, caller: Caller, room_id: str, *, limit: int, cursor: str | None
    ) -> wire.MemberList:
        """The members by id, with their names. Raises NotFound, ValidationFailed."""
        room, _ = await self._visible(caller, room_id)
        purpose = f"members#{room.key}"
        page = await self._store.query(
            MEMBERS,
            room.key,
            limit=limit,
            after=None if cursor is None else tuple(self._cursors.open(purpose, cursor)),
        )
        return wire.MemberList(
            await self._named(caller.workspace, page.items),
            None if page.after is None else self._cursors.seal(purpose, page.after),
        )

    async def _named(self, workspace: str, items: Sequence[Item]) -> Any:
        people = await self._users.find_many(workspace, [item["user_id"] for item in items])
        return [
            wire.Member(
                user_id=item["user_id"],
                name=people[item["user_id"]].name if item["user_id"] in people else VISITOR_NAME,
                role=item["role"],
                joined_seq=item["joined_seq"],
            )
            for item in items
        ]

    async def add_members(
        self, caller: Caller, room_id: str, body: wire.AddMember
    ) -> wire.MemberList:
        """Let users join, or join oneself; who is a member already stays as they are.

        Returns those who were named, each joined durably. Where it fails some may have joined;
        repeating it is fine. Raises NotFound; Forbidden; Conflict; ValidationFailed; Unavailable.
        """
        room, _ = await self._visible(caller, room_id)
        access.require_adding(caller, room)
        one = () if body.user_id is None else (body.user_id,)
        user_ids = tuple(dict.fromkeys((*one, *body.user_ids)))
        if not user_ids:
            raise _refused("user_id", "It names nobody.")
        users = await self._active(caller.workspace, user_ids)
        if room.about is not None:
            _check_team(users.values())
        if room.kind == "support" and any(
            row.role == "customer" and row.user_id != room.customer_id for row in users.values()
        ):
            raise _refused("user_id", "A support room has one customer.")
        for start in range(0, len(user_ids), JOINING_TOGETHER):
            commands = [
                Join(each, caller.user_id, self._ids.new("ent"), self._clock(), body.role)
                for each in user_ids[start : start + JOINING_TOGETHER]
            ]
            answers = [self._commits.submit(caller.workspace, room_id, each) for each in commands]
            for answer in await asyncio.gather(*answers, return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer
        keys = [(room.key, user_id) for user_id in user_ids]
        items = [item for item in await self._store.get_many(MEMBERS, keys) if item is not None]
        return wire.MemberList(await self._named(caller.workspace, items), None)

    async def remove_member(self, caller: Caller, room_id: str, user_id: str) -> None:
        """End a membership; what was unread leaves the user's total in the same transaction.

        Raises NotFound, also where there is no such member; Forbidden; Conflict.
        """
        room, _ = await self._visible(caller, room_id)
        access.require_removing(caller, room, user_id)
        command = Leave(user_id, caller.user_id, self._ids.new("ent"), self._clock())
        if not await self._commits.submit(caller.workspace, room_id, command):
            raise NotFound("There is no such member.")

    # --- one's own -----------------------------------------------------------------------------

    async def row(self, caller: Caller, room_id: str) -> wire.InboxItem:
        """The caller's own row of the room, hidden or not. Raises Forbidden, NotFound."""
        user_id = access.require_user(caller)
        _, own = await self._visible(caller, room_id)
        access.require_member(caller, own)
        return await self._inboxes.item(caller.workspace, user_id, room_id)

    async def mute(self, caller: Caller, room_id: str, muted: bool) -> wire.InboxItem:
        """Leave the room out of the caller's total, or take it in again; the row of the inbox.

        Raises Forbidden, NotFound.
        """
        user_id = access.require_user(caller)
        return await self._change_row(caller, room_id, Mute(user_id, muted))

    async def hide(self, caller: Caller, room_id: str, hidden: bool) -> wire.InboxItem:
        """Take the room off the caller's list until something new comes, or put it back; the row.

        Nothing else changes: what is unread still counts. Raises Forbidden, NotFound.
        """
        user_id = access.require_user(caller)
        return await self._change_row(caller, room_id, Hide(user_id, hidden))

    async def _change_row(
        self, caller: Caller, room_id: str, command: Mute | Hide
    ) -> wire.InboxItem:
        _, own = await self._visible(caller, room_id)
        access.require_member(caller, own)
        await self._commits.submit(caller.workspace, room_id, command)
        return await self._inboxes.item(caller.workspace, command.user_id, room_id)

    async def typing(self, caller: Caller, room_id: str) -> None:
        """Tell the other members who are connected; in a large room TYPING_TOLD_MAX of them.

        Raises Forbidden for who may not post, NotFound.
        """
        user_id = access.require_user(caller)
        workspace = caller.workspace
        others: Collection[str] | None = None
        remembered = self._commits.known.remembered(workspace, room_id, user_id)
        if remembered is not None and access.is_member(remembered[2]):
            others = remembered[1]
        if others is None:
            room, own = await self._visible(caller, room_id)
            access.is_joining(caller, room, own)
            page = await self._store.query(
                MEMBERS, room.key, limit=TYPING_TOLD_MAX, consistent=False
            )
            others = [item["user_id"] for item in page.items]
        frame: dict[str, object] = {"type": "typing", "room_id": room_id, "user_id": user_id}
        self._signal(workspace, [each for each in others if each != user_id], frame)

    # --- looking -------------------------------------------------------------------------------

    async def _stored(
        self, caller: Caller, room_id: str
    ) -> tuple[RoomRow | None, Participation | None]:
        """The room as it is stored now, and the caller's row."""
        workspace = caller.workspace
        item = await self._store.get(ROOMS, (room_key(workspace, room_id),))
        row = None
        if caller.user_id is not None:
            row = await self._store.get(INBOXES, (user_key(workspace, caller.user_id), room_id))
        return (
            None if item is None else room_from_item(item),
            None if row is None else participation_from_item(row),
        )

    async def _visible(self, caller: Caller, room_id: str) -> tuple[RoomRow, Participation | None]:
        room, own = await self._stored(caller, room_id)
        return access.require_sight(caller, room, own), own


def plan_patch(room: RoomRow, body: wire.PatchRoom, now_ms: int) -> dict[str, Any]:
    """The fields of the room that become others. Raises ValidationFailed, naming all that do not
    fit the room.

    A time to wake snoozes the room, and whatever ends the snooze takes the time away.
    """
    named = {
        name: value
        for name in body.__struct_fields__
        if (value := getattr(body, name)) is not UNSET
    }
    errors = []
    if "title" in named and room.kind == "direct":
        errors.append(FieldError("title", "A direct room has no title."))
    if "scope" in named and room.kind != "group":
        errors.append(FieldError("scope", "Only a group room has a scope."))
    if named.get("scope") == "public" and room.about is not None:
        errors.append(FieldError("scope", "Notes about a customer's room stay private."))
    if room.kind != "support":
        errors += [
            FieldError(name, "Only a support room has it.")
            for name in SUPPORT_FIELDS
            if name in named
        ]
    wakes_at = named.get("snoozed_until")
    if wakes_at is not None:
        try:
            named["snoozed_until"] = parse_rfc3339(wakes_at)
        except (ValueError, OverflowError):
            errors.append(FieldError("snoozed_until", "It is no RFC 3339 time."))
        else:
            if named["snoozed_until"] <= now_ms:
                errors.append(FieldError("snoozed_until", "It is not in the future."))
        if named.setdefault("status", "snoozed") != "snoozed":
            errors.append(FieldError("status", "A room that sleeps until then is snoozed."))
    if errors:
        raise ValidationFailed(errors=tuple(errors))
    if named.get("status") not in (None, "snoozed"):
        named["snoozed_until"] = None
    return {name: value for name, value in named.items() if getattr(room, name) != value}


def _check_creation(body: wire.CreateRoom) -> None:
    """Raises ValidationFailed, naming all fields that do not go with the kind of room."""
    errors = []
    if body.kind == "direct":
        if body.id is not None:
            errors.append(FieldError("id", "A direct room has the id of its pair."))
        if body.title is not None:
            errors.append(FieldError("title", "A direct room has no title."))
    if body.kind != "group":
        if body.scope is not None:
            errors.append(FieldError("scope", "Only a group room has a scope."))
        if body.about is not None:
            errors.append(FieldError("about", "Only a group room is about another."))
    if body.about is not None and body.scope == "public":
        errors.append(FieldError("scope", "Notes about a customer's room are private."))
    if errors:
        raise ValidationFailed(errors=tuple(errors))


def _customer_of(members: Iterable[UserRow]) -> str:
    """The one whom a support room is for. Raises ValidationFailed."""
    customers = [row.user_id for row in members if row.role == "customer"]
    if len(customers) != 1:
        raise _refused("member_ids", "A support room has exactly one customer.")
    return customers[0]


def _check_team(users: Iterable[UserRow]) -> None:
    others = [row.user_id for row in users if row.role not in access.TEAM_ROLES]
    if others:
        detail = f"Notes about a customer's room are for managers, not for {', '.join(others)}."
        raise _refused("member_ids", detail)


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
