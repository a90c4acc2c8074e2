"""Lanes: what makes copying exact although several do it, die at it or sleep through it.

A lane is one row in the store that is copied to. Each set of copied items updates that row too, in
one transaction and under two conditions: its fence, which grows whenever the lane is taken over,
and its beat, which grows with each set. So a set is applied once and in its turn, a stale copier
is refused, and how far a lane got is never ahead of its items or behind them. An answer that was
lost is no question for long: the row tells.

All lanes of one name (`<move>#<direction>`) stand behind that name's gate row, which closes once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from tidings.storage.interface import (
    Absent,
    Check,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    Position,
    Put,
    Store,
    Update,
    Write,
)
from tidings.storage.tables import MOVES

PART = "lanes"
LANES_MAX = 999
"""Lanes of one name; they and their gate are one page."""
SET_ITEMS_MAX = 99
"""Items in one set; the lane's row is the hundredth."""

FOLLOWING = "f"
"""Begins the numbers of lanes that follow changes; all others are planned and have an end."""
OPEN = "open"
DONE = "done"
CLOSED = "closed"


class Stale(Exception):
    """Somebody newer has taken over: this one has nothing more to do here."""


class Worker(Protocol):
    """Who holds lanes, and what it knows of others who do."""

    @property
    def worker_id(self) -> str:
        """This process's alone, also if it was started before."""
        ...

    def is_gone(self, worker_id: str) -> bool:
        """Whether that worker seems to be dead; if it is not, it loses its lanes and no more."""
        ...


class Progress(msgspec.Struct, frozen=True):
    """How far the lanes of one name got."""

    lanes: int = 0
    """Lanes that are planned; 0 before the plan is there."""
    lanes_done: int = 0
    items: int = 0
    size_bytes: int = 0
    units: int = 0
    followed: int = 0
    """Changes that were copied after the lanes were done."""
    followed_units: int = 0

    @property
    def is_done(self) -> bool:
        """Whether every lane is at its end."""
        return 0 < self.lanes == self.lanes_done


class Lane:
    """One lane in the hands of one holder, for one task at a time."""

    def __init__(self, books: Store, name: str, number: str, holder: str) -> None:
        self.number = number
        self.position: Position | None = None
        """Up to where everything was copied."""
        self.counts: dict[str, int] = {}
        """What was copied so far: items, bytes and units."""
        self._books = books
        self._gate = gate_key(name)
        self._key = (PART, f"{name}#{number}")
        self._holder = holder
        self._fence = 0
        self._beat = 0
        self._is_unsure = False

    async def take(self, *, over: Item | None = None) -> bool:
        """Take the lane; False where somebody else was faster, or it is done meanwhile.

        `over` is its row as it was read, None where there was none. Raises Stale behind a closed
        gate.
        """
        self._fence = 1 if over is None else over["fence"] + 1
        self._beat = 0 if over is None else over["beat"]
        self._is_unsure = False
        taking: Write
        if over is None:
            part, item = self._key
            taking = Put(
                MOVES,
                {"part": part, "item": item, "fence": 1, "beat": 0, "holder": self._holder},
                when=(Absent(),),
            )
        else:
            self._adopt(over)
            taking = Update(
                MOVES,
                self._key,
                set={"fence": self._fence, "holder": self._holder},
                when=(Equals("fence", over["fence"]), Equals("stage", None)),
            )
        try:
            await self._books.write(taking, Check(MOVES, self._gate, when=(Equals("stage", OPEN),)))
        except ConditionFailed as failed:
            if any(failure.index == 1 for failure in failed.failures):
                raise Stale("the lanes are closed") from failed
            row = failed.failures[0].item
            # An answer of ours may have been lost, and the taking repeated.
            is_ours = (
                row is not None
                and row["holder"] == self._holder
                and row["fence"] == self._fence
                and "stage" not in row
            )
            if is_ours and row is not None:
                self._adopt(row)
            return is_ours
        return True

    async def write(
        self,
        writes: Sequence[Write],
        *,
        position: Position | None = None,
        counts: Mapping[str, int] | None = None,
        is_last: bool = False,
    ) -> bool:
        """Apply a set, at most SET_ITEMS_MAX writes, and remember how far the lane got.

        False where an earlier set, whose answer was lost, was applied in its place: go on from
        `position`. Raises Stale; Unavailable where nobody knows yet whether it was applied.
        """
        assert len(writes) <= SET_ITEMS_MAX, "a set leaves room for its lane"
        if self._is_unsure:
            before = self._beat
            await self.look()
            if self._beat != before:
                return False
        total = {
            name: self.counts.get(name, 0) + more for name, more in (counts or {}).items()
        } or self.counts
        position = self.position if position is None else position
        update = Update(
            MOVES,
            self._key,
            set={
                "beat": self._beat + 1,
                "position": None if position is None else list(position),
                "data": total,
                "stage": DONE if is_last else None,
            },
            when=(Equals("fence", self._fence), Equals("beat", self._beat)),
        )
        try:
            await self._books.write(*writes, update)
        except ConditionFailed:
            await self.look()
            return False
        except BaseException as error:
            # Cancelled, or without an answer: it may be applied, and may be a moment later.
            self._is_unsure = not isinstance(error, ValueError)
            raise
        self._beat += 1
        self.position, self.counts = position, total
        return True

    async def look(self) -> None:
        """See how far the lane got. Raises Stale if it is somebody else's."""
        row = await self._books.get(MOVES, self._key)
        if row is None or row["fence"] != self._fence or row.get("holder") != self._holder:
            raise Stale("the lane was taken over")
        self._adopt(row)
        self._is_unsure = False

    def _adopt(self, row: Item) -> None:
        self._beat = row["beat"]
        self.position = tuple(row["position"]) if "position" in row else None
        self.counts = row.get("data", {})


