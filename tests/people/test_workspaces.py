"""Workspaces: made once however many ask, changed within bounds."""

from __future__ import annotations

import asyncio

import pytest

from tests.people.conftest import World
from tests.stores import EVERY_STORE
from tidings.errors import Conflict, NotFound, ValidationFailed
from tidings.people.workspaces import parse_origin

STORES = EVERY_STORE


async def test_create_and_get(world: World) -> None:
    made = await world.workspaces.create("Acme, Inc.")
    assert made.publishable_key.startswith("pk_")
    assert await world.workspaces.get(made.id) == made
    assert await world.workspaces.get("nobody") is None
    with pytest.raises(Conflict):
        await world.workspaces.create("Other", made.id)
    with pytest.raises(ValidationFailed):
        await world.workspaces.create("Other", "a#b")
    with pytest.raises(ValidationFailed):
        await world.workspaces.create("")


async def test_the_default_is_made_once(world: World, elsewhere: World) -> None:
    made = await asyncio.gather(
        *(each.workspaces.default(None) for each in (world, elsewhere) for _ in range(5))
    )
    assert len({workspace.publishable_key for workspace in made}) == 1
    assert made[0].id == "default"


async def test_the_default_is_the_only_one_there_is(world: World) -> None:
    only = await world.workspaces.create("Acme")
    assert await world.workspaces.default(None) == only
    assert await world.workspaces.default("Acme") == only
    assert await world.workspaces.default(only.id) == only
    second = await world.workspaces.default("Ünïcode & Sons")
    assert await world.workspaces.default("Ünïcode & Sons") == second
    assert (await world.workspaces.default("Ünïcode + Sons")).id != second.id
    assert (await world.workspaces.default(None)).id == "default"


async def test_settings_are_seen_at_once_here_and_soon_elsewhere(
    world: World, elsewhere: World
) -> None:
    await world.workspaces.create("Acme", "acme")
    assert await elsewhere.workspaces.get("acme") is not None
    changed = await world.workspaces.update(
        "acme", allowed_origins=["HTTPS://Shop.Example:443/"], is_jwt_for_managers=True
    )
    assert changed.allowed_origins == ("https://shop.example",)
    assert await world.workspaces.get("acme") == changed
    assert await elsewhere.workspaces.get("acme") != changed
    world.clock.forward(5)
    assert await elsewhere.workspaces.get("acme") == changed
    keyed = await world.workspaces.update("acme", jwt=("HS256", "s" * 32))
    assert (keyed.jwt_algorithm, keyed.is_jwt_for_managers) == ("HS256", True)
    bare = await world.workspaces.update("acme", jwt=None, allowed_origins=[])
    assert (bare.jwt_algorithm, bare.jwt_key, bare.allowed_origins) == (None, None, ())


async def test_settings_that_are_refused(world: World) -> None:
    await world.workspaces.create("Acme", "acme")
    with pytest.raises(ValidationFailed):
        await world.workspaces.update("acme", allowed_origins=["*"])
    with pytest.raises(ValidationFailed):
        await world.workspaces.update("acme", allowed_origins=["https://a.example"] * 101)
    with pytest.raises(ValidationFailed):
        await world.workspaces.update("acme", jwt=("HS256", "short"))
    with pytest.raises(NotFound):
        await world.workspaces.update("nobody", name="Nobody")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://a.example", "https://a.example"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("HTTP://A.example:80", "http://a.example"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_origins(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.example",
        "ftp://a.example",
        "https://",
        "https://a.example/path",
        "https://a.example?x",
        "https://me@a.example",
        "https://a.example:port",
        "https://[::1",
        "null",
    ],
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValidationFailed):
        parse_origin(text)
