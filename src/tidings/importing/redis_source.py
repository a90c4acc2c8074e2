"""Reads conversation lists from Redis: each conversation once, both its sides at one moment.

Lists are found by SCAN and read page by page, so that neither the server nor this process ever
holds much of them. A list that changes while it is read is read on after the last member, or from
its score where that has left: nobody who stays is passed over, and who moved up comes again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from collections.abc import Mapping as Fields
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
from tidings.conversations.mapping import Mapping, Messages
from tidings.errors import Unavailable
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_scripts import NOBODY, READ_CHANGED, READ_LIST, rules

LISTS_TOGETHER = 16
READ_AHEAD = 2
"""So often LISTS_TOGETHER are on their way while others are worked on."""
PAGE_MEMBERS = 250
"""Members of a list that are read together."""
MESSAGES_TOGETHER = 10_000
"""Messages at most of conversations that are given out together; one at least is."""
SCAN_KEYS = 1_000
PATIENCE_S = 120.0
"""How long a source that went away is waited for."""
PAUSE_FIRST_S = 0.1
PAUSE_S_MAX = 5.0
PASSING = (ConnectionError, TimeoutError, BusyLoadingError, NoScriptError, OSError)
"""What goes away by itself: no connection, a server that starts and loads its data."""

_OTHER_TYPE = "WRONGTYPE"

Place: TypeAlias = tuple[int, int]
"""Of an operation in the journal."""

T = TypeVar("T")


class Restarted(Exception):
    """The server is not the one that was read before: where that stopped says nothing any more."""


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


class Reached(NamedTuple):
    """Where to go on reading a list."""

    key: bytes
    owner: str
    score: bytes = b""
    member: bytes = b""
    """The last one that was read, at that score; nothing at the beginning."""


class Part(NamedTuple):
    """Conversations of some lists, and where those go on that are longer."""

    pairs: list[Pair]
    longer: list[Reached]


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
        self._rules = rules(mapping, self._fields, journal_key)
        self._digests: dict[str, str] = {}
        self._life: str | None = None
        """Which run of the server is read."""
        self.owners = 0
        self.members = 0
        """Lines of all lists, as they were read."""

    async def pairs(self) -> AsyncIterator[list[Pair]]:
        """Every conversation, some at a time; one that changes meanwhile may come again.

        Raises Unavailable where the server is away for longer than PATIENCE_S, and Restarted where
        it has to be read from the beginning: another source does that.
        """
        ahead: deque[asyncio.Task[Part]] = deque()
        try:
            async for keys in self._keys():
                for start in range(0, len(keys), LISTS_TOGETHER):
                    lists = self._lists(keys[start : start + LISTS_TOGETHER])
                    ahead.append(asyncio.create_task(self._read(lists)))
                    if len(ahead) > READ_AHEAD:
                        async for pairs in self._told(await ahead.popleft()):
                            yield pairs
            while ahead:
                async for pairs in self._told(await ahead.popleft()):
                    yield pairs
            self._require_life(await self._patiently(partial(self._redis.info, "server")))
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _told(self, part: Part) -> AsyncIterator[list[Pair]]:
        """All of some lists, with their messages."""
        while True:
            async for pairs in self.with_messages(part.pairs):
                yield pairs
            if not part.longer:
                return
            part = await self._read(part.longer)

    async def changed(self, after: str, limit: int) -> tuple[str, int, list[Pair]]:
        """Where the next operations of the journal end, how many they are, and the conversations
        that they changed, as they are at that moment, without messages.

        Fewer operations than `limit` are all that there are at that moment. What is not to be
        taken is on nobody's list.
        """
        (reply,) = await self._evaluate(READ_CHANGED, [(after, limit)])
        if isinstance(reply, ResponseError):
            raise Unavailable(f"Redis refused: {reply}") from reply
        raw, count, rows = reply
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
        """The keys of all lists; SCAN may repeat some while the table grows.

        Raises Restarted: SCAN goes by a secret that a server makes when it starts.
        """
        cursor = 0
        while True:
            info, (cursor, keys) = await self._patiently(partial(self._scan, cursor))
            self._require_life(info)
            yield list(dict.fromkeys(keys))
            if cursor == 0:
                return

    def _require_life(self, info: Fields[str, Any]) -> None:
        if self._life not in (None, info["run_id"]):
            raise Restarted
        self._life = info["run_id"]

    async def _scan(self, cursor: int) -> Any:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.info("server")
            pipe.scan(cursor, match=self._mapping.scan_pattern, count=SCAN_KEYS)
            return await pipe.execute()

    def _lists(self, keys: Sequence[bytes]) -> list[Reached]:
        """The beginnings of lists whose owners have names."""
        owners = [self._name(self._mapping.owner_of(key), "list", key) for key in keys]
        named = zip(keys, owners, strict=True)
        return [Reached(key, owner) for key, owner in named if owner is not None]

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

    async def _read(self, places: Sequence[Reached]) -> Part:
        """What comes next on some lists."""
        replies = await self._evaluate(READ_LIST, [(*place, PAGE_MEMBERS) for place in places])
        part = Part([], [])
        for (key, owner, score, _), reply in zip(places, replies, strict=True):
            if isinstance(reply, ResponseError):
                self._leave_out(key, reply)
                continue
            noted, count, last_score, last, *found = reply
            self.owners += not score
            self.members += count
            place = place_of(noted.decode())
            for row in found:
                if isinstance(row, bytes):
                    self._leave_out_member(key, row)
                elif (pair := self._pair(place, row)) is not None:
                    part.pairs.append(pair)
            if count == PAGE_MEMBERS:
                part.longer.append(Reached(key, owner, last_score, last))
        return part

    def _leave_out(self, key: bytes, error: ResponseError) -> None:
        if NOBODY in str(error):
            self._oddities.add("list", key, "its owner is nobody", is_left_out=True)
        elif _OTHER_TYPE in str(error):
            reason = "it is no sorted set"
            self._oddities.add("list", key, reason, detail=str(error), is_left_out=True)
        else:
            raise Unavailable(f"Redis refused: {error}") from error

    def _leave_out_member(self, key: bytes, member: bytes) -> None:
        is_own = self._mapping.opponent_of(member) is not None
        reason = "somebody with themselves" if is_own else "it does not look like the mapping's"
        self._oddities.add("member", member, reason, key, is_left_out=True)

    async def _evaluate(self, script: str, asked: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What the script returns for each of the arguments, or the error that it ended with."""

        async def read() -> list[Any]:
            if script not in self._digests:
                self._digests[script] = await self._redis.script_load(script)
            async with self._redis.pipeline(transaction=False) as pipe:
                for arguments in asked:
                    pipe.evalsha(self._digests[script], 0, self._rules, *arguments)
                try:
                    return _without_passing(await pipe.execute(False))
                except NoScriptError:  # the server was started anew
                    self._digests.clear()
                    raise

        return await self._patiently(read) if asked else []

    def _pair(self, place: Place, row: Sequence[Any]) -> Pair | None:
        """A conversation as the script returned it; the side that has a line comes first."""
        own, other, own_raw, other_raw, is_there = row[2:]
        owner = row[0].decode()
        opponent = self._name(row[1], "member", row[1], self._mapping.list_key(owner))
        if opponent is None:
            return None
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


def _unlisted(place: Place, row: Sequence[Any]) -> Pair:
    """A conversation of the script's that nobody has on their list."""
    owner, opponent = row[0].decode(), row[1].decode()
    return Pair((Side(owner, 0.0, Line()), None), opponent, place, is_listed=False)


def _without_passing(replies: list[Any]) -> list[Any]:
    """The replies of a pipeline. Raises what would have been raised for one call and goes away."""
    for reply in replies:
        if isinstance(reply, PASSING):
            raise reply
    return replies
