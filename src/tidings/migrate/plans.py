"""What a move would take, before anything is begun: counts, sizes, units, price, time, hindrances.

Nothing is written by a plan. Counts are the engine's own; sizes and units are those of a sample of
each table, multiplied.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Protocol, cast

import msgspec

from tidings.cluster.nodes import read_nodes
from tidings.config import DynamoAddress, SqliteAddress, StoreAddress
from tidings.engines import open_engine
from tidings.errors import TidingsError
from tidings.storage import moves
from tidings.storage.interface import Item, Position, Store, Table
from tidings.storage.metered import index_write_units, read_units, write_units
from tidings.storage.sizes import item_bytes
from tidings.storage.tables import MOVES, TABLES

SAMPLE_ITEMS = 2_000
"""Items of each table that are looked at; a smaller table is looked at whole."""
SAMPLE_SEGMENTS = 4
"""Places of a table that the sample comes from."""
STREAM_TIME_MAX_S = 20 * 3_600.0
"""How long a copy from DynamoDB may take: its streams forget what is older than 24 hours."""
DISK_ROOM = 2.0
"""Room on the target's disk, as times of the data: the file, its indexes and its log."""
LANE_ITEMS = 98
"""Items that are copied with one update of their lane, which costs units of its own."""

COPIED_TABLES: tuple[Table, ...] = tuple(table for table in TABLES if table is not MOVES)
"""Everything but the books of the move itself."""


class CountingStore(Store, Protocol):
    """A store of an engine that knows how much it holds."""

    async def count(self, table: Table) -> int:
        """About how many items the table holds."""
        ...


class TableSize(msgspec.Struct, frozen=True):
    """What one table holds, and what it takes to copy it, in DynamoDB's units."""

    table: str
    items: int
    bytes: int
    read_units: float
    write_units: float
    """With the writes of indexes counted once."""
    write_units_doubled: float
    """AWS does not publish whether those double in a transaction."""
    is_estimate: bool
    """Whether only a sample was looked at."""


