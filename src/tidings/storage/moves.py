"""The record of a move between two stores, and every step that the move can take.

The record is a row in both stores. The row that names its own store as the one that decides speaks;
where neither does, which lasts for a moment after a switch, the one with the higher epoch does. A
step is one conditional write in the store that decides before it, and is then copied to the other;
so of two who take a step at once one is refused, and whoever dies between the two writes leaves a
record that anybody reads rightly and the next step completes.

An even epoch lets writes through, an odd one holds them back. While a move is under way every
process has rows of its own in the store that decides: its *confirmation*, without which it neither
reads nor writes there, and its *guards*, on one of which each of its write sets depends. Both are
written under the condition of the record's epoch. Sealing raises the epoch and then every guard:
from then on nothing is written to that store by anybody, whatever they believe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from tidings.errors import Conflict, Unavailable
from tidings.storage.interface import (
    Absent,
    Check,
    Condition,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    Key,
    LessThan,
    Position,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.retries import CALL_DEADLINE_S
from tidings.storage.tables import MOVES

VIEW_MAX_S = 2.0
"""How old what a process believes of a move may be when it acts on it."""
PREPARE_S = VIEW_MAX_S + CALL_DEADLINE_S + 1.0
"""How long after a move was announced nothing may be sealed: until then a write may be under way
that was begun by somebody who did not know yet, and has no guard."""
SEAL_MAX_S = 4.0
"""How long writes are held back before whoever waits takes the seal away."""
SWITCH_MAX_S = VIEW_MAX_S + 0.5
"""How long processes may take to confirm a switch; longer than the view of any other lives."""
QUIET_MAX_S = 30.0
"""A process that has not shown itself for so long registers again before it does anything."""
FORGOTTEN_S = 2 * QUIET_MAX_S
"""A process that has not shown itself for so long may be taken for dead."""
GUARD_SLOTS_MAX = 64
"""Guards of one process, and so write sets that it may have under way on DynamoDB."""
BUMPS_AT_ONCE = 32
"""Guards that are raised at the same time."""
TRIES_MAX = 10
"""Attempts at a row that others change, too."""

RECORD: Key = ("move", "record")
CONFIRMS = "confirms"
COUNTED = ("reads", "differences")
"""What processes count of their shadow reads, in what they tell."""
GONE = "gone"
"""The entry of a move's data with what was counted by processes that are no more."""

Stage: TypeAlias = Literal[
    "preparing",  # announced: processes begin to guard, changes begin to be captured
    "copying",
    "following",
    "sealed",  # writes wait
    "switched",  # the other store decides, reads go there, writes wait for the confirmations
    "settled",  # writes go to the target, and are carried back to the source
    "finished",
    "rolled_back",
]
Side: TypeAlias = Literal["source", "target"]
SIDES: tuple[Side, Side] = ("source", "target")

_STEPS: Mapping[tuple[Stage, Side], Mapping[Stage, int]] = {
    ("preparing", "source"): {"copying": 2, "rolled_back": 2},
    ("copying", "source"): {"following": 2, "rolled_back": 2},
    ("following", "source"): {"sealed": 1, "rolled_back": 2},
    ("sealed", "source"): {"following": 1, "switched": 2},
    ("switched", "target"): {"settled": 1},
    ("settled", "target"): {"sealed": 1, "finished": 2},
    ("sealed", "target"): {"settled": 1, "switched": 2},
    ("switched", "source"): {"rolled_back": 1},
}
"""Which stages follow on which, by who decides, and how far the epoch goes up with it."""


class MoveChanged(Conflict):
    """The move went on meanwhile; look again."""


