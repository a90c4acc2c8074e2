"""Room to sort in: what is exported in order need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from tidings.importing.private_files import private_file

CACHE_KIB = 16 * 1024
"""Memory before pages go to the file."""
IDS_TOGETHER = 1_000
"""Ids that are handed out at once."""


class Scratch:
    """Ids in order, the lines of one room, the heads of all, and what users have unread."""

    def __init__(self) -> None:
        self._database = private_file(
            CACHE_KIB,
            "CREATE TABLE ids (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID",
            "CREATE TABLE lines (seq INTEGER PRIMARY KEY, line BLOB)",
            "CREATE TABLE receipts (line BLOB)",
            "CREATE TABLE heads (room_id TEXT PRIMARY KEY, head INT) WITHOUT ROWID",
            "CREATE TABLE totals (user TEXT PRIMARY KEY, unread INT, mentions INT) WITHOUT ROWID",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

    def add_ids(self, kind: str, ids: Iterator[str]) -> None:
        """Note ids; one that is there already stays."""
        self._database.executemany(
            "INSERT OR IGNORE INTO ids VALUES (?, ?)", ((kind, each) for each in ids)
        )

    def ids(self, kind: str) -> Iterator[list[str]]:
        """All ids of a kind, ascending, in lists; none of that kind may be added meanwhile."""
        rows = self._database.execute("SELECT id FROM ids WHERE kind = ? ORDER BY id", (kind,))
        numbered = enumerate(each for (each,) in rows)
        for _, together in groupby(numbered, key=lambda pair: pair[0] // IDS_TOGETHER):
            yield [each for _, each in together]

    def count_ids(self, kind: str) -> int:
        """How many ids of a kind there are."""
        count: int = self._database.execute("SELECT count(*) FROM ids WHERE kind = ?", (kind,)).get
        return count

    def put_line(self, seq: int, line: bytes) -> None:
        """Keep a line of the room, in place of an earlier one of that sequence."""
        self._database.execute("INSERT OR REPLACE INTO lines VALUES (?, ?)", (seq, line))

    def drop_lines(self, after: int = 0) -> None:
        """Forget the lines of sequences above it, and all receipts."""
        self._database.execute("DELETE FROM lines WHERE seq > ?", (after,))
        self._database.execute("DELETE FROM receipts")

    def lines(self) -> Iterator[bytes]:
        """The lines in order."""
        for (line,) in self._database.execute("SELECT line FROM lines ORDER BY seq"):
            yield line

    def add_receipt(self, line: bytes) -> None:
        """Keep the next receipt of the room."""
        self._database.execute("INSERT INTO receipts VALUES (?)", (line,))

    def receipts(self) -> Iterator[bytes]:
        """The receipts as they were added."""
        for (line,) in self._database.execute("SELECT line FROM receipts ORDER BY rowid"):
            yield line

    def set_head(self, room_id: str, head: int) -> None:
        """Note up to where a room goes."""
        self._database.execute("INSERT INTO heads VALUES (?, ?)", (room_id, head))

    def head(self, room_id: str) -> int:
        """Up to where a room goes; 0 for one that is not there."""
        rows: list[Any] = self._database.execute(
            "SELECT head FROM heads WHERE room_id = ?", (room_id,)
        ).fetchall()
        return rows[0][0] if rows else 0

    def add_total(self, user: str, unread: int, mentions: int) -> None:
        """Add what a user has unread in one more room."""
        self._database.execute(
            "INSERT INTO totals VALUES (?1, ?2, ?3) ON CONFLICT (user) DO UPDATE"
            " SET unread = unread + ?2, mentions = mentions + ?3",
            (user, unread, mentions),
        )

    def total(self, user: str) -> tuple[int, int]:
        """What a user has unread in all rooms."""
        rows: list[Any] = self._database.execute(
            "SELECT unread, mentions FROM totals WHERE user = ?", (user,)
        ).fetchall()
        unread, mentions = rows[0] if rows else (0, 0)
        return unread, mentions
