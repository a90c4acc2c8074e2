"""What `tidings migrate` shows: a plan, and how far a move is, once or while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from tidings import wire
from tidings.cli.output import note, print_table

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress

    from tidings.migrate.plans import Plan
    from tidings.storage.prices import Prices

LINE_EVERY_S = 10.0
"""How often figures are told where nobody looks at a terminal."""

_STAGES = {
    "preparing": "every process of the service is told of the move",
    "copying": "what is there is copied, and what changes meanwhile is noted",
    "following": "everything was copied, and changes are carried over as they come",
    "sealed": "writes wait for a moment",
    "switched": "the other store decides, and its first writes wait for a moment",
    "settled": "the service works on the target, and changes are carried back to the source",
    "finished": "the move is over, and the source is no longer in use",
    "rolled_back": "the move was given up, and the service works on the source",
}
_NEXT = {
    "following": "compare both stores with `tidings migrate verify`, then `tidings migrate switch`",
    "settled": "`tidings migrate finish` once you are sure, or back by `tidings migrate rollback`",
}


def print_plan(plan: Plan, prices: Prices, *, is_charged: bool) -> None:
    """The sizes as a table on standard output, the rest as notes."""
    rows = [
        (
            size.table,
            f"{'about ' if size.is_estimate else ''}{size.items:,}",
            size_text(size.bytes),
            f"{size.write_units:,.0f}",
            f"{size.write_units_doubled:,.0f}",
        )
        for size in plan.tables
        if size.items
    ]
    together = (
        "together",
        f"{plan.items:,}",
        size_text(plan.bytes),
        f"{plan.write_units:,.0f}",
        f"{plan.write_units_doubled:,.0f}",
    )
    columns = ("table", "items", "size", "write units", "writes doubled")
    print_table("", columns, [*rows, together], right=",".join(columns[1:]))
    note(f"from {plan.source}")
    note(f"to   {plan.target}")
    if plan.read_units:
        note(f"reading takes {plan.read_units:,.0f} read units of the source")
    if is_charged:
        least = prices.of_units(plan.read_units, plan.write_units)
        most = prices.of_units(plan.read_units, plan.write_units_doubled)
        note(
            f"the copies cost {least:,.2f} to {most:,.2f} {prices.currency} on demand, and what is"
            f" written meanwhile is written twice ({prices.region}, prices as of {prices.as_of})"
        )
    if plan.time_s is not None:
        note(f"at {plan.budget:,g} units a second copying takes about {time_text(plan.time_s)}")
    for address in plan.nodes:
        note(f"a service may be running at {address}: it must reach both stores")
    for hindrance in plan.hindrances:
        note(f"in the way: {hindrance}")
    if plan.is_possible:
        note("nothing is in the way")


def print_status(report: wire.Migration) -> None:
    """How far a move is: a table of facts, one of workers, and what may be done next."""
    facts = [
        ("from", report.source),
        ("to", report.target),
        ("stage", f"{report.stage}: {_STAGES[report.stage]}"),
        ("decides", f"the {report.decides}"),
        ("wanted", report.wanted),
        ("copied", _copied(report)),
        ("spent", _spent(report)),
        ("rate", _rate(report)),
        ("copied until about", _ends(report)),
        ("changes that wait", f"{report.lag:,}"),
        ("compared", _compared(report)),
        ("shadow reads", _shadow(report)),
    ]
    print_table("", ("move", report.id), [(name, text) for name, text in facts if text])
    if report.workers:
        rows = [
            (
                worker.id,
                worker.doing if worker.is_alive else "silent",
                f"{worker.units_per_s:,.0f}",
                _second(worker.heard_at),
            )
            for worker in report.workers
        ]
        print_table("", ("worker", "doing", "units/s", "heard at"), rows, right="units/s")
        for worker in report.workers:
            if worker.trouble:
                note(f"trouble of {worker.id}: {worker.trouble}")
    if report.stage not in ("finished", "rolled_back") and not _living(report):
        note("nobody works at it: go on with `tidings migrate work`")
    elif hint := _NEXT.get(report.stage):
        note(f"next: {hint}")


def _living(report: wire.Migration) -> list[wire.MigrationWorker]:
    return [worker for worker in report.workers if worker.is_alive]


def _copied(report: wire.Migration) -> str:
    return f"{report.share:.0%}: {report.items:,} of about {report.items_total:,} items"


def _spent(report: wire.Migration) -> str:
    text = f"{size_text(report.bytes)}, {report.units:,.0f} write units"
    return f"{text}, {report.price:,.2f} {report.currency}" if report.price else text


def _rate(report: wire.Migration) -> str:
    if not report.units_per_s:
        return ""
    text = f"{report.items_per_s:,.0f} items/s, {report.units_per_s:,.0f} units/s"
    return text if report.budget is None else f"{text} of {report.budget:,g}"


def _ends(report: wire.Migration) -> str:
    return "" if report.ends_at is None else _second(report.ends_at)


def _second(moment: str) -> str:
    return f"{moment[:19].replace('T', ' ')} UTC"


def _compared(report: wire.Migration) -> str:
    check = report.check
    if check is None:
        return "not yet" if report.stage == "following" else ""
    text = f"{check.items:,} items, {check.mended:,} mended, {check.left:,} differ"
    return f"{text}, at {_second(check.checked_at)}"


def _shadow(report: wire.Migration) -> str:
    shadow = report.shadow
    if shadow is None:
        return ""
    return f"{shadow.share:.1%} of all: {shadow.reads:,} compared, {shadow.differences:,} differed"


def line(report: wire.Migration) -> str:
    """How far it is in one line."""
    troubles = [worker.trouble for worker in _living(report) if worker.trouble]
    if troubles:
        return f"{report.stage}: waiting: {troubles[0]}"
    if report.stage == "copying":
        parts = [_copied(report), _rate(report), _spent(report)]
        if report.ends_at is not None:
            parts.append(f"until about {_ends(report)}")
        return f"copying {', '.join(part for part in parts if part)}"
    if report.stage in ("following", "settled") and report.lag:
        return f"{report.stage}: {_STAGES[report.stage]}; {report.lag:,} wait"
    return f"{report.stage}: {_STAGES[report.stage]}"


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, report: wire.Migration) -> None:
        """Show how far it is now."""
        ...


class Lines:
    """Progress where nobody looks at a terminal: a line when something changes, and now and then
    while figures grow."""

    def __init__(self) -> None:
        self._told = ""
        self._told_at_s = 0.0

    def show(self, report: wire.Migration) -> None:
        """See `Screen.show`."""
        text, now_s = line(report), time.monotonic()
        kind = report.stage + text.partition("waiting: ")[2]
        if kind != self._told or (
            report.stage == "copying" and now_s - self._told_at_s >= LINE_EVERY_S
        ):
            note(text)
            self._told, self._told_at_s = kind, now_s


@contextmanager
def open_screen() -> Iterator[Screen]:
    """A bar with its figures below it on a terminal, lines elsewhere; on standard error."""
    from rich.console import Console
    from rich.live import Live
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    error = Console(stderr=True, highlight=False)
    if not error.is_terminal:
        yield Lines()
        return
    progress = Progress(SpinnerColumn(), TextColumn("[bold]{task.description}"), BarColumn())
    with Live(progress, console=error) as live:
        yield _Bar(progress, live)


class _Bar:
    def __init__(self, progress: Progress, live: Live) -> None:
        self._progress = progress
        self._live = live
        self._task = progress.add_task("starting", total=1.0)

    def show(self, report: wire.Migration) -> None:
        """See `Screen.show`."""
        from rich.console import Group
        from rich.text import Text

        stage, _, text = line(report).partition(" ")
        self._progress.update(self._task, completed=report.share, description=stage.rstrip(":"))
        self._live.update(Group(self._progress, Text(text)))


def size_text(size_bytes: float) -> str:
    """A size for a person to read."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1_000:
            return f"{size_bytes:,.0f} {unit}" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1_000
    return f"{size_bytes:,.1f} TB"


def time_text(time_s: float) -> str:
    """A time span for a person to read."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