class Move(msgspec.Struct, frozen=True):
    """The record of a move, as one of the two stores has it."""

    id: str
    source: str
    """The address of the store that the move begins at, as `--store` takes it."""
    target: str
    side: Side
    """Which of the two the store is in which this was read."""
    epoch: int
    stage: Stage
    decides: Side
    wanted: str | None = None
    """What a command asked for and nobody has done yet."""
    data: Mapping[str, Any] = {}
    """What else belongs to the move: budgets, shares, times. Changed by `amend`."""
    beat: int = 0
    """Grows with each amendment."""

    @property
    def is_open(self) -> bool:
        """Whether writes go through."""
        return self.epoch % 2 == 0

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and nothing of it needs to be heeded but who decides."""
        return self.stage in ("finished", "rolled_back")

    @property
    def url(self) -> str:
        """The address of the store that decides."""
        return self.address(self.decides)

    def address(self, side: Side) -> str:
        """The address of one of the two stores."""
        return self.source if side == "source" else self.target


@dataclass(frozen=True, slots=True)
class Pair:
    """The two stores of a move, bare: not as those use them who follow the move.

    Raises Unavailable for one that is None, because it can't be reached from here.
    """

    _source: Store | None
    _target: Store | None

    @property
    def source(self) -> Store:
        """Where the move begins."""
        return self.at("source")

    @property
    def target(self) -> Store:
        """Where it leads to."""
        return self.at("target")

    def at(self, side: Side) -> Store:
        """One of the two."""
        store = self._source if side == "source" else self._target
        if store is None:
            raise Unavailable(f"The {side} of the move can't be reached.")
        return store


class Process(msgspec.Struct, frozen=True):
    """A process that works on a store while a move is under way."""

    id: str
    epoch: int
    """Of the record, when it last confirmed."""
    beat: int
    """Grows while it lives."""
    slots: int
    """How many guards it has."""
    data: Mapping[str, Any]
    """What it tells of itself: COUNTED, and the `problem` that it has, if it has one."""


def other(side: Side) -> Side:
    """The other of the two."""
    return "target" if side == "source" else "source"


# -- reading


async def read_row(store: Store) -> Move | None:
    """The record as the store has it; None where no move ever concerned it."""
    item = await store.get(MOVES, RECORD)
    return None if item is None else _from_item(item)


async def read(pair: Pair) -> Move | None:
    """The row that speaks; None where the source was never told of a move.

    One read where the source decides. Raises Unavailable where a store is out of reach that might
    be the one that decides; the other need not be there.
    """
    rows: list[Move] = []
    lost: Unavailable | None = None
    for side in SIDES:
        try:
            row = await read_row(pair.at(side))
        except Unavailable as error:
            lost = error
            continue
        if row is None and side == "source":
            return None
        if row is not None:
            if row.decides == row.side:
                return row
            rows.append(row)
    if lost is not None:
        raise lost
    return max(rows, key=lambda row: row.epoch, default=None)


def resolve(move: Move | None, side: Side) -> Side:
    """Which store serves somebody who was given that side's address.

    Raises Conflict for an address that is not in use any more, or not yet; it names the other.
    """
    if move is None:
        return side
    if move.stage == "finished" and side == "source":
        raise Conflict(f"This store was moved and is no longer in use: use {move.target}.")
    if side == "target" and move.decides == "source":
        why = "was given up" if move.stage == "rolled_back" else "is not there yet"
        raise Conflict(f"A move to this store {why}: use {move.source}.")
    return move.decides


# -- steps


def following_step(move: Move, stage: Stage) -> Move:
    """The record after a step. Raises Conflict where that stage does not follow."""
    steps = _STEPS.get((move.stage, move.decides), {})
    if stage not in steps:
        raise Conflict(f"A move that is {move.stage} does not become {stage}.")
    decides = other(move.decides) if stage == "switched" else move.decides
    return msgspec.structs.replace(
        move, epoch=move.epoch + steps[stage], stage=stage, decides=decides, side=move.decides
    )


async def announce(
    pair: Pair,
    *,
    move_id: str,
    source: str,
    target: str,
    data: Mapping[str, Any],
) -> Move:
    """Begin a move. Raises Conflict where one is under way that has to do with either store, where
    the source is not in use any more, and where an earlier move left the target in use.

    The same id again goes on where this was interrupted. Whether the target is empty is the
    caller's to know. Nothing may be sealed before PREPARE_S have gone by.
    """
    rows = {side: await read_row(pair.at(side)) for side in SIDES}
    known = [row for row in rows.values() if row is not None]
    epoch = 2
    for side, row in rows.items():
        if row is not None and row.id != move_id:
            epoch = max(epoch, _ended(row, side, known).epoch + 2)
    move = Move(move_id, source, target, "source", epoch, "preparing", "source", data=data)
    if any(row.id == move_id for row in known):
        move = await _the(pair, move_id)
    else:
        await _replace(pair.source, rows["source"], move)
    try:
        await claim(pair, move, over=rows["target"])
    except Conflict:
        await take(pair, move, "rolled_back")
        raise
    return move


async def claim(pair: Pair, move: Move, *, over: Move | None = None) -> None:
    """Make the target this move's; `over` is its row of another that is known to have ended.

    Raises Conflict where another move has it: of all that are announced at once one gets it.
    Nothing is copied before this has returned to somebody.
    """
    row = await read_row(pair.target)
    if row is not None and row.id == move.id:
        await _tell(pair.target, "target", move)
        return
    if row is not None and row != over:
        _ended(row, "target", [row])
    try:
        await _replace(pair.target, row, msgspec.structs.replace(move, side="target"))
    except MoveChanged as changed:
        raise Conflict("Another move to the same target began at this moment.") from changed


def _ended(row: Move, side: Side, known: Sequence[Move]) -> Move:
    """How the move of that row ended, by the records that are known.

    Raises Conflict unless it has, and left a store that can be on that side of another.
    """
    now = max((each for each in known if each.id == row.id), key=lambda each: each.epoch)
    if not now.is_over:
        raise Conflict(f"The move from {now.source} to {now.target} is {now.stage}.")
    if (now.decides == row.side) != (side == "source"):
        raise Conflict(
            f"The source was moved and is no longer in use: use {now.url}."
            if side == "source"
            else "The target is in use by a service of its own."
        )
    return now


async def take(pair: Pair, move: Move, stage: Stage) -> Move:
    """Take a step, and tell the store that does not decide. Raises what `following_step` does;
    MoveChanged where another step was taken since; Unavailable where it is not known, and the
    same may be asked again.
    """
    after = following_step(move, stage)
    store = pair.at(move.decides)
    await _tell_decider(pair, move)
    change = {"epoch": after.epoch, "stage": after.stage, "decides": after.decides}
    with suppress(ConditionFailed):  # by another, or by an attempt of ours whose answer was lost
        await store.write(Update(MOVES, RECORD, change, when=(Equals("epoch", move.epoch),)))
    now = await read_row(store)
    if now is None or (now.epoch, now.stage) != (after.epoch, after.stage):
        raise MoveChanged
    return await _copied(pair, now)


async def seal(pair: Pair, move: Move) -> Move:
    """Hold all writes back: on return nothing can be written to the store that decides, but what
    moves write of themselves. May be repeated, also by another process, with what it returned.

    Whoever holds writes back has SEAL_MAX_S to decide or to let go.
    """
    sealed = move if move.stage == "sealed" else await take(pair, move, "sealed")
    store = pair.at(sealed.decides)
    guards = [
        _guard(process.id, slot)
        for process in await processes(store)
        for slot in range(process.slots)
    ]
    turn = asyncio.Semaphore(BUMPS_AT_ONCE)

    async def bump(guard: Key) -> None:
        async with turn:
            with suppress(ConditionFailed):  # it is gone, or raised already
                when = (LessThan("epoch", sealed.epoch),)
                await store.write(Update(MOVES, guard, {"epoch": sealed.epoch}, when=when))

    await asyncio.gather(*map(bump, guards))
    now = await read_row(store)
    if now is None or now.epoch != sealed.epoch:
        raise MoveChanged
    return sealed


async def unseal(pair: Pair, move: Move) -> Move:
    """Let writes through again, where they went before."""
    return await take(pair, move, "following" if move.decides == "source" else "settled")


async def decide(pair: Pair, move: Move) -> Move:
    """Make the other store decide. To be called after `seal`, in the same process, once everything
    that was written has been carried over."""
    return await take(pair, move, "switched")


async def settle(pair: Pair, move: Move) -> Move:
    """Let writes through to the store that now decides: once all have confirmed (`unconfirmed`), or
    SWITCH_MAX_S after one saw the switch. Back at the source, this ends the move."""
    return await take(pair, move, "settled" if move.decides == "target" else "rolled_back")


async def amend(
    pair: Pair, move: Move, *, wanted: str | None = None, data: Mapping[str, Any] | None = None
) -> Move:
    """Say what is wanted (an empty text: nothing any more), and change entries of `data`; those set
    to None are removed. Holds for the move in whatever stage it is. Raises MoveChanged where it
    is another one."""
    for _ in range(TRIES_MAX):
        now = await _the(pair, move.id)
        changed = msgspec.structs.replace(
            now,
            wanted=now.wanted if wanted is None else wanted or None,
            data={
                name: value
                for name, value in {**now.data, **(data or {})}.items()
                if value is not None
            },
            beat=now.beat + 1,
        )
        store = pair.at(now.decides)
        await _tell_decider(pair, now)
        changed = msgspec.structs.replace(changed, side=now.decides)
        with suppress(ConditionFailed):
            await store.write(_amendment(now, changed))
            return changed
    raise MoveChanged


# -- processes


async def register(
    store: Store, move: Move, process: str, *, slots: int, data: Mapping[str, Any]
) -> None:
    """Confirm the record as it is to the store, which decides, and guard what is written there.

    Until this has returned the process neither reads nor writes there; its guards hold until the
    next seal. Raises MoveChanged where the record is no longer that.
    """
    if move.side != move.decides:
        await _tell(store, move.decides, move)
    confirm = {"part": CONFIRMS, "item": process, "epoch": move.epoch, "beat": 0}
    writes: list[Write] = [
        Check(MOVES, RECORD, (Equals("epoch", move.epoch),)),
        Put(MOVES, {**confirm, "position": [slots], "data": dict(data)}),
    ]
    if move.is_open:
        for slot in range(slots):
            part, item = _guard(process, slot)
            writes.append(Put(MOVES, {"part": part, "item": item, "epoch": move.epoch}))
    try:
        await store.write(*writes)
    except ConditionFailed as failed:
        raise MoveChanged from failed


def guard(process: str, slot: int, epoch: int) -> Check:
    """What a write set depends on beside its own conditions, for a process that has registered."""
    return Check(MOVES, _guard(process, slot), (Equals("epoch", epoch),))


async def beat(store: Store, process: str, data: Mapping[str, Any]) -> bool:
    """Show that the process lives, and what it has to tell; False if it was forgotten."""
    change = Update(MOVES, (CONFIRMS, process), {"data": dict(data)}, {"beat": 1}, when=(Exists(),))
    try:
        await store.write(change)
    except ConditionFailed:
        return False
    return True


async def forget(store: Store, process: str, slots: int, counted: Mapping[str, Any]) -> None:
    """Remove a process that has ended; what it counted stays. One that has not ended is refused,
    and registers again."""
    for _ in range(TRIES_MAX):
        row = await store.get(MOVES, (CONFIRMS, process))
        if row is None or await _is_forgotten(store, process, slots, counted, (Exists(),)):
            return


async def forget_dead(store: Store, dead: Process) -> None:
    """Remove a process whose row stood still for FORGOTTEN_S, unless it has moved since; what it
    counted stays."""
    is_same = (Equals("beat", dead.beat), Equals("epoch", dead.epoch))
    for _ in range(TRIES_MAX):
        row = await store.get(MOVES, (CONFIRMS, dead.id))
        if row is None or (row["beat"], row["epoch"]) != (dead.beat, dead.epoch):
            return
        if await _is_forgotten(store, dead.id, dead.slots, dead.data, is_same):
            return


async def _is_forgotten(
    store: Store,
    process: str,
    slots: int,
    counted: Mapping[str, Any],
    when: tuple[Condition, ...],
) -> bool:
    """Remove the rows of a process, and add what it counted to the record of the store that
    decides; False where one of these changed meanwhile."""
    writes: list[Write] = [Delete(MOVES, _guard(process, slot)) for slot in range(slots)]
    writes.append(Delete(MOVES, (CONFIRMS, process), when=when))
    now = await read_row(store)
    if now is not None and now.decides == now.side and any(map(counted.get, COUNTED)):
        before = now.data.get(GONE, {})
        total = {name: before.get(name, 0) + counted.get(name, 0) for name in COUNTED}
        changed = msgspec.structs.replace(now, data={**now.data, GONE: total}, beat=now.beat + 1)
        writes.append(_amendment(now, changed))
    try:
        await store.write(*writes)
    except ConditionFailed:
        return False
    return True


async def processes(store: Store) -> list[Process]:
    """Everybody who registered with the store, those who died included, by id."""
    found: list[Process] = []
    after: Position | None = None
    while True:
        page = await store.query(MOVES, CONFIRMS, after=after)
        for item in page.items:
            slots = item["position"][0]
            found.append(
                Process(item["item"], item["epoch"], item["beat"], slots, item.get("data", {}))
            )
        after = page.after
        if after is None:
            return found


async def unconfirmed(pair: Pair, move: Move) -> list[str]:
    """Who worked on the store that decided before a switch and has not confirmed it yet, by id."""
    confirmed = {
        process.id
        for process in await processes(pair.at(move.decides))
        if process.epoch >= move.epoch
    }
    known = await processes(pair.at(other(move.decides)))
    return [process.id for process in known if process.id not in confirmed]


# -- rows


def _guard(process: str, slot: int) -> Key:
    """In a partition of its own: each carries the load of one writer."""
    return (f"guards/{process}#{slot}", "guard")


def _amendment(now: Move, changed: Move) -> Update:
    fields = {name: _item(changed).get(name) for name in ("wanted", "data", "beat")}
    when = (Equals("epoch", now.epoch), Equals("beat", now.beat))
    return Update(MOVES, RECORD, fields, when=when)


async def _the(pair: Pair, move_id: str) -> Move:
    move = await read(pair)
    if move is None or move.id != move_id:
        raise MoveChanged
    return move


async def _copied(pair: Pair, move: Move) -> Move:
    """Tell the store that the record was not read from; where it is away, it learns it later."""
    side = other(move.side)
    with suppress(Unavailable):
        await _tell(pair.at(side), side, move)
    return move


async def _tell_decider(pair: Pair, move: Move) -> None:
    """After a switch: let the store that decides know that it does."""
    if move.side != move.decides:
        await _tell(pair.at(move.decides), move.decides, move)


async def _tell(store: Store, side: Side, move: Move) -> None:
    """Write the record to the store, which is on that side, unless it knows better or is another
    move's by now."""
    told = msgspec.structs.replace(move, side=side)
    for _ in range(TRIES_MAX):
        row = await read_row(store)
        if row is None or row.id != move.id or row.epoch >= move.epoch:
            return
        with suppress(MoveChanged):
            await _replace(store, row, told)
            return
    raise MoveChanged


async def _replace(store: Store, before: Move | None, after: Move) -> None:
    when: tuple[Condition, ...] = (Absent(),)
    if before is not None:
        when = (Equals("epoch", before.epoch), Equals("beat", before.beat))
    try:
        await store.write(Put(MOVES, _item(after), when))
    except ConditionFailed as failed:
        if await read_row(store) != after:  # by another, not by an attempt whose answer was lost
            raise MoveChanged from failed


def _item(move: Move) -> Item:
    part, item = RECORD
    return {
        "part": part,
        "item": item,
        "epoch": move.epoch,
        "stage": move.stage,
        "decides": move.decides,
        "wanted": move.wanted,
        "beat": move.beat,
        "data": {
            "id": move.id,
            "source": move.source,
            "target": move.target,
            "side": move.side,
            "more": dict(move.data),
        },
    }


def _from_item(item: Item) -> Move:
    fields = {**item["data"]}
    fields["data"] = fields.pop("more")
    names = ("epoch", "stage", "decides", "wanted", "beat")
    return msgspec.convert({**fields, **{name: item.get(name) for name in names}}, Move)
