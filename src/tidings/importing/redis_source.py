"""Reads conversation lists from Redis: each conversation once, both its sides at one moment.

Lists are found by SCAN and read page by page, so that neither the server nor this process ever
holds much of them. A list that changes while it is read is read on from its last score: what moved
up comes again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    NoScriptError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from tidings.conversations.journal import place_of
from tidings.conversations.lines import Line, fields_of, line_of, read_line
from tidings.conversations.mapping import Mapping, Messages, pattern_parts
from tidings.errors import Unavailable
from tidings.importing.redis_oddities import Oddities

LISTS_TOGETHER = 8
READ_AHEAD = 2
"""So often LISTS_TOGETHER are on their way while others are worked on."""
PAGE_MEMBERS = 500
"""Members of a list that are read together."""
TIES_AGAIN = 100
"""Members of one score that are read again with the next page: so many may leave meanwhile."""
MESSAGES_TOGETHER = 10_000
"""Messages at most of conversations that are given out together; one at least is."""
SCAN_KEYS = 1_000
PATIENCE_S = 120.0
"""How long a source that went away is waited for."""
PAUSE_FIRST_S = 0.1
PAUSE_S_MAX = 5.0
PASSING = (ConnectionError, TimeoutError, BusyLoadingError, NoScriptError, OSError)
"""What goes away by itself: no connection, a server that starts and loads its data."""

Place: TypeAlias = tuple[int, int]
"""Of an operation in the journal."""

T = TypeVar("T")

_BEGINNING = """
local rules = cjson.decode(ARGV[1])
local function filled(pattern, own, other)
  local text = ''
  for _, part in ipairs(pattern) do
    if part == 1 then text = text .. own elseif part == 2 then text = text .. other
    else text = text .. part end
  end
  return text
end
local function metadata(own, other)
  if rules.type == 'none' then return {'ok', false} end
  local key, reply = filled(rules.metadata, own, other), nil
  if rules.type == 'hash' then reply = redis.pcall('HMGET', key, unpack(rules.fields))
  else reply = redis.pcall('GET', key) end
  if type(reply) == 'table' and reply.err then return {'error', reply.err} end
  return {'ok', reply}
end
local function score(own, other)
  local reply = redis.pcall('ZSCORE', filled(rules.list, own, ''), filled(rules.member, '', other))
  if type(reply) == 'table' then return false end
  return reply
end
local function pair(own, other, first, second)
  local is_there = 1
  if #rules.person > 0 then is_there = redis.call('EXISTS', filled(rules.person, other, '')) end
  return {own, other, first, second, metadata(own, other), metadata(other, own), is_there}
end
"""
"""ARGV[1] is the mapping: patterns as lists of texts and places."""

_READ_PAIRS = (
    _BEGINNING
    + """
local owner, mine, newest = ARGV[2], tonumber(ARGV[3]), {}
if rules.journal ~= '' then
  newest = redis.pcall('XREVRANGE', rules.journal, '+', '-', 'COUNT', 1)
