"""Changed keys of DynamoDB tables: read from their streams, which DynamoDB itself fills.

A stream is a tree of shards, of which each holds the changes of some keys in their order and ends
when its keys go over to others. How far each was read and copied stands in the books of the store
itself. What a stream holds is kept for 24 hours.

Source: "Change data capture for DynamoDB Streams" in the Amazon DynamoDB Developer Guide.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tidings.clock import Clock, system_clock
from tidings.config import DynamoAddress
from tidings.errors import Conflict, Unavailable
from tidings.migrate.captures import CAPTURED_TABLES, Change
from tidings.migrate.shards import Shard, Stream
from tidings.storage.calls import Calls, Refused
from tidings.storage.dynamodb import MARK, DynamoStore
from tidings.storage.expressions import table_name
from tidings.storage.interface import SET_ITEMS_MAX, Delete, Item, Key, Put, Table
from tidings.storage.tables import MOVES

STREAM_LIFE_S = 24 * 3600
"""How long DynamoDB keeps a change in its stream."""
READ_NOTED_S = 60.0
"""How often it is noted that the streams were read."""
SHARDS_LOOK_S = 5.0
"""How often to look for shards that are new."""
RECORDS_MAX = 1_000
"""Records of one GetRecords call (DynamoDB's limit)."""
BUFFERED_KEYS_MAX = 20_000
"""Keys that are read and not yet forgotten; past it no more is read."""
READY_LOOKS_MAX = 300
READY_LOOK_S = 0.5
"""How long to wait for a stream to be there."""
TABLES_AT_ONCE_MAX = 8
MARKS_PER_SHARD = 4
"""Marks written to a table for each of its open shards, since nobody can choose where one goes."""
MARKS_MAX = 96
MARKS_AT_ONCE = SET_ITEMS_MAX - 1
"""Marks of one write, beside the row that names them."""
MARK_LOOKS_MAX = 40
MARK_LOOK_S = 0.05
"""How long to wait for marks before more are written."""
BOOKS_PART = "streams"

_MARKS_ITEM = "marks"


class CaptureLost(Conflict):
    """Changes were lost: they waited for more than a day, or a stream was turned off."""

    def __init__(self, table: Table, reason: str) -> None:
        super().__init__(
            f"Changes of the table {table.name} are lost: {reason}. Roll the move back and start it"
            " again; the store that is in use has lost nothing."
        )


class StreamCapture:
    """A `Capture` of DynamoDB tables.

    Whether it is drained is proven and not guessed: marks are written into each table until every
    open shard has shown one, and with it all that was changed before.
    """

    def __init__(
        self,
        store: DynamoStore,
        address: DynamoAddress,
        *,
        tables: Sequence[Table] = CAPTURED_TABLES,
        clock: Clock = system_clock,
        streams: DynamoAddress | None = None,
    ) -> None:
        """`store` is the one at the address; it has the table MOVES too and stays its owner's.

        `streams` is where its streams are, if that is elsewhere.
        """
        self._store = store
        self._calls = store.calls
        self._address = address
        self._streams_calls = Calls.open(streams or address, api="streams")
        self._tables = {table.name: table for table in tables}
        self._clock = clock
        self._streams: dict[str, Stream] | None = None
        self._noted_at_ms = 0
        self._turns = asyncio.Semaphore(TABLES_AT_ONCE_MAX)

    # -- beginning and ending

    async def begin(self, *, is_unread: bool = False) -> None:
        """See `Capture.begin`. Turns on the streams that are off. Raises CaptureLost."""
        self._streams = None  # another may have read on since
        begun = await self._begun()
        await asyncio.gather(*(self._begin(table, begun) for table in self._tables.values()))
        if is_unread:  # it begins with what the streams still hold, however long ago they began
            for row in await self._rows():
                if row["item"].startswith("shard#"):
                    await self._store.write(Delete(MOVES, MOVES.key(row)))
        if is_unread or not await self._store.get(MOVES, (BOOKS_PART, "read")):
            await self._note_read()

    async def _begin(self, table: Table, begun: Mapping[str, str]) -> None:
        async with self._turns:
            name = table_name(self._address.prefix, table)
            described = await self._describe(name)
            is_on = (described.get("StreamSpecification") or {}).get("StreamEnabled")
            known = begun.get(table.name)
            if known is not None and (not is_on or described["LatestStreamArn"] != known):
                raise CaptureLost(table, "its stream was turned off")
            if not is_on:
                wanted = {"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"}
                await self._ask(
                    self._calls, "UpdateTable", {"TableName": name, "StreamSpecification": wanted}
                )
            arn = await self._until_ready(name)
            if known is None:
                await self._store.write(
                    Put(
                        MOVES,
                        {
                            "part": BOOKS_PART,
                            "item": f"stream#{table.name}",
                            "data": {"arn": arn, "was_on": bool(is_on)},
                        },
                    )
                )

    async def _until_ready(self, name: str) -> str:
        """The name of the table's stream, once everything that changes is in it."""
        for _ in range(READY_LOOKS_MAX):
            described = await self._describe(name)
            arn = described.get("LatestStreamArn")
            if described["TableStatus"] == "ACTIVE" and arn:
                page = await self._ask(
                    self._streams_calls, "DescribeStream", {"StreamArn": arn, "Limit": 1}
                )
                if page["StreamDescription"]["StreamStatus"] == "ENABLED":
                    return str(arn)
            await asyncio.sleep(READY_LOOK_S)
        raise Unavailable(f"The stream of {name} takes long to become ready: try again.")

    async def end(self) -> None:
        """See `Capture.end`. Turns off the streams that were off before."""
        await self._remove_marks()
        rows = await self._rows()
        for row in rows:
            if not row["item"].startswith("stream#"):
                continue
            table = self._tables.get(row["item"].removeprefix("stream#"))
            if table is None or row["data"]["was_on"]:
                continue
            name = table_name(self._address.prefix, table)
            described = await self._describe(name)
            if described.get("LatestStreamArn") == row["data"]["arn"] and (
                described.get("StreamSpecification") or {}
            ).get("StreamEnabled"):
                await self._ask(
                    self._calls,
                    "UpdateTable",
                    {"TableName": name, "StreamSpecification": {"StreamEnabled": False}},
                )
        for row in rows:
            await self._store.write(Delete(MOVES, MOVES.key(row)))
        self._streams = None

    async def close(self) -> None:
        """See `Capture.close`; the store stays open."""
        await self._streams_calls.close()

    # -- changes

    async def pending(self, limit: int) -> list[Change]:
        """See `Capture.pending`; oldest first in each shard. Raises CaptureLost."""
        streams = await self._load()
        await asyncio.gather(*(self._read(stream) for stream in streams.values()))
        changes: list[Change] = []
        for stream in streams.values():
            for shard in stream.shards.values():
                for key, sequence in shard.waiting.items():
                    if len(changes) == limit:
                        return changes
                    changes.append(Change(stream.table, key, f"{shard.shard_id} {sequence}"))
        return changes

    async def forget(self, changes: Sequence[Change]) -> None:
        """See `Capture.forget`."""
        streams = await self._load()
        for change in changes:
            shard_id, _, sequence = str(change.mark).partition(" ")
            shard = streams[change.table.name].shards.get(shard_id)
            if shard is not None:
                shard.forget(change.key, sequence)
        await self._note(streams)

    async def lag(self) -> int:
        """See `Capture.lag`: what was read of the streams and not copied."""
        return sum(stream.waiting for stream in (await self._load()).values())

    async def is_drained(self) -> bool:
        """See `Capture.is_drained`."""
        streams = await self._load()
        await self._remove_marks()
        if not streams:
            return True
        seal = secrets.token_hex(6)
        for stream in streams.values():
            stream.looked_at = None
            stream.mark = f"{MARK}{seal}"
            stream.marked.clear()
        try:
            while await self._write_marks(streams):
                for _ in range(MARK_LOOKS_MAX):
                    await asyncio.gather(*(self._read(stream) for stream in streams.values()))
                    if all(stream.is_marked for stream in streams.values()):
                        break
                    await asyncio.sleep(MARK_LOOK_S)
            return not await self.lag()
        finally:
            await self._remove_marks()

    # -- marks

    async def _write_marks(self, streams: Mapping[str, Stream]) -> bool:
        """Write marks where an open shard has not shown one; whether there was such a shard.

        Looks for shards that are new in streams of which a shard has ended since, as no other way
        leads to one.
        """
        await asyncio.gather(*(self._find_shards(stream) for stream in streams.values()))
        left = [stream for stream in streams.values() if not stream.is_marked]
        marks = [mark for stream in left for mark in self._marks(stream)]
        for at in range(0, len(marks), MARKS_AT_ONCE):
            await self._mark(marks[at : at + MARKS_AT_ONCE])
        return bool(left)

    @staticmethod
    def _marks(stream: Stream) -> Iterator[tuple[Table, Key]]:
        table = stream.table
        for _ in range(min(MARKS_PER_SHARD * len(stream.shards), MARKS_MAX)):
            name = f"{stream.mark}#{secrets.token_hex(4)}"
            if table.sort is None:
                yield table, (name,)
            else:
                yield table, (name, 0 if table.fields[table.sort] is int else "mark")

    async def _mark(self, marks: Sequence[tuple[Table, Key]]) -> None:
        """Write marks into tables, and with them where they can be found again."""
        row: Item = {
            "part": BOOKS_PART,
            "item": f"{_MARKS_ITEM}#{secrets.token_hex(4)}",
            "position": [[table.name, *key] for table, key in marks],
        }
        puts = [Put(table, dict(zip(table.key_fields, key, strict=True))) for table, key in marks]
        await self._store.write(Put(MOVES, row), *puts)

    async def _remove_marks(self) -> None:
        """Remove all marks, those of one who died, too."""
        page = await self._store.query(MOVES, BOOKS_PART, prefix=f"{_MARKS_ITEM}#")
        await asyncio.gather(*map(self._unmark, page.items))

    async def _unmark(self, row: Item) -> None:
        deletes = [Delete(self._tables[name], tuple(key)) for name, *key in row["position"]]
        await self._store.write(Delete(MOVES, MOVES.key(row)), *deletes)

    # -- reading

    async def _load(self) -> dict[str, Stream]:
        """The streams, from where the books say that they were read; none before the begin."""
        if self._streams is not None:
            return self._streams
        streams = {
            name: Stream(self._tables[name], arn)
            for name, arn in (await self._begun()).items()
            if name in self._tables
        }
        if not streams:
            return {}
        for row in await self._rows():
            if row["item"] == "read":
                self._noted_at_ms = row["beat"]
            if not row["item"].startswith("shard#"):
                continue
            _, name, shard_id = row["item"].split("#", 2)
            shard = Shard(shard_id, None)
            shard.read = shard.noted = shard.copied = (row.get("position") or [None])[0]
            shard.is_open = row.get("stage") != "done"
            shard.is_noted_done = not shard.is_open
            if name in streams:
                streams[name].shards[shard_id] = shard
        if self._clock() - self._noted_at_ms > STREAM_LIFE_S * 1000:
            raise CaptureLost(next(iter(streams.values())).table, "nobody read them for a day")
        self._streams = streams
        return streams

    async def _find_shards(self, stream: Stream) -> None:
        now = asyncio.get_running_loop().time()
        if stream.looked_at is not None and now - stream.looked_at < SHARDS_LOOK_S:
            return
        listed: dict[str, str | None] = {}
        start: str | None = None
        while True:
            payload = {"StreamArn": stream.arn}
            if start is not None:
                payload["ExclusiveStartShardId"] = start
            answer = await self._ask(self._streams_calls, "DescribeStream", payload, stream)
            description = answer["StreamDescription"]
            if description["StreamStatus"] in ("DISABLING", "DISABLED"):
                raise CaptureLost(stream.table, "its stream was turned off")
            for shard in description["Shards"]:
                listed[shard["ShardId"]] = shard.get("ParentShardId")
            start = description.get("LastEvaluatedShardId")
            if start is None:
                break
        for shard_id, known in [*stream.shards.items()]:
            if shard_id not in listed and known.is_open:
                raise CaptureLost(stream.table, "they were in the stream for more than a day")
            if shard_id not in listed and known.is_done:
                del stream.shards[shard_id]
        for shard_id, parent in listed.items():
            known_shard = stream.shards.setdefault(shard_id, Shard(shard_id, parent))
            known_shard.parent = parent
        stream.looked_at = now

    async def _read(self, stream: Stream) -> None:
        """Read on in each shard that can be read, as long as there is room."""
        async with self._turns:
            await self._find_shards(stream)
            for shard in stream.readable():
                if stream.waiting < BUFFERED_KEYS_MAX:
                    await self._read_shard(stream, shard)
            if self._clock() - self._noted_at_ms > READ_NOTED_S * 1000:
                await self._note_read()

    async def _read_shard(self, stream: Stream, shard: Shard) -> None:
        if shard.iterator is None:
            payload = {
                "StreamArn": stream.arn,
                "ShardId": shard.shard_id,
                "ShardIteratorType": "TRIM_HORIZON",
            }
            if shard.read is not None:
                payload |= {
                    "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                    "SequenceNumber": shard.read,
                }
            answer = await self._ask(self._streams_calls, "GetShardIterator", payload, stream)
            shard.iterator = answer["ShardIterator"]
        try:
            answer = await self._ask(
                self._streams_calls,
                "GetRecords",
                {"ShardIterator": shard.iterator, "Limit": RECORDS_MAX},
                stream,
            )
        except _IteratorExpired:
            shard.iterator = None
            return
        for record in answer["Records"]:
            change = record["dynamodb"]
            sequence = change["SequenceNumber"]
            key = stream.attributes.fields(stream.table.key_fields, change["Keys"])
            shard.read = sequence
            if isinstance(key[0], str) and key[0].startswith(MARK):
                if stream.mark and key[0].startswith(stream.mark):
                    stream.marked.add(shard.shard_id)
                continue
            shard.waiting.pop(key, None)  # to the end, where its last change is
            shard.waiting[key] = sequence
            shard.records.append((sequence, key))
        shard.iterator = answer.get("NextShardIterator")
        if shard.iterator is None:
            shard.is_open = False
            stream.looked_at = None

    # -- books

    async def _rows(self) -> list[Item]:
        found: list[Item] = []
        after = None
        while True:
            page = await self._store.query(MOVES, BOOKS_PART, after=after)
            found += page.items
            if (after := page.after) is None:
                return found

    async def _begun(self) -> dict[str, str]:
        """The streams that were begun, by table."""
        return {
            row["item"].removeprefix("stream#"): row["data"]["arn"]
            for row in await self._rows()
            if row["item"].startswith("stream#")
        }

    async def _note(self, streams: Mapping[str, Stream]) -> None:
        """Write down how far all was copied."""
        rows: list[Item] = []
        noted: list[tuple[Shard, str | None, bool]] = []
        for stream in streams.values():
            for shard in stream.shards.values():
                if not shard.waiting:
                    shard.copied = shard.read
                if shard.copied == shard.noted and shard.is_done == shard.is_noted_done:
                    continue
                row: Item = {
                    "part": BOOKS_PART,
                    "item": f"shard#{stream.table.name}#{shard.shard_id}",
                }
                if shard.copied is not None:
                    row["position"] = [shard.copied]
                if shard.is_done:
                    row["stage"] = "done"
                rows.append(row)
                noted.append((shard, shard.copied, shard.is_done))
        if rows:
            await self._store.put_many(MOVES, rows)
        for shard, copied, is_done in noted:  # only now: it may have failed
            shard.noted, shard.is_noted_done = copied, is_done

    async def _note_read(self) -> None:
        self._noted_at_ms = self._clock()
        await self._store.write(
            Put(MOVES, {"part": BOOKS_PART, "item": "read", "beat": self._noted_at_ms})
        )

    # -- calls

    async def _describe(self, name: str) -> Mapping[str, Any]:
        answer = await self._ask(self._calls, "DescribeTable", {"TableName": name})
        described: Mapping[str, Any] = answer["Table"]
        return described

    async def _ask(
        self,
        calls: Calls,
        action: str,
        payload: Mapping[str, Any],
        stream: Stream | None = None,
    ) -> Mapping[str, Any]:
        try:
            return await calls.call(action, payload)
        except Refused as refused:
            if refused.code == "ExpiredIteratorException":
                raise _IteratorExpired from refused
            if refused.code == "TrimmedDataAccessException" and stream is not None:
                raise CaptureLost(
                    stream.table, "they were in the stream for more than a day"
                ) from refused
            if refused.code == "ResourceNotFoundException" and stream is not None:
                raise CaptureLost(stream.table, "its stream is gone") from refused
            raise Unavailable(
                f"The store refuses this: {refused.code}: {refused.message}"
            ) from refused


class _IteratorExpired(Exception):
    """It was not used for 15 minutes."""
