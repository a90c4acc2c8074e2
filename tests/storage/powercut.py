"""A file system layer for SQLite that forgets what was not synced when the power goes.

Writes are kept in memory and reach the file only with the next sync, but for some that a disk
might have written early: in any order, and torn, that is, only their first part. So at every
moment the file is what a power cut could leave. There are two ways to cut:

- In process: `PowerCutFiles.cut_after` counts writes and syncs, and calls back amid one of them,
  in the thread that makes it; what was acknowledged must be noted and the files copied right
  there, with `PowerCutFiles.cut`. The store itself goes on and can be closed; the copy is what is
  opened next.
- `kill -9` of a process whose only connections go through the layer: what was not synced was its
  memory, and is gone with it; what is left is what a power cut would leave. The module
  `tests.storage.powercut_tidings` is the command line on such a disk.

Only connections of one process that go through the layer see what was not synced yet. So no other
process may use the file meanwhile. After a kill the shared memory file (`-shm`) is still there,
which no power cut leaves; SQLite does not trust it when the first connection opens the file.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import apsw

EARLY_WRITES = 0.3
"""How many of the writes reach the file, at least in part, before they are synced."""


class _Content:
    """One file as its process sees it, and what of that was not synced."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.unsynced: list[tuple[int, bytes | None]] = []
        """Writes by offset, in order; None cuts the file off there."""


class PowerCutFiles(apsw.VFS):
    """The layer, registered under a name for `SqliteStore.open(..., vfs=name)`.

    It must be kept for as long as a connection uses it.
    """

    def __init__(self, name: str = "powercut", *, seed: int = 0) -> None:
        self.name = name
        self.below = apsw.vfs_names()[0]
        self.random = random.Random(seed)
        self.lock = threading.RLock()
        self.contents: dict[str, _Content] = {}
        self.operations = 0
        self._cut_after: int | None = None
        self._at_cut: Callable[[], None] = lambda: None
        super().__init__(name, self.below)

    def cut_after(self, operations: int, at_cut: Callable[[], None]) -> None:
        """Call `at_cut` once, in whatever thread, amid the writes and syncs that come."""
        with self.lock:
            self._cut_after = self.operations + operations
            self._at_cut = at_cut

    def cut(self, path: Path, to: Path) -> None:
        """Copy what a power cut at this moment leaves of a database."""
        with self.lock:
            for suffix in ("", "-wal", "-journal"):
                left = path.with_name(path.name + suffix)
                if left.exists():
                    shutil.copyfile(left, to.with_name(to.name + suffix))

    def count(self) -> None:
        """One write or sync is about to happen."""
        self.operations += 1
        if self.operations == self._cut_after:
            self._at_cut()

    def content(self, path: str) -> _Content:
        """What the process sees of the file."""
        with self.lock:
            if path not in self.contents:
                self.contents[path] = _Content(Path(path).read_bytes())
            return self.contents[path]

    def xOpen(  # noqa: N802
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        if name is None:  # a temporary file, which no power cut leaves behind
            return apsw.VFSFile(self.below, name, flags)
        return _PowerCutFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        with self.lock:
            self.contents.pop(filename, None)
            super().xDelete(filename, syncdir)


class _PowerCutFile(apsw.VFSFile):
    def __init__(
        self, files: PowerCutFiles, name: str | apsw.URIFilename, flags: list[int]
    ) -> None:
        super().__init__(files.below, name, flags)
        self._files = files
        path = name if isinstance(name, str) else name.filename()
        self._content = files.content(path)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        with self._files.lock:
            return bytes(self._content.data[offset : offset + amount])

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._content.data)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        written, data_seen = bytes(data), self._content.data
        with self._files.lock:
            self._files.count()
            if len(data_seen) < offset:
                data_seen.extend(bytes(offset - len(data_seen)))
            data_seen[offset : offset + len(written)] = written
            self._content.unsynced.append((offset, written))
            chance = self._files.random
            if chance.random() < EARLY_WRITES:
                length = chance.choice([len(written), chance.randrange(len(written) + 1)])
                if length:
                    super().xWrite(written[:length], offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._files.lock:
            self._files.count()
            del self._content.data[newsize:]
            self._content.unsynced.append((newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802
        """From here on it is durable; the machine's own disk need not take part."""
        with self._files.lock:
            self._files.count()
            for offset, data in self._content.unsynced:
                if data is None:
                    super().xTruncate(offset)
                else:
                    super().xWrite(data, offset)
            self._content.unsynced.clear()
