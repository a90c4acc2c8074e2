"""`tidings import redis`: conversation lists that an application keeps in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.garbage import looking_rarely
from tidings.cli.lists import PREFIX, Prefix, SourceUrl
from tidings.cli.output import console, note, print_json, print_table, progress_bar
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, WorkspaceName, open_parts
from tidings.clock import system_clock

if TYPE_CHECKING:
    from tidings.importing.redis_oddities import Oddities
    from tidings.importing.redis_report import Report

SOURCE_TIMEOUT_S = 10.0
"""For one call to Redis; calls are repeated for as long as the import has patience."""


def register(imports: typer.Typer) -> None:
    """Add the command to those of `tidings import`."""
    imports.command("redis")(import_redis)


def import_redis(
    mapping: Annotated[
        Path, typer.Argument(metavar="MAPPING.toml", help="How the lists are kept; see the docs.")
    ],
    source: SourceUrl,
    store: StoreUrl = STORE_DEFAULT,
    workspace: WorkspaceName = None,
    quarantine: Annotated[
        Path | None,
        typer.Option("--quarantine", metavar="FILE", help="Where odd records go, as JSON lines."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="UNITS", min=1, help="Write units a second at most."),
    ] = None,
    prefix: Prefix = PREFIX,
    as_json: AsJson = False,
) -> None:
    """Import conversation lists from Redis, in their order. Importing again adds what is new."""
    from tidings.conversations import Journal, MappingRefused, open_redis, read_mapping
    from tidings.importing.quarantine import Quarantine
    from tidings.importing.redis import RedisImport
    from tidings.importing.redis_oddities import Oddities
    from tidings.storage.pacing import Pace, put_units

    try:
        lists = read_mapping(mapping)
    except OSError as error:
        raise typer.BadParameter(f"{mapping}: {error.strerror}", param_hint="MAPPING") from error
    except MappingRefused as error:
        raise typer.BadParameter(str(error), param_hint="MAPPING") from error

    async def run(oddities: Oddities) -> Report:
        async with (
            open_redis(source, SOURCE_TIMEOUT_S) as redis,
            open_parts(store, must_exist=False) as parts,
        ):
            made = await parts.workspaces.default(workspace)
            importing = RedisImport(
                parts.store,
                parts.chat,
                made.id,
                lists,
                oddities,
                clock=system_clock,
                journal=Journal(redis, prefix=prefix),
                pace=None if budget is None else Pace(budget),
                price=lambda table, item: put_units(table, item, transactional=False),
            )
            with progress_bar() as show, looking_rarely():
                return await importing.run(redis, lambda what, done: show(what, done, 0))

    with closing(Quarantine(quarantine)) as records:
        oddities = Oddities(records)
        report = asyncio.run(run(oddities))
    if as_json:
        print_json(report)
    else:
        _print_report(report, oddities)


def _print_report(report: Report, oddities: Oddities) -> None:
    error = console(is_error=True)
    for one in oddities.quarantine.first:
        where, detail = (one.record.get(name, "") for name in ("where", "detail"))
        line = f"{where} {one.kind} {one.key}: {one.reason} {detail}"
        error.print(line.strip(), markup=False)
    unshown = oddities.quarantine.counts.total() - len(oddities.quarantine.first)
    if unshown:
        note(f"and {unshown:,} more odd records")
    rows = [
        ("lines of lists", f"{report.lines_added:,}", f"{report.lines_present:,}"),
        ("rooms", f"{report.rooms_made:,}", f"{report.rooms_present:,}"),
        ("messages", f"{report.messages_added:,}", ""),
        ("users", f"{report.users_made:,}", f"{report.users_present:,}"),
    ]
    title = f"{report.members:,} lines in {report.lists:,} lists"
    print_table(title, ("imported", "added", "there already"), rows, right="added,there already")
    if report.unread_in_source != report.unread_carried:
        note(f"unread: {report.unread_in_source:,} in Redis, {report.unread_carried:,} carried")
    _print_odd("left out", report.left_out)
    _print_odd("came along otherwise than it was", report.changed)


def _print_odd(title: str, counts: Counter[str]) -> None:
    if counts:
        rows = [(reason, f"{count:,}") for reason, count in sorted(counts.items())]
        print_table("", (title, "records"), rows, right="records")
