"""A store opened for one command, with the features that commands call; nothing listens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from tidings.clock import Clock, system_clock
from tidings.config import Settings
from tidings.errors import NotFound
from tidings.people.callers import ALL_SCOPES, Caller

if TYPE_CHECKING:
    from tidings.chat.chat import Chat
    from tidings.storage.interface import Store

StoreUrl = Annotated[
    str, typer.Option("--store", metavar="URL", help="The store, such as sqlite:///tidings.db.")
]
STORE_DEFAULT = Settings().store
WorkspaceName = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        metavar="NAME",
        help="Id or name of the workspace; not needed where there is only one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
LIMIT_DEFAULT = 100
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="How many at most.")]


def converted(value: object, shape: Any) -> Any:
    """The value as the wire's type. Raises BadParameter, which is wrong usage."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error)) from error


class Parts:
    """The features over one open store; those of chat are made when they are first asked for."""

    def __init__(self, store: Store, clock: Clock) -> None:
        from tidings.cursors import Cursors
        from tidings.ids import IdMaker
        from tidings.people.people import People

        self.store = store
        self._clock = clock
        self._ids = IdMaker(clock)
        self._cursors = Cursors(secrets.token_bytes(32))  # no cursor outlives the command
        people = People(store, clock, self._ids, self._cursors, policy=None)
        self.workspaces = people.workspaces
        self.users = people.users
        self.credentials = people.credentials
        self._chat: Chat | None = None

    @property
    def chat(self) -> Chat:
        """Rooms, messages and inboxes; a running service hears of changes by its own look."""
        from tidings.chat.chat import Chat

        if self._chat is None:
            self._chat = Chat(
                self.store,
                self._clock,
                self._ids,
                self._cursors,
                self.users,
                _tell_nobody,
                _tell_nobody,
            )
        return self._chat

    async def close(self) -> None:
        """Finish what was begun, fan-outs too: a running service does not hear of them."""
        if self._chat is not None:
            await self._chat.commits.settle()
            await self._chat.stop()

    async def workspace_id(self, name: str | None) -> str:
        """The id of the workspace named, or of the only one. Makes none; raises NotFound."""
        known = await self.workspaces.list()
        if name is None and len(known) == 1:
            return known[0].id
        for workspace in known:
            if (name or "default") in (workspace.id, workspace.name):
                return workspace.id
        if name is None and known:
            raise NotFound("There are several workspaces: say which with --workspace.")
        raise NotFound(
            f"There is no workspace {name}." if name else "There is no workspace in this store yet."
        )

    async def caller(self, name: str | None) -> Caller:
        """Somebody who may do everything in that workspace: whoever has the store's file."""
        return administrator(await self.workspace_id(name))


def administrator(workspace_id: str, credential_id: str = "command-line") -> Caller:
    """A caller with the rights of an API key that has every scope."""
    return Caller(
        workspace=workspace_id, kind="api_key", credential_id=credential_id, scopes=ALL_SCOPES
    )


@asynccontextmanager
async def open_parts(
    store_url: str,
    *,
    must_exist: bool = True,
    clock: Clock = system_clock,
    wrap: Callable[[Store], Store] = lambda store: store,
) -> AsyncIterator[Parts]:
    """Open the store at the URL, made if it may be missing, and close it again.

    Works beside a running service. Raises SettingRefused, and NotFound for a missing store.
    """
    from tidings.engines import open_store

    address = Settings(store=store_url).store_address
    async with open_store(address, clock=clock, must_exist=must_exist, is_priced=False) as store:
        parts = Parts(wrap(store), clock)
        try:
            yield parts
        finally:
            await parts.close()


def _tell_nobody(*_: object) -> None:
    """No device is connected to a command."""
