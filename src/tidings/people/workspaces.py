"""Workspaces: the companies on one service, their publishable keys and what they allow."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from hashlib import sha256
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from tidings.clock import Clock
from tidings.errors import Conflict, FieldError, NotFound, ValidationFailed
from tidings.ids import IdMaker, is_id
from tidings.people.identity import JwtAlgorithm, check_key
from tidings.people.lookups import Lookups
from tidings.people.rows import TokenRow, hash_token, token_to_item
from tidings.storage.interface import (
    Absent,
    ConditionFailed,
    Exists,
    Item,
    Position,
    Put,
    Store,
    Update,
)
from tidings.storage.tables import TOKENS, WORKSPACES
from tidings.wire import NAME_CHARACTERS_MAX

DEFAULT_NAME = "default"
ORIGINS_MAX = 100
"""Origins that one workspace may allow."""
WORKSPACES_LISTED_MAX = 1_000
"""Workspaces that are looked through for a name."""
CACHE_MS = 2_000
CACHE_WORKSPACES_MAX = 1_000

_is_not_id = re.compile(r"[^A-Za-z0-9._:-]+")
_SLUG_CHARACTERS_MAX = 48


class Workspace(msgspec.Struct, frozen=True):
    """One company, and who may open sessions in its name."""

    id: str
    name: str
    publishable_key: str
    created_at: int
    allowed_origins: tuple[str, ...] = ()
    """Origins that may open sessions with the publishable key; none: all of them."""
    jwt_algorithm: JwtAlgorithm | None = None
    jwt_key: str | None = None
    is_jwt_for_managers: bool = False


class Workspaces:
    """Makes, finds and changes workspaces. A change is seen everywhere within CACHE_MS."""

    def __init__(self, store: Store, clock: Clock, ids: IdMaker) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._lookups = Lookups(self._load, clock, ttl_ms=CACHE_MS, size_max=CACHE_WORKSPACES_MAX)

    async def create(self, name: str, workspace_id: str | None = None) -> Workspace:
        """A new workspace with its publishable key. Raises Conflict where the id is taken."""
        _check_name(name)
        if workspace_id is not None and not is_id(workspace_id):
            raise _refused("id", "An id has 1 to 64 characters of A-Z a-z 0-9 . _ : -")
        workspace = Workspace(
            id=workspace_id or self._ids.new("wsp"),
            name=name,
            publishable_key=f"pk_{secrets.token_urlsafe(32)}",
            created_at=self._clock(),
        )
        named_by = TokenRow(
            hash_token(workspace.publishable_key), "publishable", workspace.id, self._clock()
        )
        try:
            await self._store.write(
                Put(WORKSPACES, _to_item(workspace), when=(Absent(),)),
                Put(TOKENS, token_to_item(named_by), when=(Absent(),)),
            )
        except ConditionFailed as failed:
            raise Conflict("A workspace with this id exists already.") from failed
        self._lookups.forget(workspace.id)
        return workspace

    async def get(self, workspace_id: str) -> Workspace | None:
        """The workspace, at most CACHE_MS old."""
        return await self._lookups.get(workspace_id)

    async def default(self, name: str | None) -> Workspace:
        """The workspace of that id or name, made if there is none.

        Without a name it is the only workspace, or else the one named "default".
        """
        known = await self.list()
        if name is None and len(known) == 1:
            return known[0]
        name = name or DEFAULT_NAME
        for workspace in known:
            if name in (workspace.id, workspace.name):
                return workspace
        workspace_id = id_of_name(name)
        try:
            return await self.create(name, workspace_id)
        except Conflict:  # made by another process meanwhile
            found = await self.get(workspace_id)
            if found is None:
                raise
            return found

    async def update(
        self,
        workspace_id: str,
        *,
        name: str | UnsetType = UNSET,
        allowed_origins: Sequence[str] | UnsetType = UNSET,
        jwt: tuple[JwtAlgorithm, str] | None | UnsetType = UNSET,
        is_jwt_for_managers: bool | UnsetType = UNSET,
    ) -> Workspace:
        """Change settings; `jwt` is (algorithm, key), None takes identity tokens away.

        Raises NotFound; ValidationFailed for an origin or a key that can't be one.
        """
        changes: Item = {}
        if name is not UNSET:
            _check_name(name)
            changes["name"] = name
        if allowed_origins is not UNSET:
            if len(allowed_origins) > ORIGINS_MAX:
                raise _refused("allowed_origins", f"At most {ORIGINS_MAX} origins are allowed.")
            changes["allowed_origins"] = [parse_origin(origin) for origin in allowed_origins]
        if jwt is not UNSET:
            if jwt is not None:
                check_key(*jwt)
            changes["jwt_algorithm"], changes["jwt_key"] = jwt or (None, None)
        if is_jwt_for_managers is not UNSET:
            changes["is_jwt_for_managers"] = is_jwt_for_managers
        if changes:
            try:
                await self._store.write(
                    Update(WORKSPACES, (workspace_id,), set=changes, when=(Exists(),))
                )
            except ConditionFailed as failed:
                raise NotFound from failed
            finally:
                self._lookups.forget(workspace_id)
        workspace = await self.get(workspace_id)
        if workspace is None:
            raise NotFound
        return workspace

    async def list(self) -> tuple[Workspace, ...]:
        """The workspaces, oldest first; of very many, WORKSPACES_LISTED_MAX of them."""
        items: list[Item] = []
        after: Position | None = None
        while len(items) < WORKSPACES_LISTED_MAX:
            page = await self._store.scan(
                WORKSPACES, limit=WORKSPACES_LISTED_MAX - len(items), after=after
            )
            items += page.items
            after = page.after
            if after is None:
                break
        found = (_from_item(item) for item in items)
        return tuple(sorted(found, key=lambda workspace: (workspace.created_at, workspace.id)))

    async def _load(self, workspace_ids: Sequence[str]) -> Sequence[Workspace | None]:
        items = await self._store.get_many(WORKSPACES, [(each,) for each in workspace_ids])
        return [None if item is None else _from_item(item) for item in items]


def parse_origin(text: str) -> str:
    """An origin as browsers write it (RFC 6454): `https://host[:port]`, in lower case.

    Raises ValidationFailed.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _refused("allowed_origins", "This is not an origin.") from error
    is_bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise _refused("allowed_origins", "An origin looks like https://www.example.com.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" if is_usual else f"{parts.scheme}://{host}:{port}"


def id_of_name(name: str) -> str:
    """The id of a workspace that is known by its name: the name itself where it may be one.

    The same name always has the same id, so that two processes never make it twice.
    """
    if is_id(name):
        return name
    slug = _is_not_id.sub("-", name)[:_SLUG_CHARACTERS_MAX]
    return f"{slug}-{sha256(name.encode()).hexdigest()[:12]}"


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_CHARACTERS_MAX:
        raise _refused("name", f"A name has 1 to {NAME_CHARACTERS_MAX} characters.")


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))


def _from_item(item: Item) -> Workspace:
    return Workspace(
        id=item["workspace"],
        name=item["name"],
        publishable_key=item["publishable_key"],
        created_at=item["created_at"],
        allowed_origins=tuple(item.get("allowed_origins") or ()),
        jwt_algorithm=item.get("jwt_algorithm"),
        jwt_key=item.get("jwt_key"),
        is_jwt_for_managers=bool(item.get("is_jwt_for_managers")),
    )


def _to_item(workspace: Workspace) -> Item:
    return {
        "workspace": workspace.id,
        "name": workspace.name,
        "publishable_key": workspace.publishable_key,
        "created_at": workspace.created_at,
        "allowed_origins": list(workspace.allowed_origins),
        "jwt_algorithm": workspace.jwt_algorithm,
        "jwt_key": workspace.jwt_key,
        "is_jwt_for_managers": workspace.is_jwt_for_managers,
    }
