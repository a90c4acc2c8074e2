"""`tidings migrate`: moving a running service from one store to another, and back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidings import wire
from tidings.cli.garbage import looking_rarely
from tidings.cli.migrations import open_screen, print_plan, print_status
from tidings.cli.output import note, print_json
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl
from tidings.config import DynamoAddress, Settings, StoreAddress

if TYPE_CHECKING:
    from tidings.migrate.mover import Want
    from tidings.storage.moves import Move

Target = Annotated[str, typer.Option("--to", metavar="URL", help="The store to move to.")]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="UNITS",
        min=1,
        help="Write units a second that all workers together may use.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    migrate = typer.Typer(
        help="Move a running service to another store, and back.", no_args_is_help=True
    )
    for command in (plan, start, work, status, verify, shadow, switch, finish, rollback):
        migrate.command(command.__name__)(command)
    app.add_typer(migrate, name="migrate")


def plan(
    to: Target, store: StoreUrl = STORE_DEFAULT, budget: Budget = None, as_json: AsJson = False
) -> None:
    """Say what a move would take, and what stands in its way; nothing is written.

    Exit code 1 where something does.
    """
    from tidings.migrate.plans import make_plan
    from tidings.storage.prices import latest_prices

    source, target = _address(store), _address(to)
    made = asyncio.run(make_plan(source, target, budget=budget))
    if as_json:
        print_json(made)
    else:
        print_plan(made, latest_prices(), is_charged=isinstance(target, DynamoAddress))
    if not made.is_possible:
        raise typer.Exit(1)


def start(to: Target, store: StoreUrl = STORE_DEFAULT, budget: Budget = None) -> None:
    """Begin a move: copy everything, and carry over what changes until the move has ended.

    The service goes on as before. Breaking this off does no harm: `tidings migrate work` goes on.
    """
    from tidings.migrate import commands

    source, target = _address(store), _address(to)
    move = _run(lambda show: commands.start(source, target, show, budget=budget))
    note(_ending(move))


def work(store: StoreUrl = STORE_DEFAULT, budget: Budget = None) -> None:
    """Work at the move that was begun, until it has ended; beside others, or where they stopped.

    A budget given here holds for all workers from now on.
    """
    from tidings.migrate import commands

    move = _run(lambda show: commands.work(_address(store), show, budget=budget))
    note(_ending(move))


def status(store: StoreUrl = STORE_DEFAULT, as_json: AsJson = False) -> None:
    """Tell how far the move is, from any machine that reaches its stores."""
    from tidings.migrate import commands

    report = asyncio.run(commands.look(_address(store)))
    if as_json:
        print_json(report)
    else:
        print_status(report)


def verify(store: StoreUrl = STORE_DEFAULT) -> None:
    """Compare every item of both stores, and copy again what differs.

    Waits until everything was copied. Exit code 1 where something differs still.
    """
    check = _ask(store, "checked").data["check"]
    for difference in check["sample"]:
        note(difference)
    note(f"{check['items']:,} items compared, {check['mended']:,} mended, {check['left']:,} differ")
    if check["left"]:
        raise typer.Exit(1)


def shadow(
    share: Annotated[
        float, typer.Argument(metavar="SHARE", min=0, max=1, help="0.05: each twentieth; 0: none.")
    ],
    store: StoreUrl = STORE_DEFAULT,
) -> None:
    """Have a share of the service's reads answered by both stores, and compared.

    Answers come from the store that decides, as before. `status` tells what was found.
    """
    from tidings.migrate import commands

    print_status(asyncio.run(commands.shadow(_address(store), share)))


def switch(store: StoreUrl = STORE_DEFAULT) -> None:
    """Let the target decide: from then on the service works there.

    Waits until everything was copied, and compares both stores unless that was done. Writes wait
    for a moment, reads don't. Changes are carried back until `finish`, so that going back loses
    nothing.
    """
    move = _ask(store, "switched")
    note(f"switched to {move.target}; writes waited for up to {move.data['held_s']:g} s")
    note(f"services that start from now on may use --store {move.target}")
    note("next: `tidings migrate finish` once you are sure, or `tidings migrate rollback`")


def finish(store: StoreUrl = STORE_DEFAULT) -> None:
    """End the move: the source is no longer kept up to date, and refused from now on."""
    note(_ending(_ask(store, "finished")))


def rollback(store: StoreUrl = STORE_DEFAULT) -> None:
    """Give the move up, at any stage before `finish`: the service works on the source again."""
    note(_ending(_ask(store, "rolled_back")))


def _ask(store: str, want: Want) -> Move:
    from tidings.migrate import commands

    return _run(lambda show: commands.ask(_address(store), want, show))


def _run(command: Callable[[Callable[[wire.Migration], None]], Coroutine[Any, Any, Move]]) -> Move:
    from tidings import logs

    logs.configure("off", sys.stderr)  # the screen tells what waits for what
    with open_screen() as screen, looking_rarely():
        return asyncio.run(command(screen.show))


def _address(url: str) -> StoreAddress:
    return Settings(store=url).store_address


def _ending(move: Move) -> str:
    if move.stage == "finished":
        return f"finished: use --store {move.target} from now on"
    return f"rolled back: the service works on {move.source}"
