"""Room on disk that nobody else sees, for what need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from tidings.errors import Unavailable


def private_file(cache_kib: int, *statements: str) -> apsw.Connection:
    """An empty SQLite file after these statements, in one transaction that never ends.

    It is where the system keeps its temporary files (`SQLITE_TMPDIR`, else `TMPDIR`), has no name
    there, and is gone with the connection or the process, however that ends. Nothing of it is on
    disk before it exceeds `cache_kib` KiB.
    """
    file = apsw.Connection("")
    for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{cache_kib}"):
        file.execute(f"PRAGMA {setting}")
    for statement in statements:
        file.execute(statement)
    file.execute("BEGIN")
    return file


@contextmanager
def told_of_no_room() -> Iterator[None]:
    """Raises Unavailable, which says where to make room, when a private file gets none."""
    try:
        yield
    except (apsw.FullError, apsw.IOError) as error:
        raise Unavailable(
            "What waits on disk finds no room there: make some, or name another folder by TMPDIR,"
            " and run this again."
        ) from error
