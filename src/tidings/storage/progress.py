"""How far a move between stores is: what its books in both stores say, as the API tells it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from tidings import wire
from tidings.clock import Clock, rfc3339
from tidings.errors import Unavailable
from tidings.storage.interface import Item, Position, Store
from tidings.storage.moves import GONE, Move, Pair, processes
from tidings.storage.prices import latest_prices
from tidings.storage.shadows import SHADOW_SHARE
from tidings.storage.tables import MOVES

LANES = "lanes"
"""The partition of the rows of those who copy."""
WORKERS = "workers"
"""The partition of the rows of those who work at a move."""
LEAD = ("lead", "lead")
"""The key of the row that names the one who leads."""
WORKERS_MAX = 100
"""Workers that are looked at."""
LANES_MAX = 10_000
"""Lanes that are added up."""
HEARD_S = 6.0
"""A worker that was heard of within that is called alive; for people to read, nothing more."""


class Work(msgspec.Struct):
    """What one worker does, as its row tells others."""

    doing: str = "waiting"
    trouble: str = ""
    """Why nothing goes on just now; empty while it does."""
    items_per_s: float = 0.0
    units_per_s: float = 0.0
    lag: int | None = None
    """Changed items that wait to be copied, as a leader last saw it; None of who leads no more."""

    def data(self, heard_at: int) -> dict[str, Any]:
        """As it is stored, with the time of the worker's own clock, for people to read."""
        return {**msgspec.structs.asdict(self), "heard_at": heard_at}


def copy_name(move_id: str) -> str:
    """The name of the lanes of a move's first copy, in the store that is copied to."""
    return f"{move_id}#copy"


async def read_progress(move: Move, pair: Pair, clock: Clock) -> wire.Migration:
    """What the books of both stores say about a move. Raises Unavailable where the store that
    decides does not answer; what only the other one knows is left out where that one does not.

    The counts are those of the first copy.
    """
    workers = await pair.at(move.decides).query(MOVES, WORKERS, limit=WORKERS_MAX)
    lanes: list[Item] = []
    with suppress(Unavailable):
        lanes = await _lanes(pair.target, copy_name(move.id))
    shadow = await _shadow(move, pair.at(move.decides))
    return _report(move, workers.items, lanes, shadow, clock())


async def _shadow(move: Move, store: Store) -> wire.MigrationShadow | None:
    share = move.data.get(SHADOW_SHARE)
    if share is None:
        return None
    told = [move.data.get(GONE, {}), *[process.data for process in await processes(store)]]
    return wire.MigrationShadow(
        share=share,
        reads=sum(data.get("reads", 0) for data in told),
        differences=sum(data.get("differences", 0) for data in told),
    )


async def _lanes(store: Store, name: str) -> list[Item]:
    lanes: list[Item] = []
    after: Position | None = None
    while len(lanes) < LANES_MAX:
        page = await store.query(MOVES, LANES, prefix=f"{name}#", after=after)
        lanes += page.items
        after = page.after
        if after is None:
            break
    return lanes


def _report(
    move: Move,
    workers: Sequence[Item],
    lanes: Sequence[Item],
    shadow: wire.MigrationShadow | None,
    now: int,
) -> wire.Migration:
    heard = [_worker(row, now) for row in workers]
    living = [worker for worker in heard if worker.is_alive]
    counts = [lane.get("data", {}) for lane in lanes]
    items = sum(count.get("items", 0) for count in counts)
    units = sum(count.get("units", 0.0) for count in counts)
    total = max(move.data.get("items", 0), 0)
    is_copied = move.stage not in ("preparing", "copying")
    share = 1.0 if is_copied else min(items / total, 0.999) if total else 0.0
    rate = sum(worker.items_per_s for worker in living)
    is_under_way = move.stage == "copying" and rate > 0
    left_ms = 1_000 * max(total - items, 0) / rate if is_under_way else 0.0
    prices = latest_prices()
    is_charged = move.target.startswith("dynamodb:")
    return wire.Migration(
        id=move.id,
        source=move.source,
        target=move.target,
        stage=move.stage,
        decides=move.decides,
        wanted=move.wanted or "",
        started_at=rfc3339(move.data.get("started_at", 0)),
        items_total=total,
        items=items,
        share=share,
        bytes=sum(count.get("bytes", 0) for count in counts),
        units=units,
        price=prices.of_units(0, units) if is_charged else 0.0,
        currency=prices.currency,
        items_per_s=rate,
        units_per_s=sum(worker.units_per_s for worker in living),
        budget=move.data.get("budget"),
        ends_at=rfc3339(now + round(left_ms)) if is_under_way else None,
        lag=_lag(workers, heard),
        check=_check(move),
        shadow=shadow,
        workers=heard,
    )


def _lag(workers: Sequence[Item], heard: Sequence[wire.MigrationWorker]) -> int:
    """What a leader sees; what one saw who is silent now, where nobody else does."""
    told = [
        (worker.is_alive, row["data"].get("lag"))
        for row, worker in zip(workers, heard, strict=True)
    ]
    known = [(is_alive, lag) for is_alive, lag in told if lag is not None]
    return max(known, default=(False, 0))[1]


def _worker(row: Item, now: int) -> wire.MigrationWorker:
    data = row["data"]
    return wire.MigrationWorker(
        id=row["item"],
        doing=data["doing"],
        trouble=data["trouble"],
        items_per_s=data["items_per_s"],
        units_per_s=data["units_per_s"],
        heard_at=rfc3339(data["heard_at"]),
        is_alive=abs(now - data["heard_at"]) < HEARD_S * 1_000,
    )


def _check(move: Move) -> wire.MigrationCheck | None:
    check = move.data.get("check")
    if check is None:
        return None
    return wire.MigrationCheck(
        checked_at=rfc3339(check["at"]),
        items=check["items"],
        mended=check["mended"],
        left=check["left"],
        sample=check["sample"],
    )
