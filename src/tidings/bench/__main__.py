"""`python -m tidings.bench`, the same as `tidings bench`."""

from __future__ import annotations

import typer

from tidings.bench.command import bench

if __name__ == "__main__":
    typer.run(bench)
