"""Credentials: API keys, device sessions and their tokens, and who a token says is calling."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TypeAlias

import msgspec

from tidings import wire
from tidings.clock import Clock, rfc3339
from tidings.cursors import Cursors
from tidings.errors import (
    Conflict,
    FieldError,
    Forbidden,
    NotFound,
    Unauthorized,
    Unavailable,
    ValidationFailed,
)
from tidings.ids import IdMaker
from tidings.people import access
from tidings.people.attributes import merge_attributes
from tidings.people.callers import ALL_SCOPES, Caller, Scope
from tidings.people.directory import Directory, plan_changed_user, plan_new_user
from tidings.people.identity import Claims, read_identity
from tidings.people.limits import RateLimits
from tidings.people.lookups import Lookups
from tidings.people.rows import (
    OPERATOR_WORKSPACE,
    ListedKey,
    SessionRow,
    TokenRow,
    UserRow,
    hash_jti,
    hash_token,
    session_from_item,
    session_to_item,
    token_from_item,
    token_to_item,
    visitor,
    whole_user,
)
from tidings.people.workspaces import Workspace, Workspaces
from tidings.storage.interface import (
    Absent,
    Check,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Position,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.tables import SESSIONS, TOKENS, USERS, WORKSPACES, user_key

SESSION_LIFE_S = 90 * 24 * 3600
"""Life of a session from its creation; it is not renewed."""
SESSIONS_PER_USER_MAX = 100
"""Sessions of one user; a new one past it ends the oldest."""
SESSIONS_ENDED_MAX = 20
"""Oldest sessions that one new session ends at most."""
REVOKED_TOGETHER_MAX = 40
"""Sessions that are ended in one write."""
KEYS_LISTED_MAX = 1_000
"""Keys of a workspace that are listed."""
CACHE_MS = 1_500
"""How long a session or key that another process revoked may still be accepted here."""
CACHE_TOKENS_MAX = 20_000
TOKEN_BYTES = 32
"""Random bytes of a token."""
TOKEN_CHARACTERS_MAX = 128
ATTEMPTS_MAX = 5
"""How often a session is planned anew because its user changed meanwhile."""
JTI_KEPT_S = 60
"""How long the use of an identity token is remembered past the token's expiry."""

OnRevoked: TypeAlias = Callable[[str, str, str | None], None]
"""(workspace, user id, session id): a session ended, None for all of the user's."""
FirstCursor: TypeAlias = Callable[[str, str], Awaitable[str | None]]
"""(workspace, user id): where the queue of a new session starts."""
OnlineSessions: TypeAlias = Callable[[str, str], Awaitable[Collection[str]]]
"""(workspace, user id): the ids of the user's sessions that are connected."""


def nobody_to_tell(workspace: str, user_id: str, session_id: str | None) -> None:
    """Nothing holds connections."""


async def no_first_cursor(workspace: str, user_id: str) -> str | None:
    """The queue of a new session has no start of its own."""
    return None


async def no_device_connected(workspace: str, user_id: str) -> Collection[str]:
    """Nothing holds connections."""
    return ()


