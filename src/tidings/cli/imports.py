"""`tidings import`: histories of other systems."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.output import console, note, print_json, print_table, progress_bar
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, WorkspaceName, open_parts
from tidings.ids import is_id

if TYPE_CHECKING:
    from tidings.importing.irc import Report

imports = typer.Typer(help="Bring in the history of another system.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(imports, name="import")


def _nicks(text: str) -> frozenset[str]:
    return frozenset(nick.strip() for nick in text.split(",") if nick.strip())


@imports.command("irc")
def import_irc(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…", help="Logs, one line each: <channel> <date> [<time>] <nick> text."
        ),
    ],
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    shape: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="support|group",
            help="group: each channel is one public room. support: each nick is a customer with "
            "a support room, and lines of --team go to the customer they speak with.",
        ),
    ] = "group",
    team: Annotated[
        str, typer.Option("--team", metavar="NICK,…", help="Who becomes a manager.")
    ] = "",
    bots: Annotated[str, typer.Option("--bots", metavar="NICK,…", help="Who is a bot.")] = "",
    room: Annotated[
        str | None, typer.Option("--room", metavar="ID", help="One group room for all channels.")
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option("--quarantine", metavar="FILE", help="Where odd lines go, as JSON lines."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import IRC logs with their own times. Importing again adds nothing.

    Odd lines are reported and left out; they never stop an import.
    """
    if shape not in ("support", "group"):
        raise typer.BadParameter("is support or group", param_hint="--as")
    if shape == "support" and not _nicks(team):
        raise typer.BadParameter("is needed with --as support", param_hint="--team")
    if room is not None and (shape == "support" or not is_id(room)):
        raise typer.BadParameter("is the id of a group room", param_hint="--room")
    for path in files:
        if not path.is_file():
            raise typer.BadParameter(f"there is no file {path}", param_hint="FILE")

    from tidings.importing.irc import IrcImport, Options
    from tidings.importing.quarantine import Quarantine

    odd = Quarantine(quarantine)

    async def run() -> Report:
        async with open_parts(store, must_exist=False) as parts:
            made = await parts.workspaces.default(workspace)
            options = Options(
                workspace=made.id,
                shape="support" if shape == "support" else "group",
                team=_nicks(team),
                bots=_nicks(bots),
                room_id=room,
            )
            importing = IrcImport(parts.users, parts.chat.rooms, parts.chat.messages, options, odd)
            with progress_bar() as show:
                return await importing.run(files, show)

    try:
        report = asyncio.run(run())
    finally:
        odd.close()
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _print_report(report: Report) -> None:
    error = console(is_error=True)
    for odd in report.odd_lines:
        error.print(f"{odd.path}:{odd.number}: {odd.reason}: {odd.excerpt}", markup=False)
    unshown = sum(report.odd.values()) - len(report.odd_lines)
    if unshown:
        note(f"and {unshown:,} more odd lines")
    rows: list[tuple[str, str, str]] = [
        ("entries", f"{report.entries_added:,}", f"{report.entries_present:,}"),
        ("users", f"{report.users_made:,}", f"{report.users_present:,}"),
        ("rooms", f"{report.rooms_made:,}", f"{report.rooms_present:,}"),
        ("members who joined later", f"{report.members_joined:,}", ""),
    ]
    print_table(
        f"{report.lines:,} lines read",
        ("imported", "added", "there already"),
        rows,
        right="added,there already",
    )
    left_out = [(f"{kind}s", f"{count:,}") for kind, count in sorted(report.skipped.items())]
    left_out += [(f"odd: {reason}", f"{count:,}") for reason, count in sorted(report.odd.items())]
    if left_out:
        print_table("", ("not imported, or not as it was", "lines"), left_out, right="lines")
