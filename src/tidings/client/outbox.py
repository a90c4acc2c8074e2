"""What a device has to say, until the service said that it is durable."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from tidings import wire
from tidings.client.backoff import Backoff
from tidings.client.problems import ClientError, Problem

OUTBOX_MAX = 1_000
"""Messages and read marks that wait for their acknowledgement."""
RESEND_FIRST_S = 0.25
RESEND_MOST_S = 15.0


class OutboxFull(ClientError):
    """Too many messages wait for their acknowledgement."""


class Outgoing:
    """A message or read mark; each try says the same."""

    __slots__ = ("answer", "body", "is_sent", "ref", "room_id")

    def __init__(self, ref: int, room_id: str, body: wire.PostMessage | wire.MarkRead) -> None:
        self.ref = ref
        self.room_id = room_id
        self.body = body
        self.is_sent = False
        """It went over the present connection."""
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def frame(self) -> dict[str, Any]:
        """As a socket carries it."""
        kind = "send" if isinstance(self.body, wire.PostMessage) else "read"
        named: dict[str, Any] = msgspec.structs.asdict(self.body)
        frame = {name: value for name, value in named.items() if value not in (None, [])}
        return frame | {"type": kind, "ref": self.ref, "room_id": self.room_id}


class Outbox:
    """Keeps what is to be sent in order, at most OUTBOX_MAX of it, until it is answered."""

    def __init__(self, random_0_1: Callable[[], float]) -> None:
        self._refs = itertools.count(1)
        self._waiting: dict[int, Outgoing] = {}
        self._changed = asyncio.Event()
        self._held_until = 0.0
        self._backoff = Backoff(first_s=RESEND_FIRST_S, most_s=RESEND_MOST_S, random_0_1=random_0_1)

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, ref: object) -> Outgoing | None:
        """What was sent under that `ref` and has no answer yet."""
        return self._waiting.get(ref) if isinstance(ref, int) else None

    def put(self, room_id: str, body: wire.PostMessage | wire.MarkRead) -> Outgoing:
        """Take something to send. Raises `OutboxFull`."""
        if len(self._waiting) >= OUTBOX_MAX:
            raise OutboxFull(f"{OUTBOX_MAX} messages wait to be acknowledged")
        outgoing = Outgoing(next(self._refs), room_id, body)
        self._waiting[outgoing.ref] = outgoing
        self._changed.set()
        return outgoing

    async def next(self) -> list[Outgoing]:
        """Wait for something to send now.

        Of each room it is the first that waits; the next follows its answer, so that what the
        service could not take just now is not overtaken.
        """
        while True:
            held_s = self._held_until - asyncio.get_running_loop().time()
            if held_s > 0:
                await asyncio.sleep(held_s)
                continue
            first_of_rooms: dict[str, Outgoing] = {}
            for outgoing in self._waiting.values():
                first_of_rooms.setdefault(outgoing.room_id, outgoing)
            if ready := [each for each in first_of_rooms.values() if not each.is_sent]:
                return ready
            self._changed.clear()
            await self._changed.wait()

    def hold(self, problem: Problem | None = None) -> None:
        """Nothing can be taken just now: everything goes again after a wait with jitter."""
        now = asyncio.get_running_loop().time()
        if self._held_until <= now:
            at_least_s = (problem and problem.retry_after_s) or 0.0
            self._held_until = now + self._backoff.next_s(at_least_s=at_least_s)
        self.begin_again()

    def begin_again(self) -> None:
        """The connection is another one: everything goes again."""
        for outgoing in self._waiting.values():
            outgoing.is_sent = False
        self._changed.set()

    def answer(self, outgoing: Outgoing, answer: wire.Entry | wire.ReadReply | None) -> None:
        """It is durable."""
        self._backoff.reset()
        self._forget(outgoing)
        if not outgoing.answer.done():
            outgoing.answer.set_result(answer)

    def refuse(self, outgoing: Outgoing, error: Exception) -> None:
        """It will never be taken."""
        self._forget(outgoing)
        if not outgoing.answer.done():
            outgoing.answer.set_exception(error)
            outgoing.answer.exception()  # a waiter that gave up is no unhandled error

    def refuse_all(self, error: Exception) -> None:
        """Nothing will be taken any more."""
        for outgoing in list(self._waiting.values()):
            self.refuse(outgoing, error)

    def _forget(self, outgoing: Outgoing) -> None:
        self._waiting.pop(outgoing.ref, None)
        self._changed.set()
