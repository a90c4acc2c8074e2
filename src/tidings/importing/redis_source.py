"""Reads conversation lists from Redis: each conversation once, both its sides at one moment.

Lists are found by SCAN and read page by page, so that neither the server nor this process ever
holds much of them. A list that changes while it is read is read on from its last score: what moved
up comes again and is known by its key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    ResponseError,
    TimeoutError,  # noqa: A004
)

from tidings.conversations.journal import place_of
from tidings.conversations.lines import Line, fields_of, read_line
from tidings.conversations.mapping import Mapping
from tidings.errors import Unavailable
from tidings.importing.redis_odd import Odd

PAGE_MEMBERS = 500
"""Members of a list that are read together."""
SCAN_KEYS = 1_000
PATIENCE_S = 120.0
"""How long a source that went away is waited for."""
PAUSE_FIRST_S = 0.1
PAUSE_S_MAX = 5.0
PASSING = (ConnectionError, TimeoutError, BusyLoadingError, OSError)
"""What goes away by itself: no connection, a server that starts and loads its data."""

T = TypeVar("T")

_READ_PAIRS = """
local function value(reply)
  if type(reply) == 'table' and reply.err then return {'error', reply.err} end
  return {'ok', reply}
end
local function metadata(key)
  if ARGV[1] == 'hash' then
    return value(redis.pcall('HMGET', key, unpack(ARGV, 7, 6 + tonumber(ARGV[5]))))
  elseif ARGV[1] == 'json' then
    return value(redis.pcall('GET', key))
  end
  return {'ok', false}
end
local newest = ARGV[6] ~= '' and redis.pcall('XREVRANGE', ARGV[6], '+', '-', 'COUNT', 1) or {}
local pairs = {newest[1] and newest[1][1] or '0-0'}
for at = 7 + tonumber(ARGV[5]), #ARGV, 7 do
  local own = redis.pcall('ZSCORE', ARGV[2], ARGV[at + 1])
  local other = redis.pcall('ZSCORE', ARGV[at + 2], ARGV[3])
  if type(own) == 'table' then own = false end
  if type(other) == 'table' then other = false end
  if own and (ARGV[at] == '1' or not other) then
    local is_there = 1
    if ARGV[4] == '1' then is_there = redis.call('EXISTS', ARGV[at + 5]) end
    pairs[#pairs + 1] = {
      tonumber(ARGV[at + 6]), own, other, metadata(ARGV[at + 3]), metadata(ARGV[at + 4]), is_there
    }
  end
end
return pairs
"""
"""Both sides of many conversations of one owner, at one moment. A conversation is read from the
side whose id is less, and from the other one where that has no line.

ARGV: type of metadata, list of the owner, the owner as a member, whether people are looked up,
number of fields, the journal, fields; then for each opponent: whether it is the owner's to read,
the opponent as a member, their list, the key of the owner's line, that of theirs, their own key,
its place."""


class Side(msgspec.Struct):
    """One line of somebody's list."""

    owner: str
    score: float
    line: Line


class Pair(msgspec.Struct):
    """A conversation: one side of it at least has a line."""

    sides: tuple[Side, Side | None]
    """That of the list in which it was found, and the other one."""
    opponent: str
    """Whose line the second side is, there or not."""
    noted: tuple[int, int] = (0, 0)
    """The last operation of the journal at the moment at which it was read."""
    messages: list[Any] = []


