"""Quarantine: what an import could not take, or not as it was, with the reason, in a file.

Each line of the file is a JSON object `{"kind", "key", "reason", "record"}`: what it was
(`message`, `chat`, …), what the source calls it, why it is here, and what the source said. It is
made anew by each run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

LINES_MAX = 1_000_000
"""Records that the file holds; more are counted."""
SHOWN_MAX = 20
"""Records that a report names; the file has the rest."""


class OddRecord(msgspec.Struct, frozen=True):
    """A record that is not where it should be, or not as it was."""

    kind: str
    key: str
    reason: str
    record: Mapping[str, Any] = {}


class Quarantine:
    """Collects odd records; without a path it only counts. Close it when all is done."""

    def __init__(self, path: Path | None = None) -> None:
        """The file is made when the first record comes. Raises OSError where it can't be."""
        self.path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        """By kind and reason."""
        self.first: list[OddRecord] = []
        self._lines = 0
        self._file: IO[bytes] | None = None
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        if path is not None:
            path.unlink(missing_ok=True)

    def add(
        self, kind: str, key: str, reason: str, record: Mapping[str, Any] | None = None
    ) -> None:
        """Note one. The reason is from a small set of texts, since it is counted by."""
        odd = OddRecord(kind, key, reason, record or {})
        self.counts[kind, reason] += 1
        if len(self.first) < SHOWN_MAX:
            self.first.append(odd)
        if self.path is not None and self._lines < LINES_MAX:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=0o600)  # what people wrote is in it
                self._file = self.path.open("wb")
            self._file.write(self._encode(odd) + b"\n")
            self._lines += 1

    def flush(self) -> None:
        """Let others read what was noted so far."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Nothing more comes. Closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None
