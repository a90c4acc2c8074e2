"""A real service for the tests of the client: a process of its own on a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tidings.bench.services import create_key, running
from tidings.client import Client


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Client]:
    """Yields a client with an API key."""
    store = folder / "tidings.db"
    key = await create_key(store)
    async with running(store, is_pinned=False) as service, Client(service.url, key) as client:
        yield client


async def session(server: Client, user_id: str, role: str = "manager") -> Client:
    """A user (made if need be) on a device of theirs."""
    assert role in ("manager", "customer", "bot", "admin")
    await server.create_user(f"Person {user_id}", role, user_id=user_id)  # type: ignore[arg-type]
    return server.as_session((await server.create_session(user_id)).token)