class RedisSource:
    """The lists of one server. The client is closed by whoever opened it."""

    def __init__(self, redis: Redis, mapping: Mapping, odd: Odd, journal_key: str = "") -> None:
        """`journal_key` is the stream of operations that a move notes; empty where none is."""
        self._redis: Any = redis  # its own types are those of both its kinds of clients
        self._mapping = mapping
        self._odd = odd
        self._journal_key = journal_key
        self._script = self._redis.register_script(_READ_PAIRS)
        self.owners = 0
        self.members = 0
        """Lines of all lists, as they were read."""

    async def pairs(self) -> AsyncIterator[list[Pair]]:
        """Every conversation, some at a time; one that changes meanwhile may come again.

        Raises Unavailable where the server is away for longer than PATIENCE_S.
        """
        async for key in self._keys():
            owner = self._name(self._mapping.owner_of(key), "list", key)
            if owner is None:
                continue
            if self._mapping.people is not None and not await self._is_somebody(owner):
                self._odd.add("list", key, "its owner is nobody", is_left_out=True)
                continue
            self.owners += 1
            async for opponents in self._pages(key, owner):
                yield await self._read(owner, opponents)

    async def names(self, owners: Sequence[str]) -> list[str | None]:
        """What people are called, where the mapping says where that stands."""
        people = self._mapping.people
        if people is None or people.name is None:
            return [None] * len(owners)
        name = people.name

        async def read() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for owner in owners:
                    pipe.hget(self._mapping.person_key(owner), name)
                replies: list[Any] = await pipe.execute(False)
            return replies

        replies = await self._patiently(read)
        return [r.decode(errors="replace") if isinstance(r, bytes) else None for r in replies]

    # --- lists ---------------------------------------------------------------------------------

    async def _keys(self) -> AsyncIterator[bytes]:
        """The keys of all lists, each once for as long as it is the same server."""
        cursor = 0
        before: set[bytes] = set()  # SCAN repeats keys while the table grows, soon after
        while True:
            scan = partial(self._redis.scan, cursor, match=self._mapping.scan_pattern)
            cursor, keys = await self._patiently(partial(scan, count=SCAN_KEYS))
            for key in keys:
                if key not in before:
                    yield key
            before = set(keys)
            if cursor == 0:
                return

    async def _pages(self, key: bytes, owner: str) -> AsyncIterator[list[tuple[bytes, str]]]:
        """The members of a list with what they stand for, in the list's order."""
        lowest, offset = "-inf", 0
        seen: set[bytes] = set()
        while True:
            try:
                page = partial(self._redis.zrangebyscore, key, lowest, "+inf", start=offset)
                rows = await self._patiently(partial(page, num=PAGE_MEMBERS, withscores=True))
            except ResponseError as error:
                detail = str(error)
                self._odd.add("list", key, "it is no sorted set", detail=detail, is_left_out=True)
                return
            if not rows:
                return
            same = sum(score == rows[-1][1] for _, score in rows)
            offset = offset + len(rows) if same == len(rows) else same
            lowest = repr(rows[-1][1])
            fresh = [member for member, _ in rows if member not in seen]
            seen.update(fresh)
            self.members += len(fresh)
            opponents = [(member, self._opponent(key, owner, member)) for member in fresh]
            yield [(member, opponent) for member, opponent in opponents if opponent is not None]

    def _opponent(self, key: bytes, owner: str, member: bytes) -> str | None:
        text = self._mapping.opponent_of(member)
        if text is None:
            self._odd.add(
                "member", member, "it does not look like the mapping's", key, is_left_out=True
            )
            return None
        opponent = self._name(text, "member", member, key)
        if opponent == owner:
            self._odd.add("member", member, "somebody with themselves", key, is_left_out=True)
            return None
        return opponent

    def _name(self, raw: bytes, kind: str, what: bytes, where: bytes = b"") -> str | None:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self._odd.add(kind, what, "it is not UTF-8", where, is_left_out=True)
            return None
        if not text:
            self._odd.add(kind, what, "it names nobody", where, is_left_out=True)
            return None
        return text

    # --- conversations -------------------------------------------------------------------------

    async def _read(self, owner: str, opponents: Sequence[tuple[bytes, str]]) -> list[Pair]:
        mapping, metadata = self._mapping, self._mapping.metadata
        fields = [] if metadata is None else _fields(mapping)
        arguments: list[Any] = [
            "none" if metadata is None else metadata.type,
            mapping.list_key(owner),
            mapping.member(owner),
            int(mapping.people is not None),
            len(fields),
            self._journal_key,
            *fields,
        ]
        for place, (member, opponent) in enumerate(opponents):
            arguments += [int(owner < opponent), member, mapping.list_key(opponent)]
            if metadata is None:
                arguments += [b"", b""]
            else:
                arguments.append(mapping.metadata_key(owner, opponent))
                arguments.append(mapping.metadata_key(opponent, owner))
            arguments.append(b"" if mapping.people is None else mapping.person_key(opponent))
            arguments.append(place)
        if not opponents:
            return []
        newest, *rows = await self._patiently(lambda: self._script(args=arguments))
        noted = place_of(newest.decode())
        pairs = []
        for place, own, other, own_raw, other_raw, is_there in rows:
            member, opponent = opponents[place]
            if not is_there:
                key = mapping.list_key(owner)
                self._odd.add("member", member, "it is nobody", key, is_left_out=True)
                continue
            first = Side(owner, float(own), self._line(owner, opponent, fields, own_raw))
            second = None
            if other is not None:
                line = self._line(opponent, owner, fields, other_raw)
                second = Side(opponent, float(other), line)
            pairs.append(Pair((first, second), opponent, noted))
        if mapping.messages is not None and pairs:
            await self._read_messages(pairs)
        return pairs

    def _line(self, owner: str, opponent: str, fields: Sequence[str], raw: Any) -> Line:
        metadata = self._mapping.metadata
        if metadata is None:
            return Line()
        state, value = raw
        if state == b"error":
            line = read_line(metadata, ResponseError(value.decode(errors="replace")))
        elif metadata.type == "hash":
            known = zip(fields, value, strict=True)
            line = read_line(metadata, {n.encode(): v for n, v in known if v is not None})
        else:
            line = read_line(metadata, value)
        for reason in line.odd:
            self._odd.add("line", self._mapping.metadata_key(owner, opponent), reason)
        return line

    async def _read_messages(self, pairs: Sequence[Pair]) -> None:
        messages = self._mapping.messages
        assert messages is not None
        keys = [self._mapping.messages_key(pair.sides[0].owner, pair.opponent) for pair in pairs]

        async def read() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    if messages.type == "list":
                        pipe.lrange(key, -messages.newest, -1)
                    else:
                        pipe.xrevrange(key, count=messages.newest)
                replies: list[Any] = await pipe.execute(False)
            return replies

        for key, pair, reply in zip(keys, pairs, await self._patiently(read), strict=True):
            if isinstance(reply, Exception):
                self._odd.add("messages", key, "they are of another type", detail=str(reply))
            elif messages.type == "list":
                pair.messages = list(reply)
            else:
                pair.messages = [fields for _, fields in reversed(reply)]

    async def _is_somebody(self, owner: str) -> bool:
        return bool(
            await self._patiently(lambda: self._redis.exists(self._mapping.person_key(owner)))
        )

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns once the server is there. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + PATIENCE_S
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                return await call()
            except AuthenticationError as error:
                raise Unavailable(f"Redis does not let us in: {error}") from error
            except PASSING as error:
                if loop.time() + pause_s > ends_at_s:
                    raise Unavailable(
                        f"Redis was away for {PATIENCE_S:.0f} s: {error}. Run the import again."
                    ) from error
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_S_MAX, pause_s * 2)


def message_fields(mapping: Mapping, raw: Any) -> tuple[dict[str, Any], str | None]:
    """The fields of one stored message, and what is wrong with them."""
    assert mapping.messages is not None
    return fields_of("json" if mapping.messages.type == "list" else "hash", raw)


def _fields(mapping: Mapping) -> list[str]:
    metadata = mapping.metadata
    assert metadata is not None
    names = (
        metadata.unread,
        metadata.muted,
        metadata.text,
        metadata.sender,
        metadata.message_id,
    )
    return [name for name in names if name is not None] or ["unread"]
