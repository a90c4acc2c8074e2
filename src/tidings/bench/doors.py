"""Services to be measured, with a way in: people, sessions, devices, and filled stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from tidings.bench.figures import Say
from tidings.bench.filling import Pair, filled
from tidings.bench.loads import Sender, Tally
from tidings.bench.services import Service, create_key, running
from tidings.bench.sockets import FastHttp

DOORS = 8
"""Connections that make people and sessions."""
BADGE_ROOMS_MANY = 10_000
BADGE_ROOMS_FEW = 10
STORE_SMALL_ENTRIES = 10_000
USERS_OF_SMALL_STORE = 20
USERS_OF_LARGE_STORE = 200


class Options(msgspec.Struct, frozen=True):
    """How much to measure, and where."""

    folder: Path
    """For stores and the disk's floor; emptied by whoever made it."""
    checkout: Path | None
    """Where `benchmarks/bare_store.py` is."""
    is_pinned: bool
    runs: int = 3
    seconds: float = 10.0
    entries: int = 2_000_000
    connections: int = 5_000
    is_profiling: bool = False


class Door:
    """An API key's way in, over a few connections."""

    def __init__(self, service: Service, key: str, connections: Sequence[FastHttp]) -> None:
        self.service = service
        self.key = key
        self._connections = connections

    async def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """One call."""
        return await self._connections[0].json("POST", path, self.key, body)

    async def each(self, path: str, bodies: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        """The same call with many bodies; the replies in the same order."""
        replies: list[dict[str, object]] = [{} for _ in bodies]
        todo = iter(range(len(bodies)))

        async def work(connection: FastHttp) -> None:
            for index in todo:
                replies[index] = await connection.json("POST", path, self.key, bodies[index])

        await asyncio.gather(*[work(connection) for connection in self._connections])
        return replies

    async def people(self, user_ids: Sequence[str], role: str = "manager") -> None:
        """Make users."""
        bodies: list[dict[str, object]] = [
            {"id": user_id, "role": role, "name": f"Person {user_id}"} for user_id in user_ids
        ]
        await self.each("/v1/users", bodies)

    async def sessions(self, user_ids: Sequence[str]) -> list[str]:
        """A new session of each; their tokens."""
        replies = await self.each("/v1/sessions", [{"user_id": user_id} for user_id in user_ids])
        return [str(reply["token"]) for reply in replies]

    async def sender(self, tally: Tally, room_id: str, user_id: str, *, in_flight: int) -> Sender:
        """A connected device of a user."""
        token = (await self.sessions([user_id]))[0]
        sender = Sender(tally, room_id, user_id, in_flight=in_flight)
        await sender.connect(self.service.url, token)
        return sender


@asynccontextmanager
async def opened(options: Options, name: str, *, store: Path | None = None) -> AsyncIterator[Door]:
    """A service on a new store, or on the given one, and a way in."""
    path = store or options.folder / f"{name}.db"
    key = await create_key(path)
    async with running(path, is_pinned=options.is_pinned) as service:
        connections = [await FastHttp.open(service.url) for _ in range(DOORS)]
        try:
            yield Door(service, key, connections)
        finally:
            for connection in connections:
                connection.close()


class Stores:
    """The filled stores, made when they are first needed."""

    def __init__(self, options: Options, say: Say) -> None:
        self._options = options
        self._say = say
        self._made: dict[int, tuple[Path, list[Pair]]] = {}

    async def of(self, entries: int) -> tuple[Path, list[Pair]]:
        """A store of so many entries, and its rooms. In the small one, the users `many` and
        `few` have BADGE_ROOMS_MANY and BADGE_ROOMS_FEW rooms besides."""
        if entries not in self._made:
            path = self._options.folder / f"filled-{entries}.db"
            await create_key(path)
            is_small = entries <= STORE_SMALL_ENTRIES
            self._say(f"filling a store with {entries:,} entries")
            pairs = await filled(
                path,
                entries=entries,
                users=USERS_OF_SMALL_STORE if is_small else USERS_OF_LARGE_STORE,
                crowds={"many": BADGE_ROOMS_MANY, "few": BADGE_ROOMS_FEW} if is_small else {},
                progress=lambda done: self._say(f"filling a store: {done:,} of {entries:,}"),
            )
            self._made[entries] = path, pairs
        return self._made[entries]
