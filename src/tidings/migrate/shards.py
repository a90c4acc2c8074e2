"""What is known of a table's stream: its shards, how far each was read, and what of it waits."""

from __future__ import annotations

from collections import deque

from tidings.storage.attributes import Attributes
from tidings.storage.interface import Key, Table


class Shard:
    """One shard: how far it was read, and what of it was not copied yet."""

    def __init__(self, shard_id: str, parent: str | None) -> None:
        self.shard_id = shard_id
        self.parent = parent
        self.iterator: str | None = None
        self.read: str | None = None
        """Sequence number of the last record that was read; None before the first."""
        self.noted: str | None = None
        """Up to which everything was copied, as the books say."""
        self.is_open = True
        """Whether more may come."""
        self.is_noted_done = False
        self.copied: str | None = None
        """Up to which everything was copied."""
        self.records: deque[tuple[str, Key]] = deque()
        """Read, in order; the first of them is of a key that waits."""
        self.waiting: dict[Key, str] = {}
        """Keys that wait, with their last change."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended and all of it was copied."""
        return not self.is_open and not self.waiting

    def forget(self, key: Key, sequence: str) -> None:
        """That change was copied."""
        if self.waiting.get(key) == sequence:
            del self.waiting[key]
        while self.records and self.records[0][1] not in self.waiting:
            self.copied = self.records.popleft()[0]


class Stream:
    """One table's stream."""

    def __init__(self, table: Table, arn: str) -> None:
        self.table = table
        self.arn = arn
        self.attributes = Attributes(table)
        self.shards: dict[str, Shard] = {}
        self.looked_at: float | None = None
        self.mark = ""
        """Begins the marks of the present round."""
        self.marked: set[str] = set()
        """Shards that have shown one of them."""

    @property
    def waiting(self) -> int:
        """Keys that wait."""
        return sum(len(shard.waiting) for shard in self.shards.values())

    @property
    def is_marked(self) -> bool:
        """Whether every shard that is open has shown a mark, and one did: a stream that was turned
        off has none that is open."""
        return bool(self.marked) and all(
            not shard.is_open or shard.shard_id in self.marked for shard in self.shards.values()
        )

    def readable(self) -> list[Shard]:
        """Shards whose parents were read to their end, and which were not."""
        return [
            shard
            for shard in self.shards.values()
            if shard.is_open
            and (shard.parent not in self.shards or not self.shards[shard.parent].is_open)
        ]
