"""Where a move from Redis to Tidings has come to, kept in Redis and changed while all runs.

| stage | changes go to | and are noted | lists are read from |
| --- | --- | --- | --- |
| `redis` | Redis | no | Redis |
| `noted` | Redis | yes | Redis |
| `both` | Redis | yes, and Tidings gets them at once | Redis; a share of reads is compared |
| `tidings` | Tidings | | Tidings |

Every change looks at the stage within its own transaction: no process, however long it slept,
makes a change by a stage that is over.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from tidings.conversations.interface import ConversationsError, Operation
from tidings.conversations.journal import Journal
from tidings.conversations.redis_lists import Pipe, translated

VIEW_AGE_S_MAX = 1.0
"""How old may be what a read goes by."""

StageName = Literal["redis", "noted", "both", "tidings"]
_NEXT: dict[str, tuple[StageName, ...]] = {
    "redis": ("noted",),
    "noted": ("both", "redis"),
    "both": ("tidings", "noted", "redis"),
    "tidings": (),
}


class Stage(msgspec.Struct, frozen=True):
    """The stage, and what share of reads is compared in `both`."""

    name: StageName = "redis"
    shadow: float = 0.0


class WrongStage(ConversationsError):
    """One stage does not follow the other."""


class Moved(Exception):
    """Redis decides no more."""


class Stages:
    """Reads and changes the stage of one move; `prefix` begins the names of its keys."""

    def __init__(self, redis: Redis, *, prefix: str = "tidings") -> None:
        self._redis: Any = redis  # its own types are those of both its kinds of clients
        self.journal = Journal(redis, prefix=prefix)
        self._key = f"{prefix}:stage"
        self._view = Stage()
        self._read_at_s = float("-inf")

    async def now(self) -> Stage:
        """The stage, at most VIEW_AGE_S_MAX old. `tidings` is final and needs no Redis any more."""
        now_s = asyncio.get_running_loop().time()
        if self._view.name != "tidings" and now_s - self._read_at_s > VIEW_AGE_S_MAX:
            async with translated():
                self._view = _stage(await self._redis.hgetall(self._key))
            self._read_at_s = now_s
        return self._view

    def forget(self) -> None:
        """Let the next read look anew."""
        self._read_at_s = float("-inf")

    async def change(self, name: StageName, *, shadow: float = 0.0) -> Stage:
        """Begin the stage: it holds for every change that is made after the return.

        Raises WrongStage where it does not follow the present one; the same again only changes
        `shadow`. Going back to `redis` forgets what was noted: the next move imports anew.
        """
        if not 0 <= shadow <= 1:
            raise ValueError("shadow is a share from 0 to 1")
        async with translated():
            old = _stage(await self._redis.hgetall(self._key))
            if name != old.name and name not in _NEXT[old.name]:
                raise WrongStage(f"After {old.name} comes {' or '.join(_NEXT[old.name]) or 'none'}")
            new = Stage(name, shadow)
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._key, mapping=msgspec.to_builtins(new))
                if name == "redis":
                    self.journal.drop(pipe)
                await pipe.execute()
        self.forget()
        return new

    async def enter(self, pipe: Pipe) -> None:
        """See that Redis decides, for as long as the transaction lasts. Raises Moved."""
        await pipe.watch(self._key)
        self._view = _stage(await pipe.hgetall(self._key))
        self._read_at_s = asyncio.get_running_loop().time()
        if self._view.name == "tidings":
            raise Moved

    def note(self, pipe: Pipe, operation: Operation) -> None:
        """Note the operation where the stage wants it; after `enter` of the same transaction."""
        if self._view.name != "redis":
            self.journal.note(pipe, operation)


def _stage(fields: dict[bytes, bytes]) -> Stage:
    named = {name.decode(): value.decode() for name, value in fields.items()}
    return msgspec.convert(named, Stage, strict=False)
