"""The tables, declared once; every engine derives its schema from here.

Key parts are joined by `#`, which no id may contain, and the first part of every partition key
is the workspace, so `room` holds `acme#room_01…` and `user` holds `acme#usr_01…`. Times that end
in `_at` are milliseconds since 1970; `expires_at` is seconds, as DynamoDB's time to live wants.
"""

from __future__ import annotations

from tidings.storage.interface import Index, Table

LISTING_SHARDS = 4
"""Partitions of each listing index, so that a busy company's list never throttles its chat."""

PRESENCE_SHARDS = 4
"""Partitions of a workspace's presence, so that all its devices may come back at once."""

SECRETS = Table(
    name="secrets",
    partition="name",
    sort=None,
    fields={"name": str, "value": bytes},
)

WORKSPACES = Table(
    name="workspaces",
    partition="workspace",
    sort=None,
    fields={
        "workspace": str,
        "name": str,
        "publishable_key": str,
        "allowed_origins": list,
        "jwt_algorithm": str,
        "jwt_key": str,
        "is_jwt_for_managers": bool,
        "created_at": int,
    },
)

USERS = Table(
    name="users",
    partition="user",
    sort=None,
    fields={
        "user": str,
        "workspace": str,
        "user_id": str,
        "role": str,
        "name": str,
        "email": str,
        "attributes": dict,
        "is_deactivated": bool,
        "is_anonymous": bool,
        "erasing": str,
        "created_at": int,
        "updated_at": int,
    },
    indexes=(
        Index("by_workspace", "workspace", "user_id"),
        Index("by_erasing", "erasing", "user_id", projected=()),
    ),
)

SESSIONS = Table(
    name="sessions",
    partition="user",
    sort="session_id",
    fields={
        "user": str,
        "session_id": str,
        "token_hash": str,
        "device_name": str,
        "device_platform": str,
        "cursor": str,
        "created_at": int,
        "expires_at": int,
    },
    expires="expires_at",
)

TOKENS = Table(
    name="tokens",
    partition="token_hash",
    sort=None,
    fields={
        "token_hash": str,
        "kind": str,
        "workspace": str,
        "key_id": str,
        "name": str,
        "user_id": str,
        "session_id": str,
        "scopes": list,
        "created_at": int,
        "expires_at": int,
    },
    indexes=(Index("by_workspace", "workspace", "key_id"),),
    expires="expires_at",
)

ROOMS = Table(
    name="rooms",
    partition="room",
    sort=None,
    fields={
        "room": str,
        "kind": str,
        "title": str,
        "scope": str,
        "history": str,
        "about": str,
        "status": str,
        "assignee_id": str,
        "customer_id": str,
        "snoozed_until": int,
        "tags": list,
        "created_by": str,
        "created_at": int,
        "head": int,
        "epoch": int,
        "member_count": int,
        "is_fanning": bool,
        "listing": str,
        "listed_at": int,
        "waiting": str,
    },
    indexes=(
        Index("by_listing", "listing", "listed_at", projected=("assignee_id", "tags")),
        Index("by_waiting", "waiting", "status", projected=()),
    ),
)

MEMBERS = Table(
    name="members",
    partition="room",
    sort="user_id",
    fields={"room": str, "user_id": str, "role": str, "joined_seq": int},
)

ENTRIES = Table(
    name="entries",
    partition="room",
    sort="seq",
    fields={
        "room": str,
        "seq": int,
        "id": str,
        "type": str,
        "sender_id": str,
        "client_id": str,
        "text": str,
        "blobs": list,
        "left_blobs": list,
        "reply_to": int,
        "mentions": list,
        "reactions": dict,
        "data": dict,
        "created_at": int,
        "edited_at": int,
        "deleted_at": int,
        "deleted_seq": int,
    },
)

RECEIPTS = Table(
    name="receipts",
    partition="room",
    sort="receipt",
    fields={"room": str, "receipt": str, "seq": int, "body_hash": str, "expires_at": int},
    expires="expires_at",
)

INBOXES = Table(
    name="inboxes",
    partition="user",
    sort="room_id",
    fields={
        "user": str,
        "room_id": str,
        "kind": str,
        "peer_id": str,
        "unread": int,
        "mentions": int,
        "read_seq": int,
        "counted_seq": int,
        "joined_seq": int,
        "is_muted": bool,
        "is_left": bool,
        "hidden_seq": int,
        "preview": str,
        "preview_seq": int,
        "active_at": int,
        "feed": int,
        "unread_feed": int,
        "marks": str,
    },
    indexes=(
        Index("by_feed", "user", "feed", local=True),
        Index("by_unread", "user", "unread_feed", local=True, projected=()),
    ),
)

BADGES = Table(
    name="badges",
    partition="user",
    sort=None,
    fields={"user": str, "unread": int, "mentions": int, "version": int, "read_version": int},
)

FANOUTS = Table(
    name="fanouts",
    partition="room",
    sort=None,
    fields={"room": str, "founding": list, "node_id": str, "fence": int},
)

NODES = Table(
    name="nodes",
    partition="service",
    sort="node_id",
    fields={
        "service": str,
        "node_id": str,
        "address": str,
        "version": str,
        "started_at": int,
        "beat": int,
        "is_draining": bool,
        "figures": dict,
    },
)

LEASES = Table(
    name="leases",
    partition="name",
    sort=None,
    fields={"name": str, "node_id": str, "fence": int, "beat": int},
)

SCHEDULE = Table(
    name="schedule",
    partition="shard",
    sort="due",
    fields={"shard": str, "due": str, "kind": str, "subject": str, "seq": int},
)

PRESENCE = Table(
    name="presence",
    partition="users",
    sort="place",
    fields={"users": str, "place": str, "since": int, "expires_at": int},
    expires="expires_at",
)

PUSHES = Table(
    name="pushes",
    partition="user",
    sort="session_id",
    fields={
        "user": str,
        "session_id": str,
        "kind": str,
        "endpoint": str,
        "keys": dict,
        "told_version": int,
        "told_unread": int,
        "expires_at": int,
    },
    expires="expires_at",
)

BLOBS = Table(
    name="blobs",
    partition="blob",
    sort="place",
    fields={
        "blob": str,
        "place": str,
        "state": str,
        "uploader_id": str,
        "name": str,
        "type": str,
        "size": int,
        "width": int,
        "height": int,
        "has_thumbnail": bool,
        "attached": int,
        "created_at": int,
    },
)

MOVES = Table(
    name="moves",
    partition="part",
    sort="item",
    fields={
        "part": str,
        "item": str,
        "epoch": int,
        "stage": str,
        "decides": str,
        "wanted": str,
        "fence": int,
        "holder": str,
        "beat": int,
        "position": list,
        "data": dict,
    },
)

TABLES: tuple[Table, ...] = (
    SECRETS,
    WORKSPACES,
    USERS,
    SESSIONS,
    TOKENS,
    ROOMS,
    MEMBERS,
    ENTRIES,
    RECEIPTS,
    INBOXES,
    BADGES,
    FANOUTS,
    NODES,
    LEASES,
    SCHEDULE,
    PRESENCE,
    PUSHES,
    BLOBS,
    MOVES,
)


def room_key(workspace: str, room_id: str) -> str:
    """The partition of a room's rows."""
    return f"{workspace}#{room_id}"


def user_key(workspace: str, user_id: str) -> str:
    """The partition of a user's rows."""
    return f"{workspace}#{user_id}"


def blob_key(workspace: str, blob_id: str) -> str:
    """The partition of a blob's rows."""
    return f"{workspace}#{blob_id}"
