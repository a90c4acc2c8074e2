"""Which store decides, as far as one process knows, and what this process has to show for it.

A view of the record is at most VIEW_MAX_S old when something is done by it, by a clock that goes on
while the machine sleeps: whoever was frozen looks first.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec
import structlog

from tidings.errors import TidingsError, Unavailable
from tidings.storage import moves
from tidings.storage.interface import Check, Item, Store, Table, Write
from tidings.storage.metered import CostSource, unmetered
from tidings.storage.moves import (
    GUARD_SLOTS_MAX,
    QUIET_MAX_S,
    SEAL_MAX_S,
    SWITCH_MAX_S,
    VIEW_MAX_S,
    Move,
    MoveChanged,
    Pair,
    Stage,
)

LOOK_INTERVAL_S = 1.0
"""How often a process looks whether a move is under way, and how far it is."""
HELD_LOOK_INTERVAL_S = 0.2
"""The same while writes are held back."""
UNGUARDED_MAX_S = 2 * VIEW_MAX_S
"""How old a view may be when a write ends that was begun by it without a guard, before it is looked
whether a move began; less than PREPARE_S."""
BEAT_INTERVAL_S = 5.0
"""How often a process shows, while a move is under way, that it lives."""
HELD_MAX_S = 8.0
"""How long an operation waits for a switch; a seal and the switch after it take less."""
HOPS_MAX = 4
"""Moves that followed one another, or steps that a move took, while somebody looked."""
LEAVE_TIMEOUT_S = 1.0
"""For telling that a process has ended."""

_NEVER = float("-inf")

_log = structlog.get_logger(__name__)


class Stack(NamedTuple):
    """An open store, from the engine up."""

    store: Store
    """As features use it: metered."""
    engine: Store
    """Below the meter."""
    cost_source: CostSource = "metered"
    slots: int = GUARD_SLOTS_MAX
    """Guards that write sets take turns at; where it is one, all use it at once."""


Opening: TypeAlias = Callable[[str], AbstractAsyncContextManager[Stack]]
"""Opens the store at an address."""


boottime: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds that go on while the machine sleeps."""


