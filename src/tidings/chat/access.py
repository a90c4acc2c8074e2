"""Who may see a room, and who may do what in it: every decision, made from values alone.

What may not be seen does not exist (NotFound); what may be seen but not done is Forbidden. `own`
is the caller's row for the room, None where there is none.
"""

from __future__ import annotations

from typing import TypeGuard

from tidings.chat.rows import Participation, RoomRow
from tidings.errors import Conflict, Forbidden, NotFound
from tidings.people.callers import Caller
from tidings.people.rows import UserRow

TEAM_ROLES: frozenset[str] = frozenset({"manager", "admin"})
"""Who works for the company: they see its support rooms and its public rooms."""


def is_team(caller: Caller) -> bool:
    """Whether the caller is a manager or an admin."""
    return caller.kind == "session" and caller.role in TEAM_ROLES


def acts_for_workspace(caller: Caller) -> bool:
    """Whether the caller is an API key for rooms or messages, which sees every room."""
    return caller.kind == "api_key" and bool(caller.scopes & {"rooms", "messages"})


def is_member(own: Participation | None) -> TypeGuard[Participation]:
    """Whether the row is that of a member, not of one who left."""
    return own is not None and not own.is_left


def is_open_to_team(room: RoomRow) -> bool:
    """Whether managers see the room without being members."""
    return room.kind == "support" or (room.kind == "group" and room.scope == "public")


def sees(caller: Caller, room: RoomRow | None, own: Participation | None) -> bool:
    """Whether the room, its entries and its members are there for the caller."""
    if room is None or room.workspace != caller.workspace:
        return False
    if caller.kind == "api_key":
        return acts_for_workspace(caller)
    return caller.kind == "session" and (
        is_member(own) or (is_team(caller) and is_open_to_team(room))
    )


def require_sight(caller: Caller, room: RoomRow | None, own: Participation | None) -> RoomRow:
    """The room. Raises NotFound where the caller may not see it."""
    if room is None or not sees(caller, room, own):
        raise NotFound("There is no such room.")
    return room


def first_visible_seq(room: RoomRow, own: Participation | None) -> int:
    """The first entry that the reader may see.

    In a room whose history begins with joining it is a later member's own `joined` entry. Who
    reads as a manager or API key, without being a member, sees everything.
    """
    if room.history == "since_join" and is_member(own):
        return max(own.joined_seq, 1)
    return 1


def require_user(caller: Caller) -> str:
    """The user whose device calls. Raises Forbidden for API and operator keys."""
    if caller.kind != "session" or caller.user_id is None:
        raise Forbidden("Only a session has an inbox, a badge and read marks.")
    return caller.user_id


def require_member(caller: Caller, own: Participation | None) -> str:
    """The calling member. Raises Forbidden for everybody else."""
    user_id = require_user(caller)
    if not is_member(own):
        raise Forbidden("Only members may do this.")
    return user_id


def knows_readers(caller: Caller) -> bool:
    """Whether the caller is told who of a room's others has read how far.

    Customers are told how far the others have read together, and no more.
    """
    return caller.role != "customer"


# Posting.


def acting_as(caller: Caller, user: UserRow) -> Caller:
    """Who an API key posts as: it then may what that user may."""
    return Caller(
        workspace=caller.workspace,
        kind="session",
        credential_id=caller.credential_id,
        user_id=user.user_id,
        role=user.role,
    )


def require_naming(caller: Caller, *, names_user: bool) -> None:
    """Whether `as_user` is there exactly where it must be. Raises Forbidden."""
    if caller.kind == "session":
        if names_user:
            raise Forbidden("A session posts as its own user.")
    elif not (caller.kind == "api_key" and "messages" in caller.scopes and names_user):
        raise Forbidden("An API key posts with as_user only.")


def is_joining(author: Caller, room: RoomRow, own: Participation | None) -> bool:
    """Whether the author becomes a member by posting: managers in support rooms do.

    Raises Forbidden where they may not post. That they see the room is known.
    """
    if is_member(own):
        return False
    if room.kind == "support" and is_team(author):
        return True
    raise Forbidden("Only members may post.")


def is_reopening(author: Caller, room: RoomRow) -> bool:
    """Whether a message of the author's opens a snoozed or closed conversation again."""
    return room.kind == "support" and author.role == "customer"


def may_moderate(caller: Caller) -> bool:
    """Whether the caller may delete messages of others in rooms that they see."""
    return acts_for_workspace(caller) or (caller.kind == "session" and caller.role == "admin")


# Blobs. A room's entries let its readers read what they link to.


def require_upload(caller: Caller) -> None:
    """Whether the caller may upload files: every session, and API keys for messages."""
    if not (caller.kind == "session" or is_uploading_key(caller)):
        raise Forbidden("This needs a session, or an API key with the scope messages.")


def is_uploading_key(caller: Caller) -> bool:
    """Whether the caller is an API key that posts; what one uploads is all such keys' to attach."""
    return caller.kind == "api_key" and "messages" in caller.scopes


def is_uploader(caller: Caller, uploader_id: str | None) -> bool:
    """Whether the caller uploaded a file; None stands for the workspace's API keys.

    The uploader may attach it, and look at it while no entry links to it.
    """
    if uploader_id is None:
        return is_uploading_key(caller)
    return caller.kind == "session" and caller.user_id == uploader_id


# Rooms.


def require_creation(caller: Caller, kind: str, *, names_id: bool, names_members: bool) -> None:
    """Whether the caller may make such a room. Raises Forbidden."""
    if acts_for_workspace(caller):
        return
    if is_team(caller):
        if names_id:
            raise Forbidden("Only an API key may choose an id.")
        return
    if caller.kind != "session" or caller.role != "customer":
        raise Forbidden
    if kind != "support" or names_id or names_members:
        raise Forbidden("Customers may open support rooms of their own only.")


def may_list(caller: Caller) -> bool:
    """Whether the caller may list the workspace's support rooms and public rooms."""
    return acts_for_workspace(caller) or is_team(caller)


def require_change(caller: Caller) -> None:
    """Whether the caller may change a room that they see. Raises Forbidden."""
    if not (acts_for_workspace(caller) or is_team(caller)):
        raise Forbidden


def require_adding(caller: Caller, room: RoomRow) -> None:
    """Whether the caller may add members to a room that they see. Raises Forbidden, Conflict."""
    require_change(caller)
    _require_changing_members(room)


def require_removing(caller: Caller, room: RoomRow, user_id: str) -> None:
    """Whether the caller may end a membership in a room that they see: managers, and one's own.

    Raises Forbidden, Conflict.
    """
    if caller.user_id != user_id:
        require_change(caller)
    _require_changing_members(room)
    if room.kind == "support" and room.customer_id == user_id:
        raise Conflict("The customer stays in their support room.")


def _require_changing_members(room: RoomRow) -> None:
    if room.kind == "direct":
        raise Conflict("A direct room has its two members for ever.")
