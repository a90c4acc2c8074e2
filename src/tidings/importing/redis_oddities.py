"""What of a Redis could not be taken, or not as it was: into the quarantine, and counted apart."""

from __future__ import annotations

from collections import Counter

from tidings.importing.quarantine import Quarantine

KEY_BYTES_MAX = 200


class Oddities:
    """Notes odd records of one import in its quarantine."""

    def __init__(self, quarantine: Quarantine | None = None) -> None:
        self.quarantine = quarantine or Quarantine()
        self.left_out: Counter[str] = Counter()
        """By kind and reason, what was not taken."""
        self.changed: Counter[str] = Counter()
        """By kind and reason, what was taken otherwise than it was."""

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
        counts = self.left_out if is_left_out else self.changed
        counts[f"{kind}: {reason}"] += 1
        record: dict[str, str | bool] = {"left_out": is_left_out}
        if where:
            record["where"] = _shown(where)
        if detail:
            record["detail"] = detail
        self.quarantine.add(kind, _shown(key), reason, record)


def _shown(key: bytes | str) -> str:
    """A key for people to read, whatever bytes are in it."""
    if isinstance(key, bytes):
        return key[:KEY_BYTES_MAX].decode(errors="backslashreplace")
    return key[:KEY_BYTES_MAX]