class Standing:
    """What one process knows of the store that decides, kept fresh by a task of its own."""

    def __init__(
        self,
        opening: Opening,
        *,
        boottime: Callable[[], float],
        told: Callable[[Move], dict[str, Any]],
    ) -> None:
        self._opening = opening
        self._boottime = boottime
        self._told = told
        """What others may know of this process."""
        self._process = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._contexts = AsyncExitStack()
        self._one_opens = asyncio.Lock()
        self._stacks: dict[str, Stack] = {}
        self._slots: dict[str, asyncio.LifoQueue[int]] = {}
        """The guards with each store that no write set depends on just now."""
        self._url: str
        self.here: Stack
        """The store that decides."""
        self.move: Move | None = None
        """The move that is under way."""
        self.record: Move | None = None
        """The last move, over or not."""
        self.changed = asyncio.Event()
        """Set, and replaced, when the record has changed."""
        self._read_at = _NEVER
        self.idle_until = _NEVER
        """Until when nothing has to be heeded: no move is under way, and the view is fresh."""
        self._unguarded = 0
        """Writes under way that began while there was no move."""
        self._is_guarded = asyncio.Event()
        self._registered: tuple[str, int] | None = None
        """With which store, and at which epoch of the record."""
        self._known_at: set[str] = set()
        """The stores that have rows of this process."""
        self._problem: str | None = None
        """Why the store that does not decide can't be reached."""
        self._beaten_at = 0.0
        self._held: tuple[int, float] = (0, 0.0)
        """At which epoch writes are held back, and since when."""
        self._looking: asyncio.Task[None] | None = None
        self._reaching: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False

    async def open(self, url: str) -> None:
        """Find the store that serves whoever was given this address. Raises what opening it does,
        and Conflict for one that does not serve, or no longer."""
        try:
            with unmetered():
                self._url, self.here = url, await self._opened(url)
                await self._refuse_other_addresses()
                await self._look()
                self._watching = asyncio.create_task(self._watch())
        except BaseException:
            await self._contexts.aclose()
            raise

    async def close(self) -> None:
        """Let go of all stores. Closing twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        tasks = [task for task in (self._watching, self._looking, self._reaching) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            for stack in [self._stacks[url] for url in self._known_at]:
                with suppress(TidingsError, TimeoutError):
                    async with asyncio.timeout(LEAVE_TIMEOUT_S):
                        await moves.forget(
                            stack.engine, self._process, stack.slots, self._tells(self.record)
                        )
        finally:
            await self._contexts.aclose()

    # -- for those who read and write

    async def current(self) -> Stack:
        """The store that decides, which knows this process if a move is under way."""
        until = self._boottime() + HELD_MAX_S
        while not self._is_current():
            if self._boottime() > until:
                raise Unavailable("Which store is in use could not be told in time.")
            await self._look_soon()
        return self.here

    def place(self, stack: Stack) -> int:
        """A number of the store, which stays as long as this is open."""
        return [*self._stacks.values()].index(stack)

    async def write_unguarded(self, *writes: Write) -> None:
        """Write while no move is under way; one that begins meanwhile waits for the end of it.

        Raises Unavailable where this took so long that the store may not decide any more.
        """
        read_at, epoch = self._read_at, self._epoch
        self._unguarded += 1
        try:
            await self.here.store.write(*writes)
        finally:
            self._end_unguarded()
        if self._boottime() - read_at >= UNGUARDED_MAX_S:
            await self._require(epoch)

    async def put_unguarded(self, table: Table, items: Iterable[Item]) -> None:
        """The same in bulk."""
        read_at, epoch = self._read_at, self._epoch
        self._unguarded += 1
        try:
            await self.here.store.put_many(table, items)
        finally:
            self._end_unguarded()
        if self._boottime() - read_at >= UNGUARDED_MAX_S:
            await self._require(epoch)

    def _end_unguarded(self) -> None:
        self._unguarded -= 1
        if not self._unguarded:
            self._is_guarded.set()

    @property
    def _epoch(self) -> int:
        return 0 if self.record is None else self.record.epoch

    async def _require(self, epoch: int) -> None:
        """Raises Unavailable unless the record is what it was: who slept in a write without a guard
        may have written to a store after others had left it."""
        await self.current()
        if self._epoch != epoch:
            raise Unavailable("A move began before it is known whether this was written.")

    @asynccontextmanager
    async def guarding(self, here: Stack, move: Move) -> AsyncIterator[Check | None]:
        """A guard for one write set to that store; None where it could not hold any more."""
        url = self._url
        slots = self._slots[url] if here.slots > 1 else None
        slot = 0 if slots is None else await slots.get()
        try:
            holds = self.here is here and self._registered == (url, move.epoch)
            yield moves.guard(self._process, slot, move.epoch) if holds else None
        finally:
            if slots is not None:
                slots.put_nowait(slot)

    def was_refused(self, move: Move) -> None:
        """A guard did not hold: nothing is to be done before another look."""
        if self._registered is not None and self._registered[1] == move.epoch:
            self._registered = None

    # -- looking

    def _is_current(self) -> bool:
        if self._boottime() - self._read_at >= VIEW_MAX_S:
            return False
        move = self.move
        if move is None or self._registered == (self._url, move.epoch):
            return True
        is_known = self._registered is not None and self._registered[0] == self._url
        return is_known and move.stage == "sealed"

    async def _look_soon(self) -> None:
        """Look which store decides, together with whoever wants to know at this moment."""
        if self._is_closed:
            raise Unavailable("The store is closed.")
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = asyncio.create_task(self._look())
            looking.add_done_callback(_heed)
        await asyncio.wait((looking,))
        if looking.cancelled():
            raise Unavailable("The store is closed.")
        looking.result()

    async def _look(self) -> None:
        with unmetered():
            for _ in range(HOPS_MAX):
                read_at = self._boottime()
                if read_at - self._beaten_at >= QUIET_MAX_S:  # others may have taken it for dead
                    self._registered = None
                url, row = await self._find()
                with suppress(MoveChanged):
                    await self._adopt(url, row)
                    self._read_at = read_at
                    self.idle_until = _NEVER if self.move else read_at + VIEW_MAX_S
                    return
        raise Unavailable("The move between stores goes on too fast.")

    async def _find(self) -> tuple[str, Move | None]:
        """The address of the store that decides, and the record that says so."""
        url = self._url
        row = await moves.read_row(self.here.engine)
        for _ in range(HOPS_MAX):
            if row is None or row.decides == row.side:
                return url, row
            there = await self._opened(row.url)
            beyond = await moves.read_row(there.engine)
            if beyond is None or beyond.epoch < row.epoch:  # it has yet to be told
                return row.url, row
            if beyond.id == row.id and beyond.decides != beyond.side:  # this one has
                return url, beyond
            url, row = row.url, beyond
        raise Unavailable("The store was moved on too often.")

    async def _adopt(self, url: str, row: Move | None) -> None:
        """Go by that record from now on. Raises MoveChanged where it is no longer true."""
        here = await self._opened(url)
        move = None if row is None or row.is_over else row
        is_known = self._registered is not None and self._registered[0] == url
        if move is None:
            self._registered = None
        elif self._registered != (url, move.epoch) and not (is_known and move.stage == "sealed"):
            if url != self._url or self.move is None:
                # Nothing is done by the old view, once this one is told.
                self._read_at = self.idle_until = _NEVER
            while self._unguarded:
                self._is_guarded.clear()
                await self._is_guarded.wait()
            data = self._tells(move)
            beaten_at = self._boottime()
            await moves.register(here.engine, move, self._process, slots=here.slots, data=data)
            self._beaten_at = beaten_at
            self._known_at.add(url)
            self._registered = (url, move.epoch)
        if (row and row.epoch) != (self.record and self.record.epoch):
            self.changed.set()
            self.changed = asyncio.Event()
            if row is not None and self._watching is not None:  # no news to who has just come
                _log.info("move", move=row.id, stage=row.stage, decides=row.decides)
        self._url, self.here, self.record, self.move = url, here, row, move

    async def _opened(self, url: str) -> Stack:
        """The store at that address, from now on open."""
        if url in self._stacks:
            return self._stacks[url]
        async with self._one_opens:
            if url not in self._stacks:
                stack = await self._contexts.enter_async_context(self._opening(url))
                slots: asyncio.LifoQueue[int] = asyncio.LifoQueue()
                for slot in range(stack.slots):
                    slots.put_nowait(slot)
                self._slots[url], self._stacks[url] = slots, stack
        return self._stacks[url]

    @property
    def pair(self) -> Pair:
        """The stores of the last move, as far as they were reached."""
        if self.record is None:
            return Pair(None, None)
        source, target = map(self._stacks.get, (self.record.source, self.record.target))
        return Pair(source and source.engine, target and target.engine)

    async def reach(self) -> None:
        """Open the store of the move that does not decide, which may be out of reach."""
        move = self.record
        if move is None or move.is_over:
            return
        url = move.address(moves.other(move.decides))
        try:
            await self._opened(url)
        except TidingsError as error:
            if self._problem != error.detail:
                _log.warning("move_out_of_reach", url=url, detail=error.detail)
            self._problem = error.detail
        else:
            self._problem = None

    def _tells(self, move: Move | None) -> dict[str, Any]:
        told = {} if move is None else self._told(move)
        return told if self._problem is None else {**told, "problem": self._problem}

    async def _watch(self) -> None:
        """Look now and then, end what nobody else ends, and show that this process lives."""
        is_seen = True
        while True:
            is_held = self.move is not None and not self.move.is_open
            await asyncio.sleep(HELD_LOOK_INTERVAL_S if is_held else LOOK_INTERVAL_S)
            try:
                await self._look_soon()
                if self.move is not None and (self._reaching is None or self._reaching.done()):
                    self._reaching = asyncio.create_task(self.reach())
                    self._reaching.add_done_callback(_heed)
                await self._end_what_is_held()
                await self._beat()
                is_seen = True
            except TidingsError as error:
                if is_seen:
                    _log.warning("moves_not_seen", detail=error.detail)
                is_seen = False
            except Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="moves")

    async def _end_what_is_held(self) -> None:
        """Let writes through where whoever held them back has had their time."""
        move, now = self.move, self._boottime()
        if move is None or move.is_open:
            return
        if self._held[0] != move.epoch:
            self._held = (move.epoch, now)
            return
        held_s = now - self._held[1]
        with suppress(MoveChanged):
            if move.stage == "sealed" and held_s > SEAL_MAX_S:
                _log.warning("move_unsealed", move=move.id)
                await moves.unseal(self.pair, move)
            elif move.stage == "switched" and held_s > SWITCH_MAX_S:
                await moves.settle(self.pair, move)
            else:
                return
        await self._look_soon()

    async def _beat(self) -> None:
        now = self._boottime()
        if self.move is not None and now - self._beaten_at >= BEAT_INTERVAL_S:
            if await moves.beat(self.here.engine, self._process, self._tells(self.move)):
                self._beaten_at = now
            else:
                self._registered = None

    async def _refuse_other_addresses(self) -> None:
        """Raises Conflict where the address that was given is not, or no longer, one to serve."""
        row = await moves.read_row(self.here.engine)
        if row is None:
            return
        spoken = row
        if row.decides != row.side:
            there = await moves.read_row((await self._opened(row.url)).engine)
            if there is not None and there.epoch > row.epoch:
                over: Stage = "finished" if row.decides == "target" else "rolled_back"
                is_same = there.id == row.id
                spoken = there if is_same else msgspec.structs.replace(row, stage=over)
        moves.resolve(spoken, row.side)


def _heed(task: asyncio.Task[None]) -> None:
    """Take notice of how a task ended, should nobody wait for it any more."""
    if not task.cancelled():
        task.exception()
