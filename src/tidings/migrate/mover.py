"""A move from its announcement to its end, by any number of workers of whom one leads.

What a command wants stands in the record; whoever leads does it, stage by stage. Every step is one
that another worker can take over after a crash: copies are fenced, the record's epoch decides, and
what a crashed leader sealed opens by itself. A store that does not answer is waited for.

The follower never stops between the first copy and the end. With the switch it turns round, so
that going back loses nothing either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import structlog

from tidings.clock import Clock, system_clock
from tidings.cluster.nodes import Monotonic
from tidings.errors import Conflict, TidingsError, Unavailable
from tidings.migrate import lanes
from tidings.migrate.captures import Capture
from tidings.migrate.comparing import Comparison
from tidings.migrate.copying import Backfill, Follow
from tidings.migrate.crew import BEAT_S, Crew
from tidings.migrate.lanes import Stale
from tidings.migrate.notes import carry_notes
from tidings.migrate.rates import Rate
from tidings.migrate.sides import Sides
from tidings.storage import moves
from tidings.storage.moves import (
    FORGOTTEN_S,
    PREPARE_S,
    SWITCH_MAX_S,
    Move,
    MoveChanged,
    Side,
    Stage,
    other,
)
from tidings.storage.pacing import Pace
from tidings.storage.progress import Work, copy_name

LOOK_S = 0.3
"""How often the record is looked at while something else goes on."""
PAUSE_S = 2.0
"""How long after a failure the same is tried again."""
JOIN_S = 2.5
"""How long a worker waits before it spends its part of the budget: others have to see it first."""
SEAL_LAG_MAX = 500
"""Changed items that may wait when writes begin to be held back."""
DRAIN_S = 2.0
"""How long the follower may take for the rest while writes are held back."""
LET_GO_S = 1.0
"""How long a worker that was told to stop tries to let writes through again."""
CONFIRM_LOOK_S = 0.1
SEAL_PAUSE_S = 3.0
"""How long writes go on after an attempt that failed: whoever waited for it gets through."""
SEALS_MAX = 5
"""Attempts at a switch before it is given up until it is asked for again."""

REFUSAL_SAMPLE = 3
"""Differences that a refusal names."""

Want: TypeAlias = Literal["checked", "switched", "finished", "rolled_back"]

_SIDES: tuple[Side, ...] = ("source", "target")
_END_WITHOUT_COPYING: Mapping[tuple[str | None, Side], Stage] = {
    ("rolled_back", "source"): "rolled_back",
    ("finished", "target"): "finished",
}
"""What ends a move where it is, by what is wanted and which store decides."""
_log = structlog.get_logger(__name__)


class AnotherMove(Conflict):
    """The move that was worked at is over, and another one has begun."""


class Mover:
    """One worker at one move.

    `work` does whatever the move's stage and what is wanted ask for: as the leader everything, as
    any other its part of the first copy.
    """

    def __init__(
        self,
        sides: Sides,
        move: Move,
        pace: Pace,
        *,
        clock: Clock = system_clock,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        self.pace = pace
        self._sides = sides
        self._pair = sides.pair
        self._move = move
        self._clock = clock
        self._monotonic = monotonic
        self._work = Work()
        self._crew = Crew(self._pair.at(move.decides), self._work, clock=clock, monotonic=monotonic)
        self._captures: dict[Side, Capture] = {}
        self._follow: Follow | None = None
        self._follow_of = (0, 0)
        """The lead and the epoch that it was begun in."""
        self._checking: asyncio.Task[None] | None = None
        self._begun_s = monotonic()
        self._seals = 0
        self._rests_until_s = 0.0
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        """How each process of the service showed itself last, and since when."""
        self._problems: dict[str, str] = {}
        """Living processes of the service that can't reach both stores, and why."""
        self._are_all_well = False
        """Whether nobody says so, dead or alive, as was last seen."""
        self._units = Rate(monotonic)

    async def work(self, is_done: Callable[[Move], bool]) -> Move:
        """Work until the record satisfies that, and return it. Also ends well by cancellation.

        Raises AnotherMove where the record is of another one by now; what passes is waited for.
        """
        keeping = asyncio.ensure_future(self._keep())
        try:
            await self._beat()
            await self._join()
            while True:
                try:
                    move = await self._look()
                    if is_done(move):
                        return move
                    await self._step(move)
                except Stale:
                    self._follow = None
                    await asyncio.sleep(LOOK_S)
                except MoveChanged:
                    await asyncio.sleep(0)
                except AnotherMove:  # whose lead must not stay with a worker of this one
                    raise
                except TidingsError as error:
                    await self._wait_for(error)
        finally:
            await self._stop_checking()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._crew.leave()
            for capture in self._captures.values():
                await capture.close()

    # -- the worker itself

    async def _keep(self) -> None:
        """Beat from a moment after the first time on, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self._beat()
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="mover")

    async def _beat(self) -> None:
        """Show that this worker lives, and take the part of the budget that is due."""
        try:
            await self._crew.beat()
            if self._crew.is_leading:
                await self._watch_processes()
        except TidingsError as error:
            _log.warning("worker_not_heard", detail=error.detail)
        self._share_budget()

    async def _watch_processes(self) -> None:
        """Notice who can't reach both stores, and forget the dead, whom a switch would wait for."""
        books, now_s = self._crew.books, self._monotonic()
        before, self._seen = self._seen, {}
        found = await moves.processes(books)
        self._are_all_well = not any(process.data.get("problem") for process in found)
        for process in found:
            shown, seen = (process.epoch, process.beat), before.get(process.id)
            is_same = seen is not None and seen[0] == shown
            since_s = seen[1] if seen is not None and is_same else now_s
            self._seen[process.id] = (shown, since_s)
            if now_s - since_s >= FORGOTTEN_S:
                await moves.forget_dead(books, process)
            problem = process.data.get("problem")
            if problem and seen is not None and not is_same:
                self._problems[process.id] = problem
            elif not problem:
                self._problems.pop(process.id, None)
        self._problems = {
            name: self._problems[name] for name in self._problems if name in self._seen
        }

    def _share_budget(self) -> None:
        budget = self._move.data.get("budget")
        sharers = len(self._crew.living) if self._move.stage == "copying" else 1
        self.pace.units_per_s = None if budget is None else budget / sharers
        self._work.units_per_s = self._units.see(self.pace.taken)

    async def _join(self) -> None:
        """Wait until the others count this one, too, where all share the budget."""
        if self._move.stage in ("preparing", "copying") and len(self._crew.living) > 1:
            await asyncio.sleep(JOIN_S)

    async def _look(self) -> Move:
        now = await moves.read(self._pair)
        if now is None or now.id != self._move.id:
            raise AnotherMove("Another move was begun meanwhile.")
        if now.decides != self._move.decides:
            await self._crew.change_books(self._pair.at(now.decides))
        self._move = now
        return now

    async def _wait_for(self, error: TidingsError) -> None:
        if self._work.trouble != error.detail:
            _log.warning("move_waits", detail=error.detail)
        self._work.trouble = error.detail
        await asyncio.sleep(PAUSE_S)

    # -- stages

    async def _step(self, move: Move) -> None:
        """A little of what the stage asks for."""
        if move.stage == "copying":
            await self._copy(move)
        elif not self._crew.is_leading:
            self._work.doing = "waiting"
            if not self._crew.lead:  # what it saw is old, and another sees what is so now
                self._work.lag = None
            await asyncio.sleep(LOOK_S)
        else:
            self._work.doing = move.stage
            await self._lead(move)
        self._work.trouble = ""

    async def _lead(self, move: Move) -> None:
        match move.stage:
            case "preparing":
                if move.wanted == "rolled_back":
                    await moves.take(self._pair, move, "rolled_back")
                    return
                await moves.claim(self._pair, move)  # who announced it may have died before that
                # Whoever slept since an earlier move may still believe in its lanes.
                await lanes.retire_between(self._pair.target, None, move.id)
                await self._capture("source").begin()
                move = await moves.amend(self._pair, move, data={"begun": move.epoch})
                await moves.take(self._pair, move, "copying")
            case "following" | "settled":
                await self._carry_over(move)
            case "sealed":  # by a leader that is no more
                await moves.unseal(self._pair, move)
            case "switched":
                await self._open(move)
            case "finished" | "rolled_back":
                await self._clean(move)

    async def _copy(self, move: Move) -> None:
        """Do a part of the first copy, and as the leader go on once all of it is done."""
        if move.wanted == "rolled_back":
            if self._crew.is_leading:
                await moves.take(self._pair, move, "rolled_back")
            else:
                await asyncio.sleep(LOOK_S)
            return
        self._work.doing = "copying"
        backfill = Backfill(
            self._pair.source,
            self._pair.target,
            name=copy_name(move.id),
            worker=self._crew,
            pace=self.pace,
        )
        await self._fill(move, backfill)
        progress = await backfill.progress()
        if progress.lanes_done < progress.lanes:
            await asyncio.sleep(LOOK_S)
        elif self._crew.is_leading:
            await moves.take(self._pair, move, "following")
        else:
            self._work.doing = "waiting"
            await asyncio.sleep(LOOK_S)

    async def _fill(self, move: Move, backfill: Backfill) -> None:
        """Copy as long as the record stays in its stage and nobody wants to go back."""
        task = asyncio.ensure_future(backfill.run())
        items = Rate(self._monotonic)
        try:
            while not (await asyncio.wait((task,), timeout=LOOK_S))[0]:
                trouble = backfill.trouble.last
                self._work.trouble = "" if trouble is None else trouble.detail
                if self._crew.is_leading and items.is_due:
                    self._work.items_per_s = items.see((await backfill.progress()).items)
                now = await self._look()
                if now.epoch != move.epoch or now.wanted == "rolled_back":
                    return
            task.result()
        finally:
            self._work.items_per_s = 0.0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _carry_over(self, move: Move) -> None:
        """Carry changes over, and do what is wanted once it can be done."""
        if move.wanted not in ("checked", "switched"):
            await self._stop_checking()
        if end := _END_WITHOUT_COPYING.get((move.wanted, move.decides)):
            # First, since the other store may be away for good, or what changed may be lost.
            await moves.take(self._pair, move, end)
            return
        follow = await self._following(move)
        copied = await follow.step()
        lag = self._work.lag = await self._capture(move.decides).lag()
        match move.wanted:
            case "rolled_back":
                await self._switch(move, follow, lag)
            case "switched" if move.decides == "source":
                if await self._is_checked(move, follow):
                    await self._switch(move, follow, lag)
            case "checked":
                if await self._is_checked(move, follow):
                    await self._done(move)
            case "switched":  # by a leader that died before it could say so
                await self._done(move)
            case None:
                pass
            case wanted:
                await self._refuse(move, f"A move that is {move.stage} can't be {wanted}.")
        if not copied:
            await asyncio.sleep(LOOK_S)

    async def _following(self, move: Move) -> Follow:
        """The follower of the changes of the store that decides, begun anew in each stage and each
        lead. Nothing can be carried over any more in the name of an earlier stage.
        """
        if self._follow is not None and self._follow_of == (self._crew.lead, move.epoch):
            return self._follow
        await self._stop_checking()  # it waits for a follower that goes no further
        here = move.decides
        if here == "target":  # what is carried back is no change to carry forth again
            await self._capture("source").end()
        await self._capture(here).begin()
        destination = self._pair.at(other(here))
        for epoch in range(move.data["begun"], move.epoch, 2):
            await lanes.retire(destination, follow_name(move, epoch))
        follow = Follow(
            self._pair.at(here),
            destination,
            self._capture(here),
            name=follow_name(move, move.epoch),
            worker=self._crew,
            pace=self.pace,
        )
        await follow.take_over()
        self._follow, self._follow_of = follow, (self._crew.lead, move.epoch)
        return follow

    # -- what is wanted

    async def _done(self, move: Move, **data: Any) -> None:
        """What was wanted is done, or was not possible, and the record says so."""
        await moves.amend(self._pair, move, wanted="", data=data)

    async def _refuse(self, move: Move, why: str) -> None:
        _log.warning("move_refused", wanted=move.wanted, detail=why)
        await self._done(move, refused=why)

    async def _is_checked(self, move: Move, follow: Follow) -> bool:
        """Whether both stores were compared and are alike; begins with that where nobody has.

        Copying goes on meanwhile, and what differs is copied again.
        """
        if self._checking is None:
            check = move.data.get("check")
            if check is not None and check["asked"] == move.data.get("asked"):
                if check["left"]:
                    some = "; ".join(check["sample"][:REFUSAL_SAMPLE])
                    await self._refuse(
                        move, f"{check['left']:,} items differ in the two stores: {some}."
                    )
                return not check["left"]
            self._checking = asyncio.ensure_future(self._check(move, follow))
        elif self._checking.done():
            checking, self._checking = self._checking, None
            checking.result()
        self._work.doing = "comparing"
        return False

    async def _check(self, move: Move, follow: Follow) -> None:
        source, target = self._pair.at(move.decides), self._pair.at(other(move.decides))
        report = await Comparison(source, target, follow).run()
        check = {
            "asked": move.data.get("asked"),
            "at": self._clock(),
            "items": sum(table.source_items for table in report.tables),
            "mended": sum(table.mended for table in report.tables),
            "left": sum(table.unsettled for table in report.tables),
            "sample": [str(difference) for difference in report.sample],
        }
        await moves.amend(self._pair, move, data={"check": check})

    async def _stop_checking(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
            self._checking = None

    # -- the switch, to and fro

    async def _switch(self, move: Move, follow: Follow, lag: int) -> None:
        """Hold writes back, carry over what is left, and let the other store decide.

        Where that takes longer than DRAIN_S writes go on where they went, and it is tried again.
        """
        self._work.doing = "switching"
        if await self._is_hindered(move):
            return
        here = move.decides
        await self._capture(other(here)).begin(is_unread=True)
        if lag > SEAL_LAG_MAX:
            return
        self._seals += 1
        began_s = self._monotonic()
        sealed = await moves.seal(self._pair, move)
        try:
            is_drained = await follow.drain(DRAIN_S)
            if is_drained:  # and nothing that is under way may arrive later
                await lanes.retire(self._pair.at(other(here)), follow_name(move, move.epoch))
                await carry_notes(self._pair.at(here), self._pair.at(other(here)), sealed)
        except BaseException:
            await self._let_go(sealed)
            raise
        if is_drained:
            await self._open(await moves.decide(self._pair, sealed))
            held_s = round(self._monotonic() - began_s, 2)
            _log.info("move_switched", decides=other(here), held_s=held_s)
            await self._done(move, held_s=held_s, refused=None)
            return
        await self._let_go(sealed)
        self._rests_until_s = self._monotonic() + SEAL_PAUSE_S
        if self._seals >= SEALS_MAX:
            self._seals = 0
            await self._refuse(
                move,
                f"More than {DRAIN_S:g} s would have gone by without writes, {SEALS_MAX} times: the"
                " other store takes copies too slowly.",
            )

    async def _is_hindered(self, move: Move) -> bool:
        """Whether it is too early to hold writes back, or a process would be left behind."""
        is_prepared = move.data.get("is_prepared", False)
        if self._monotonic() - self._begun_s >= PREPARE_S:
            if not is_prepared:  # also for who leads after this one
                await moves.amend(self._pair, move, data={"is_prepared": True})
        elif not (is_prepared and self._are_all_well):
            await asyncio.sleep(LOOK_S)
            return True
        if self._monotonic() < self._rests_until_s:
            return True  # changes are carried over meanwhile
        if self._problems:
            process, problem = next(iter(self._problems.items()))
            await self._refuse(move, f"The process {process} can't reach both stores: {problem}")
            return True
        return False

    async def _let_go(self, sealed: Move) -> None:
        """Let writes through again; who waits does it where this can't."""
        with suppress(TidingsError, TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                await moves.unseal(self._pair, sealed)

    async def _open(self, move: Move) -> None:
        """Let writes through to the store that decides now, once every process reads there."""
        until_s = self._monotonic() + SWITCH_MAX_S
        while self._monotonic() < until_s:
            with suppress(Unavailable):  # the store that decided may be away by now
                if not await moves.unconfirmed(self._pair, move):
                    break
            await asyncio.sleep(CONFIRM_LOOK_S)
        with suppress(MoveChanged):  # somebody who waited was faster
            await moves.settle(self._pair, move)

    async def _clean(self, move: Move) -> None:
        """After the end: capture and copy nothing any more, in either store that can be reached."""
        for side in _SIDES:
            try:
                await self._capture(side).end()
                if side == "target":
                    await lanes.retire(self._pair.target, copy_name(move.id))
                await lanes.retire_between(self._pair.at(side), f"{move.id}#", f"{move.id}$")
            except MoveChanged:  # it has to do with a later move by now
                continue
            except Unavailable:
                if side == move.decides:
                    raise
        await moves.amend(self._pair, move, wanted="", data={"is_clean": True})

    def _capture(self, side: Side) -> Capture:
        """What captures the changes of a store."""
        if side not in self._captures:
            self._captures[side] = self._sides.open_capture(side, self._move)
        return self._captures[side]


def follow_name(move: Move, epoch: int) -> str:
    """The name of the lanes through which changes are carried over in the stage of that epoch."""
    return f"{move.id}#{'out' if move.decides == 'source' else 'back'}#{epoch}"


def is_ended(move: Move) -> bool:
    """Whether nothing is left to do for anybody."""
    return move.is_over and bool(move.data.get("is_clean"))
