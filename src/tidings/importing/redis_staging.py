"""Lines of lists on their way: put down in any order, taken up list by list, oldest first.

They are in a file of this run alone, so that an import of any size needs the same memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import apsw
import msgspec

from tidings.chat.rows import Participation

CACHE_KIB = 16 * 1024


class StagedRow(msgspec.Struct, frozen=True, array_like=True):
    """One line: all of an inbox row but its place."""

    user_id: str
    name: str
    """What the source calls the owner."""
    peer_name: str
    score: float
    noted: tuple[int, int]
    """The last operation of the journal when it was read."""
    unread_in_source: int
    row: Participation


class Staging:
    """The lines of one run. Close it."""

    def __init__(self, folder: Path | None = None) -> None:
        """The file is made in `folder`, or where the system keeps its temporary ones."""
        self._folder = tempfile.TemporaryDirectory(prefix="tidings-import-", dir=folder)
        self._file = apsw.Connection(str(Path(self._folder.name) / "lines.db"))
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self._file.execute(f"PRAGMA {setting}")
        self._file.execute(
            "CREATE TABLE lines (user_id TEXT, room_id TEXT, score REAL, peer TEXT, body BLOB,"
            " milliseconds INT, number INT,"
            " PRIMARY KEY (user_id, room_id)) WITHOUT ROWID"
        )
        self._file.execute("BEGIN")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(StagedRow).decode

    def put(self, lines: Sequence[StagedRow]) -> None:
        """Put lines down; the same line again replaces it."""
        self._file.executemany(
            "INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    line.user_id,
                    line.row.room_id,
                    line.score,
                    line.peer_name,
                    self._encode(line),
                    *line.noted,
                )
                for line in lines
            ),
        )

    def has(self, user_id: str, room_id: str) -> bool:
        """Whether the line was put down."""
        found = self._file.execute(
            "SELECT 1 FROM lines WHERE user_id = ? AND room_id = ?", (user_id, room_id)
        )
        return found.fetchone() is not None

    def noted(self, user_id: str, room_id: str) -> tuple[int, int] | None:
        """The last operation when the line was read; None where it was not."""
        found = self._file.execute(
            "SELECT milliseconds, number FROM lines WHERE user_id = ? AND room_id = ?",
            (user_id, room_id),
        )
        row = found.fetchone()
        return None if row is None else (row[0], row[1])

    def lists(self) -> Iterator[tuple[str, Iterator[StagedRow]]]:
        """Every owner with their lines in the order of their sorted set."""
        rows = self._file.execute(
            "SELECT user_id, body FROM lines ORDER BY user_id, score, CAST(peer AS BLOB)"
        )
        for user_id, group in groupby(rows, key=itemgetter(0)):
            yield user_id, (self._decode(body) for _, body in group)

    def close(self) -> None:
        """Remove the file. Closing twice is fine."""
        self._file.close()
        self._folder.cleanup()
