"""`tidings keys` and `tidings users`: credentials and people, without HTTP."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tidings import wire
from tidings.cli.output import note, print_json, print_table
from tidings.cli.parts import (
    LIMIT_DEFAULT,
    STORE_DEFAULT,
    AsJson,
    Limit,
    StoreUrl,
    WorkspaceName,
    administrator,
    converted,
    open_parts,
)
from tidings.clock import rfc3339
from tidings.people.callers import ALL_SCOPES, Scope

keys = typer.Typer(help="API keys, which act for a workspace, and operator keys.")
users = typer.Typer(help="People and programs of a workspace.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(keys, name="keys")
    app.add_typer(users, name="users")


def _scopes(text: str | None) -> frozenset[Scope]:
    if text is None:
        return ALL_SCOPES
    names = {name.strip() for name in text.split(",") if name.strip()}
    if not names or not names <= ALL_SCOPES:
        raise typer.BadParameter(
            f"scopes are {', '.join(sorted(ALL_SCOPES))}", param_hint="--scopes"
        )
    return frozenset(scope for scope in ALL_SCOPES if scope in names)


@keys.command("create")
def keys_create(
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    name: Annotated[str, typer.Option("--name", help="What the key is for.")] = "command line",
    scopes: Annotated[
        str | None,
        typer.Option(
            "--scopes",
            metavar="SCOPE,…",
            help="What it may do: messages, rooms, sessions, users. All unless said.",
        ),
    ] = None,
    operator: Annotated[
        bool,
        typer.Option("--operator", help="For /metrics and the like; belongs to no workspace."),
    ] = False,
) -> None:
    """Make an API key and print it, this once, alone on the last line.

    Makes the store and the workspace too where they are missing.
    """
    chosen = _scopes(scopes)

    async def run() -> str:
        async with open_parts(store, must_exist=False) as parts:
            if operator:
                key_id, key = await parts.credentials.create_key("", name, (), operator=True)
                note(f"{key_id}, an operator key; it is not shown again:")
                return key
            made = await parts.workspaces.default(workspace)
            key_id, key = await parts.credentials.create_key(made.id, name, chosen)
            note(f"{key_id} for the workspace {made.id}; it is not shown again:")
            return key

    typer.echo(asyncio.run(run()))


@keys.command("list")
def keys_list(
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    operator: Annotated[bool, typer.Option("--operator", help="The operator keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the keys of a workspace; the keys themselves are not stored."""

    async def run() -> None:
        async with open_parts(store) as parts:
            place = "" if operator else await parts.workspace_id(workspace)
            listed = await parts.credentials.list_keys(place)
        if as_json:
            print_json(listed)
        else:
            rows = (
                (key.key_id, key.name, ", ".join(sorted(key.scopes)), rfc3339(key.created_at))
                for key in listed
            )
            print_table("", ("key", "for", "scopes", "made"), rows)

    asyncio.run(run())


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    operator: Annotated[bool, typer.Option("--operator", help="An operator key.")] = False,
) -> None:
    """Take a key away; services refuse it within five seconds."""

    async def run() -> None:
        async with open_parts(store) as parts:
            place = "" if operator else await parts.workspace_id(workspace)
            await parts.credentials.revoke_key(place, key_id)

    asyncio.run(run())
    note(f"revoked {key_id}")


def _user_rows(items: list[wire.User]) -> list[tuple[object, ...]]:
    return [
        (user.id, user.name, user.role, user.email or "", "yes" if user.is_deactivated else "")
        for user in items
    ]


_USER_COLUMNS = ("id", "name", "role", "e-mail", "deactivated")


@users.command("create")
def users_create(
    name: Annotated[str, typer.Argument(help="As others read it.")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    role: Annotated[
        str, typer.Option("--role", help="admin, manager, customer or bot.")
    ] = "customer",
    id_: Annotated[
        str | None, typer.Option("--id", help="An id of your own; made by the service unless said.")
    ] = None,
    email: Annotated[str | None, typer.Option("--email", help="Seen by the team only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, and the workspace where it is missing; prints the id on the last line."""

    async def run() -> tuple[wire.User, bool]:
        body: wire.CreateUser = converted(
            {"name": name, "role": role, "id": id_, "email": email}, wire.CreateUser
        )
        async with open_parts(store, must_exist=False) as parts:
            made = await parts.workspaces.default(workspace)
            return await parts.users.create(administrator(made.id), body)

    user, is_new = asyncio.run(run())
    if not is_new:
        note("there is a user with this id already:")
    if as_json:
        print_json(user)
    else:
        typer.echo(user.id)


@users.command("list")
def users_list(
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    role: Annotated[str | None, typer.Option("--role", help="Only this role.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", help="Only names, ids or e-mails that start so.")
    ] = None,
    limit: Limit = LIMIT_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List users."""
    checked_role: wire.Role | None = None if role is None else converted(role, wire.Role)

    async def run() -> list[wire.User]:
        async with open_parts(store) as parts:
            caller = await parts.caller(workspace)
            found: list[wire.User] = []
            cursor: str | None = None
            while True:
                page = await parts.users.list(
                    caller,
                    role=checked_role,
                    online=None,
                    q=search,
                    limit=min(wire.LIST_LIMIT_MAX, limit - len(found)),
                    cursor=cursor,
                )
                found += page.items
                cursor = page.next
                if cursor is None or len(found) >= limit:
                    return found

    found = asyncio.run(run())
    if as_json:
        print_json(found)
    else:
        print_table("", _USER_COLUMNS, _user_rows(found))


@users.command("show")
def users_show(
    user_id: Annotated[str, typer.Argument(metavar="USER")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
) -> None:
    """Show everything about one user, as JSON."""

    async def run() -> wire.User:
        async with open_parts(store) as parts:
            return await parts.users.get(await parts.caller(workspace), user_id)

    print_json(asyncio.run(run()))


@users.command("deactivate")
def users_deactivate(
    user_id: Annotated[str, typer.Argument(metavar="USER")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
) -> None:
    """Sign a user out everywhere and let them in no more; what they wrote stays."""

    async def run() -> None:
        async with open_parts(store) as parts:
            await parts.users.delete(await parts.caller(workspace), user_id, erase=False)

    asyncio.run(run())
    note(f"deactivated {user_id}")
