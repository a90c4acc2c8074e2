"""Staging: rooms whose logs are stored and that nobody sees yet, in a file of this run alone.

They are on disk so that an import of any size needs the same memory, and go with the run: one that
was broken off is read from its source again.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tidings.importing.folding import StagedRoom
from tidings.importing.private_files import private_file

CACHE_KIB = 8 * 1024


class Staging:
    """Staged rooms by id, given back in the order of their last activity."""

    def __init__(self) -> None:
        self._file = private_file(
            CACHE_KIB,
            "CREATE TABLE staged"
            " (room_id TEXT PRIMARY KEY, active_at INT, body BLOB) WITHOUT ROWID",
            "CREATE TABLE uneven (user_id TEXT PRIMARY KEY) WITHOUT ROWID",
            "CREATE TABLE claims (room_id TEXT PRIMARY KEY, source TEXT) WITHOUT ROWID",
        )
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(StagedRoom).decode

    def put(self, staged: StagedRoom) -> None:
        """Stage a room that is not staged yet."""
        body = self._encode(staged)
        row = (staged.room.room_id, staged.active_at, body)
        self._file.execute("INSERT INTO staged VALUES (?, ?, ?)", row)
        if staged.is_uneven:
            users = ((member.user_id,) for member in staged.members)
            self._file.executemany("INSERT OR IGNORE INTO uneven VALUES (?)", users)

    def has(self, room_id: str) -> bool:
        """Whether the room is staged."""
        found = self._file.execute("SELECT 1 FROM staged WHERE room_id = ?", (room_id,))
        return found.fetchone() is not None

    def claim(self, room_id: str, source: str) -> str:
        """Whose room it is in this run: `source`'s, unless another was first."""
        row = (room_id, source)
        self._file.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", row)
        return self.owner(room_id) or source

    def owner(self, room_id: str) -> str | None:
        """Whose room it is in this run, if anybody's."""
        found = self._file.execute("SELECT source FROM claims WHERE room_id = ?", (room_id,))
        row = found.fetchone()
        return None if row is None else str(row[0])

    def rooms(self) -> Iterator[StagedRoom]:
        """All of them, the one that has been quiet for longest first."""
        rows = self._file.execute("SELECT body FROM staged ORDER BY active_at, room_id")
        for (body,) in rows:
            yield self._decode(body)

    def uneven(self) -> Iterator[str]:
        """Users in whose lists rooms stand in another order than in those of the others."""
        for (user_id,) in self._file.execute("SELECT user_id FROM uneven ORDER BY user_id"):
            yield user_id

    def clear(self) -> None:
        """All of it is visible: begin anew, with the same claims."""
        self._file.execute("DELETE FROM staged")
        self._file.execute("DELETE FROM uneven")

    def close(self) -> None:
        """Forget everything. Closing twice is fine."""
        self._file.close()
