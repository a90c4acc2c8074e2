"""`tidings rooms`: making rooms and looking at them, without HTTP."""

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
    converted,
    open_parts,
)

MEMBERS_SHOWN_MAX = 500

rooms = typer.Typer(help="Rooms of a workspace.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(rooms, name="rooms")


@rooms.command("create")
def rooms_create(
    kind: Annotated[str, typer.Argument(help="direct, group or support.")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    members: Annotated[
        str, typer.Option("--members", metavar="USER,…", help="Who is in it from the start.")
    ] = "",
    title: Annotated[str | None, typer.Option("--title", help="As members read it.")] = None,
    scope: Annotated[str | None, typer.Option("--scope", help="public or private.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", help="An id of your own; made by the service unless said.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a room; prints its id on the last line."""
    body: wire.CreateRoom = converted(
        {
            "kind": kind,
            "id": id_,
            "title": title,
            "scope": scope,
            "member_ids": [each.strip() for each in members.split(",") if each.strip()],
        },
        wire.CreateRoom,
    )

    async def run() -> tuple[wire.Room, bool]:
        async with open_parts(store) as parts:
            return await parts.chat.rooms.create(await parts.caller(workspace), body)

    room, is_new = asyncio.run(run())
    if not is_new:
        note("there is such a room already:")
    if as_json:
        print_json(room)
    else:
        typer.echo(room.id)


@rooms.command("list")
def rooms_list(
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    kind: Annotated[str, typer.Option("--kind", help="support or group.")] = "support",
    status: Annotated[str | None, typer.Option("--status", help="open, snoozed or closed.")] = None,
    limit: Limit = LIMIT_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List support rooms, newest activity first, or public team rooms."""
    checked_kind = converted(kind, wire.RoomKind)
    checked_status = None if status is None else converted(status, wire.Status)

    async def run() -> list[wire.Room]:
        async with open_parts(store) as parts:
            caller = await parts.caller(workspace)
            found: list[wire.Room] = []
            cursor: str | None = None
            while True:
                page = await parts.chat.rooms.list(
                    caller,
                    kind=checked_kind,
                    status=checked_status,
                    assignee_id=None,
                    tag=None,
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
        return
    rows = (
        (room.id, room.title, room.status, room.assignee_id, room.member_count, room.head)
        for room in found
    )
    columns = ("id", "title", "status", "assignee", "members", "head")
    print_table("", columns, rows, right="members,head")


@rooms.command("show")
def rooms_show(
    room_id: Annotated[str, typer.Argument(metavar="ROOM")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
) -> None:
    """Show a room and its members, as JSON."""

    async def run() -> dict[str, object]:
        async with open_parts(store) as parts:
            caller = await parts.caller(workspace)
            room = await parts.chat.rooms.get(caller, room_id)
            members = await parts.chat.rooms.members(
                caller, room_id, limit=MEMBERS_SHOWN_MAX, cursor=None
            )
            return {"room": room, "members": members.items}

    print_json(asyncio.run(run()))
