"""`tidings serve` and `tidings demo`: services that run until they are told to stop."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from tidings.cli.parts import STORE_DEFAULT, StoreUrl
from tidings.config import Settings, read_settings

_DEFAULTS = Settings()
Host = Annotated[str, typer.Option("--host", metavar="H", help="The address to listen on.")]
Port = Annotated[
    int, typer.Option("--port", metavar="P", min=0, max=65_535, help="0 picks a free one.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve")(serve)
    app.command("demo")(demo)


def serve(
    store: StoreUrl = STORE_DEFAULT,
    bus: Annotated[
        str, typer.Option("--bus", metavar="URL", help="Between nodes: redis://…; local: is one.")
    ] = _DEFAULTS.bus,
    blobs: Annotated[
        str, typer.Option("--blobs", metavar="URL", help="Where bytes are kept.")
    ] = _DEFAULTS.blobs,
    push: Annotated[
        str,
        typer.Option(
            "--push",
            metavar="TO",
            help="Web push: public, off, or loopback (for tests: to this machine as well).",
        ),
    ] = _DEFAULTS.push,
    push_contact: Annotated[
        str,
        typer.Option(
            "--push-contact",
            metavar="URL",
            help="mailto: or https:, for push services to write to.",
        ),
    ] = _DEFAULTS.push_contact,
    host: Host = _DEFAULTS.host,
    port: Port = _DEFAULTS.port,
    rate_limit: Annotated[
        str,
        typer.Option(
            "--rate-limit", metavar="N/second|off", help="Requests and frames of each session."
        ),
    ] = _DEFAULTS.rate_limit,
    faults: Annotated[
        str | None,
        typer.Option(
            "--faults",
            metavar="PROFILE",
            help="Let the store fail now and then, to practise: mild, rough, or a TOML file.",
        ),
    ] = _DEFAULTS.faults,
    log: Annotated[
        str, typer.Option("--log", metavar="FORM", help="auto, console, json or off.")
    ] = _DEFAULTS.log,
) -> None:
    """Run a service until SIGTERM or SIGINT.

    Prints `listening on http://HOST:PORT` once requests are served. SIGTERM drains connections and
    ends within ten seconds.
    """
    options = {
        "store": store,
        "bus": bus,
        "blobs": blobs,
        "push": push,
        "push_contact": push_contact,
        "host": host,
        "port": port,
        "rate_limit": rate_limit,
        "faults": faults,
        "log": log,
    }
    settings = read_settings(options, {})
    gc.disable()  # what is made from here on stays; `serve` goes on collecting once it listens
    from tidings.app import run

    run(settings)


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", help="Where the sample workspace is kept between runs.")
    ] = Path("demo-data"),
    host: Host = _DEFAULTS.host,
    port: Port = _DEFAULTS.port,
) -> None:
    """Run a service with a sample workspace, and print ready links and tokens.

    The same folder again goes on where it was; another, or a removed one, starts anew.
    """
    from tidings.demo import run_demo

    run_demo(folder, host, port)
