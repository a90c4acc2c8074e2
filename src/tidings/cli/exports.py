"""`tidings export`, and `tidings import workspace`, which takes an export back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.imports import imports
from tidings.cli.output import note, print_json, print_table, progress_bar
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, WorkspaceName, open_parts
from tidings.clock import system_clock

if TYPE_CHECKING:
    from tidings.importing.exported import Manifest
    from tidings.importing.workspaces import Outcome


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(export)
    imports.command("workspace")(import_workspace)


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to; it is made, or is empty.")
    ],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    as_json: AsJson = False,
) -> None:
    """Write a workspace as JSON lines, with a manifest of counts and hashes.

    Works beside a running service. Tokens, keys and sessions are not in it.
    """
    from tidings.importing.exports import export_workspace

    async def run() -> Manifest:
        async with open_parts(store) as parts:
            place = await parts.workspace_id(workspace)
            with progress_bar() as show:
                return await export_workspace(parts.store, place, folder, show)

    manifest = asyncio.run(run())
    if as_json:
        print_json(manifest)
    else:
        rows = [
            (each.file, f"{each.lines:,}", f"{each.bytes:,}", each.sha256)
            for each in manifest.files.values()
        ]
        columns = ("file", "lines", "bytes", "sha256")
        print_table(f"workspace {manifest.workspace}", columns, rows, right="lines,bytes")


def import_workspace(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What `tidings export` has written.")
    ],
    store: StoreUrl = STORE_DEFAULT,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take out what an unfinished import has put in.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring an exported workspace into a store, whole or not at all.

    It can be seen once all of it is there and its audit is clean. Broken off, the same command
    goes on; again, it changes nothing.
    """
    from tidings.importing.workspaces import WorkspaceImport

    async def run() -> Outcome | int:
        async with open_parts(store, must_exist=False) as parts:
            with progress_bar() as show:
                importing = WorkspaceImport(parts.store, system_clock, folder, show)
                return await (importing.undo() if undo else importing.run())

    outcome = asyncio.run(run())
    if isinstance(outcome, int):
        note(f"took out {outcome:,} rows")
    elif as_json:
        print_json(outcome)
    else:
        rows = [(name, f"{count:,}") for name, count in outcome.lines.items()]
        print_table(f"workspace {outcome.workspace}", ("imported", "rows"), rows, right="rows")
        if not outcome.is_new:
            note("it was there already, the very same: nothing was changed")
