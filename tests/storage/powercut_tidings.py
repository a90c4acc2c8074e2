"""`tidings` on a disk that forgets what was not synced: its `kill -9` is a power cut.

Run with `python -m`, with the arguments of the command line.
"""

from __future__ import annotations

import os
import sys

import apsw

from tests.storage.powercut import PowerCutFiles
from tidings.cli import main
from tidings.storage import sqlite

CHECKPOINT_PAGES = 100
"""Few, so that cuts meet checkpoints."""

if __name__ == "__main__":
    files = PowerCutFiles(seed=os.getpid())
    apsw.set_default_vfs(files.name)
    sqlite.CHECKPOINT_PAGES = CHECKPOINT_PAGES
    sys.exit(main())
