"""`tidings cost` and `tidings bench`: what operations cost, and how fast they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.bench.command import bench
from tidings.cli.output import note, print_json, print_table
from tidings.cli.parts import AsJson

if TYPE_CHECKING:
    from tidings.cli.bills import Load
    from tidings.storage.prices import Prices

MEMBERS_MAX = 1_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("cost")(cost)
    app.command("bench")(bench)


def cost(
    per_month: Annotated[
        int,
        typer.Option("--per-month", min=1, metavar="N", help="The price of so many of each."),
    ] = 1_000_000,
    messages_per_month: Annotated[
        int | None,
        typer.Option(
            "--messages-per-month",
            min=1,
            metavar="N",
            help="Print the bill of such a load instead.",
        ),
    ] = None,
    members: Annotated[
        int,
        typer.Option("--members", min=2, max=MEMBERS_MAX, help="People in a room, of the load."),
    ] = 2,
    reads_per_message: Annotated[
        float,
        typer.Option("--reads-per-message", min=0, help="Read marks that a message leads to."),
    ] = 1.0,
    openings_per_message: Annotated[
        float,
        typer.Option(
            "--openings-per-message",
            min=0,
            help="How often the app is opened: badge, a page of the inbox, a page of a room.",
        ),
    ] = 0.1,
    storage_gb: Annotated[
        float | None,
        typer.Option("--storage-gb", min=0, help="GB stored; or a year of the messages."),
    ] = None,
    provisioned: Annotated[
        float | None,
        typer.Option(
            "--provisioned",
            min=1,
            metavar="PEAK",
            help="Provisioned capacity for so many times the mean rate, instead of on demand.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what each operation takes in DynamoDB's units and its price, or the bill of a month.

    The operations are done on a scratch store, which the meter watches. AWS does not publish
    whether index writes count twice in a transaction: each figure is given once and doubled.
    """
    from tidings.cli.bills import Load
    from tidings.storage.prices import latest_prices

    prices = latest_prices()
    if messages_per_month is None:
        _print_operations(prices, per_month, as_json=as_json)
        return
    load = Load(
        messages_per_month,
        members,
        reads_per_message,
        openings_per_message,
        provisioned,
        storage_gb,
    )
    _print_bill(prices, load, as_json=as_json)


def _print_operations(prices: Prices, per_month: int, *, as_json: bool) -> None:
    from tidings.cli.costs import measure_costs

    with TemporaryDirectory(prefix="tidings-cost-") as folder:
        costs = asyncio.run(measure_costs(Path(folder)))
    if as_json:
        print_json({"prices": prices, "costs": costs, "per_month": per_month})
        return
    rows = [
        (
            each.operation,
            f"{each.read_units:,g}",
            f"{each.write_units:,g}",
            f"{each.write_units_doubled:,g}",
            f"{each.requests:,}",
            f"{prices.of_units(each.read_units, each.write_units) * per_month:,.2f}",
            f"{prices.of_units(each.read_units, each.write_units_doubled) * per_month:,.2f}",
        )
        for each in costs
    ]
    columns = (
        "operation",
        "reads",
        "writes",
        "doubled",
        "requests",
        prices.currency,
        "writes doubled",
    )
    print_table("", columns, rows, right=",".join(columns[1:]))
    note(f"prices of {per_month:,} operations of each kind")
    _note_prices(prices, "on demand")


def _print_bill(prices: Prices, load: Load, *, as_json: bool) -> None:
    from tidings.cli.bills import monthly_bill
    from tidings.cli.costs import measure_load

    with TemporaryDirectory(prefix="tidings-cost-") as folder:
        measured = asyncio.run(measure_load(Path(folder), load.members))
    bill = monthly_bill(load, measured, prices)
    if as_json:
        print_json({"prices": prices, "load": load, "measured": measured, "bill": bill})
        return
    rows = [
        (
            line.what,
            "" if line.times is None else f"{line.times:,.0f}",
            f"{line.read_units:,.0f}",
            f"{line.write_units:,.0f}",
            f"{line.write_units_doubled:,.0f}",
            f"{line.price:,.2f}",
            f"{line.price_doubled:,.2f}",
        )
        for line in bill
    ]
    columns = (
        "a month", "times", "reads", "writes", "doubled", prices.currency, "writes doubled",
    )  # fmt: skip
    print_table("", columns, rows, right=",".join(columns[1:]))
    if load.peak is None:
        _note_prices(prices, "on demand")
    else:
        _note_prices(prices, f"provisioned for {load.peak:g} times the mean rate")


def _note_prices(prices: Prices, mode: str) -> None:
    note(f"{prices.table_class}, {mode}, {prices.region}, prices as of {prices.as_of}")
