"""`tidings audit` and `tidings explain`: what the data proves, and what a badge is made of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.output import note, print_json, print_table, progress_bar
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, WorkspaceName, open_parts

if TYPE_CHECKING:
    from tidings.chat.audit import Report

BROKEN_SHOWN_MAX = 50
"""Broken invariants that the table shows; `--json` has them all."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("audit")(audit)
    app.command("explain")(explain)


def audit(
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend counts from the log; the log itself is never touched."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove every invariant from the data. Exit code 0 when all hold, 1 when not.

    Looks at one snapshot of the store, so it may run beside a service.
    """
    from tidings.chat.audit import audit as audit_store

    async def run() -> Report:
        async with open_parts(store) as parts:
            place = None if workspace is None else await parts.workspace_id(workspace)
            with progress_bar() as show:
                return await audit_store(
                    parts.store,
                    repair=repair,
                    workspace=place,
                    progress=lambda what, done: show(f"checked {what}", done, 0),
                )

    report = asyncio.run(run())
    if as_json:
        print_json(report)
    else:
        checked = [(what, f"{count:,}") for what, count in report.checked.items()]
        print_table("", ("checked", "how many"), checked, right="how many")
        if report.broken:
            rows = [
                (each.invariant, each.workspace, each.room_id, each.user_id, each.seq, each.detail)
                for each in report.broken[:BROKEN_SHOWN_MAX]
            ]
            columns = ("invariant", "workspace", "room", "user", "seq", "what is wrong")
            print_table(f"{report.broken_count:,} broken", columns, rows)
        if repair:
            note(f"mended {report.mended:,} rows")
        note("every invariant holds" if report.ok else "some invariants do not hold")
    if not report.ok:
        raise typer.Exit(1)


def explain(
    user_id: Annotated[str, typer.Argument(metavar="USER")],
    room_id: Annotated[str, typer.Argument(metavar="ROOM")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
) -> None:
    """List the entries behind a user's badge in a room, and whether they add up; as JSON."""
    from tidings.chat.explain import explain as explain_badge

    async def run() -> object:
        async with open_parts(store) as parts:
            place = await parts.workspace_id(workspace)
            return await explain_badge(parts.store, place, user_id, room_id)

    print_json(asyncio.run(run()))
