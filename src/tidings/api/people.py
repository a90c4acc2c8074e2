"""Sessions and users over HTTP."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.api.endpoints import Call, Callers, Created, Nothing, Section
from tidings.api.parameters import PageQuery, UserPath, given
from tidings.errors import Forbidden
from tidings.ids import Id

SEARCH_CHARACTERS_MAX = 200

SECTION = Section(
    "Sessions and users",
    "A session is one user on one device; it has a durable queue of its own.",
)


class SessionPath(Struct, frozen=True):
    """A session."""

    session_id: Id


class UserQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which users."""

    role: wire.Role | UnsetType = UNSET
    online: bool | UnsetType = UNSET
    q: (
        Annotated[
            str,
            Meta(
                max_length=SEARCH_CHARACTERS_MAX,
                description="How a name, an id or an email begins, in any case.",
            ),
        ]
        | UnsetType
    ) = UNSET


class DeleteUserQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How much goes."""

    erase: Annotated[
        bool, Meta(description="Also take personal data and messages away; it can't be undone.")
    ] = False


@SECTION.endpoint("POST", "/v1/sessions", callers=Callers.OPTIONAL, scope="sessions", status=201)
async def create_session(call: Call[Nothing, Nothing, wire.CreateSession]) -> wire.NewSession:
    """Open a session.

    With an API key: for any user of its workspace. Without: with a publishable key and an
    identity JWT for a known customer, or with the publishable key alone for an anonymous one.
    The token is shown this once.
    """
    return await call.features.credentials.create_session(
        call.credential,
        call.body,
        origin=call.request.headers.get("Origin"),
        address=call.request.remote,
    )


@SECTION.endpoint("GET", "/v1/sessions", callers=Callers.SESSION)
async def list_sessions(call: Call[Nothing, PageQuery, Nothing]) -> wire.SessionList:
    """List the caller's devices.

    The newest come first."""
    return await call.features.credentials.list_sessions(
        call.caller, limit=call.query.limit, cursor=call.query.cursor_or_none
    )


@SECTION.endpoint("DELETE", "/v1/sessions/{session_id}", callers=Callers.SESSION)
async def delete_session(call: Call[SessionPath, Nothing, Nothing]) -> None:
    """Sign one of the caller's devices out.

    Its connections close with 4401."""
    await call.features.credentials.revoke_session(call.caller, call.path.session_id)


@SECTION.endpoint("POST", "/v1/users", scope="users")
async def create_user(call: Call[Nothing, Nothing, wire.CreateUser]) -> Created[wire.User]:
    """Make a user.

    For API keys and admins. With the id of a user who exists already, the reply is that user,
    unchanged.
    """
    return Created(*await call.features.users.create(call.caller, call.body))


@SECTION.endpoint("GET", "/v1/users", scope="users")
async def list_users(call: Call[Nothing, UserQuery, Nothing]) -> wire.UserList:
    """List users by id.

    A page of a filtered list may be short, or empty, and still have a `next`.
    """
    query = call.query
    return await call.features.users.list(
        call.caller,
        role=None if query.role is UNSET else query.role,
        online=None if query.online is UNSET else query.online,
        q=given(query.q),
        limit=query.limit,
        cursor=query.cursor_or_none,
    )


@SECTION.endpoint("GET", "/v1/users/{user_id}", scope="users")
async def get_user(call: Call[UserPath, Nothing, Nothing]) -> wire.User:
    """Get a user.

    The caller gets as much of them as they may see."""
    return await call.features.users.get(call.caller, call.path.user_id)


@SECTION.endpoint("PATCH", "/v1/users/{user_id}", scope="users")
async def patch_user(call: Call[UserPath, Nothing, wire.PatchUser]) -> wire.User:
    """Change a user by JSON Merge Patch."""
    return await call.features.users.patch(call.caller, call.path.user_id, call.body)


@SECTION.endpoint("DELETE", "/v1/users/{user_id}", scope="users")
async def delete_user(call: Call[UserPath, DeleteUserQuery, Nothing]) -> None:
    """Deactivate a user, or erase them.

    Their sessions end. Erasing goes on in the background, over every room that they are or were
    in: entries keep their places as tombstones, so that no sequence has a hole.
    """
    await call.features.users.delete(call.caller, call.path.user_id, erase=call.query.erase)


@SECTION.endpoint("GET", "/v1/me", callers=Callers.SESSION)
async def get_me(call: Call[Nothing, Nothing, Nothing]) -> wire.Me:
    """Get the caller, with their totals."""
    caller = call.caller
    if caller.user_id is None:
        raise Forbidden
    user = await call.features.users.get(caller, caller.user_id)
    badge = await call.features.chat.inboxes.badge(caller)
    return wire.Me(
        **{name: getattr(user, name) for name in wire.User.__struct_fields__},
        unread=badge.unread,
        mentions=badge.mentions,
        version=badge.version,
    )
