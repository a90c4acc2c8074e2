"""What a move would take is what it takes, and what stands in its way is told before."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import msgspec
import pytest

from tests.command_line import run_tidings
from tests.engines import dynamo_tables
from tests.migrate.scene import fill
from tidings.config import DynamoAddress, Settings, SqliteAddress
from tidings.engines import open_engine
from tidings.migrate import plans
from tidings.migrate.plans import COPIED_TABLES, STREAM_TIME_MAX_S, add_up, make_plan
from tidings.storage import moves
from tidings.storage.interface import Put
from tidings.storage.metered import MeteredStore, metering
from tidings.storage.moves import Pair
from tidings.storage.tables import SECRETS

Usage = namedtuple("Usage", "total used free")


async def test_counts_and_units_are_those_of_copying(tmp_path: Path) -> None:
    """The metered price of putting every item in transactions, but for the lanes' own updates."""
    source = SqliteAddress(tmp_path / "a.db")
    target = SqliteAddress(tmp_path / "b.db")
    async with open_engine(source) as store:
        await fill(store, 300)
        plan = await make_plan(source, target, budget=100)
        items = {table.name: (await store.scan(table)).items for table in COPIED_TABLES}
    assert plan.is_possible
    assert not target.path.exists()
    assert {size.table: size.items for size in plan.tables} == {
        name: len(found) for name, found in items.items()
    }
    async with open_engine(target) as there:
        with metering() as meter:
            for table in COPIED_TABLES:
                found = items[table.name]
                for start in range(0, len(found), plans.LANE_ITEMS):
                    puts = [Put(table, item) for item in found[start:][: plans.LANE_ITEMS]]
                    await MeteredStore(there).write(*puts, Put(SECRETS, LANE))
    assert meter.write_units_once == pytest.approx(plan.write_units, rel=0.02)
    assert meter.write_units == pytest.approx(plan.write_units_doubled, rel=0.02)
    assert plan.time_s == plan.write_units / 100


LANE = {"name": "as small as a lane", "value": b""}


async def test_large_tables_are_judged_by_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = SqliteAddress(tmp_path / "a.db"), SqliteAddress(tmp_path / "b.db")
    async with open_engine(source) as store:
        await fill(store, 600)
    exact = await make_plan(source, target)
    monkeypatch.setattr(plans, "SAMPLE_ITEMS", 40)
    judged = await make_plan(source, target)
    assert judged.items == exact.items
    assert judged.write_units == pytest.approx(exact.write_units, rel=0.1)
    assert judged.bytes == pytest.approx(exact.bytes, rel=0.1)
    assert any(size.is_estimate for size in judged.tables)


async def test_what_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = SqliteAddress(tmp_path / "a.db"), SqliteAddress(tmp_path / "b.db")
    async with open_engine(source) as store:
        await fill(store, 10)
    assert "same store" in (await make_plan(source, source)).hindrances[0]
    theirs = tmp_path / "theirs.db"
    theirs.write_text("a shopping list, which is no store")
    assert len((await make_plan(source, SqliteAddress(theirs))).hindrances) == 1

    async with open_engine(target) as there:
        await there.write(Put(SECRETS, LANE))
    assert "not empty: it holds secrets" in (await make_plan(source, target)).hindrances[0]
    target.path.unlink()

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 99, 1))
    assert "1 bytes left" in (await make_plan(source, target)).hindrances[0]
    monkeypatch.undo()

    async with open_engine(source) as one, open_engine(target) as other:
        await moves.announce(
            Pair(one, other), move_id="m", source=source.url, target=target.url, data={}
        )
    assert "is under way: it is preparing" in (await make_plan(source, target)).hindrances[0]


async def test_a_copy_that_outlives_the_stream_is_refused() -> None:
    source, target = DynamoAddress("eu-west-1"), DynamoAddress("eu-west-1", prefix="other")
    size = plans.TableSize("rooms", 1, 1, 1, STREAM_TIME_MAX_S * 100, 0, is_estimate=True)

    def hindrances(budget: float) -> list[str]:
        plan = add_up(source, target, [size], budget=budget, nodes=[], hindrances=[])
        return plan.hindrances

    assert not hindrances(101)
    assert "use a budget above 100" in hindrances(90)[0]


@pytest.mark.slow
async def test_dynamodb_is_counted_without_a_scan(tmp_path: Path) -> None:
    async with dynamo_tables() as source:
        async with open_engine(source) as store:
            await fill(store, 30)
        plan = await make_plan(source, SqliteAddress(tmp_path / "b.db"))
    assert plan.is_possible
    assert plan.items >= 30
    assert plan.read_units > 0


async def test_the_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    async with open_engine(Settings(store=url).store_address) as store:
        await fill(store, 30)
    command = ("migrate", "plan", "--store", url, "--to")
    shown = run_tidings(*command, url)
    assert shown.code == 1
    assert "in the way: " in shown.errors
    told = run_tidings(*command, f"sqlite:///{tmp_path}/b.db", "--budget", "50", "--json")
    assert told.code == 0, told.errors
    plan = msgspec.json.decode(told.output)
    assert plan["hindrances"] == []
    assert plan["items"] == sum(table["items"] for table in plan["tables"])
    assert plan["time_s"] == plan["write_units"] / 50
    shown = run_tidings(*command, f"sqlite:///{tmp_path}/b.db")
    assert "nothing is in the way" in shown.errors
    assert "together" in shown.output
