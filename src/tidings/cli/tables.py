"""`tidings tables`: the tables of a service on DynamoDB, made or printed."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated

import typer

from tidings.cli.output import note, print_json
from tidings.cli.parts import STORE_DEFAULT, StoreUrl
from tidings.config import PREFIX_DEFAULT, DynamoAddress, Settings

if TYPE_CHECKING:
    from tidings.storage.definitions import Throughput

_UNITS = re.compile(r"([1-9]\d{0,5}):([1-9]\d{0,5})")

Provisioned = Annotated[
    str | None,
    typer.Option(
        "--provisioned",
        metavar="READ:WRITE",
        help="Units per second of each table and global index; without, requests are paid for.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    tables = typer.Typer(help="The tables of a service on DynamoDB.", no_args_is_help=True)
    tables.command("create")(create)
    tables.command("print")(print_definitions)
    app.add_typer(tables, name="tables")


def create(store: StoreUrl = STORE_DEFAULT, provisioned: Provisioned = None) -> None:
    """Make the tables and indexes that are missing, and wait until they can be used.

    What exists stays as it is; running it again does nothing. Prints the name of each table and
    index that was made.
    """
    from tidings.storage import provision
    from tidings.storage.calls import Calls

    address = Settings(store=store).store_address
    throughput = _throughput(provisioned)
    if not isinstance(address, DynamoAddress):
        note("the embedded store makes its own tables")
        return

    async def run() -> list[str]:
        async with Calls.open(address) as calls:
            return await provision.create(calls, address, throughput=throughput)

    made = asyncio.run(run())
    for name in made:
        typer.echo(name)
    note(f"made {len(made)}" if made else "everything was there")


def print_definitions(
    store: StoreUrl = STORE_DEFAULT,
    provisioned: Provisioned = None,
    as_terraform: Annotated[
        bool, typer.Option("--terraform", help="As resources of Terraform's AWS provider.")
    ] = False,
) -> None:
    """Print the tables' definitions: as JSON, each what CreateTable takes, or for Terraform."""
    from tidings.storage.definitions import creation, terraform
    from tidings.storage.tables import TABLES

    address = Settings(store=store).store_address
    prefix = address.prefix if isinstance(address, DynamoAddress) else PREFIX_DEFAULT
    throughput = _throughput(provisioned)
    if as_terraform:
        typer.echo(terraform(TABLES, prefix, throughput), nl=False)
    else:
        print_json([creation(table, prefix, throughput) for table in TABLES])


def _throughput(text: str | None) -> Throughput | None:
    from tidings.storage.definitions import Throughput

    if text is None:
        return None
    if not (units := _UNITS.fullmatch(text)):
        raise typer.BadParameter("--provisioned: write READ:WRITE, such as 25:50")
    return Throughput(int(units[1]), int(units[2]))
