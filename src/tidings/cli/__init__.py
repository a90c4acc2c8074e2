"""The command line: `tidings serve`, `demo`, `keys`, `users`, `rooms`, `import`, `audit` and more.

Every option is also read from `TIDINGS_<NAME>`. What a script wants goes to standard output,
everything else to standard error. Exit codes: 0 done, 1 failed (or an audit that found something),
2 wrong usage, 130 broken off. An error is one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from tidings import logs
from tidings.cli import (
    checks,
    exports,
    imports,
    lists,
    measures,
    migrate,
    nodes,
    people,
    postgres_imports,
    redis_imports,
    rooms,
    services,
    slack,
    tables,
)
from tidings.config import ENVIRONMENT_PREFIX, SettingRefused
from tidings.errors import TidingsError

FAILED, USAGE, BROKEN_OFF = 1, 2, 130

app = typer.Typer(
    name="tidings",
    help="A real-time messaging backend: gapless logs, exact unread counts, every way of delivery.",
    epilog="Every option is also read from the environment, as TIDINGS_ and its name.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
services.register(app)
people.register(app)
rooms.register(app)
imports.register(app)
exports.register(app)
slack.register(app)
redis_imports.register(imports.imports)
postgres_imports.register(imports.imports)
lists.register(app)
checks.register(app)
nodes.register(app)
measures.register(app)
tables.register(app)
migrate.register(app)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"tidings {version('tidings')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Say which version this is, before any command."""


def _bind_environment(command: Any) -> Any:
    """Let every option of the command and of those below it read `TIDINGS_<NAME>`."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name not in ("help", "version"):
            long = max(parameter.opts, key=len).lstrip("-")
            parameter.envvar = ENVIRONMENT_PREFIX + long.replace("-", "_").upper()
            parameter.show_envvar = True
    for below in getattr(command, "commands", {}).values():
        _bind_environment(below)
    return command


def _fail(text: str, code: int) -> int:
    typer.echo(f"tidings: {' '.join(text.split())}", err=True)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never shows a stack trace for what can happen."""
    logs.configure_command()
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = _bind_environment(typer.main.get_command(app))
    try:
        code = command.main(args=given or ["--help"], prog_name="tidings", standalone_mode=False)
    except TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except SettingRefused as error:
        return _fail(str(error), USAGE)
    except TidingsError as error:
        return _fail(error.detail, FAILED)
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("broken off", BROKEN_OFF)
    return code if isinstance(code, int) else 0
