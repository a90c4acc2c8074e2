"""Conversation lists in Redis, kept as the mapping file says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

import msgspec
from redis.asyncio import Redis
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from tidings.clock import Clock, system_clock
from tidings.conversations.interface import (
    LIST_LIMIT_DEFAULT,
    Away,
    Conversation,
    Mute,
    Operation,
    Operations,
    Page,
    Read,
    Refused,
    Remove,
    Touch,
    check_limit,
    preview_of,
)
from tidings.conversations.lines import Line, fields_of, read_line, time_of
from tidings.conversations.mapping import Mapping

ATTEMPTS_MAX = 16
"""Of one change, while others change the same conversation."""
PAUSE_S_MAX = 0.05
PASSING = (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError, OSError)
"""What goes away by itself: no connection, a server that starts, a replica after a failover."""

Lines: TypeAlias = list[Conversation]
Pipe: TypeAlias = Any
"""A pipeline of redis-py, whose own types say of every command that it may be awaited."""


class Gate(Protocol):
    """Stands before each change, in the change's own transaction."""

    async def enter(self, pipe: Pipe) -> None:
        """Watch and read what says whether the change may be made; raises where it may not."""
        ...

    def note(self, pipe: Pipe, operation: Operation) -> None:
        """Add commands to the transaction."""
        ...


