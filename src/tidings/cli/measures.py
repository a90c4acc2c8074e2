"""`tidings cost` and `tidings bench`: what operations cost, and how fast they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tidings.bench.command import bench
from tidings.cli.output import note, print_json, print_table
from tidings.cli.parts import AsJson


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("cost")(cost)
    app.command("bench")(bench)


def cost(
    per_month: Annotated[
        int,
        typer.Option(
            "--per-month", min=1, metavar="N", help="Also the price of so many of each a month."
        ),
    ] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Print what each operation takes in DynamoDB's units, and its price.

    The operations are done on a scratch store, which the meter watches.
    """
    from tidings.cli.costs import latest_prices, measure_costs

    prices = latest_prices()
    with TemporaryDirectory(prefix="tidings-cost-") as folder:
        costs = asyncio.run(measure_costs(Path(folder)))
    if as_json:
        print_json({"prices": prices, "costs": costs, "per_month": per_month})
        return
    column = f"{prices.currency} per {per_month:,}"
    rows = [
        (
            each.operation,
            f"{each.read_units:g}",
            f"{each.write_units:g}",
            f"{each.per_million(prices) * per_month / 1_000_000:,.2f}",
        )
        for each in costs
    ]
    print_table("", ("operation", "reads", "writes", column), rows, right=f"reads,writes,{column}")
    note(f"{prices.table_class}, {prices.region}, prices as of {prices.as_of}")
