"""What commands print: results on standard output; progress and notes on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

TABLE_COLUMNS_PIPED = 160
"""Width of a table that does not go to a terminal."""


def note(text: str) -> None:
    """A line for a person, on standard error."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """The value as indented JSON on standard output."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def console(*, is_error: bool = False) -> Console:
    """A console that writes wide enough where nobody looks at it."""
    from rich.console import Console

    made = Console(stderr=is_error, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=is_error, highlight=False, width=TABLE_COLUMNS_PIPED)
    return made


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: str = ""
) -> None:
    """A table on standard output; columns named in `right` (by commas) are aligned right."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right.split(",") else "left")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    console().print(table)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, where that is a terminal: call it with (what, done, total).

    A total of 0 is one that nobody knows: the bar then counts.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    error = Console(stderr=True)
    bar: Progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
        console=error,
        transient=True,
        disable=not error.is_terminal,
    )
    with bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None, amount="")
            amount = f"{done / total:.0%}" if total else f"{done:,}"
            bar.update(tasks[what], completed=done, total=total or None, amount=amount)

        yield show