class RedisConversations(Operations):
    """The lists in Redis. Each change is one transaction over all keys that it touches.

    The client is the application's own and is not closed here; its socket timeout is the deadline
    of each call. It must return bytes (`decode_responses=False`, the default).
    """

    def __init__(self, redis: Redis, mapping: Mapping, *, clock: Clock = system_clock) -> None:
        self.redis = redis
        self._calls: Any = redis  # its own types are those of both its kinds of clients
        self.mapping = mapping
        self._clock = clock

    async def apply(self, operation: Operation) -> None:
        """Carry out one change."""
        await self.apply_through(operation, None)

    async def apply_through(self, operation: Operation, gate: Gate | None) -> None:
        """Carry out one change, if the gate lets it pass, and what the gate adds, all or nothing.

        Raises what the gate raises; then nothing was changed.
        """
        for attempt in range(ATTEMPTS_MAX):
            async with translated(), self._calls.pipeline(transaction=True) as pipe:
                try:
                    if gate is not None:
                        await gate.enter(pipe)
                    await self._plan(operation, pipe)
                    if gate is not None:
                        gate.note(pipe, operation)
                    await pipe.execute()
                except WatchError:
                    pass
                else:
                    return
            await asyncio.sleep(random.uniform(0, PAUSE_S_MAX * attempt / ATTEMPTS_MAX))  # noqa: S311
        raise Away("Others were always faster.")

    async def _plan(self, operation: Operation, pipe: Pipe) -> None:
        """Watch and read what the change rests on, and queue its commands."""
        match operation:
            case Touch():
                await self._touch(operation, pipe)
            case Remove(owner=owner, opponent=opponent):
                pipe.multi()
                pipe.zrem(self.mapping.list_key(owner), self.mapping.member(opponent))
                if self.mapping.metadata is not None:
                    pipe.delete(self.mapping.metadata_key(owner, opponent))
            case Read() | Mute():
                await self._change_line(operation, pipe)

    async def _touch(self, touch: Touch, pipe: Pipe) -> None:
        message, mapping = touch.message, self.mapping
        sides = (message.sender_id, message.receiver_id)
        pairs = [(sides[0], sides[1]), (sides[1], sides[0])]
        changed: list[tuple[bytes, dict[str, Any]]] = []
        metadata = mapping.metadata
        if metadata is not None:
            keys = [mapping.metadata_key(*pair) for pair in pairs]
            await pipe.watch(*keys)
            for key, pair in zip(keys, pairs, strict=True):
                raw = await self._read_raw(pipe, key)
                line = read_line(metadata, raw)
                is_again = (
                    metadata.message_id is not None
                    and line.message_id == message.message_id
                    and line.sender_id in (None, message.sender_id)
                )
                fields, _ = fields_of(metadata.type, raw)
                if metadata.unread is not None and pair[0] == message.receiver_id and not is_again:
                    fields[metadata.unread] = line.unread + 1
                if metadata.text is not None:
                    fields[metadata.text] = message.text
                if metadata.sender is not None:
                    fields[metadata.sender] = message.sender_id
                if metadata.message_id is not None:
                    fields[metadata.message_id] = message.message_id
                changed.append((key, fields))
        pipe.multi()
        score = mapping.score(message.at_ms)
        for owner, opponent in pairs:
            pipe.zadd(mapping.list_key(owner), {mapping.member(opponent): score}, gt=True)
        for key, fields in changed:
            self._store_line(pipe, key, fields)

    async def _change_line(self, operation: Read | Mute, pipe: Pipe) -> None:
        metadata = self.mapping.metadata
        owner, opponent = operation.owner, operation.opponent
        is_mute = isinstance(operation, Mute)
        name = None if metadata is None else metadata.muted if is_mute else metadata.unread
        if metadata is None or name is None:
            pipe.multi()
            return
        list_key, key = self.mapping.list_key(owner), self.mapping.metadata_key(owner, opponent)
        await pipe.watch(list_key, key)
        score = await pipe.zscore(list_key, self.mapping.member(opponent))
        fields, _ = fields_of(metadata.type, await self._read_raw(pipe, key))
        pipe.multi()
        if score is not None:
            value: Any = 0
            if isinstance(operation, Mute):
                value = operation.is_muted if metadata.type == "json" else int(operation.is_muted)
            fields[name] = value
            self._store_line(pipe, key, fields)

    async def _read_raw(self, pipe: Pipe, key: bytes) -> Any:
        assert self.mapping.metadata is not None
        reading = pipe.hgetall if self.mapping.metadata.type == "hash" else pipe.get
        try:
            return await reading(key)
        except ResponseError as error:
            raise Refused(f"{key!r}: {error}") from error

    def _store_line(self, pipe: Pipe, key: bytes, fields: dict[str, Any]) -> None:
        assert self.mapping.metadata is not None
        if not fields:
            return
        if self.mapping.metadata.type == "hash":
            pipe.hset(key, mapping=fields)
        else:
            pipe.set(key, msgspec.json.encode(fields), keepttl=True)

    async def get(self, owner: str, opponent: str) -> Conversation | None:
        """One line of the owner's list, or None where it isn't there."""
        member = self.mapping.member(opponent)
        async with translated():
            score = await self._calls.zscore(self.mapping.list_key(owner), member)
        if score is None:
            return None
        lines = await self._lines(owner, [(member, score)])
        return lines[0]

    async def list(
        self, owner: str, *, limit: int = LIST_LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page:
        """The newest `limit` lines after the cursor; of one score, in the set's own order."""
        check_limit(limit)
        top, last = _opened(cursor)
        rows: list[tuple[bytes, float]] = []
        offset = 0
        async with translated():
            while len(rows) <= limit:
                found = await self._calls.zrevrangebyscore(
                    self.mapping.list_key(owner),
                    top,
                    "-inf",
                    start=offset,
                    num=limit + 1,
                    withscores=True,
                )
                if not found:
                    break
                offset += len(found)
                rows += [
                    (member, score)
                    for member, score in found
                    if last is None or score < float(top) or member < last
                ]
        is_more = len(rows) > limit
        rows = rows[:limit]
        following = f"{rows[-1][1]!r} {rows[-1][0].hex()}" if is_more else None
        return Page(await self._lines(owner, rows), following)

    async def count(self, owner: str) -> int:
        """How many lines the owner's list has."""
        async with translated():
            return int(await self._calls.zcard(self.mapping.list_key(owner)))

    async def last_message(self, owner: str, opponent: str) -> Line | None:
        """What is known of the last message of a line, or None where there is no metadata."""
        metadata = self.mapping.metadata
        if metadata is None:
            return None
        async with translated():
            reading = self._calls.hgetall if metadata.type == "hash" else self._calls.get
            return read_line(metadata, await reading(self.mapping.metadata_key(owner, opponent)))

    async def owners(self) -> AsyncIterator[str]:
        """Everybody who has a list, in no order; one who gets it meanwhile may be left out."""
        async with translated():
            async for key in self._calls.scan_iter(
                match=self.mapping.scan_pattern, count=1_000, _type="zset"
            ):
                owner = self.mapping.owner_of(key)
                if owner:
                    yield owner.decode(errors="replace")

    async def _lines(self, owner: str, rows: Sequence[tuple[bytes, float]]) -> Lines:
        opponents = [(self.mapping.opponent_of(member) or member).decode() for member, _ in rows]
        lines = [Line() for _ in rows]
        metadata = self.mapping.metadata
        if metadata is not None and rows:
            async with translated(), self._calls.pipeline(transaction=False) as pipe:
                for opponent in opponents:
                    key = self.mapping.metadata_key(owner, opponent)
                    (pipe.hgetall if metadata.type == "hash" else pipe.get)(key)
                lines = [read_line(metadata, raw) for raw in await pipe.execute(False)]
        now_ms = self._clock()
        return [
            Conversation(
                opponent=opponent,
                at_ms=time_of(self.mapping, score, now_ms, []),
                unread=line.unread,
                preview=None if line.text is None else preview_of(line.text),
                is_muted=line.is_muted,
            )
            for opponent, (_, score), line in zip(opponents, rows, lines, strict=True)
        ]


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """The errors of Redis as those of conversation lists."""
    try:
        yield
    except WatchError:
        raise
    except PASSING as error:
        raise Away(f"Redis: {error}") from error
    except RedisError as error:
        raise Refused(f"Redis: {error}") from error


def _opened(cursor: str | None) -> tuple[str, bytes | None]:
    """The score and member at which a page ended."""
    if cursor is None:
        return "+inf", None
    score, _, member = cursor.partition(" ")
    try:
        float(score)
        return score, bytes.fromhex(member)
    except ValueError as error:
        raise ValueError("this is no cursor") from error


@asynccontextmanager
async def open_redis(url: str, timeout_s: float) -> AsyncIterator[Redis]:
    """A client whose calls have that deadline, closed on leaving. Raises ValueError for the URL."""
    redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    try:
        yield redis
    finally:
        await redis.aclose()
