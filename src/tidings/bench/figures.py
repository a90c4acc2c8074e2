"""Figures as values: what was measured, against which floor and target, and how it is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

DOCUMENT_TITLE = "# Benchmarks\n"
_INTRODUCTION = (
    "What `make bench` measured, newest last; each run is appended by the command itself. A floor "
    "is what the machine or the parts below can do at best, measured in the same run.\n"
)


class Figure(msgspec.Struct, frozen=True):
    """One row of the speed table."""

    what: str
    values: tuple[float, ...]
    """One per run; the median counts."""
    unit: str
    target: float
    target_text: str
    is_most: bool
    """The target is the most that is allowed; otherwise the least."""
    floor: str = ""
    notes: str = ""

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return statistics.median(self.values)

    @property
    def is_passed(self) -> bool:
        """Whether the target is met."""
        return self.median <= self.target if self.is_most else self.median >= self.target

    @property
    def share(self) -> float:
        """Measured ÷ target."""
        return self.median / self.target if self.target else 0.0

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """What a table shows."""
        shown = number(self.median, self.unit)
        if len(self.values) > 1:
            low, high = min(self.values), max(self.values)
            shown += f" ({number(low)} to {number(high, self.unit)})"
        verdict = "pass" if self.is_passed else "short"
        return self.what, shown, self.target_text, f"{self.share:.2f}", self.floor, verdict


def number(value: float, unit: str = "") -> str:
    """A number with as many digits as mean something."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    text = f"{value:,.{digits}f}"
    return f"{text} {unit}".rstrip()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


_COLUMNS = ("what", "measured", "target", "÷ target", "floor", "")


def show(console: Console, figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for figure in figures:
        *cells, verdict = figure.cells()
        style = "green" if figure.is_passed else "bold red"
        table.add_row(*cells, f"[{style}]{verdict}[/]")
    console.print(table)
    for figure in figures:
        if figure.notes:
            console.print(f"[dim]{figure.what}: {figure.notes}[/]")


def as_markdown(figures: Sequence[Figure], *, heading: str, machine: str, remarks: str) -> str:
    """A section of the document."""
    lines = [f"## {heading}", "", machine, ""]
    if remarks:
        lines += [remarks, ""]
    lines += [
        f"| {' | '.join(_COLUMNS)} |",
        f"|{' --- |' * len(_COLUMNS)}",
        *(f"| {' | '.join(figure.cells())} |" for figure in figures),
        "",
        *(f"- {figure.what}: {figure.notes}" for figure in figures if figure.notes),
        "",
    ]
    return "\n".join(lines)


def append(path: Path, section: str) -> None:
    """Add a section to the document, which is made if it is not there."""
    text = path.read_text() if path.exists() else f"{DOCUMENT_TITLE}\n{_INTRODUCTION}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text.rstrip()}\n\n{section}")


Say = Callable[[str], None]
"""Tells the person who waits what is going on."""
