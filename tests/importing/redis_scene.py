"""An import from Redis into an embedded store, within the process of the test."""

from __future__ import annotations

import tomllib
from contextlib import closing
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from tests.importing.redis_lists import MAPPING
from tidings.chat.audit import audit
from tidings.cli.parts import Parts, open_parts
from tidings.clock import system_clock
from tidings.conversations import Journal, Mapping
from tidings.importing.quarantine import Quarantine
from tidings.importing.redis import RedisImport
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_report import Report

WORKSPACE = "acme"


async def imported(
    folder: Path,
    url: str,
    mapping: str = MAPPING,
    odd_file: Path | None = None,
    *,
    is_noted: bool = False,
) -> Report:
    """What an import into the folder's store reports; the store is audited afterwards."""
    async with open_parts(f"sqlite:///{folder}/t.db", must_exist=False) as parts:
        made = await parts.workspaces.default(WORKSPACE)
        return await imported_into(parts, made.id, url, mapping, odd_file, is_noted=is_noted)


async def imported_into(
    parts: Parts,
    workspace: str,
    url: str,
    mapping: str = MAPPING,
    odd_file: Path | None = None,
    *,
    is_noted: bool = False,
) -> Report:
    """The same into a store that is open."""
    lists = msgspec.convert(tomllib.loads(mapping), Mapping)
    async with Redis.from_url(url) as redis:
        with closing(Quarantine(odd_file)) as quarantine:
            importing = RedisImport(
                parts.store,
                parts.chat,
                workspace,
                lists,
                Oddities(quarantine),
                clock=system_clock,
                journal=Journal(redis) if is_noted else None,
            )
            report = await importing.run(redis)
    proof = await audit(parts.store)
    assert proof.ok, proof.broken
    return report
