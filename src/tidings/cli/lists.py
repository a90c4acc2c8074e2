"""`tidings lists`: conversation lists that move from Redis to Tidings while they are used."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import msgspec
import typer

from tidings.cli.output import note, print_json, progress_bar
from tidings.cli.parts import AsJson

if TYPE_CHECKING:
    from tidings.conversations import Difference, Stage, Stages

lists = typer.Typer(help="Conversation lists on their way from Redis.")

SOURCE_TIMEOUT_S = 10.0
TOGETHER = 8
"""Lists that are compared at one time."""
SHOWN_MAX = 20
LOOK_S = 0.1
PREFIX = "tidings"
FAILED = 1

T = TypeVar("T")


def _checked_source(url: str) -> str:
    from redis.asyncio.connection import parse_url

    try:
        parse_url(url)
    except ValueError as error:
        raise typer.BadParameter("write redis://host:port/0, or rediss:// for TLS") from error
    return url


SourceUrl = Annotated[
    str,
    typer.Option(
        "--source",
        metavar="URL",
        callback=_checked_source,
        help="The Redis that the lists are in, such as redis://127.0.0.1:6379/0.",
    ),
]
Prefix = Annotated[
    str, typer.Option("--prefix", help="What the names of the move's own keys begin with.")
]


class Status(msgspec.Struct, frozen=True):
    """Where a move of lists has come to."""

    stage: str
    shadow: float
    waiting: int
    """Changes that Redis has and Tidings does not yet have."""
    refused: int
    lost: int


class Comparison(msgspec.Struct):
    """What a comparison of all lists found."""

    lists: int = 0
    lines: int = 0
    differing: Counter[str] = msgspec.field(default_factory=Counter)
    mended: int = 0


def _done(work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work. What can go wrong with lists is one line, and exit code 1."""
    from tidings.conversations import ConversationsError

    try:
        return asyncio.run(work)
    except ConversationsError as error:
        note(f"tidings: {error}")
        raise typer.Exit(FAILED) from error


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(lists, name="lists")


@lists.command("stage")
def change_stage(
    source: SourceUrl,
    name: Annotated[
        str | None, typer.Argument(metavar="[redis|noted|both|tidings]", help="The next stage.")
    ] = None,
    shadow: Annotated[
        float, typer.Option(min=0, max=1, help="Share of reads that are compared, in `both`.")
    ] = 0.0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return once Tidings has all that was noted.")
    ] = False,
    prefix: Prefix = PREFIX,
    as_json: AsJson = False,
) -> None:
    """Show where the move of lists has come to, or begin the next stage."""
    from tidings.conversations import StageName, Stages, open_redis

    if name is not None and name not in get_args(StageName):
        raise typer.BadParameter("is redis, noted, both or tidings", param_hint="STAGE")

    async def run() -> Status:
        async with open_redis(source, SOURCE_TIMEOUT_S) as redis:
            stages = Stages(redis, prefix=prefix)
            if name is not None:
                await stages.change(msgspec.convert(name, StageName), shadow=shadow)
            stage = await stages.now()
            if wait:
                await _emptied(stages)
            return await _status(stages, stage)

    status = _done(run())
    if as_json:
        print_json(status)
    else:
        typer.echo(
            f"{status.stage}: {status.waiting:,} changes wait, {status.refused:,} were refused, "
            f"{status.lost:,} were lost"
        )


async def _emptied(stages: Stages) -> None:
    while True:
        if not await stages.journal.lag():
            return
        await asyncio.sleep(LOOK_S)


async def _status(stages: Stages, stage: Stage) -> Status:
    journal = stages.journal
    return Status(
        stage=stage.name,
        shadow=stage.shadow,
        waiting=await journal.lag(),
        refused=await journal.refused_count(),
        lost=await journal.lost(),
    )


@lists.command("compare")
def compare_lists(
    mapping: Annotated[Path, typer.Argument(metavar="MAPPING.toml", exists=True)],
    source: SourceUrl,
    service: Annotated[str, typer.Option("--service", metavar="URL", help="Where Tidings is.")],
    key: Annotated[str, typer.Option("--key", help="An API key; better by TIDINGS_KEY.")],
    mend: Annotated[
        bool, typer.Option("--mend", help="Make Tidings say what Redis says, order aside.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every list in Redis with the one in Tidings. Exits with 1 where they differ.

    What is written meanwhile shows as a difference.
    """
    from tidings.client import Client
    from tidings.conversations import (
        MappingRefused,
        RedisConversations,
        TidingsConversations,
        compare,
        open_redis,
        read_mapping,
    )
    from tidings.conversations import mend as mend_line

    try:
        rules = read_mapping(mapping)
    except MappingRefused as error:
        raise typer.BadParameter(str(error), param_hint="MAPPING") from error
    found = Comparison()
    shown: list[Difference] = []

    async def run() -> None:
        turns = asyncio.Semaphore(TOGETHER)
        async with open_redis(source, SOURCE_TIMEOUT_S) as redis, Client(service, key) as client:
            old, new = RedisConversations(redis, rules), TidingsConversations(client)

            async def one(owner: str) -> None:
                try:
                    differences = await compare(old, new, owner)
                    for each in differences if mend else []:
                        filler = rules.unread.text
                        await mend_line(old, new, owner, each.opponent, filler=filler)
                        found.mended += 1
                    found.lists += 1
                    found.lines += await old.count(owner)
                    found.differing.update(each.reason for each in differences)
                    shown.extend(differences[: SHOWN_MAX - len(shown)])
                    show("Comparing", found.lists, 0)
                finally:
                    turns.release()

            with progress_bar() as show:
                async with asyncio.TaskGroup() as group:
                    async for owner in old.owners():
                        await turns.acquire()
                        group.create_task(one(owner))

    _done(run())
    for each in shown:
        note(f"{each.owner} with {each.opponent}: {each.reason}")
    if as_json:
        print_json(found)
    else:
        typer.echo(
            f"{found.lines:,} lines in {found.lists:,} lists: "
            f"{sum(found.differing.values()):,} differ, {found.mended:,} mended"
        )
    if sum(found.differing.values()) > found.mended:
        raise typer.Exit(FAILED)
