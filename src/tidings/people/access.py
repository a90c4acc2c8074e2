"""Who may do what to whom: every decision about people, made from values alone."""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import Literal

from tidings import wire
from tidings.people.callers import Caller
from tidings.people.rows import UserRow

Sight = Literal["everything", "name_if_sharing_a_room", "nothing"]

OWN_FIELDS: frozenset[str] = frozenset({"name"})
"""What users may change of themselves."""


def administers_users(caller: Caller) -> bool:
    """Whether the caller makes, changes and deactivates users: API keys in scope, and admins."""
    if caller.kind == "api_key":
        return "users" in caller.scopes
    return caller.kind == "session" and caller.role == "admin"


def may_choose_user_id(caller: Caller) -> bool:
    """Whether the caller may name the id of a user to be made: API keys only."""
    return caller.kind == "api_key"


def may_ask_for_users(caller: Caller) -> bool:
    """Whether the caller may ask for a user at all; whom they then see, `sight_of` says."""
    return caller.kind == "session" or administers_users(caller)


def may_list_users(caller: Caller) -> bool:
    """Whether the caller may list the workspace's users: admins, managers, API keys in scope."""
    if caller.kind == "session":
        return caller.role in ("admin", "manager")
    return administers_users(caller)


def sight_of(caller: Caller, row: UserRow) -> Sight:
    """How much of a user the caller sees; what they do not see does not exist for them."""
    if caller.workspace != row.workspace:
        return "nothing"
    if may_list_users(caller) or is_self(caller, row):
        return "everything"
    return "name_if_sharing_a_room" if caller.kind == "session" else "nothing"


def may_change_user(caller: Caller, row: UserRow, fields: Set[str]) -> bool:
    """Whether the caller may change these fields of a user: administrators, and one's own name."""
    if caller.workspace != row.workspace:
        return False
    return administers_users(caller) or (is_self(caller, row) and fields <= OWN_FIELDS)


def may_deactivate_user(caller: Caller, row: UserRow) -> bool:
    """Whether the caller may deactivate or erase a user: administrators."""
    return caller.workspace == row.workspace and administers_users(caller)


def may_open_sessions(caller: Caller) -> bool:
    """Whether the caller may open a session for any user of its workspace: API keys in scope."""
    return caller.kind == "api_key" and "sessions" in caller.scopes


def may_come_by_jwt(role: wire.Role, *, is_jwt_for_managers: bool) -> bool:
    """Whether a user of that role may open a session with an identity token.

    Customers always; managers and admins where the workspace allows it; bots never. Nobody's
    role is ever changed by an identity token.
    """
    return role == "customer" or (is_jwt_for_managers and role in ("manager", "admin"))


def may_come_from(origin: str | None, allowed: Collection[str], *, is_identified: bool) -> bool:
    """Whether a session may be opened with the publishable key from that origin.

    Where a workspace names its origins, a visitor must come from one of them. Who brings an
    identity token may also come from an app, which has no origin, but from no other page.
    """
    return not allowed or origin in allowed or (is_identified and origin is None)


def is_self(caller: Caller, row: UserRow) -> bool:
    """Whether the caller is this user."""
    return caller.workspace == row.workspace and caller.user_id == row.user_id
