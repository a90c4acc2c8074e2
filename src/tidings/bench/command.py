"""`tidings bench`: the speed table, or the replay of a log."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

PLAIN_WIDTH = 180
"""Characters in a line where no terminal says how many there are."""
ROWS = "chat,latency,room,history,badge,store,memory,start"


def bench(
    only: Annotated[
        str, typer.Option("--only", metavar="ROWS", help=f"Some of {ROWS}.", show_default=False)
    ] = ROWS,
    runs: Annotated[int, typer.Option("--runs", min=1, max=100, help="Of each row.")] = 3,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.2, help="Of a run under load.")
    ] = 10.0,
    entries: Annotated[
        int, typer.Option("--entries", min=20_000, help="In the large store.")
    ] = 2_000_000,
    connections: Annotated[
        int, typer.Option("--connections", min=10, help="Idle ones, for the memory of each.")
    ] = 5_000,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where stores are made; their disk is what is measured."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="The document to append to; docs/benchmarks.md."),
    ] = None,
    is_recorded: Annotated[
        bool, typer.Option("--record/--no-record", help="Append the table to the document.")
    ] = True,
    is_profiling: Annotated[
        bool, typer.Option("--profile", help="Show where the service's time goes (py-spy).")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", metavar="FILE", help="Play an IRC log through the API instead."),
    ] = None,
    speed: Annotated[
        str, typer.Option("--speed", metavar="X", help="1, 100, … times as fast, or max.")
    ] = "max",
) -> None:
    """Measure the service against its targets, with floors from the same run.

    Starts services of its own, pinned to one core, on stores in a temporary folder, and loads
    them from another core. Prints a table and appends it to the document.
    """
    import uvloop
    from rich.console import Console

    from tidings.bench.doors import Options
    from tidings.bench.measures import NAMES
    from tidings.bench.services import can_pin, pin_self
    from tidings.bench.tables import table

    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in NAMES]:
        raise typer.BadParameter(f"no such row: {', '.join(unknown)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    is_pinned = can_pin()
    if is_pinned:
        pin_self()
    else:
        console.print("[yellow]There are no two cores to pin to: figures are not comparable.[/]")
    checkout = Path(__file__).resolve().parents[3]
    in_checkout = (checkout / "benchmarks" / "bare_store.py").exists()
    gc.freeze()
    gc.disable()  # the load generator makes no cycles that matter, and pauses would be measured
    with TemporaryDirectory(prefix="tidings-bench-", dir=folder) as scratch:
        options = Options(
            folder=Path(scratch),
            checkout=checkout if in_checkout else None,
            is_pinned=is_pinned,
            runs=runs,
            seconds=seconds,
            entries=entries,
            connections=connections,
            is_profiling=is_profiling,
        )
        if replay is not None:
            from tidings.bench.replays import replayed

            uvloop.run(replayed(options, replay, speed, console))
            return
        document = output
        if document is None and is_recorded:
            document = (checkout if in_checkout else Path()) / "docs" / "benchmarks.md"
        is_passed = uvloop.run(table(options, names, console, document if is_recorded else None))
    raise typer.Exit(0 if is_passed else 1)
