"""One run of an import from PostgreSQL: load if that was not done, follow as far as is wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import msgspec

from tidings.chat.commits import Commits
from tidings.clock import Clock
from tidings.errors import Conflict
from tidings.importing.loading import Loading
from tidings.importing.postgres import Counts, PostgresImport, Progress, Source, looked_up
from tidings.importing.postgres_changes import SLOT_PREFIX, Decoded, Updated, Watch
from tidings.importing.postgres_following import Following
from tidings.importing.postgres_following import Progress as FollowProgress
from tidings.importing.postgres_mapping import read_mapping
from tidings.importing.quarantine import Quarantine
from tidings.importing.reports import Report
from tidings.storage.interface import Put, Store
from tidings.storage.tables import MOVES


class Options(msgspec.Struct, frozen=True):
    """What is wanted of a run."""

    url: str
    mapping_path: Path
    quarantine_path: Path
    connections: int = 2
    extent: Literal["once", "following", "ending"] = "once"
    """Only what is there now; that and what changes, until stopped; or until there is no more."""
    is_dropping: bool = False
    """Give the slot back, and do nothing else."""


class Outcome(msgspec.Struct, frozen=True):
    """What a run did."""

    report: Report
    counts: Counts


async def move_in(
    store: Store,
    commits: Commits,
    workspace: str,
    clock: Clock,
    options: Options,
    stop: asyncio.Event,
    *,
    note: Callable[[str], None],
    told: Callable[[FollowProgress], None],
    show: Progress,
) -> Outcome:
    """Run it. `note` hears what a person should know, `told` each round, `show` how far it is.

    Raises ValidationFailed for a mapping that does not fit; Unavailable where the source or the
    store went away for long; Conflict.
    """
    source = Source(options.url)
    mapping = read_mapping(options.mapping_path)
    catalogue = await looked_up(source, mapping)
    slot = _slot(workspace, mapping.name)
    decoded = Decoded(mapping, catalogue, slot)
    book = f"imports/{workspace}", slot
    if options.is_dropping:
        async with source.connected() as connection:
            await decoded.end(connection)
        await _keep_stage(store, book, "dropped")
        note(f"the slot {slot} is dropped")
        return Outcome(Report(), Counts())
    for line in catalogue.notes:
        note(f"note: {line}")
    quarantine = Quarantine(options.quarantine_path)
    try:
        async with Loading.open(store, commits, workspace, clock, quarantine) as loading:
            importing = PostgresImport(
                source,
                mapping,
                catalogue,
                loading,
                store,
                workspace,
                connections=options.connections,
                progress=show,
            )
            watch: Watch | None = None
            is_loaded = False
            if options.extent != "once":
                watch, is_kept = await _watch(importing, decoded, note)
                record = await store.get(MOVES, book)
                is_loaded = is_kept and record is not None and record.get("stage") == "loaded"
            if is_loaded:
                note("loaded by an earlier run: going on from there")
            else:
                started_s = time.monotonic()
                await importing.load()
                seconds = time.monotonic() - started_s
                note(f"loaded {loading.report.messages_added:,} messages in {seconds:.1f} s")
            if watch is not None:
                await _keep_stage(store, book, "loaded")
                is_ending = options.extent == "ending"
                await Following(importing, watch, told).run(stop, is_ending=is_ending)
                if is_ending:
                    await _keep_stage(store, book, "ended")
                elif isinstance(watch, Decoded):
                    note(
                        f"the server keeps changes in the slot {slot}: go on with --follow or"
                        " --until-caught-up, or give it back with --drop-slot"
                    )
    finally:
        quarantine.close()
    report = loading.report
    report.odd = {
        f"{kind}: {reason}": count for (kind, reason), count in sorted(quarantine.counts.items())
    }
    return Outcome(report, importing.counts)


async def _watch(
    importing: PostgresImport, decoded: Decoded, note: Callable[[str], None]
) -> tuple[Watch, bool]:
    """What tells of changes from now on, or since an earlier run, and whether that is so."""
    async with importing.source.connected() as connection:
        hindrance = await Decoded.hindrance(connection, importing.catalogue)
        if hindrance is None:
            is_kept = not await decoded.begin(connection)
            for warning in await decoded.warnings(connection):
                note(f"note: {warning}")
            return decoded, is_kept
        if lack := Updated.hindrance(importing.mapping):
            raise Conflict(
                f"Changes can't be followed: not by logical decoding, since {hindrance} (wal_level"
                " = logical needs a restart of the server; ALTER ROLE … REPLICATION the right);"
                f" and not by updated-at columns, since {lack}."
            )
        updated = Updated(importing.mapping, importing.reading)
        await updated.begin(connection)
        note(f"note: following updated-at columns, since {hindrance}")
        note(f"note: they don't show {updated.blind_spots}")
        return updated, False


async def _keep_stage(store: Store, book: tuple[str, str], stage: str) -> None:
    part, item = book
    await store.write(Put(MOVES, {"part": part, "item": item, "stage": stage}))


def _slot(workspace: str, name: str) -> str:
    """The name of the slot of an import: the same in every run."""
    digest = blake2b(f"{workspace}#{name}".encode(), digest_size=8).hexdigest()
    return f"{SLOT_PREFIX}{digest}"
