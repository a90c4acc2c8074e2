"""A worker at a move: what it leaves behind, and what ends although something is in the way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.migrate.copies import Someone
from tidings.config import SqliteAddress
from tidings.engines import open_store
from tidings.errors import Conflict
from tidings.migrate import commands
from tidings.migrate.lanes import Lane, Stale, open_gate
from tidings.migrate.mover import AnotherMove, Mover, follow_name, is_ended
from tidings.migrate.sides import Sides
from tidings.storage import moves
from tidings.storage.interface import Equals, Put, Store, Update
from tidings.storage.moves import Move, Pair, Stage
from tidings.storage.pacing import Pace
from tidings.storage.progress import LEAD, copy_name
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import MOVES, ROOMS

TIMEOUT_S = 60.0


@pytest.fixture
async def sides(tmp_path: Path) -> AsyncIterator[Sides]:
    """Two stores; the one that a move begins at holds a room."""
    source, target = (SqliteAddress(tmp_path / name) for name in ("a.db", "b.db"))
    async with SqliteStore.open(source.path) as a, SqliteStore.open(target.path) as b:
        await a.write(Put(ROOMS, {"room": "kept"}))
        yield Sides(Pair(a, b), source, target)


def without(sides: Sides, side: str) -> Sides:
    """The same while one of the stores is away."""
    stores = [None if name == side else sides.pair.at(name) for name in ("source", "target")]
    return Sides(Pair(*stores), sides.source, sides.target)


async def begin(sides: Sides, move_id: str, *stages: Stage) -> Move:
    """A move that has taken these steps, its copy aside."""
    move = await moves.announce(
        sides.pair, move_id=move_id, source=sides.source.url, target=sides.target.url, data={}
    )
    move = await moves.amend(sides.pair, move, data={"begun": move.epoch})
    for stage in stages:
        if stage == "sealed":
            move = await moves.seal(sides.pair, move)
        else:
            move = await moves.take(sides.pair, move, stage)
    return move


async def work(sides: Sides, move: Move, is_done: Callable[[Move], bool]) -> Move:
    async with asyncio.timeout(TIMEOUT_S):
        return await Mover(sides, move, Pace(None)).work(is_done)


async def sleeper(books: Store, name: str) -> Lane:
    """Somebody who has a lane and is frozen."""
    await open_gate(books, name)
    lane = Lane(books, name, "0000", Someone().worker_id)
    assert await lane.take()
    return lane


async def test_who_slept_in_an_earlier_move_copies_nothing_into_a_later_one(sides: Sides) -> None:
    lane = await sleeper(sides.pair.target, copy_name("m1"))
    move = await begin(sides, "m2")
    await work(sides, move, lambda now: now.stage == "following")
    assert await sides.pair.target.get(ROOMS, ("kept",)) is not None
    with pytest.raises(Stale):
        await lane.write([Put(ROOMS, {"room": "old"})])
    assert await sides.pair.target.get(ROOMS, ("old",)) is None


@pytest.mark.parametrize("stage", ["copying", "following"])
async def test_nobody_copies_into_the_target_of_a_move_that_was_given_up(
    sides: Sides, stage: Stage
) -> None:
    steps: tuple[Stage, ...] = ("copying", "following") if stage == "following" else ("copying",)
    move = await begin(sides, "m1", *steps)
    name = copy_name("m1") if stage == "copying" else follow_name(move, move.epoch)
    lane = await sleeper(sides.pair.target, name)
    move = await moves.amend(sides.pair, move, wanted="rolled_back")
    assert (await work(sides, move, is_ended)).stage == "rolled_back"
    with pytest.raises(Stale):
        await lane.write([Put(ROOMS, {"room": "old"})])


async def test_a_move_is_given_up_while_its_target_is_away(sides: Sides) -> None:
    move = await begin(sides, "m1", "copying", "following")
    move = await moves.amend(sides.pair, move, wanted="rolled_back")
    done = await work(without(sides, "target"), move, is_ended)
    assert (done.stage, done.decides) == ("rolled_back", "source")


async def test_a_move_is_finished_while_its_source_is_away(sides: Sides) -> None:
    move = await begin(sides, "m1", "copying", "following", "sealed", "switched", "settled")
    move = await moves.amend(sides.pair, move, wanted="finished")
    done = await work(without(sides, "source"), move, is_ended)
    assert (done.stage, done.decides) == ("finished", "target")


async def test_a_switch_whose_leader_died_before_it_said_so_is_done(sides: Sides) -> None:
    move = await begin(sides, "m1", "copying", "following")
    await moves.amend(sides.pair, move, wanted="switched")
    for stage in ("sealed", "switched"):
        move = await moves.take(sides.pair, move, stage)
    done = await work(sides, move, lambda now: now.wanted is None)
    assert (done.stage, done.data.get("refused")) == ("settled", None)


async def test_the_dead_are_forgotten_and_the_living_are_not(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.migrate.mover.FORGOTTEN_S", 3.0)
    move = await begin(sides, "m1", "copying", "following")
    for name in ("dead", "living"):
        await moves.register(
            sides.pair.source, move, name, slots=3, data={"problem": "no way there"}
        )
    working = asyncio.create_task(work(sides, move, is_ended))
    while len(await moves.processes(sides.pair.source)) > 1:
        assert await moves.beat(sides.pair.source, "living", {})
        await asyncio.sleep(0.5)
    assert not await moves.beat(sides.pair.source, "dead", {})
    assert await sides.pair.source.get(MOVES, ("guards/dead#2", "guard")) is None
    assert await sides.pair.source.get(MOVES, ("guards/living#2", "guard")) is not None
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_what_was_asked_for_is_not_called_done_when_it_was_withdrawn(sides: Sides) -> None:
    """As by a leader that had just done what was asked for before."""
    await begin(sides, "m1", "copying", "following")
    asking = asyncio.create_task(commands.ask(sides.source, "switched", lambda _: None))
    while (move := await moves.read(sides.pair)) is None or move.wanted is None:
        await asyncio.sleep(0.05)
    await moves.amend(sides.pair, move, wanted="")
    with pytest.raises(Conflict):
        await asking


async def test_what_a_former_leader_saw_is_not_told_any_more(sides: Sides) -> None:
    """Else it would be told for as long as both live, whatever was carried over since."""
    books = sides.pair.source

    async def write() -> None:
        for number in itertools.count():
            names = [f"new{number}-{place}" for place in range(20)]
            await books.put_many(ROOMS, [{"room": name} for name in names])

    move = await begin(sides, "m1", "copying", "following")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        workers = [group.create_task(work(sides, move, is_ended)) for _ in range(2)]
        writing = group.create_task(write())
        while not (report := await commands.look(sides.source)).lag or len(report.workers) < 2:
            await asyncio.sleep(0.05)
        lead = await books.get(MOVES, LEAD)
        assert lead is not None
        (later,) = [worker.id for worker in report.workers if worker.id != lead["holder"]]
        taken = {"fence": lead["fence"] + 1, "holder": later}
        await books.write(Update(MOVES, LEAD, taken, when=(Equals("fence", lead["fence"]),)))
        while ((await books.get(MOVES, LEAD)) or {}).get("fence") == taken["fence"]:
            await asyncio.sleep(0.05)
        writing.cancel()
        while (await commands.look(sides.source)).lag:
            await asyncio.sleep(0.05)
        for worker in workers:
            worker.cancel()


async def test_a_worker_ends_whose_move_is_over_and_another_began(sides: Sides) -> None:
    move = await begin(sides, "m1")
    await moves.take(sides.pair, move, "rolled_back")
    await begin(sides, "m2")
    with pytest.raises(AnotherMove):
        await work(sides, move, is_ended)


async def test_a_share_of_the_reads_is_compared_and_told_of(sides: Sides) -> None:
    await begin(sides, "m1")
    following = asyncio.create_task(commands.work(sides.source, lambda report: None))
    try:
        async with open_store(sides.source) as store:
            await commands.shadow(sides.source, 1)
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    assert await store.get(ROOMS, ("kept",)) is not None
                    report = await commands.look(sides.source)
                    if report.shadow is not None and report.shadow.reads > 0:
                        break
                    await asyncio.sleep(0.05)
            assert (report.shadow.share, report.shadow.differences) == (1.0, 0)
            before = report.shadow.reads
        after = (await commands.look(sides.source)).shadow
        assert after is not None
        assert after.reads >= before, "it stays when the process that counted it has ended"
        assert (await commands.shadow(sides.source, 0)).shadow is None
        await commands.ask(sides.source, "rolled_back", lambda report: None)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    with pytest.raises(Conflict):
        await commands.shadow(sides.source, 0.5)
