"""`tidings import slack`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.imports import imports
from tidings.cli.output import console, note, print_json, print_table, progress_bar
from tidings.cli.parts import (
    STORE_DEFAULT,
    AsJson,
    StoreUrl,
    WorkspaceName,
    administrator,
    open_parts,
)
from tidings.clock import system_clock

if TYPE_CHECKING:
    from tidings.importing.quarantine import Quarantine
    from tidings.importing.slack import SlackReport


def register(app: typer.Typer) -> None:
    """Add the command to `tidings import`."""
    imports.command("slack")(import_slack)


def import_slack(
    file: Annotated[Path, typer.Argument(metavar="EXPORT.zip", help="As Slack has made it.")],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    unread: Annotated[
        bool, typer.Option("--unread", help="Count what is imported as unread; else it is read.")
    ] = False,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            "--quarantine",
            metavar="FILE",
            help="Where odd records go, as JSON lines; EXPORT.odd.jsonl unless named.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import a Slack export with its own times. A second run, or a newer export, adds what is new.

    Odd records are left out, or noted, with their reasons; they never stop an import.
    """
    from tidings import logs
    from tidings.importing.loading import Loading
    from tidings.importing.quarantine import Quarantine
    from tidings.importing.slack import SlackImport
    from tidings.importing.slackzips import SlackZip

    logs.configure("off", sys.stderr)  # what went wrong is in the report, or is the error
    odd = Quarantine(quarantine or file.with_suffix(".odd.jsonl"))

    async def run() -> SlackReport:
        with SlackZip(file) as export, progress_bar() as show:
            async with open_parts(store, must_exist=False) as parts:
                made = await parts.workspaces.default(workspace)
                commits = parts.chat.commits
                async with Loading.open(
                    parts.store, commits, made.id, system_clock, odd
                ) as loading:
                    caller = administrator(made.id, "import")
                    importing = SlackImport(
                        export,
                        parts.store,
                        parts.users,
                        loading,
                        caller,
                        is_unread=unread,
                        progress=show,
                    )
                    return await importing.run()

    try:
        report = asyncio.run(run())
    finally:
        odd.close()
    if as_json:
        print_json(report)
    else:
        _print_report(report, odd)


def _print_report(report: SlackReport, odd: Quarantine) -> None:
    error = console(is_error=True)
    for each in odd.first:
        error.print(f"{each.kind} {each.key}: {each.reason}", markup=False)
    if odd.counts:
        note(f"{odd.counts.total():,} odd records, all of them in {odd.path}")
    effects = report.effects
    rows: list[tuple[str, str, str]] = [
        ("messages", f"{effects.messages_added:,}", f"{effects.messages_present:,}"),
        ("users", f"{effects.users_made:,}", f"{effects.users_present:,}"),
        ("rooms", f"{effects.rooms_made:,}", f"{effects.rooms_present:,}"),
        ("edits", f"{effects.messages_edited:,}", ""),
        ("deletions", f"{effects.messages_deleted:,}", ""),
        ("reactions changed", f"{effects.reactions_changed:,}", ""),
        ("members who joined later", f"{effects.members_joined:,}", ""),
        ("users deactivated", f"{report.users_deactivated:,}", ""),
    ]
    title = f"{report.records:,} records of {report.conversations:,} conversations"
    print_table(title, ("imported", "added", "there already"), rows, right="added,there already")
    left_out = [(what, f"{count:,}") for what, count in report.skipped.items()]
    left_out += [(f"odd {reason}", f"{count:,}") for reason, count in report.odd.items()]
    if left_out:
        print_table("", ("not imported, or not as it was", "records"), left_out, right="records")