def gate_key(name: str) -> tuple[str, str]:
    """The row that all lanes of that name stand behind; `position` may hold a plan."""
    return (PART, name)


async def open_gate(books: Store, name: str, plan: Sequence[Any] = ()) -> list[Any]:
    """Open the gate, unless it was opened before, and return the plan that it was opened with.

    Raises Stale where it is closed.
    """
    part, item = gate_key(name)
    opened = {"part": part, "item": item, "stage": OPEN, "position": [*plan]}
    try:
        await books.write(Put(MOVES, opened, when=(Absent(),)))
    except ConditionFailed as failed:
        return _plan_of(failed.failures[0].item)
    return [*plan]


async def read_gate(books: Store, name: str) -> list[Any] | None:
    """The plan behind the gate; None where it was not opened yet. Raises Stale if closed."""
    row = await books.get(MOVES, gate_key(name))
    return None if row is None else _plan_of(row)


def _plan_of(row: Item | None) -> list[Any]:
    assert row is not None, "a gate is closed, never removed"
    if row["stage"] != OPEN:
        raise Stale("the lanes are closed")
    plan: list[Any] = row.get("position", [])
    return plan


async def rows(books: Store, name: str) -> dict[str, Item]:
    """The rows of the name's lanes that were taken at least once, by number."""
    found: dict[str, Item] = {}
    start, after = f"{name}#", None
    while True:
        page = await books.query(MOVES, PART, prefix=start, after=after)
        found |= {row["item"].removeprefix(start): row for row in page.items}
        if (after := page.after) is None:
            return found


async def retire(books: Store, name: str) -> None:
    """Close the name for good: on return nothing can be copied through its lanes by anybody."""
    part, item = gate_key(name)
    await books.write(Put(MOVES, {"part": part, "item": item, "stage": CLOSED}))
    # Nobody takes a lane behind a closed gate, so its fence stays as it was read.
    raised = [
        Update(MOVES, MOVES.key(row), set={"fence": row["fence"] + 1}, when=(Exists(),))
        for row in (await rows(books, name)).values()
    ]
    for at in range(0, len(raised), SET_ITEMS_MAX):
        await books.write(*raised[at : at + SET_ITEMS_MAX])


async def retire_between(books: Store, low: str | None, high: str) -> None:
    """Retire every name from one, or from the first, to another."""
    names: list[str] = []
    after: Position | None = None
    while True:
        page = await books.query(MOVES, PART, low=low, high=high, after=after)
        names += [row["item"] for row in page.items if row.get("stage") == OPEN]
        if (after := page.after) is None:
            break
    for name in names:
        await retire(books, name)


async def clear(books: Store, name: str) -> None:
    """Remove the rows of a name that was retired; its gate stays closed."""
    for row in (await rows(books, name)).values():
        await books.write(Delete(MOVES, MOVES.key(row)))


async def progress(books: Store, name: str) -> Progress:
    """How far the lanes of that name got, whoever works on them; to be asked for by anybody."""
    gate = await books.get(MOVES, gate_key(name))
    found = await rows(books, name)
    filling = [row for number, row in found.items() if not number.startswith(FOLLOWING)]
    counts = [row.get("data", {}) for row in filling]
    follows = [row.get("data", {}) for number, row in found.items() if number.startswith(FOLLOWING)]
    return Progress(
        lanes=0 if gate is None else len(gate.get("position", [])),
        lanes_done=sum(row.get("stage") == DONE for row in filling),
        items=sum(count.get("items", 0) for count in counts),
        size_bytes=sum(count.get("bytes", 0) for count in counts),
        units=sum(count.get("units", 0) for count in counts),
        followed=sum(count.get("items", 0) for count in follows),
        followed_units=sum(count.get("units", 0) for count in follows),
    )
