"""Who is calling: the one value that every authorisation decision is made from."""

from __future__ import annotations

from typing import Literal

import msgspec

from tidings.wire import Role

Scope = Literal["users", "rooms", "messages", "sessions"]
ALL_SCOPES: frozenset[Scope] = frozenset({"users", "rooms", "messages", "sessions"})


class Caller(msgspec.Struct, frozen=True):
    """An authenticated caller.

    A session always has `user_id`, `role` and `session_id`. An API key has none of them and acts
    for its workspace within its `scopes`. An operator key belongs to no workspace (`""`) and may
    only look at the service itself.
    """

    workspace: str
    kind: Literal["session", "api_key", "operator"]
    credential_id: str
    """The session's or key's id: what limits are counted by and logs may name."""
    user_id: str | None = None
    role: Role | None = None
    session_id: str | None = None
    scopes: frozenset[Scope] = frozenset()