class Plan(msgspec.Struct, frozen=True):
    """What a move would take, and what stands in its way."""

    source: str
    target: str
    tables: list[TableSize]
    items: int
    bytes: int
    read_units: float
    """That the source charges; 0 where it charges none."""
    write_units: float
    """Of the copies; what is written meanwhile is written twice, too."""
    write_units_doubled: float
    budget: float | None
    """Units a second that the copiers may use together."""
    time_s: float | None
    """How long the copying takes at that budget; None without one."""
    nodes: list[str]
    """Where services seem to run on the source: each of them must reach the target."""
    hindrances: list[str]
    """What has to be mended before the move can start."""

    @property
    def is_possible(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.hindrances


async def make_plan(
    source: StoreAddress, target: StoreAddress, *, budget: float | None = None
) -> Plan:
    """What a move between these stores would take. Nothing is written, and no store is made.

    Raises what opening the source raises; what is wrong with the target is a hindrance.
    """
    async with open_engine(source, must_exist=True) as engine:
        sizes = [await measure_table(cast(CountingStore, engine), table) for table in COPIED_TABLES]
        nodes = [node.address or node.node_id for node, _ in (await read_nodes(engine)).values()]
        hindrances = await _look_at_move(engine)
    if source.url == target.url:
        hindrances.append("The source and the target are the same store.")
    else:
        hindrances += await _look_at_target(target)
    return add_up(source, target, sizes, budget=budget, nodes=sorted(nodes), hindrances=hindrances)


async def _look_at_move(source: Store) -> list[str]:
    move = await moves.read_row(source)
    if move is None or move.stage == "rolled_back" or (move.is_over and move.side == "target"):
        return []
    if move.is_over:
        return [f"This store was moved and is no longer in use: move {move.target}."]
    return [f"The move from {move.source} to {move.target} is under way: it is {move.stage}."]


async def _look_at_target(target: StoreAddress) -> list[str]:
    if isinstance(target, SqliteAddress) and not target.path.exists():
        return []
    try:
        async with open_engine(target, must_exist=True) as engine:
            foreign = await foreign_items(engine)
    except TidingsError as error:
        return [error.detail]
    return [] if foreign is None else [foreign]


async def measure_table(store: CountingStore, table: Table) -> TableSize:
    """How much a table holds. Raises Unavailable."""
    sample, is_whole = await _sample(store, table)
    items = len(sample) if is_whole else max(await store.count(table), len(sample))
    share = items / len(sample) if sample else 0.0
    sizes = [item_bytes(item) for item in sample]
    read = sum(read_units(size, consistent=True) for size in sizes) * share
    puts = sum(write_units(size, transactional=True) for size in sizes) * share
    indexes = sum(_index_units(table, item) for item in sample) * share
    lanes = -(-items // LANE_ITEMS) * write_units(0, transactional=True)
    return TableSize(
        table=table.name,
        items=items,
        bytes=round(sum(sizes) * share),
        read_units=read,
        write_units=puts + indexes + lanes,
        write_units_doubled=puts + 2 * indexes + lanes,
        is_estimate=not is_whole,
    )


def _index_units(table: Table, item: Item) -> int:
    return sum(index_write_units(table, index, None, item) for index in table.indexes)


async def _sample(store: Store, table: Table) -> tuple[list[Item], bool]:
    """Items from several places of a table, and whether they are all that it holds."""
    sample: list[Item] = []
    is_whole = True
    for segment in range(SAMPLE_SEGMENTS):
        after: Position | None = None
        room = SAMPLE_ITEMS // SAMPLE_SEGMENTS
        while room:
            page = await store.scan(
                table, segment=segment, segments=SAMPLE_SEGMENTS, limit=room, after=after
            )
            sample += page.items
            room -= len(page.items)
            after = page.after
            if after is None:
                break
        is_whole = is_whole and after is None
    return sample, is_whole


def add_up(
    source: StoreAddress,
    target: StoreAddress,
    sizes: Sequence[TableSize],
    *,
    budget: float | None,
    nodes: Sequence[str],
    hindrances: Sequence[str],
) -> Plan:
    """The plan of a move of tables of these sizes, with the hindrances that follow from them."""
    total_bytes = sum(size.bytes for size in sizes)
    units = sum(size.write_units for size in sizes)
    time_s = None if budget is None else units / budget
    found = [*hindrances]
    if isinstance(source, DynamoAddress) and time_s is not None and time_s > STREAM_TIME_MAX_S:
        found.append(
            f"Copying would take {time_s / 3_600:.0f} hours, and what changes meanwhile is kept for"
            f" 24: use a budget above {units / STREAM_TIME_MAX_S:,.0f}."
        )
    if isinstance(target, SqliteAddress):
        found += _room(target, total_bytes)
    is_charged = isinstance(source, DynamoAddress)
    return Plan(
        source=source.url,
        target=target.url,
        tables=[*sizes],
        items=sum(size.items for size in sizes),
        bytes=total_bytes,
        read_units=sum(size.read_units for size in sizes) if is_charged else 0.0,
        write_units=units,
        write_units_doubled=sum(size.write_units_doubled for size in sizes),
        budget=budget,
        time_s=time_s,
        nodes=[*nodes],
        hindrances=found,
    )


def _room(target: SqliteAddress, size_bytes: int) -> list[str]:
    """What is wrong with the disk of an embedded target."""
    folder = target.path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = round(size_bytes * DISK_ROOM)
    if free >= needed:
        return []
    return [f"The disk of {target.path} has {free:,} bytes left, and this needs about {needed:,}."]


async def foreign_items(target: Store) -> str | None:
    """What the target already holds, in words; None where it is empty."""
    for table in COPIED_TABLES:
        if (await target.scan(table, limit=1)).items:
            return (
                f"The target is not empty: it holds {table.name}. Take an empty one, or for"
                " DynamoDB another prefix."
            )
    return None
