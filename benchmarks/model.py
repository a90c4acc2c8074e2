"""A model of hot spots on DynamoDB itself, in simulated time: what a local engine cannot show.

The engine of the benchmark is one process on one machine, which is busy where AWS would not be, and
it has no limit on a key where AWS has one. The model has neither machine nor network: a transaction
takes a fixed time and some more for each item, is refused where it meets another one, and a
partition key takes no more write units each second than AWS allows. ASSUMED, not measured: the
constants below. Everything is drawn from one seed, so that the tables of `docs/scale.md` can be
made again to the letter.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import TypeAlias

import msgspec

ROUND_TRIP_S = 0.001
"""Between a node and DynamoDB in the same region."""
TRANSACTION_S = 0.006
"""What a transaction takes in DynamoDB; the time in which it is in others' way."""
ITEM_S = 0.00015
"""What it takes more for each item."""
KEY_UNITS_PER_S = 1_000
"""Write units of one partition key (a limit of DynamoDB)."""
BURST_S = 1.0
"""How much of what was not used may be used at once later; AWS promises none."""
BACKOFF_FIRST_S = 0.025
BACKOFF_S_MAX = 1.0
SENDERS = 200
SIMULATED_S = 60.0
WARM_S = 20.0

Process: TypeAlias = Generator[float, None, None]
"""Yields how many seconds it waits."""


class World:
    """Simulated time, and DynamoDB in it."""

    def __init__(self, seed: int, *, has_key_limit: bool = True) -> None:
        self.now = 0.0
        self._has_key_limit = has_key_limit
        self.chance = random.Random(seed)
        self.conflicts = 0
        self.throttled = 0
        self.requests = 0
        self._order = count()
        self._due: list[tuple[float, int, Process]] = []
        self._in_flight: set[str] = set()
        self._credit: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))

    def start(self, process: Process, after_s: float = 0.0) -> None:
        """Let something happen."""
        heapq.heappush(self._due, (self.now + after_s, next(self._order), process))

    def run(self, until_s: float) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= until_s:
            self.now, _, process = heapq.heappop(self._due)
            for waited_s in process:
                self.start(process, waited_s)
                break

    def transact(self, items: Sequence[str], units: Counter[str]) -> Process:
        """Write until it succeeds: items by name, write units by partition key."""
        attempt = 0
        while True:
            self.requests += 1
            yield ROUND_TRIP_S / 2
            if not self._in_flight.isdisjoint(items):
                self.conflicts += 1
            elif not self._spend(units):
                self.throttled += 1
            else:
                self._in_flight.update(items)
                yield TRANSACTION_S + ITEM_S * len(items)
                self._in_flight.difference_update(items)
                yield ROUND_TRIP_S / 2
                return
            ceiling_s = min(BACKOFF_S_MAX, BACKOFF_FIRST_S * 2.0**attempt)
            attempt += 1
            yield ROUND_TRIP_S / 2 + self.chance.uniform(0, ceiling_s)

    def _spend(self, units: Counter[str]) -> bool:
        """Take the units from the keys, if all of them have as many left."""
        left = {}
        if not self._has_key_limit:
            return True
        for key, spent in units.items():
            credit, since = self._credit[key]
            most = KEY_UNITS_PER_S * BURST_S
            credit = min(most, credit + (self.now - since) * KEY_UNITS_PER_S)
            if credit < min(spent, most):
                return False
            left[key] = (credit - spent, self.now)
        self._credit.update(left)
        return True


class Outcome(msgspec.Struct, frozen=True):
    """What one way did in one scene, for each second or each message."""

    messages_per_s: float
    requests: float
    conflicts: float
    throttled: float


class _Way:
    """Senders who send again as soon as their message is done."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.completed = 0.0

    def outcome(self) -> Outcome:
        world = self.world
        world.run(WARM_S)
        completed, requests = self.completed, world.requests
        conflicts, throttled = world.conflicts, world.throttled
        world.run(WARM_S + SIMULATED_S)
        completed = self.completed - completed
        return Outcome(
            completed / SIMULATED_S,
            (world.requests - requests) / completed,
            (world.conflicts - conflicts) / completed,
            (world.throttled - throttled) / completed,
        )


class Plain(_Way):
    """An entry, then a transaction on badge and total for each receiver, one after the other."""

    def __init__(
        self, world: World, senders: Sequence[str], receivers: Callable[[str], Sequence[str]]
    ) -> None:
        super().__init__(world)
        for sender in senders:
            world.start(self._send(sender, receivers(sender)), world.chance.random())

    def _send(self, sender: str, receivers: Sequence[str]) -> Process:
        world, sent = self.world, 0
        while True:
            sent += 1
            world.requests += 1
            yield ROUND_TRIP_S + TRANSACTION_S / 2
            for receiver in world.chance.sample(receivers, len(receivers)):
                units = Counter({f"badges {receiver}": 2, f"totals {receiver}": 2})
                yield from world.transact([f"{sender} {receiver}", f"total {receiver}"], units)
                self.completed += 1 / len(receivers)


class Room(_Way):
    """One large room: the log in one transaction after another, the members after it."""

    MESSAGES_MAX = 49

    def __init__(self, world: World, members: int) -> None:
        super().__init__(world)
        self._waiting = SENDERS
        self._head = self._counted = 0
        self._members = members
        world.start(self._commit())
        world.start(self._fan_out())

    def _commit(self) -> Process:
        while True:
            taken = min(self._waiting, self.MESSAGES_MAX)
            if not taken:
                yield ROUND_TRIP_S
                continue
            self._waiting -= taken
            items = ["room", *(f"entry {n}" for n in range(2 * taken))]
            units = Counter({"entries": 2 * taken, "receipts": 2 * taken, "rooms": 2})
            yield from self.world.transact(items, units)
            self._head += taken
            self._waiting += taken

    def _fan_out(self) -> Process:
        while True:
            # The members are read, then the log and their rows change.
            self.world.requests += 2
            yield 2 * (ROUND_TRIP_S + TRANSACTION_S / 2)
            head = self._head
            if head > self._counted:
                items = [f"member {n}" for n in range(2 * self._members)]
                units = Counter({f"inbox {n}": 6 for n in range(self._members)})
                yield from self.world.transact(items, units)
                self.completed += head - self._counted
                self._counted = head


class Manager(_Way):
    """Rooms of two that share one member: as many as fit go together, the others wait."""

    def __init__(self, world: World, rooms_max: int, inbox_units: int) -> None:
        super().__init__(world)
        self._waiting = deque(range(SENDERS))
        self._rooms_max = rooms_max
        self._inbox_units = inbox_units
        world.start(self._commit())

    def _commit(self) -> Process:
        while True:
            taken = [
                self._waiting.popleft() for _ in range(min(self._rooms_max, len(self._waiting)))
            ]
            items = ["badge", *(f"{room} {n}" for room in taken for n in range(6))]
            units = Counter({"inboxes manager": self._inbox_units * len(taken), "badge": 2})
            yield from self.world.transact(items, units)
            self.completed += len(taken)
            self._waiting.extend(taken)