end
local pairs = {newest[1] and newest[1][1] or '0-0'}
for at = 4, #ARGV do
  local opponent = ARGV[at]
  local own, other = score(owner, opponent), score(opponent, owner)
  if own and (at - 3 <= mine or not other) then
    pairs[#pairs + 1] = pair(owner, opponent, own, other)
  end
end
return pairs
"""
)
"""Both sides of many conversations of one owner, at one moment, after the journal's place at it.

ARGV: the owner, how many opponents are the owner's to read, the opponents, those first. The others
are read where they have no line themselves."""

_READ_CHANGED = (
    _BEGINNING
    + """
local found, seen = {}, {}
local operations = redis.call('XRANGE', rules.journal, '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
for _, operation in ipairs(operations) do
  local told = cjson.decode(operation[2][2])
  local own, other = told.owner, told.opponent
  if told.message then own, other = told.message.sender_id, told.message.receiver_id end
  if other < own then own, other = other, own end
  local name = own .. ' ' .. other
  if not seen[name] then
    seen[name] = true
    found[#found + 1] = pair(own, other, score(own, other), score(other, own))
  end
end
local last = ARGV[2]
if #operations > 0 then last = operations[#operations][1] end
return {last, #operations, found}
"""
)
"""The conversations of the next operations of the journal, on a list or not, at one moment.

ARGV: the place after which they are, how many operations at most. Returns the last one's place,
how many there were, and the conversations."""


class Side(msgspec.Struct, array_like=True):
    """One line of somebody's list."""

    owner: str
    score: float
    line: Line


class Pair(msgspec.Struct, array_like=True):
    """A conversation: its first side has a line, unless it is on nobody's list any more."""

    sides: tuple[Side, Side | None]
    """That of the list in which it was found, and the other one."""
    opponent: str
    """Whose line the second side is, there or not."""
    noted: Place = (0, 0)
    """The last operation of the journal at the moment at which it was read."""
    messages: list[Any] = []
    is_listed: bool = True


Rows: TypeAlias = list[tuple[bytes, float]]
"""Members and scores of a list, in its order."""


class Part(NamedTuple):
    """Conversations of the beginnings of some lists, and those of the lists that go on."""

    pairs: list[Pair]
    longer: list[tuple[bytes, str, Rows]]
    """Key, owner, and what was read."""


class RedisSource:
    """The lists of one server. The client is closed by whoever opened it."""

    def __init__(
        self, redis: Redis, mapping: Mapping, oddities: Oddities, journal_key: str = ""
    ) -> None:
        """`journal_key` is the stream of operations that a move notes; empty where none is."""
        self._redis: Any = redis  # its own types are those of both its kinds of clients
        self._mapping = mapping
        self._oddities = oddities
        self._fields = [] if mapping.metadata is None else _fields(mapping)
        self._rules = _rules(mapping, self._fields, journal_key)
        self._digests: dict[str, str] = {}
        self.owners = 0
        self.members = 0
        """Lines of all lists, as they were read."""

    async def pairs(self) -> AsyncIterator[list[Pair]]:
        """Every conversation, some at a time; one that changes meanwhile may come again.

        Raises Unavailable where the server is away for longer than PATIENCE_S.
        """
        ahead: deque[asyncio.Task[Part]] = deque()
        try:
            async for keys in self._keys():
                for start in range(0, len(keys), LISTS_TOGETHER):
                    part = keys[start : start + LISTS_TOGETHER]
                    ahead.append(asyncio.create_task(self._first(part)))
                    if len(ahead) > READ_AHEAD:
                        async for pairs in self._told(await ahead.popleft()):
                            yield pairs
            while ahead:
                async for pairs in self._told(await ahead.popleft()):
                    yield pairs
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _first(self, keys: Sequence[bytes]) -> Part:
        """What the beginnings of some lists have."""
        lists = await self._lists(keys)
        pairs = await self._read([(owner, _members(rows)) for _, owner, rows in lists])
        return Part(pairs, [each for each in lists if len(each[2]) == PAGE_MEMBERS])

    async def _told(self, part: Part) -> AsyncIterator[list[Pair]]:
        """All of some lists, with their messages."""
        async for pairs in self.with_messages(part.pairs):
            yield pairs
        for key, owner, rows in part.longer:
            async for members in self._pages(key, rows):
                async for pairs in self.with_messages(await self._read([(owner, members)])):
                    yield pairs

    async def changed(self, after: str, limit: int) -> tuple[str, int, list[Pair]]:
        """Where the next operations of the journal end, how many they are, and the conversations
        that they changed, as they are at that moment, without messages.

        Fewer operations than `limit` are all that there are at that moment. What is not to be
        taken is on nobody's list.
        """
        ((raw, count, rows),) = await self._evaluate(_READ_CHANGED, [(after, limit)])
        last = raw.decode()
        place = place_of(last)
        return last, count, [self._pair(place, row) or _unlisted(place, row) for row in rows]

    async def with_messages(self, pairs: list[Pair]) -> AsyncIterator[list[Pair]]:
        """The conversations with their messages, so many together as fit into memory."""
        messages = self._mapping.messages
        if messages is None:
            yield pairs
            return
        together = max(1, MESSAGES_TOGETHER // messages.newest)
        for start in range(0, len(pairs), together):
            part = pairs[start : start + together]
            await self._read_messages(part, messages)
            yield part

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
                return _without_passing(await pipe.execute(False))

        replies = await self._patiently(read)
        return [r.decode(errors="replace") if isinstance(r, bytes) else None for r in replies]

    # --- lists ---------------------------------------------------------------------------------

    async def _keys(self) -> AsyncIterator[list[bytes]]:
        """The keys of all lists; SCAN may repeat some while the table grows."""
        cursor = 0
        while True:
            scan = partial(self._redis.scan, cursor, match=self._mapping.scan_pattern)
            cursor, keys = await self._patiently(partial(scan, count=SCAN_KEYS))
            yield list(dict.fromkeys(keys))
            if cursor == 0:
                return

    async def _lists(self, keys: Sequence[bytes]) -> list[tuple[bytes, str, Rows]]:
        """Key, owner and beginning of the lists that are good."""

        async def read() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.zrange(key, 0, PAGE_MEMBERS - 1, withscores=True)
                    if self._mapping.people is not None:
                        owner = self._mapping.owner_of(key).decode(errors="replace")
                        pipe.exists(self._mapping.person_key(owner))
                return _without_passing(await pipe.execute(False))

        replies = iter(await self._patiently(read))
        lists = []
        for key in keys:
            rows = next(replies)
            is_somebody = self._mapping.people is None or next(replies)
            owner = self._name(self._mapping.owner_of(key), "list", key)
            if owner is None:
                continue
            if isinstance(rows, Exception):
                reason = "it is no sorted set"
                self._oddities.add("list", key, reason, detail=str(rows), is_left_out=True)
            elif not is_somebody:
                self._oddities.add("list", key, "its owner is nobody", is_left_out=True)
            else:
                self.owners += 1
                self.members += len(rows)
                lists.append((key, owner, rows))
        return lists

    async def _pages(self, key: bytes, rows: Rows) -> AsyncIterator[list[bytes]]:
        """The members of a list after its beginning."""
        start = 0
        while len(rows) == PAGE_MEMBERS:
            known = {member for member, _ in rows}
            lowest = repr(rows[-1][1])
            is_tied = repr(rows[0][1]) == lowest
            start = start + PAGE_MEMBERS - TIES_AGAIN if is_tied else 0
            rows = await self._page(key, lowest, start)
            if start and known.isdisjoint(_members(rows)):  # too many have left meanwhile
                start = 0
                rows = await self._page(key, lowest, start)
            fresh = [member for member, _ in rows if member not in known]
            self.members += len(fresh)
            yield fresh

    async def _page(self, key: bytes, lowest: str, start: int) -> Rows:
        page = partial(self._redis.zrangebyscore, key, lowest, "+inf", start=start)
        return await self._patiently(partial(page, num=PAGE_MEMBERS, withscores=True))

    def _opponent(self, key: bytes, owner: str, member: bytes) -> str | None:
        text = self._mapping.opponent_of(member)
        if text is None:
            self._oddities.add(
                "member", member, "it does not look like the mapping's", key, is_left_out=True
            )
            return None
        opponent = self._name(text, "member", member, key)
        if opponent == owner:
            self._oddities.add("member", member, "somebody with themselves", key, is_left_out=True)
            return None
        return opponent

    def _name(self, raw: bytes, kind: str, what: bytes, where: bytes = b"") -> str | None:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self._oddities.add(kind, what, "it is not UTF-8", where, is_left_out=True)
            return None
        if not text:
            self._oddities.add(kind, what, "it names nobody", where, is_left_out=True)
            return None
        return text

    # --- conversations -------------------------------------------------------------------------

    async def _read(self, lists: Sequence[tuple[str, Sequence[bytes]]]) -> list[Pair]:
        """The conversations of some lists that are to be read from these."""
        asked: list[tuple[Any, ...]] = []
        for owner, members in lists:
            key = self._mapping.list_key(owner)
            named = [self._opponent(key, owner, member) for member in members]
            opponents = [each for each in named if each is not None]
            mine = [each for each in opponents if owner < each]
            others = [each for each in opponents if owner > each]
            if opponents:
                asked.append((owner, len(mine), *mine, *others))
        replies = await self._evaluate(_READ_PAIRS, asked)
        pairs: list[Pair] = []
        for noted, *rows in replies:
            place = place_of(noted.decode())
            found = [self._pair(place, row) for row in rows]
            pairs += [pair for pair in found if pair is not None]
        return pairs

    async def _evaluate(self, script: str, asked: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the script returns for each of the arguments."""

        async def read() -> list[Any]:
            if script not in self._digests:
                self._digests[script] = await self._redis.script_load(script)
            async with self._redis.pipeline(transaction=False) as pipe:
                for arguments in asked:
                    pipe.evalsha(self._digests[script], 0, self._rules, *arguments)
                try:
                    replies: list[Any] = await pipe.execute()
                except NoScriptError:  # the server was started anew
                    self._digests.clear()
                    raise
            return replies

        return await self._patiently(read) if asked else []

    def _pair(self, place: Place, row: Sequence[Any]) -> Pair | None:
        """A conversation as the script returned it; the side that has a line comes first."""
        owner, opponent = row[0].decode(), row[1].decode()
        own, other, own_raw, other_raw, is_there = row[2:]
        if not is_there:
            member, key = self._mapping.member(opponent), self._mapping.list_key(owner)
            self._oddities.add("member", member, "it is nobody", key, is_left_out=True)
            return None
        first = second = None
        if own is not None:
            first = Side(owner, float(own), self._line(owner, opponent, own_raw))
        if other is not None:
            second = Side(opponent, float(other), self._line(opponent, owner, other_raw))
        if first is not None:
            return Pair((first, second), opponent, place)
        return None if second is None else Pair((second, None), owner, place)

    def _line(self, owner: str, opponent: str, raw: Any) -> Line:
        metadata = self._mapping.metadata
        if metadata is None:
            return Line()
        state, value = raw
        if state == b"error":
            line = read_line(metadata, ResponseError(value.decode(errors="replace")))
        elif metadata.type == "hash":
            line = line_of(metadata, dict(zip(self._fields, value, strict=True)))
        else:
            line = read_line(metadata, value)
        for reason in line.odd:
            self._oddities.add("line", self._mapping.metadata_key(owner, opponent), reason)
        line.odd = []
        return line

    async def _read_messages(self, pairs: Sequence[Pair], messages: Messages) -> None:
        keys = [self._mapping.messages_key(pair.sides[0].owner, pair.opponent) for pair in pairs]

        async def read() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    if messages.type == "list":
                        pipe.lrange(key, -messages.newest, -1)
                    else:
                        pipe.xrevrange(key, count=messages.newest)
                return _without_passing(await pipe.execute(False))

        for key, pair, reply in zip(keys, pairs, await self._patiently(read), strict=True):
            if isinstance(reply, Exception):
                self._oddities.add("messages", key, "they are of another type", detail=str(reply))
            elif messages.type == "list":
                pair.messages = list(reply)
            else:
                pair.messages = [fields for _, fields in reversed(reply)]

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


def _members(rows: Rows) -> list[bytes]:
    return [member for member, _ in rows]


def _unlisted(place: Place, row: Sequence[Any]) -> Pair:
    """A conversation of the script's that nobody has on their list."""
    owner, opponent = row[0].decode(), row[1].decode()
    return Pair((Side(owner, 0.0, Line()), None), opponent, place, is_listed=False)


def _rules(mapping: Mapping, fields: Sequence[str], journal_key: str) -> bytes:
    """What the script has to know of the mapping: patterns as lists of texts and places."""
    metadata, people = mapping.metadata, mapping.people
    return msgspec.json.encode(
        {
            "type": "none" if metadata is None else metadata.type,
            "fields": fields,
            "list": pattern_parts(mapping.lists.key),
            "member": pattern_parts(mapping.lists.member),
            "metadata": [] if metadata is None else pattern_parts(metadata.key),
            "person": [] if people is None else pattern_parts(people.key),
            "journal": journal_key,
        }
    )


def _without_passing(replies: list[Any]) -> list[Any]:
    """The replies of a pipeline. Raises what would have been raised for one call and goes away."""
    for reply in replies:
        if isinstance(reply, PASSING):
            raise reply
    return replies