class Credentials:
    """Makes, checks and revokes keys and sessions.

    Only hashes of tokens are stored. What is revoked here is refused here at once, and in every
    other process within CACHE_MS; the same holds for changed roles and deactivated users.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: IdMaker,
        cursors: Cursors,
        workspaces: Workspaces,
        directory: Directory,
        limits: RateLimits,
        *,
        on_revoked: OnRevoked = nobody_to_tell,
        first_cursor: FirstCursor = no_first_cursor,
        online_sessions: OnlineSessions = no_device_connected,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._cursors = cursors
        self._workspaces = workspaces
        self._directory = directory
        self._limits = limits
        self._on_revoked = on_revoked
        self._first_cursor = first_cursor
        self._online_sessions = online_sessions
        self._tokens = Lookups(self._load_tokens, clock, ttl_ms=CACHE_MS, size_max=CACHE_TOKENS_MAX)

    async def authenticate(self, token: str) -> Caller:
        """Who is calling. Raises Unauthorized, whatever is wrong with the token.

        The role of a session is the user's role now, not that of when it was opened.
        """
        if len(token) > TOKEN_CHARACTERS_MAX or not token.isascii():
            raise Unauthorized
        row = await self._tokens.get(hash_token(token))
        if row is None or (row.expires_at is not None and row.expires_at * 1000 <= self._clock()):
            raise Unauthorized
        if row.kind in ("api_key", "operator"):
            return Caller(
                workspace=row.workspace,
                kind="operator" if row.kind == "operator" else "api_key",
                credential_id=row.key_id,
                scopes=row.scopes,
            )
        if row.kind not in ("session", "visitor"):
            raise Unauthorized
        user = await self._directory.find(row.workspace, row.user_id)
        if user is None and row.kind == "visitor":
            user = visitor(row.workspace, row.user_id)
        if user is None or user.is_deactivated:
            raise Unauthorized
        return Caller(
            workspace=row.workspace,
            kind="session",
            credential_id=row.session_id,
            user_id=row.user_id,
            role=user.role,
            session_id=row.session_id,
        )

    async def create_key(
        self,
        workspace: str,
        name: str,
        scopes: Iterable[Scope] = ALL_SCOPES,
        operator: bool = False,
    ) -> tuple[str, str]:
        """A new key: its id, and the key itself, which is never shown again.

        An operator key belongs to no workspace and has no scopes, whatever is given. Raises
        NotFound for an unknown workspace; ValidationFailed for unknown scopes.
        """
        wanted = frozenset(scopes)
        if not wanted <= ALL_SCOPES:
            raise _refused("scopes", f"The scopes are {', '.join(sorted(ALL_SCOPES))}.")
        token, now = _new_token("tk"), self._clock()
        row = TokenRow(
            token_hash=hash_token(token),
            kind="operator" if operator else "api_key",
            workspace="" if operator else workspace,
            created_at=now,
            key_id=self._ids.new("key"),
            name=name,
            scopes=frozenset() if operator else wanted,
        )
        writes: list[Write] = [Put(TOKENS, token_to_item(row), when=(Absent(),))]
        if not operator:
            writes.append(Check(WORKSPACES, (workspace,), when=(Exists(),)))
        try:
            await self._store.write(*writes)
        except ConditionFailed as failed:
            raise NotFound("There is no such workspace.") from failed
        return row.key_id, token

    async def list_keys(self, workspace: str) -> tuple[ListedKey, ...]:
        """The keys of a workspace, oldest first; those of the operator for an empty one."""
        rows: list[TokenRow] = []
        after: Position | None = None
        while len(rows) < KEYS_LISTED_MAX:
            page = await self._store.query(
                TOKENS,
                workspace or OPERATOR_WORKSPACE,
                index="by_workspace",
                limit=KEYS_LISTED_MAX - len(rows),
                after=after,
                consistent=False,
            )
            rows += map(token_from_item, page.items)
            after = page.after
            if after is None:
                break
        return tuple(ListedKey(row.key_id, row.name, row.scopes, row.created_at) for row in rows)

    async def revoke_key(self, workspace: str, key_id: str) -> None:
        """Take a key away. Raises NotFound."""
        page = await self._store.query(
            TOKENS,
            workspace or OPERATOR_WORKSPACE,
            index="by_workspace",
            low=key_id,
            high=key_id,
            consistent=False,
        )
        if not page.items:
            raise NotFound
        for item in page.items:
            try:
                await self._store.write(Delete(TOKENS, (item["token_hash"],)))
            finally:  # an answer that was lost may have been good
                self._tokens.forget(item["token_hash"])

    async def create_session(
        self,
        caller: Caller | None,
        body: wire.CreateSession,
        origin: str | None = None,
        address: str | None = None,
    ) -> wire.NewSession:
        """A session for a user named by an API key, one named by a JWT, or a new visitor.

        `origin` is the request's Origin header, `address` where it came from. Raises Unauthorized
        for a key or JWT that is not accepted; Forbidden for a caller, origin or role that may
        not; NotFound and Conflict for a user who is not there or deactivated; RateLimited.
        """
        if caller is not None:
            return await self._open_for_key(caller, body)
        self._limits.count_exchange(address)
        if body.publishable_key is None:
            if body.jwt is None:
                raise Unauthorized
            raise _refused("publishable_key", "A JWT comes together with the publishable key.")
        workspace = await self._workspace_of(body.publishable_key)
        if not access.may_come_from(
            origin, workspace.allowed_origins, is_identified=body.jwt is not None
        ):
            raise Forbidden("This origin may not open sessions.")
        if body.user_id is not None:
            raise Forbidden("A publishable key opens no session of a given user.")
        if body.jwt is not None:
            return await self._open_by_jwt(workspace, body.jwt, body.device)
        self._limits.count_visit(
            workspace.id, address, origin if workspace.allowed_origins else None
        )
        return await self._open(
            visitor(workspace.id, self._ids.new("usr")), body.device, (), is_visitor=True
        )

    async def list_sessions(
        self, caller: Caller, limit: int = wire.LIST_LIMIT_DEFAULT, cursor: str | None = None
    ) -> wire.SessionList:
        """The caller's own sessions, newest first. Raises Forbidden for an API key."""
        partition, _ = _own_session(caller)
        online = await self._online_sessions(caller.workspace, caller.user_id or "")
        purpose = f"sessions#{partition}"
        after = None if cursor is None else tuple(self._cursors.open(purpose, cursor))
        page = await self._store.query(SESSIONS, partition, reverse=True, limit=limit, after=after)
        return wire.SessionList(
            items=[
                _session_to_wire(caller, session_from_item(item), online) for item in page.items
            ],
            next=None if page.after is None else self._cursors.seal(purpose, page.after),
        )

    async def revoke_session(self, caller: Caller, session_id: str) -> None:
        """End one of the caller's own sessions; its connections close. Raises NotFound."""
        partition, _ = _own_session(caller)
        item = await self._store.get(SESSIONS, (partition, session_id))
        if item is None:
            raise NotFound
        await self._revoke([session_from_item(item)])

    async def revoke_all(self, workspace: str, user_id: str) -> None:
        """End all sessions of a user. Safe to repeat."""
        after: Position | None = None
        while True:
            page = await self._store.query(
                SESSIONS, user_key(workspace, user_id), limit=REVOKED_TOGETHER_MAX, after=after
            )
            if page.items:
                await self._revoke([session_from_item(item) for item in page.items])
            after = page.after
            if after is None:
                break
        self._on_revoked(workspace, user_id, None)

    async def acknowledge(self, caller: Caller, cursor: str) -> None:
        """Remember durably that the session's queue was delivered up to this cursor.

        Raises Unauthorized where the session has ended meanwhile.
        """
        try:
            await self._store.write(
                Update(SESSIONS, _own_session(caller), set={"cursor": cursor}, when=(Exists(),))
            )
        except ConditionFailed as failed:
            raise Unauthorized from failed

    async def acknowledged(self, caller: Caller) -> str | None:
        """Where the session's queue was last acknowledged; None where it never was.

        Raises Unauthorized where the session has ended meanwhile.
        """
        item = await self._store.get(SESSIONS, _own_session(caller))
        if item is None:
            raise Unauthorized
        return session_from_item(item).cursor

    async def ensure_stored(self, caller: Caller) -> None:
        """Store the caller's user if it is an anonymous one who was not stored yet."""
        if caller.user_id is not None:
            await self._directory.ensure(caller.workspace, caller.user_id)

    async def _load_tokens(self, hashes: Sequence[str]) -> Sequence[TokenRow | None]:
        items = await self._store.get_many(TOKENS, [(each,) for each in hashes])
        return [None if item is None else token_from_item(item) for item in items]

    async def _workspace_of(self, publishable_key: str) -> Workspace:
        if not publishable_key.isascii():
            raise Unauthorized
        row = await self._tokens.get(hash_token(publishable_key))
        if row is None or row.kind != "publishable":
            raise Unauthorized("This publishable key is not known.")
        workspace = await self._workspaces.get(row.workspace)
        if workspace is None:
            raise Unauthorized("This publishable key is not known.")
        return workspace

    async def _open_for_key(self, caller: Caller, body: wire.CreateSession) -> wire.NewSession:
        if not access.may_open_sessions(caller):
            raise Forbidden
        if body.jwt is not None or body.publishable_key is not None:
            raise _refused("publishable_key", "An API key opens a session by user_id alone.")
        if body.user_id is None:
            raise _refused("user_id", "An API key names the user of a session.")
        row = await self._directory.read(caller.workspace, body.user_id)
        if row is None:
            raise NotFound
        if row.is_deactivated:
            raise Conflict("This user is deactivated.")
        try:
            return await self._open(row, body.device, (_plan_check(row),))
        except ConditionFailed as failed:
            raise Conflict("This user is deactivated.") from failed

    async def _open_by_jwt(
        self, workspace: Workspace, jwt: str, device: wire.Device
    ) -> wire.NewSession:
        if workspace.jwt_algorithm is None or workspace.jwt_key is None:
            raise Unauthorized("This workspace takes no identity tokens.")
        claims = read_identity(
            jwt,
            algorithm=workspace.jwt_algorithm,
            key=workspace.jwt_key,
            workspace=workspace.id,
            now_s=self._clock() / 1000,
        )
        used = TokenRow(
            token_hash=hash_jti(workspace.id, claims.jti),
            kind="jti",
            workspace=workspace.id,
            created_at=self._clock(),
            expires_at=int(claims.exp) + JTI_KEPT_S,
        )
        for _ in range(ATTEMPTS_MAX):
            old = await self._directory.read(workspace.id, claims.sub)
            user, write = plan_identified_user(workspace, old, claims, now=self._clock())
            once = Put(TOKENS, token_to_item(used), when=(Absent(),))
            try:
                return await self._open(user, device, (once, write))
            except ConditionFailed as failed:
                if any(failure.index == 0 for failure in failed.failures):
                    raise Unauthorized("This identity token was used before.") from failed
            finally:
                self._directory.forget(workspace.id, claims.sub)
        raise Unavailable("This user is changing too fast just now.")

    async def _open(
        self,
        user: UserRow,
        device: wire.Device,
        first: tuple[Write, ...],
        *,
        is_visitor: bool = False,
    ) -> wire.NewSession:
        """Store a new session together with the `first` writes; raises ConditionFailed."""
        token, now = _new_token("ts"), self._clock()
        session = SessionRow(
            workspace=user.workspace,
            user_id=user.user_id,
            session_id=self._ids.new("ses"),
            token_hash=hash_token(token),
            created_at=now,
            expires_at=now // 1000 + SESSION_LIFE_S,
            device=device,
            cursor=await self._first_cursor(user.workspace, user.user_id),
        )
        stands_for = TokenRow(
            token_hash=session.token_hash,
            kind="visitor" if is_visitor else "session",
            workspace=user.workspace,
            created_at=now,
            user_id=user.user_id,
            session_id=session.session_id,
            expires_at=session.expires_at,
        )
        excess = [] if is_visitor else await self._excess(user)
        await self._store.write(
            *first,
            Put(SESSIONS, session_to_item(session), when=(Absent(),)),
            Put(TOKENS, token_to_item(stands_for), when=(Absent(),)),
            *_plan_revoked(excess),
        )
        self._forget(excess)
        return wire.NewSession(
            session_id=session.session_id,
            token=token,
            user=whole_user(user, is_online=False),
            expires_at=rfc3339(session.expires_at * 1000),
        )

    async def _excess(self, user: UserRow) -> list[SessionRow]:
        """The oldest sessions that have to end before the user gets a new one."""
        page = await self._store.query(
            SESSIONS,
            user_key(user.workspace, user.user_id),
            limit=SESSIONS_PER_USER_MAX + SESSIONS_ENDED_MAX,
        )
        count = max(0, len(page.items) + 1 - SESSIONS_PER_USER_MAX)
        return [session_from_item(item) for item in page.items[: min(count, SESSIONS_ENDED_MAX)]]

    async def _revoke(self, sessions: Sequence[SessionRow]) -> None:
        try:
            await self._store.write(*_plan_revoked(sessions))
        finally:  # an answer that was lost may have been good
            for session in sessions:
                self._tokens.forget(session.token_hash)
        self._forget(sessions)

    def _forget(self, sessions: Sequence[SessionRow]) -> None:
        for session in sessions:
            self._tokens.forget(session.token_hash)
            self._on_revoked(session.workspace, session.user_id, session.session_id)


