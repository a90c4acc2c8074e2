"""The rows of people as values, and how they are keyed and stored."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal, cast

import msgspec

from tidings import wire
from tidings.clock import rfc3339
from tidings.people.callers import Scope
from tidings.storage.interface import Item
from tidings.storage.tables import user_key

OPERATOR_WORKSPACE = "*"
"""Where operator keys are listed: no workspace has this id, and no index key may be empty."""

VISITOR_NAME = "Visitor"
"""The name of an anonymous customer."""

ERASED_NAME = "Erased user"
"""The name that is left of a user whose data was erased."""


class UserRow(msgspec.Struct, frozen=True):
    """A person or a program of one workspace; `updated_at` grows with every change."""

    workspace: str
    user_id: str
    name: str
    role: wire.Role
    email: str | None = None
    attributes: dict[str, Any] = {}
    """Never changed in place: many callers share it."""
    is_deactivated: bool = False
    is_anonymous: bool = False
    is_erasing: bool = False
    created_at: int | None = None
    """None for an anonymous customer who has not written yet."""
    updated_at: int = 0


def user_from_item(item: Item) -> UserRow:
    """The stored user as a value."""
    return UserRow(
        workspace=item["workspace"],
        user_id=item["user_id"],
        name=item["name"],
        role=item["role"],
        email=item.get("email"),
        attributes=item.get("attributes") or {},
        is_deactivated=bool(item.get("is_deactivated")),
        is_anonymous=bool(item.get("is_anonymous")),
        is_erasing=item.get("erasing") is not None,
        created_at=item["created_at"],
        updated_at=item["updated_at"],
    )


def user_to_item(row: UserRow) -> Item:
    """The user as it is stored; only what is true or not empty is there."""
    return {
        "user": user_key(row.workspace, row.user_id),
        "workspace": row.workspace,
        "user_id": row.user_id,
        "role": row.role,
        "name": row.name,
        "email": row.email,
        "attributes": row.attributes or None,
        "is_deactivated": row.is_deactivated or None,
        "is_anonymous": row.is_anonymous or None,
        "erasing": row.workspace if row.is_erasing else None,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def visitor(workspace: str, user_id: str) -> UserRow:
    """An anonymous customer who is not stored yet."""
    return UserRow(workspace, user_id, VISITOR_NAME, "customer", is_anonymous=True)


def whole_user(row: UserRow, *, is_online: bool) -> wire.User:
    """Everything about a user, for themselves and those who manage the workspace."""
    return wire.User(
        id=row.user_id,
        name=row.name,
        role=row.role,
        email=row.email,
        attributes=row.attributes,
        is_deactivated=row.is_deactivated,
        is_online=is_online,
        created_at=msgspec.UNSET if row.created_at is None else rfc3339(row.created_at),
    )


def named_user(row: UserRow) -> wire.User:
    """What a customer may know of somebody with whom they share a room."""
    return wire.User(id=row.user_id, name=row.name)


TokenKind = Literal["session", "visitor", "api_key", "operator", "publishable", "jti"]


class TokenRow(msgspec.Struct, frozen=True):
    """What a token stands for. The token itself is stored nowhere.

    `session` and `visitor` are devices of a user, the latter of an anonymous one who may not be
    stored yet; `publishable` names a workspace; `jti` says that an identity token was used. What
    does not go with a kind is empty.
    """

    token_hash: str
    kind: TokenKind
    workspace: str
    created_at: int
    key_id: str = ""
    name: str = ""
    user_id: str = ""
    session_id: str = ""
    scopes: frozenset[Scope] = frozenset()
    expires_at: int | None = None
    """Seconds since 1970."""


def token_from_item(item: Item) -> TokenRow:
    """The stored token as a value."""
    workspace = item["workspace"]
    return TokenRow(
        token_hash=item["token_hash"],
        kind=item["kind"],
        workspace="" if workspace == OPERATOR_WORKSPACE else workspace,
        created_at=item["created_at"],
        key_id=item.get("key_id") or "",
        name=item.get("name") or "",
        user_id=item.get("user_id") or "",
        session_id=item.get("session_id") or "",
        scopes=cast(frozenset[Scope], frozenset(item.get("scopes") or ())),
        expires_at=item.get("expires_at"),
    )


def token_to_item(row: TokenRow) -> Item:
    """The token as it is stored."""
    return {
        "token_hash": row.token_hash,
        "kind": row.kind,
        "workspace": row.workspace or OPERATOR_WORKSPACE,
        "created_at": row.created_at,
        "key_id": row.key_id or None,
        "name": row.name or None,
        "user_id": row.user_id or None,
        "session_id": row.session_id or None,
        "scopes": sorted(row.scopes) or None,
        "expires_at": row.expires_at,
    }


class ListedKey(msgspec.Struct, frozen=True):
    """An API or operator key as those who administer it see it."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: int


def hash_token(token: str) -> str:
    """The form in which a token is stored and looked up: SHA-256 in hexadecimal.

    Tokens hold 256 random bits, so a salt or a slow hash would add nothing.
    """
    return sha256(token.encode()).hexdigest()


def hash_jti(workspace: str, jti: str) -> str:
    """The form in which the use of an identity token is remembered."""
    return hash_token(f"jti#{workspace}#{jti}")


class SessionRow(msgspec.Struct, frozen=True):
    """One device of a user. `cursor` is how far its queue was acknowledged."""

    workspace: str
    user_id: str
    session_id: str
    token_hash: str
    created_at: int
    expires_at: int
    """Seconds since 1970."""
    device: wire.Device = wire.Device()
    cursor: str | None = None


def session_from_item(item: Item) -> SessionRow:
    """The stored session as a value."""
    workspace, _, user_id = item["user"].partition("#")
    return SessionRow(
        workspace=workspace,
        user_id=user_id,
        session_id=item["session_id"],
        token_hash=item["token_hash"],
        created_at=item["created_at"],
        expires_at=item["expires_at"],
        device=wire.Device(item.get("device_name"), item.get("device_platform")),
        cursor=item.get("cursor"),
    )


def session_to_item(row: SessionRow) -> Item:
    """The session as it is stored."""
    return {
        "user": user_key(row.workspace, row.user_id),
        "session_id": row.session_id,
        "token_hash": row.token_hash,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "device_name": row.device.name,
        "device_platform": row.device.platform,
        "cursor": row.cursor,
    }
