"""Rooms, their members, the inbox and the badge over HTTP."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.api.endpoints import Call, Callers, Created, Nothing, Section
from tidings.api.parameters import PageQuery, RoomPath, given
from tidings.ids import Id

SECTION = Section(
    "Rooms",
    "A room is `direct` (two people), `group` (a team) or `support` (a customer and the company).",
)


class MemberPath(Struct, frozen=True):
    """A member of a room."""

    room_id: Id
    user_id: Id


class RoomQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which rooms."""

    kind: wire.RoomKind | UnsetType = UNSET
    status: wire.Status | UnsetType = UNSET
    assignee_id: Annotated[Id, Meta(description="A user's id, `me` or `none`.")] | UnsetType = UNSET
    tag: Id | UnsetType = UNSET


class InboxQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which rows of the inbox."""

    status: wire.Status | UnsetType = UNSET
    kind: wire.RoomKind | UnsetType = UNSET
    unread: Annotated[bool, Meta(description="Only rooms with something unread.")] = False


@SECTION.endpoint("POST", "/v1/rooms", scope="rooms")
async def create_room(call: Call[Nothing, Nothing, wire.CreateRoom]) -> Created[wire.Room]:
    """Make a room.

    A direct room is made once per pair, whoever asks first. A session's own user is a member
    without being named; an API key names all members. Customers may open support rooms only.
    """
    return Created(*await call.features.chat.rooms.create(call.caller, call.body))


@SECTION.endpoint("GET", "/v1/rooms", scope="rooms")
async def list_rooms(call: Call[Nothing, RoomQuery, Nothing]) -> wire.RoomList:
    """List conversations or public rooms.

    For managers: `kind=support` lists the workspace's support conversations, whether they are
    members or not; `kind=group` lists public team rooms. The newest activity comes first."""
    query = call.query
    return await call.features.chat.rooms.list(
        call.caller,
        kind=None if query.kind is UNSET else query.kind,
        status=None if query.status is UNSET else query.status,
        assignee_id=given(query.assignee_id),
        tag=given(query.tag),
        limit=query.limit,
        cursor=query.cursor_or_none,
    )


@SECTION.endpoint("GET", "/v1/rooms/{room_id}", scope="rooms")
async def get_room(call: Call[RoomPath, Nothing, Nothing]) -> wire.Room:
    """Get a room.

    `head` is the sequence of its newest entry, 0 in a new room."""
    return await call.features.chat.rooms.get(call.caller, call.path.room_id)


@SECTION.endpoint("PATCH", "/v1/rooms/{room_id}", scope="rooms")
async def patch_room(call: Call[RoomPath, Nothing, wire.PatchRoom]) -> wire.Room:
    """Change a room by JSON Merge Patch."""
    return await call.features.chat.rooms.patch(call.caller, call.path.room_id, call.body)


@SECTION.endpoint("GET", "/v1/rooms/{room_id}/members", scope="rooms")
async def list_members(call: Call[RoomPath, PageQuery, Nothing]) -> wire.MemberList:
    """List the members of a room."""
    return await call.features.chat.rooms.members(
        call.caller,
        call.path.room_id,
        limit=call.query.limit,
        cursor=call.query.cursor_or_none,
    )


@SECTION.endpoint("POST", "/v1/rooms/{room_id}/members", scope="rooms", status=201)
async def add_members(call: Call[RoomPath, Nothing, wire.AddMember]) -> wire.MemberList:
    """Add members to a room, or join a public one oneself.

    Who joins starts with nothing unread, at the head of that moment.
    """
    return await call.features.chat.rooms.add_members(call.caller, call.path.room_id, call.body)


@SECTION.endpoint("DELETE", "/v1/rooms/{room_id}/members/{user_id}", scope="rooms")
async def remove_member(call: Call[MemberPath, Nothing, Nothing]) -> None:
    """Leave a room, or remove a member from it.

    What was unread in it leaves the user's total in the same transaction.
    """
    await call.features.chat.rooms.remove_member(call.caller, call.path.room_id, call.path.user_id)


@SECTION.endpoint("GET", "/v1/rooms/{room_id}/readers", scope="rooms")
async def list_readers(call: Call[RoomPath, Nothing, Nothing]) -> wire.ReaderList:
    """See how far the others have read.

    In rooms of at most 24 members; empty in larger ones. To customers the others are one reader,
    whose `user_id` is null. Later moves of a mark come as `reader` updates to those connected."""
    return await call.features.chat.readers.list(call.caller, call.path.room_id)


@SECTION.endpoint("GET", "/v1/rooms/{room_id}/inbox", callers=Callers.SESSION)
async def get_inbox_row(call: Call[RoomPath, Nothing, Nothing]) -> wire.InboxItem:
    """Get the caller's own row of a room.

    It is the one that the inbox lists, and is there for a hidden room too."""
    return await call.features.chat.rooms.row(call.caller, call.path.room_id)


@SECTION.endpoint("PUT", "/v1/rooms/{room_id}/mute", callers=Callers.SESSION)
async def mute_room(call: Call[RoomPath, Nothing, wire.Mute]) -> wire.InboxItem:
    """Mute a room, or end that.

    A muted room still counts for itself, but not in the total."""
    return await call.features.chat.rooms.mute(call.caller, call.path.room_id, call.body.muted)


@SECTION.endpoint("PUT", "/v1/rooms/{room_id}/hide", callers=Callers.SESSION)
async def hide_room(call: Call[RoomPath, Nothing, wire.Hide]) -> wire.InboxItem:
    """Take a room off one's list, or put it back.

    It comes back by itself with the next entry. What is unread in it still counts."""
    return await call.features.chat.rooms.hide(call.caller, call.path.room_id, call.body.hidden)


@SECTION.endpoint("GET", "/v1/inbox", callers=Callers.SESSION)
async def list_inbox(call: Call[Nothing, InboxQuery, Nothing]) -> wire.InboxList:
    """List the caller's rooms.

    The newest activity comes first."""
    query = call.query
    return await call.features.chat.inboxes.list(
        call.caller,
        status=None if query.status is UNSET else query.status,
        kind=None if query.kind is UNSET else query.kind,
        unread=query.unread,
        limit=query.limit,
        cursor=query.cursor_or_none,
    )


@SECTION.endpoint("GET", "/v1/badge", callers=Callers.SESSION)
async def get_badge(call: Call[Nothing, Nothing, Nothing]) -> wire.Badge:
    """Get the caller's totals.

    It takes the same time whatever the number of rooms."""
    return await call.features.chat.inboxes.badge(call.caller)


@SECTION.endpoint("GET", "/v1/queue", callers=Callers.SESSION)
async def get_queue(call: Call[Nothing, Nothing, Nothing]) -> wire.Queue:
    """Count the support rooms that wait unassigned.

    For managers; by status."""
    return await call.features.chat.rooms.queue(call.caller)
