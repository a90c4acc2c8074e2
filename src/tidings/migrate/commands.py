"""What an operator asks of a move: each asks in the record, and works until it is done.

Whoever leads does it; where nobody works at the move, the one who asked does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from tidings import wire
from tidings.clock import Clock, system_clock
from tidings.config import StoreAddress
from tidings.errors import Conflict, TidingsError
from tidings.ids import IdMaker
from tidings.migrate.mover import Mover, Want, is_ended
from tidings.migrate.plans import Plan, make_plan
from tidings.migrate.sides import Sides, open_move, open_sides
from tidings.storage import moves
from tidings.storage.moves import Move
from tidings.storage.pacing import Pace
from tidings.storage.progress import read_progress
from tidings.storage.shadows import SHADOW_SHARE

SHOWN_EVERY_S = 0.5

Show = Callable[[wire.Migration], None]

_STAGES: Mapping[Want, tuple[str, ...]] = {
    "checked": ("preparing", "copying", "following", "settled"),
    "switched": ("preparing", "copying", "following", "sealed"),
    "finished": ("settled",),
    "rolled_back": ("preparing", "copying", "following", "sealed", "switched", "settled"),
}
"""Where a move may be when that is asked for."""


async def start(
    source: StoreAddress,
    target: StoreAddress,
    show: Show,
    *,
    budget: float | None,
    clock: Clock = system_clock,
) -> Move:
    """Begin a move and work at it until it has ended or the task is cancelled.

    Raises Conflict where something stands in the way.
    """
    plan = await make_plan(source, target, budget=budget)
    if not plan.is_possible:
        raise Conflict(" ".join(plan.hindrances))
    pace = Pace(budget)
    async with open_sides(source, target, on_retry=pace.hear, makes_target=True) as sides:
        move = await moves.announce(
            sides.pair,
            move_id=IdMaker(clock).new("move"),
            source=source.url,
            target=target.url,
            data=_begun(plan, clock),
        )
        return await _work(sides, move, pace, show, clock, is_ended)


def _begun(plan: Plan, clock: Clock) -> dict[str, Any]:
    begun = {"items": plan.items, "started_at": clock(), "budget": plan.budget}
    return {name: value for name, value in begun.items() if value is not None}


async def work(
    store: StoreAddress, show: Show, *, budget: float | None = None, clock: Clock = system_clock
) -> Move:
    """Work at the move that is under way, until it has ended or the task is cancelled."""
    pace = Pace(budget)
    async with open_move(store, on_retry=pace.hear) as (sides, move):
        if budget is not None:
            move = await moves.amend(sides.pair, move, data={"budget": budget})
        return await _work(sides, move, pace, show, clock, is_ended)


async def ask(store: StoreAddress, want: Want, show: Show, *, clock: Clock = system_clock) -> Move:
    """Ask for something, and return the record once it is done.

    Raises Conflict where that can't be asked for now, or was not possible: it says why.
    """
    pace = Pace(None)
    needs_both = want in ("checked", "switched")
    async with open_move(store, on_retry=pace.hear, needs_both=needs_both) as (sides, move):
        if move.stage not in _STAGES[want]:
            raise Conflict(f"The move from {move.source} to {move.target} is {move.stage}.")
        asked: dict[str, Any] = {"refused": None}
        check = move.data.get("check")
        if want == "checked" or (check is not None and check["left"]):
            asked["asked"] = secrets.token_hex(8)
        move = await moves.amend(sides.pair, move, wanted=want, data=asked)

        def is_done(now: Move) -> bool:
            if want in ("finished", "rolled_back") and now.wanted == want:
                return is_ended(now)
            return now.wanted != want

        done = await _work(sides, move, pace, show, clock, is_done)
        if refused := done.data.get("refused"):
            raise Conflict(refused)
        if not _is_reached(done, want):
            raise Conflict("Something else was asked for meanwhile, or done: ask again.")
        return done


def _is_reached(move: Move, want: Want) -> bool:
    match want:
        case "checked":
            check = move.data.get("check")
            return check is not None and check["asked"] == move.data.get("asked")
        case "switched":
            return move.decides == "target"
        case _:
            return move.stage == want


async def shadow(
    store: StoreAddress, share: float, *, clock: Clock = system_clock
) -> wire.Migration:
    """Have that share of the service's reads, from 0 to 1, compared in both stores; 0: none.

    Holds while changes are carried over, in whichever direction. Raises NotFound where there is no
    move; Conflict where it is over.
    """
    async with open_move(store, needs_both=False) as (sides, move):
        if move.is_over:
            raise Conflict(f"The move from {move.source} to {move.target} is {move.stage}.")
        move = await moves.amend(sides.pair, move, data={SHADOW_SHARE: share or None})
        return await read_progress(move, sides.pair, clock)


async def look(store: StoreAddress, *, clock: Clock = system_clock) -> wire.Migration:
    """How far the move is that the store has to do with. Raises NotFound where there is none."""
    async with open_move(store, needs_both=False) as (sides, move):
        return await read_progress(move, sides.pair, clock)


async def _work(
    sides: Sides,
    move: Move,
    pace: Pace,
    show: Show,
    clock: Clock,
    is_done: Callable[[Move], bool],
) -> Move:
    """Work, and show how far it is meanwhile and in the end."""

    async def look_on() -> None:
        while True:
            await _show(sides, show, clock)
            await asyncio.sleep(SHOWN_EVERY_S)

    looking = asyncio.ensure_future(look_on())
    try:
        return await Mover(sides, move, pace, clock=clock).work(is_done)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await _show(sides, show, clock)


async def _show(sides: Sides, show: Show, clock: Clock) -> None:
    """Show what can be read; a store that is away is a trouble of the workers, and told as such."""
    try:
        move = await moves.read(sides.pair)
        if move is not None:
            show(await read_progress(move, sides.pair, clock))
    except TidingsError:
        return
