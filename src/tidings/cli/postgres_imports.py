"""`tidings import postgres`: a database of one's own moves in, once or until it has been left."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidings import logs
from tidings.cli.garbage import looking_rarely
from tidings.cli.output import note, print_json, print_table, progress_bar
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, WorkspaceName, open_parts
from tidings.clock import system_clock

if TYPE_CHECKING:
    from tidings.importing.postgres_runs import Outcome
    from tidings.storage.interface import Store


def register(imports: typer.Typer) -> None:
    """Add the command to those that import."""
    imports.command("postgres")(import_postgres)


def import_postgres(
    mapping: Annotated[
        Path, typer.Argument(metavar="MAPPING.toml", help="Which tables and columns are what.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            envvar="TIDINGS_FROM",
            help="The database: postgresql://… without its password, which PGPASSWORD or"
            " ~/.pgpass have.",
        ),
    ] = "postgresql://",
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Then bring along what changes, until Ctrl-C."),
    ] = False,
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up",
            help="Then bring along what changes until there is no more, compare, and give the"
            " slot back: to be done when the old application has stopped.",
        ),
    ] = False,
    drop_slot: Annotated[
        bool, typer.Option("--drop-slot", help="Give the slot back, and do nothing else.")
    ] = False,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=16, help="That read at one time.")
    ] = 2,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", metavar="UNITS", min=1.0, help="Write units per second for the store."
        ),
    ] = None,
    quarantine: Annotated[
        Path, typer.Option("--quarantine", metavar="FILE", help="Where odd records go.")
    ] = Path("quarantine.jsonl"),
    as_json: AsJson = False,
) -> None:
    """Import chats, participants and messages of a PostgreSQL database, with unread counts.

    Importing again adds what is new and changes what was changed. Odd records never stop an
    import: they go to the quarantine file.
    """
    if not mapping.is_file():
        raise typer.BadParameter(f"there is no file {mapping}", param_hint="MAPPING.toml")
    from tidings.importing.postgres_following import Progress
    from tidings.importing.postgres_runs import Options, move_in
    from tidings.storage.paced import PacedStore
    from tidings.storage.pacing import Pace

    def paced(engine: Store) -> Store:
        return engine if budget is None else PacedStore(engine, Pace(budget))

    def told(progress: Progress) -> None:
        if progress.is_caught_up:
            note(f"caught up after {progress.changes:,} changes")
        else:
            note(f"{progress.changes:,} changes, behind by {progress.lag}")

    async def run() -> Outcome:
        stop = asyncio.Event()
        if follow:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, stop.set)
            loop.add_signal_handler(signal.SIGTERM, stop.set)
        async with open_parts(store, must_exist=False, wrap=paced) as parts:
            made = await parts.workspaces.default(workspace)
            with progress_bar() as show, looking_rarely():
                return await move_in(
                    parts.store,
                    parts.chat.commits,
                    made.id,
                    system_clock,
                    Options(
                        source,
                        mapping,
                        quarantine,
                        connections,
                        "ending" if until_caught_up else "following" if follow else "once",
                        is_dropping=drop_slot,
                    ),
                    stop,
                    note=note,
                    told=told,
                    show=show,
                )

    writer = logs.configure("auto", sys.stderr)
    try:
        outcome = asyncio.run(run())
    finally:
        if writer is not None:
            writer.close()
    if as_json:
        print_json(outcome)
    else:
        _print(outcome, quarantine)


def _print(outcome: Outcome, quarantine: Path) -> None:
    report = outcome.report
    rows = [
        ("messages", f"{report.messages_added:,}", f"{report.messages_present:,}"),
        ("users", f"{report.users_made:,}", f"{report.users_present:,}"),
        ("rooms", f"{report.rooms_made:,}", f"{report.rooms_present:,}"),
        ("members who joined later", f"{report.members_joined:,}", ""),
        ("members who left", f"{report.members_left:,}", ""),
        ("edits", f"{report.messages_edited:,}", ""),
        ("deletions", f"{report.messages_deleted:,}", ""),
        ("read marks moved later", f"{report.reads_moved:,}", ""),
    ]
    print_table("", ("imported", "done", "there already"), rows, right="done,there already")
    if outcome.counts.compared:
        note(
            f"{outcome.counts.compared:,} unread counts compared with the source's own,"
            f" {outcome.counts.differing:,} differ"
        )
    if report.odd:
        odd = [(reason, f"{count:,}") for reason, count in sorted(report.odd.items())]
        print_table(f"In {quarantine}", ("odd records", "how many"), odd, right="how many")
