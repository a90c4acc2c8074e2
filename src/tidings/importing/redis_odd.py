"""What of a Redis could not be taken, or not as it was: counted by reason, and listed in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

LISTED_MAX = 1_000_000
"""Lines of the file; what is beyond them is only counted."""
SHOWN_MAX = 20
KEY_BYTES_MAX = 200


class OddOne(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record: what it is, where it stands, and what became of it."""

    kind: str
    key: str
    reason: str
    left_out: bool
    where: str = ""
    """The list that it is in."""
    detail: str = ""


class Odd:
    """Collects them; a context manager, for the file that they go to."""

    def __init__(self, path: Path | None = None) -> None:
        """The file is made when there is something for it. Raises OSError then."""
        self.left_out: Counter[str] = Counter()
        """By reason, what was not taken."""
        self.changed: Counter[str] = Counter()
        """By reason, what was taken otherwise than it was."""
        self.first: list[OddOne] = []
        self._path = path
        self._file: IO[bytes] | None = None
        self._listed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(
        self,
        kind: str,
        key: bytes | str,
        reason: str,
        where: bytes = b"",
        *,
        detail: str = "",
        is_left_out: bool = False,
    ) -> None:
        """Note one. It is counted by kind and reason: what differs each time is the detail."""
        one = OddOne(kind, _shown(key), reason, is_left_out, _shown(where), detail)
        counts = self.left_out if is_left_out else self.changed
        counts[f"{kind}: {reason}"] += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(one)
        if self._path is None or self._listed >= LISTED_MAX:
            return
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(msgspec.json.encode(one) + b"\n")
        self._listed += 1


def _shown(key: bytes | str) -> str:
    """A key for people to read, whatever bytes are in it."""
    if isinstance(key, bytes):
        return key[:KEY_BYTES_MAX].decode(errors="backslashreplace")
    return key[:KEY_BYTES_MAX]