def _session_to_wire(caller: Caller, row: SessionRow, online: Collection[str]) -> wire.Session:
    return wire.Session(
        session_id=row.session_id,
        device=row.device,
        created_at=rfc3339(row.created_at),
        expires_at=rfc3339(row.expires_at * 1000),
        is_current=row.session_id == caller.session_id,
        is_online=row.session_id in online,
    )


def plan_identified_user(
    workspace: Workspace, old: UserRow | None, claims: Claims, *, now: int
) -> tuple[UserRow, Write]:
    """The user whom an identity token names, and the write that makes or changes them.

    The write fails if the stored user is no longer `old`. Raises Forbidden for a role that may
    not come by identity token; Unauthorized for a deactivated user.
    """
    if old is None:
        user = UserRow(
            workspace=workspace.id,
            user_id=claims.sub,
            name=claims.sub if claims.name is msgspec.UNSET else claims.name,
            role="customer",
            email=None if claims.email is msgspec.UNSET else claims.email,
            attributes=merge_attributes(
                {}, {} if claims.attributes is msgspec.UNSET else claims.attributes
            ),
            created_at=now,
            updated_at=now,
        )
        return user, plan_new_user(user)
    if not access.may_come_by_jwt(old.role, is_jwt_for_managers=workspace.is_jwt_for_managers):
        raise Forbidden("Users of this role open no sessions by identity token here.")
    if old.is_deactivated:
        raise Unauthorized("This user is deactivated.")
    user = msgspec.structs.replace(
        old,
        name=old.name if claims.name is msgspec.UNSET else claims.name,
        email=old.email if claims.email is msgspec.UNSET else claims.email,
        attributes=old.attributes
        if claims.attributes is msgspec.UNSET
        else merge_attributes(old.attributes, claims.attributes),
        is_anonymous=False,
    )
    return user, _plan_check(old) if user == old else plan_changed_user(old, user, now=now)


def _plan_check(user: UserRow) -> Check:
    """Let a session be opened only while its user is not deactivated."""
    return Check(
        USERS,
        (user_key(user.workspace, user.user_id),),
        when=(Exists(), Equals("is_deactivated", None)),
    )


def _plan_revoked(sessions: Sequence[SessionRow]) -> list[Write]:
    writes: list[Write] = []
    for session in sessions:
        partition = user_key(session.workspace, session.user_id)
        writes.append(Delete(SESSIONS, (partition, session.session_id)))
        writes.append(Delete(TOKENS, (session.token_hash,)))
    return writes


def _own_session(caller: Caller) -> tuple[str, str]:
    if caller.user_id is None or caller.session_id is None:
        raise Forbidden("Only a session has devices.")
    return user_key(caller.workspace, caller.user_id), caller.session_id


def _new_token(prefix: str) -> str:
    return f"{prefix}_{secrets.token_urlsafe(TOKEN_BYTES)}"


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
