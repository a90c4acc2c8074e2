"""Hot spots on DynamoDB: Tidings against the plain published way, in one run on one machine.

Each way runs in this process, against an engine of its own (ministack) behind a proxy that
SIMULATES what AWS does and the engine does not: a round trip that is 5 ms longer, and refused
transactions (see `aws_like_proxy`). Two scenes: one room of 50 members with 200 sends in flight;
and one manager in 200 rooms, with a send of each of the 200 customers in flight. A message counts
as completed by the share of its receivers whose badges hold it.

`python -m benchmarks.hot_spots` prints a table; `--document FILE` also appends it there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import aiohttp
import msgspec
import uvloop

from benchmarks.aws_like_proxy import NETWORK_S, SERVICE_S, Counts
from benchmarks.plain_way import Lost, PlainWay
from benchmarks.processes import Engine, engine, proxied
from benchmarks.tidings_way import TidingsWay
from tidings import wire
from tidings.bench.machines import describe
from tidings.config import DynamoAddress
from tidings.engines import open_engine
from tidings.logs import configure

RUNS = 3
WARM_S = 8.0
"""How long a way sends before it is measured: more than a message takes in the slower way."""
MEASURED_S = 15.0
TEXT = "good morning, has the parcel of yesterday been sent already?"


class Scene(msgspec.Struct, frozen=True):
    """Who is in which room, and who sends where; every sender has one message in flight."""

    name: str
    kind: wire.RoomKind
    rooms: Mapping[str, Sequence[str]]
    senders: Sequence[tuple[str, str]]
    """As (room id, user id)."""
    times_min: float
    """At least so many times the messages of the plain way."""
    units_share_max: float | None
    """At most this share of its write units for each message, where that is promised."""


REQUESTS_SHARE_MAX = 0.1
CROWD = [f"member-{number}" for number in range(50)]
CUSTOMERS = [f"customer-{number}" for number in range(200)]
SCENES = {
    "room": Scene(
        "one room of 50, 200 sends in flight",
        "group",
        {"hall": CROWD},
        [("hall", CROWD[number % len(CROWD)]) for number in range(200)],
        times_min=20,
        units_share_max=0.2,
    ),
    "manager": Scene(
        "one manager in 200 rooms, 200 customers",
        "support",
        {f"desk-{customer}": ["manager", customer] for customer in CUSTOMERS},
        [(f"desk-{customer}", customer) for customer in CUSTOMERS],
        times_min=2,
        units_share_max=None,
    ),
}


class Delays(msgspec.Struct, frozen=True):
    """What a request takes longer: on the network, and at DynamoDB with its items in flight."""

    network_s: float = NETWORK_S
    service_s: float = SERVICE_S

    @property
    def text(self) -> str:
        """For the report."""
        return (
            f"requests take {self.network_s * 1000:g} ms longer on the network and "
            f"{self.service_s * 1000:g} ms at the service, with their items in flight"
        )


class Way(Protocol):
    """A way to send messages and count them for their receivers."""

    name: str
    raised: float
    """Messages, by the share of their receivers whose counts hold them."""

    async def open(self, rooms: Mapping[str, Sequence[str]]) -> None: ...
    async def send(self, room_id: str, sender_id: str, text: str) -> None: ...
    async def settle(self) -> None: ...
    async def totals(self, users: Sequence[str]) -> list[int]: ...
    async def close(self) -> None: ...


class Figures(msgspec.Struct):
    """One way in one scene, measured once or as the median of several runs."""

    completed_per_s: float
    accepted_per_s: float
    requests: float
    """For each completed message, like everything below."""
    conflicts: float
    table_units: float
    index_units: float
    hottest_per_s: float
    """Write units of the partition key that takes most, with those of its local indexes once."""
    lost: float
    """Messages that were given up, in all."""
    load_share: float
    """Of one core, used by the process that sends; then by the proxy and by the engine."""
    proxy_share: float
    engine_share: float


class Run:
    """One way under load."""

    def __init__(self, scene: Scene, way: Way, url: str, engine: Engine) -> None:
        self._scene = scene
        self._way = way
        self._url = url
        self._engine = engine
        self._is_over = False
        self._sent = 0
        self._lost = 0

    async def measure(self) -> Figures:
        """Send for a while, and measure the second part of it; the counts are right at the end."""
        way, scene = self._way, self._scene
        await way.open(scene.rooms)
        async with asyncio.TaskGroup() as group:
            for room_id, sender_id in scene.senders:
                group.create_task(self._keep_sending(room_id, sender_id))
            await asyncio.sleep(WARM_S)
            await self._ask("begin")
            started, raised, sent = time.perf_counter(), way.raised, self._sent
            load_s, engine_s = time.process_time(), self._engine.processor_s()
            await asyncio.sleep(MEASURED_S)
            await self._ask("end")
            elapsed_s = time.perf_counter() - started
            raised, sent = way.raised - raised, self._sent - sent
            load_s, engine_s = time.process_time() - load_s, self._engine.processor_s() - engine_s
            self._is_over = True
        await way.settle()
        await self._check()
        counts = msgspec.json.decode(await self._ask("counts"), type=Counts)
        return Figures(
            completed_per_s=raised / elapsed_s,
            accepted_per_s=sent / elapsed_s,
            requests=sum(counts.requests.values()) / raised,
            conflicts=counts.conflicts / raised,
            table_units=counts.table_units / raised,
            index_units=counts.index_units / raised,
            hottest_per_s=counts.hottest[0][1] / elapsed_s,
            lost=self._lost,
            load_share=load_s / elapsed_s,
            proxy_share=counts.processor_s / elapsed_s,
            engine_share=engine_s / elapsed_s,
        )

    async def _keep_sending(self, room_id: str, sender_id: str) -> None:
        while not self._is_over:
            try:
                await self._way.send(room_id, sender_id, TEXT)
                self._sent += 1
            except* Lost:
                self._lost += 1

    async def _check(self) -> None:
        """Every receiver has every message of others unread, unless some were given up."""
        users = sorted({user for members in self._scene.rooms.values() for user in members})
        total = sum(await self._way.totals(users))
        receivers = len(next(iter(self._scene.rooms.values()))) - 1
        if not self._lost:
            assert total == self._sent * receivers, (total, self._sent, receivers)

    async def _ask(self, what: str) -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._url}/{what}") as response,
        ):
            assert response.status == 200
            return await response.read()


@asynccontextmanager
async def opened(scene: Scene, name: str, url: str) -> AsyncIterator[Way]:
    """A way, ready to make its rooms on the engine at the address."""
    way: Way
    if name == PlainWay.name:
        way = PlainWay(url, name)
        try:
            yield way
        finally:
            await way.close()
    else:
        address = DynamoAddress(region="local", prefix=name, endpoint=url)
        async with open_engine(address) as store:
            way = TidingsWay(store, scene.kind)
            try:
                yield way
            finally:
                await way.close()


async def measured(scene: Scene, name: str, delays: Delays) -> Figures:
    """One run of one way on a new engine."""
    async with (
        engine() as ready,
        proxied(ready.url, delays.network_s, delays.service_s) as url,
        opened(scene, name, url) as way,
    ):
        return await Run(scene, way, url, ready).measure()


def median(runs: Sequence[Figures]) -> Figures:
    """Field by field."""
    return Figures(
        **{
            field: statistics.median(getattr(run, field) for run in runs)
            for field in Figures.__struct_fields__
        }
    )


class Comparison(msgspec.Struct):
    """Both ways in one scene: the runs in their order."""

    scene: Scene
    plain: list[Figures]
    tidings: list[Figures]

    def verdicts(self) -> list[tuple[str, bool]]:
        """What was promised, how it came out, and whether it was kept."""
        plain, ours = median(self.plain), median(self.tidings)
        times = ours.completed_per_s / plain.completed_per_s
        requests = ours.requests / plain.requests
        units = _units(ours) / _units(plain)
        most = self.scene.units_share_max
        conflicts = max(run.conflicts for run in self.tidings)
        return [
            (
                f"{times:.1f} times the messages/s (at least {self.scene.times_min:g})",
                times >= self.scene.times_min,
            ),
            (
                f"1/{1 / requests:.0f} of the requests (at most 1/{1 / REQUESTS_SHARE_MAX:.0f})",
                requests <= REQUESTS_SHARE_MAX,
            ),
            (
                f"{units:.2f} of the write units" + (f" (at most {most:g})" if most else ""),
                most is None or units <= most,
            ),
            (f"{conflicts:g} conflicts of our own making (none)", conflicts == 0),
        ]

    def markdown(self) -> str:
        """The table of one scene, with all runs and what came of what was promised."""
        lines = [
            f"### {self.scene.name[0].upper()}{self.scene.name[1:]}",
            "",
            "| for each completed message | the plain way | Tidings |",
            "| --- | ---: | ---: |",
        ]
        plain, ours = median(self.plain), median(self.tidings)
        runs = [
            " · ".join(f"{run.completed_per_s:,.1f}" for run in way)
            for way in (self.plain, self.tidings)
        ]
        lines += [
            f"| {label} | "
            + " | ".join(f"{getattr(way, field):,.{digits}f}" for way in (plain, ours))
            + " |"
            for label, field, digits in _ROWS
        ]
        lines.insert(5, f"| the runs | {runs[0]} | {runs[1]} |")
        lines += ["", *(f"- {'✓' if kept else '✗'} {text}" for text, kept in self.verdicts())]
        return "\n".join(lines)


_ROWS = (
    ("**completed messages/s, median**", "completed_per_s", 1),
    ("accepted messages/s", "accepted_per_s", 1),
    ("requests", "requests", 2),
    ("refused for a conflict", "conflicts", 2),
    ("write units of tables", "table_units", 1),
    ("write units of indexes, counted once", "index_units", 1),
    ("units/s of the hottest key, of which AWS takes 1,000", "hottest_per_s", 0),
    ("messages given up, in all", "lost", 0),
    ("cores used by the sending process", "load_share", 2),
    ("by the proxy", "proxy_share", 2),
    ("by the engine", "engine_share", 2),
)


def _units(figures: Figures) -> float:
    return figures.table_units + 2 * figures.index_units


async def compare(scene: Scene, runs: int, delays: Delays) -> Comparison:
    """The ways in turn, each so many times."""
    found = Comparison(scene, [], [])
    for _ in range(runs):
        found.plain.append(await measured(scene, PlainWay.name, delays))
        found.tidings.append(await measured(scene, TidingsWay.name, delays))
    return found


def report(comparisons: Sequence[Comparison], delays: Delays, load: float) -> str:
    """A section for the document; `load` is the machine's load average before it began."""
    parts = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{describe(Path(tempfile.gettempdir()))}. Engine: ministack {version('ministack')}, "
        f"one process. SIMULATED by a proxy: {delays.text}, and transactions that overlap are "
        "refused. "
        f"{len(comparisons[0].plain)} runs of {MEASURED_S:g} s after {WARM_S:g} s, the ways in "
        "turn; medians. Shares of write units take those of indexes twice. "
        f"When it began, {load:.1f} other processes wanted to run.",
        *(comparison.markdown() for comparison in comparisons),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Measure; 0 if everything that was promised was kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scene", choices=[*SCENES], action="append", help="only this one")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--document", type=Path, help="append the tables to this file")
    parser.add_argument("--network", type=float, default=NETWORK_S, help="seconds")
    parser.add_argument("--service", type=float, default=SERVICE_S, help="seconds")
    options = parser.parse_args()
    delays = Delays(options.network, options.service)
    configure("off", sys.stderr)
    load = os.getloadavg()[0]
    comparisons = [
        uvloop.run(compare(SCENES[name], options.runs, delays)) for name in options.scene or SCENES
    ]
    text = report(comparisons, delays, load)
    print(text)
    if options.document is not None:
        with options.document.open("a") as document:
            document.write("\n" + text)
    kept = [is_kept for each in comparisons for _, is_kept in each.verdicts()]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
