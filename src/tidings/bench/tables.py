"""The whole table: every chosen row in turn, printed and written down."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tidings.bench import figures
from tidings.bench.doors import Options, Stores
from tidings.bench.machines import describe
from tidings.bench.measures import measure
from tidings.bench.services import LOAD_CORE, SERVICE_CORE
from tidings.bench.sockets import Broken


async def table(
    options: Options, names: Sequence[str], console: Console, document: Path | None
) -> bool:
    """Measure the rows, print them, append them to the document; whether all targets are met.

    A row that broke is told and counts as missed; the others are measured all the same.
    """
    found: list[figures.Figure] = []
    broken: list[str] = []
    with console.status("starting") as status:

        def say(text: str) -> None:
            if "\n" in text:
                console.print(text, markup=False, highlight=False)
            else:
                status.update(text)

        stores = Stores(options, say)
        for name in names:
            try:
                found += await measure(name, options, say, stores)
            except (Broken, RuntimeError, TimeoutError) as error:
                broken.append(f"{name}: {type(error).__name__} {error}")
                console.print(f"[bold red]{name} broke[/]: {error}", highlight=False)
    machine = describe(options.folder)
    figures.show(console, found)
    console.print(f"[dim]{machine}[/]")
    if document is not None and found:
        pinned = (
            f"Service on core {SERVICE_CORE}, load generator on core {LOAD_CORE}."
            if options.is_pinned
            else "Nothing was pinned to a core."
        )
        remarks = [
            pinned,
            f"{options.runs} runs of {options.seconds:g} s; medians, and the range of the runs.",
            *(["A profiler looked on, which slows the service."] if options.is_profiling else []),
            *(f"Broke: {text}." for text in broken),
        ]
        section = figures.as_markdown(
            found,
            heading=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=machine,
            remarks=" ".join(remarks),
        )
        figures.append(document, section)
    return not broken and all(figure.is_passed for figure in found)
