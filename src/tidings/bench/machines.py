"""What the measuring machine is, without anything that names it."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

BLOCK_BYTES = 4096


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _disk(folder: Path) -> str:
    """The kind of file system and disk under a folder, as far as Linux tells."""
    best, kind, device = "", "unknown file system", ""
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            source, mounted, file_system = line.split()[:3]
            is_above = folder.resolve().is_relative_to(mounted)
            if is_above and len(mounted) >= len(best):
                best, kind, device = mounted, file_system, Path(source).name
    except OSError:
        return kind
    disk = device.rstrip("0123456789") if not device.startswith("nvme") else device.split("p")[0]
    for name in (device, disk):
        flag = Path(f"/sys/block/{name}/queue/rotational")
        if name and flag.exists():
            if name.startswith("vd"):
                return f"{kind} on a virtual disk"
            spins = flag.read_text().strip() == "1"
            return f"{kind} on a {'rotating' if spins else 'solid-state'} disk"
    return kind


def describe(folder: Path) -> str:
    """One line about processor, memory, disk under the folder, kernel and versions."""
    import apsw

    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; {_disk(folder)}; "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, "
        f"SQLite {apsw.sqlite_lib_version()}, aiohttp {version('aiohttp')}, "
        f"uvloop {version('uvloop')}"
    )


def disk_writes_s(folder: Path, count: int) -> list[float]:
    """Seconds that each of so many 4 KiB writes with `fdatasync` took on the folder's disk."""
    block = os.urandom(BLOCK_BYTES)
    taken: list[float] = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.pwrite(file.fileno(), bytes(BLOCK_BYTES * 256), 0)
        os.fsync(file.fileno())
        for number in range(count):
            started = time.perf_counter()
            os.pwrite(file.fileno(), block, number % 256 * BLOCK_BYTES)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - started)
    return taken


def disk_write_s(folder: Path, count: int = 300) -> float:
    """The median of `disk_writes_s`."""
    return statistics.median(disk_writes_s(folder, count))
