"""The record of a move: whoever dies, and whoever comes at the same time, one store decides."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest

from tests.storage.contract import room
from tests.storage.suspending import DistantStore, HeldStore, SuspendingStore
from tidings.errors import Conflict, Unavailable
from tidings.storage import moves
from tidings.storage.interface import ConditionFailed, Put, Table
from tidings.storage.moves import Move, MoveChanged, Pair, Process, Stage
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import MOVES, ROOMS

STEPS_THERE: tuple[Stage, ...] = ("copying", "following", "sealed", "switched", "settled")
STEPS_BACK: tuple[Stage, ...] = ("sealed", "switched", "rolled_back")
PROCESS = "host.1.aa"

Engines: TypeAlias = tuple[SqliteStore, SqliteStore]


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[Engines]:
    async with SqliteStore.open(tmp_path / "a.db") as a, SqliteStore.open(tmp_path / "b.db") as b:
        yield a, b


@pytest.fixture
def pair(engines: Engines) -> Pair:
    return Pair(*engines)


async def announced(pair: Pair, move_id: str = "m1") -> Move:
    return await moves.announce(
        pair, move_id=move_id, source="sqlite:////a.db", target="sqlite:////b.db", data={"x": 1.5}
    )


async def at(pair: Pair, *stages: Stage) -> Move:
    """A move that has taken these steps."""
    move = await announced(pair)
    for stage in stages:
        move = await step(pair, move, stage)
    return move


async def step(pair: Pair, move: Move, stage: Stage) -> Move:
    if stage == "sealed":
        return await moves.seal(pair, move)
    return await moves.take(pair, move, stage)


async def test_a_move_there_and_back(pair: Pair) -> None:
    move = await at(pair, *STEPS_THERE)
    assert (move.decides, move.url, move.is_open) == ("target", "sqlite:////b.db", True)
    assert move.data == {"x": 1.5}
    for stage in STEPS_BACK:
        move = await step(pair, move, stage)
    assert (move.decides, move.is_over) == ("source", True)
    assert await moves.read(pair) == move
    assert (await moves.read_row(pair.source)) == move
    told = await moves.read_row(pair.target)
    assert told is not None
    assert (told.epoch, told.stage, told.side) == (move.epoch, move.stage, "target")


@pytest.mark.parametrize(
    ("before", "stage"),
    [
        ((), "following"),
        ((), "settled"),
        (("copying",), "sealed"),
        (("copying", "following"), "switched"),
        (("copying", "following", "sealed"), "rolled_back"),
        ((*STEPS_THERE[:4],), "following"),
        (STEPS_THERE, "rolled_back"),
        ((*STEPS_THERE, "finished"), "sealed"),
        (("rolled_back",), "copying"),
    ],
)
async def test_a_stage_does_not_follow_on_any(
    pair: Pair, before: tuple[Stage, ...], stage: Stage
) -> None:
    move = await at(pair, *before)
    with pytest.raises(Conflict, match="does not become"):
        await moves.take(pair, move, stage)
    now = await moves.read(pair)
    assert now is not None
    assert (now.epoch, now.stage) == (move.epoch, move.stage)


class Died(BaseException):
    """The process is no more."""


class MortalStore(DistantStore):
    """The way to a store of a process that dies before one of its calls."""

    def __init__(self, engine: SqliteStore, life: list[int]) -> None:
        super().__init__(engine)
        self._life = life

    async def travel(self, way: Any, action: Any, table: Table | None) -> None:
        if way == "request":
            self._life[0] -= 1
            if self._life[0] < 0:
                raise Died


@pytest.mark.parametrize("calls", range(12))
@pytest.mark.parametrize("steps", range(len(STEPS_THERE) + len(STEPS_BACK)))
async def test_whoever_dies_in_a_step_leaves_a_record_that_reads_rightly(
    engines: Engines, pair: Pair, steps: int, calls: int
) -> None:
    """Either the step was taken or it was not, whichever store is asked; and it can be taken."""
    stages = (*STEPS_THERE, *STEPS_BACK)
    before = await at(pair, *stages[:steps])
    await moves.register(pair.at(before.decides), before, PROCESS, slots=2, data={})
    life = [calls]
    mortal = Pair(*(MortalStore(engine, life) for engine in engines))
    with suppress(Died):
        await step(mortal, before, stages[steps])
    now = await moves.read(pair)
    assert now is not None
    assert (now.epoch, now.stage) in {
        (before.epoch, before.stage),
        (moves.following_step(before, stages[steps]).epoch, stages[steps]),
    }
    after = await step(pair, before, stages[steps])
    assert after.stage == stages[steps]
    for engine in engines:
        row = await moves.read_row(engine)
        assert row is not None
        assert row.epoch == after.epoch


@pytest.mark.parametrize("seed", range(10))
async def test_of_two_at_once_one_is_refused(engines: Engines, pair: Pair, seed: int) -> None:
    """One takes the seal away while the other decides: and never both."""
    sealed = await at(pair, "copying", "following", "sealed")
    far = Pair(*(SuspendingStore(engine, seed) for engine in engines))
    also_far = Pair(*(SuspendingStore(engine, seed + 100) for engine in engines))
    outcomes = await asyncio.gather(
        moves.decide(far, sealed), moves.unseal(also_far, sealed), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, MoveChanged)]
    taken = [outcome for outcome in outcomes if isinstance(outcome, Move)]
    assert (len(refused), len(taken)) == (1, 1)
    now = await moves.read(pair)
    assert now is not None
    assert (now.stage, now.epoch) == (taken[0].stage, taken[0].epoch)


async def test_a_lost_answer_is_asked_for_again(engines: Engines, pair: Pair) -> None:
    move = await at(pair, "copying")
    held = HeldStore(engines[0])
    far = Pair(held, pair.target)
    with held.failing("answer", "write", MOVES), pytest.raises(Unavailable):
        await moves.take(far, move, "following")
    assert (await moves.take(far, move, "following")).stage == "following"


async def test_a_seal_stops_whatever_is_under_way(engines: Engines, pair: Pair) -> None:
    """A write set that was begun before the seal and comes after it is refused; a new one too."""
    move = await at(pair, "copying", "following")
    await moves.register(pair.source, move, PROCESS, slots=2, data={})
    held = HeldStore(engines[0])
    write = Put(ROOMS, room())
    await held.write(write, moves.guard(PROCESS, 0, move.epoch))
    with held.holding("request", "write") as late:
        writing = asyncio.create_task(held.write(write, moves.guard(PROCESS, 1, move.epoch)))
        await late.is_there.wait()
        sealed = await moves.seal(pair, move)
    with pytest.raises(ConditionFailed):
        await writing
    with pytest.raises(ConditionFailed):
        await held.write(write, moves.guard(PROCESS, 0, move.epoch))
    with pytest.raises(MoveChanged):  # nobody guards by the record as it was
        await moves.register(pair.source, move, PROCESS, slots=2, data={})
    await moves.register(pair.source, sealed, "another", slots=2, data={})
    with pytest.raises(ConditionFailed):
        await held.write(write, moves.guard("another", 0, sealed.epoch))
    opened = await moves.unseal(pair, sealed)
    await moves.register(pair.source, opened, PROCESS, slots=2, data={})
    await held.write(write, moves.guard(PROCESS, 1, opened.epoch))


async def test_who_has_not_confirmed_a_switch_is_known(pair: Pair) -> None:
    move = await at(pair, "copying", "following")
    for process in ("a", "b"):
        await moves.register(pair.source, move, process, slots=1, data={"reads": 3})
    assert await moves.unconfirmed(pair, move) == []
    switched = await moves.decide(pair, await moves.seal(pair, move))
    assert await moves.unconfirmed(pair, switched) == ["a", "b"]
    await moves.register(pair.target, switched, "b", slots=1, data={})
    assert await moves.unconfirmed(pair, switched) == ["a"]
    await moves.beat(pair.target, "b", {"reads": 7})
    await moves.beat(pair.target, "a", {})
    (found,) = await moves.processes(pair.target)
    assert (found.id, found.beat, found.data) == ("b", 1, {"reads": 7})
    await moves.forget(pair.source, "a", 1, {})
    assert await moves.unconfirmed(pair, switched) == []


async def test_what_processes_counted_outlives_them(pair: Pair) -> None:
    move = await at(pair, "copying", "following")
    for name, reads in (("ended", 3), ("dead", 4), ("lives", 5)):
        await moves.register(pair.source, move, name, slots=2, data={})
        await moves.beat(pair.source, name, {"reads": reads, "differences": 1})
    dead, _, _ = await moves.processes(pair.source)
    lives = Process("lives", dead.epoch, dead.beat - 1, dead.slots, dead.data)
    await asyncio.gather(
        moves.forget_dead(pair.source, dead),
        moves.forget_dead(pair.source, lives),
        moves.forget(pair.source, "ended", 2, {"reads": 6, "differences": 1}),
    )
    await moves.forget_dead(pair.source, dead)
    assert [process.id for process in await moves.processes(pair.source)] == ["lives"]
    counted = (await moves.take(pair, await moves.seal(pair, move), "switched")).data[moves.GONE]
    assert counted == {"reads": 10, "differences": 2}


async def test_amendments_stay_and_are_not_lost(engines: Engines, pair: Pair) -> None:
    move = await announced(pair)
    chance = random.Random(5)
    amending = [
        moves.amend(
            Pair(*(SuspendingStore(engine, chance.randrange(99)) for engine in engines)),
            move,
            data={f"n{number}": number},
        )
        for number in range(4)
    ]
    await asyncio.gather(*amending)
    copying = await moves.take(pair, move, "copying")
    assert copying.data == {"x": 1.5, "n0": 0, "n1": 1, "n2": 2, "n3": 3}
    wished = await moves.amend(pair, copying, wanted="switch", data={"x": None})
    assert (wished.wanted, "x" in wished.data) == ("switch", False)
    assert (await moves.amend(pair, wished, wanted="")).wanted is None
    other = Move("m2", "", "", "source", 2, "preparing", "source")
    with pytest.raises(MoveChanged):
        await moves.amend(pair, other, wanted="switch")


async def test_a_move_is_announced_where_it_can_begin(pair: Pair, engines: Engines) -> None:
    move = await announced(pair)
    assert await announced(pair) == move
    with pytest.raises(Conflict, match="is preparing"):
        await announced(pair, "m2")
    await moves.take(pair, move, "rolled_back")
    again = await announced(pair, "m2")
    assert again.epoch > move.epoch
    for stage in STEPS_THERE:
        again = await step(pair, again, stage)
    await moves.take(pair, again, "finished")
    with pytest.raises(Conflict, match=r"use sqlite:////b\.db"):
        await announced(pair, "m3")
    back = await announced(Pair(engines[1], engines[0]), "m4")
    assert (back.stage, back.decides) == ("preparing", "source")


async def test_a_move_does_not_begin_over_a_store_in_use(tmp_path: Path, pair: Pair) -> None:
    await moves.take(pair, await at(pair, *STEPS_THERE), "finished")
    async with SqliteStore.open(tmp_path / "c.db") as third:
        with pytest.raises(Conflict, match="in use"):
            await announced(Pair(third, pair.target), "m2")


@pytest.mark.parametrize("seed", range(5))
async def test_one_of_two_moves_to_the_same_target_begins(
    seed: int, tmp_path: Path, engines: Engines
) -> None:
    chance = random.Random(seed)

    def slow(engine: SqliteStore) -> SuspendingStore:
        return SuspendingStore(engine, chance.randrange(99))

    target = engines[1]
    async with SqliteStore.open(tmp_path / "c.db") as third:
        sources = {"m0": engines[0], "m1": third}
        begun = await asyncio.gather(
            *[announced(Pair(slow(each), slow(target)), name) for name, each in sources.items()],
            return_exceptions=True,
        )
        (winner,) = [move for move in begun if isinstance(move, Move)]
        (refused,) = [error for error in begun if isinstance(error, Conflict)]
        assert "target" in str(refused) or "is preparing" in str(refused)
        told = await moves.read_row(target)
        assert told is not None
        assert told.id == winner.id
        loser = await moves.read_row(sources[{"m0": "m1", "m1": "m0"}[winner.id]])
        assert loser is None or loser.is_over
        with pytest.raises(Conflict):
            await moves.claim(Pair(third, target), msgspec.structs.replace(winner, id="m2"))


@pytest.mark.parametrize("is_there", [True, False])
async def test_the_store_that_does_not_decide_may_be_away(pair: Pair, is_there: bool) -> None:
    """A move is rolled back without its target, and finished without its source."""
    if is_there:
        move, alone = await at(pair, *STEPS_THERE), Pair(None, pair.target)
        stage: Stage = "finished"
    else:
        move, alone = await at(pair, "copying"), Pair(pair.source, None)
        stage = "rolled_back"
    amended = await moves.amend(alone, move, data={"why": "gone"})
    ended = await moves.take(alone, amended, stage)
    assert ended.is_over
    assert await moves.read(alone) == ended
    away: Pair = Pair(None, pair.target) if not is_there else Pair(pair.source, None)
    with pytest.raises(Unavailable):
        await moves.read(away)
