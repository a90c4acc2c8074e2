"""What was changed in Redis and is still to be changed in Tidings: a stream, in order.

An operation is noted in the transaction that makes it, so that no crash parts the two, and goes
when Tidings has it. All of them may be carried out twice without harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.lock import Lock

from tidings.conversations.interface import Operation
from tidings.conversations.redis_lists import Pipe, translated

OPERATIONS_MAX = 1_000_000
"""Operations that wait, some 200 bytes each; past it the oldest are lost, and counted as such."""
READ_TOGETHER = 1_000
REFUSED_MAX = 10_000
"""Operations that Tidings does not take and that are kept to be looked at."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Operation).decode


class Noted(msgspec.Struct, frozen=True):
    """An operation and its place in the stream."""

    id: str
    operation: Operation

    @property
    def place(self) -> tuple[int, int]:
        """What ids are ordered by."""
        return place_of(self.id)


class Journal:
    """The operations of one move that wait, those that were refused, and who copies them."""

    def __init__(self, redis: Redis, *, prefix: str = "tidings") -> None:
        self._redis: Any = redis  # its own types are those of both its kinds of clients
        self.key = self._waiting = f"{prefix}:operations"
        self._refused = f"{prefix}:refused"
        self._copied = f"{prefix}:copied"
        self._copier = f"{prefix}:copier"

    def note(self, pipe: Pipe, operation: Operation) -> None:
        """Add the operation to the transaction."""
        fields: Any = {"operation": _encode(operation)}
        pipe.xadd(self._waiting, fields, maxlen=OPERATIONS_MAX, approximate=True)

    def drop(self, pipe: Pipe) -> None:
        """Forget everything, in the transaction."""
        pipe.delete(self._waiting, self._refused, self._copied)

    async def read(self, limit: int, *, after: str | None = None) -> list[Noted]:
        """The oldest operations that wait, of those after that id."""
        first = "-" if after is None else f"({after}"
        async with translated():
            rows = await self._redis.xrange(self._waiting, min=first, count=limit)
        return [Noted(row_id.decode(), _decode(fields[b"operation"])) for row_id, fields in rows]

    async def forget(self, done: list[Noted]) -> None:
        """Tidings has these."""
        async with translated(), self._redis.pipeline(transaction=True) as pipe:
            pipe.xdel(self._waiting, *[noted.id for noted in done])
            pipe.incrby(self._copied, len(done))
            await pipe.execute()

    async def forget_where(self, is_done: Callable[[Noted], bool]) -> int:
        """Forget those of which that is so; how many they were."""
        count, after = 0, None
        while noted := await self.read(READ_TOGETHER, after=after):
            after = noted[-1].id
            done = [each for each in noted if is_done(each)]
            if done:
                await self.forget(done)
                count += len(done)
        return count

    async def refuse(self, noted: Noted, reason: str) -> None:
        """Keep an operation that Tidings does not take, with the reason."""
        fields: Any = {"operation": _encode(noted.operation), "reason": reason}
        async with translated():
            await self._redis.xadd(self._refused, fields, maxlen=REFUSED_MAX, approximate=True)

    async def refused(self, limit: int = 100) -> list[tuple[Operation, str]]:
        """The newest operations that Tidings did not take, and why."""
        async with translated():
            rows = await self._redis.xrevrange(self._refused, count=limit)
        return [(_decode(row[b"operation"]), row[b"reason"].decode()) for _, row in rows]

    async def refused_count(self) -> int:
        """How many Tidings did not take, of which REFUSED_MAX are kept."""
        async with translated():
            return int(await self._redis.xlen(self._refused))

    async def lag(self) -> int:
        """How many operations wait."""
        async with translated():
            return int(await self._redis.xlen(self._waiting))

    async def copied(self) -> int:
        """How many Tidings has."""
        async with translated():
            return int(await self._redis.get(self._copied) or 0)

    async def lost(self) -> int:
        """How many were dropped because too many waited: then the lists must be compared.

        Needs Redis 7, or Valkey; 0 before.
        """
        async with translated():
            if not await self._redis.exists(self._waiting):
                return 0
            info = await self._redis.xinfo_stream(self._waiting)
            copied = int(await self._redis.get(self._copied) or 0)
        added = info.get("entries-added")
        return 0 if added is None else max(0, int(added) - int(info["length"]) - copied)

    def lease(self, duration_s: float) -> Lock:
        """The right to copy, for one process at a time."""
        lock: Lock = self._redis.lock(self._copier, timeout=duration_s, thread_local=False)
        return lock


def place_of(row_id: str) -> tuple[int, int]:
    """The two numbers of an id of a stream."""
    milliseconds, _, number = row_id.partition("-")
    return int(milliseconds), int(number or 0)
