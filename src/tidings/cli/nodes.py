"""`tidings nodes`: which instances of a service live."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tidings import wire
from tidings.cli.output import note, print_json, print_table
from tidings.cli.parts import STORE_DEFAULT, AsJson, StoreUrl, open_parts
from tidings.clock import rfc3339

WATCH_S_DEFAULT = 2.5
"""Longer than two beats: a node whose row stands still meanwhile is silent."""
WATCH_S_MAX = 60


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("nodes")(nodes)


def nodes(
    store: StoreUrl = STORE_DEFAULT,
    watch: Annotated[
        float,
        typer.Option(
            "--watch", metavar="SECONDS", min=1, max=WATCH_S_MAX, help="How long to look."
        ),
    ] = WATCH_S_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List the live instances of the service on a store, by watching their rows for a moment.

    Instances that ended without leaving are named on standard error.
    """
    from tidings.cluster.nodes import read_nodes

    async def run() -> tuple[wire.NodeList, list[str]]:
        async with open_parts(store) as parts:
            before = await read_nodes(parts.store)
            await asyncio.sleep(watch)
            after = await read_nodes(parts.store)
        live, silent = [], []
        for node_id, (node, beat) in sorted(after.items()):
            if node_id in before and before[node_id][1] == beat:
                silent.append(f"{node_id} {node.address}".strip())
                continue
            live.append(
                wire.Node(
                    id=node_id,
                    address=node.address,
                    version=node.version,
                    started_at=rfc3339(node.started_at),
                    is_draining=node.is_draining,
                    silent_s=0.0,
                )
            )
        return wire.NodeList(live), silent

    found, silent = asyncio.run(run())
    for each in silent:
        note(f"silent: {each}")
    if as_json:
        print_json(found)
        return
    rows = (
        (node.id, node.address, node.version, node.started_at, "yes" if node.is_draining else "")
        for node in found.items
    )
    print_table("", ("id", "address", "version", "started", "draining"), rows)
