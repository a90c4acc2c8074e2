"""Conversations on their way from Redis, and the lines that they become: put down as they come,
taken up in the order in which they are stored.

They are in a private file, so that an import of any size needs the same memory; and what is only
added to and then sorted once is written in one piece, wherever it belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import msgspec

from tidings.ids import pair_room_id
from tidings.importing.private_files import private_file
from tidings.importing.records import fitting_id
from tidings.importing.redis_source import Pair, Place

CACHE_KIB = 16 * 1024


class StagedLine(msgspec.Struct, frozen=True, array_like=True):
    """One line of a list, without its place."""

    user_id: str
    name: str
    """What the source calls the owner."""
    peer_id: str
    peer_name: str
    room_id: str
    score: float
    active_at: int
    head: int
    """Entries of the room."""
    read_seq: int
    unread: int
    is_muted: bool
    is_hidden: bool
    preview: str | None


class Staging:
    """What one run has read. Close it."""

    def __init__(self) -> None:
        self._file = private_file(
            CACHE_KIB,
            "CREATE TABLE pairs (number INTEGER PRIMARY KEY, room_id TEXT, milliseconds INT,"
            " nth INT, body BLOB)",
            "CREATE TABLE lines (user_id TEXT, score REAL, peer BLOB, body BLOB)",
        )
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_pair = msgspec.msgpack.Decoder(Pair).decode
        self._decode_line = msgspec.msgpack.Decoder(StagedLine).decode

    def put(self, pairs: Iterable[Pair]) -> None:
        """Put conversations down; the same one again replaces it."""
        self._file.executemany(
            "INSERT INTO pairs (room_id, milliseconds, nth, body) VALUES (?, ?, ?, ?)",
            [(room_of(pair), *pair.noted, self._encode(pair)) for pair in pairs],
        )

    def make_findable(self) -> None:
        """To be called once, when nearly everything is there, before `noted`."""
        self._file.execute("CREATE INDEX pairs_by_room ON pairs (room_id, milliseconds, nth)")

    def noted(self, room_id: str) -> Place | None:
        """The last operation when the conversation was read; None where it was not."""
        found = self._file.execute(
            "SELECT milliseconds, nth FROM pairs WHERE room_id = ? ORDER BY number DESC LIMIT 1",
            (room_id,),
        )
        return found.fetchone()

    def pairs(self) -> Iterator[Pair]:
        """Every conversation once, as it was put down last, by the ids of their rooms."""
        rows = self._file.execute("SELECT room_id, body FROM pairs ORDER BY +room_id, number")
        for _, group in groupby(rows, key=itemgetter(0)):
            *_, (_, body) = group
            yield self._decode_pair(body)

    def put_lines(self, lines: Iterable[StagedLine]) -> None:
        """Put lines of lists down, each once."""
        self._file.executemany(
            "INSERT INTO lines VALUES (?, ?, ?, ?)",
            [
                (line.user_id, line.score, line.peer_name.encode(), self._encode(line))
                for line in lines
            ],
        )

    def lists(self) -> Iterator[tuple[str, Iterator[StagedLine]]]:
        """Every owner with their lines in the order of their sorted set."""
        rows = self._file.execute("SELECT user_id, body FROM lines ORDER BY user_id, score, peer")
        for user_id, group in groupby(rows, key=itemgetter(0)):
            yield user_id, (self._decode_line(body) for _, body in group)

    def close(self) -> None:
        """Let go of the file. Closing twice is fine."""
        self._file.close()


def room_of(pair: Pair) -> str:
    """The id of the room that a conversation becomes."""
    owner = fitting_id(pair.sides[0].owner, "redis")
    return pair_room_id(owner, fitting_id(pair.opponent, "redis"))
