"""Delivery over real sockets, on a real embedded store, with real sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.delivery.ledger import WORKSPACE, Ledger
from tests.stores import StoreKind, open_store
from tidings import wire
from tidings.clock import system_clock
from tidings.cursors import Cursors
from tidings.delivery.bus import Bus, LocalBus
from tidings.delivery.events import Events
from tidings.delivery.hub import Hub
from tidings.delivery.queues import first_cursor
from tidings.delivery.syncs import Syncs
from tidings.delivery.websocket import Sockets
from tidings.delivery.whereabouts import Alone, Peers, Whereabouts
from tidings.errors import TidingsError
from tidings.ids import IdMaker
from tidings.metrics import Metrics
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.people import People
from tidings.problems import problem_of
from tidings.storage.interface import Store

DEADLINE_S = 60.0
_KEY = Caller(workspace=WORKSPACE, kind="api_key", credential_id="key_test", scopes=ALL_SCOPES)


class Device:
    """A session of a user, and the ways it is told."""

    def __init__(self, node: Node, user_id: str, token: str, caller: Caller) -> None:
        self._node = node
        self.user_id = user_id
        self.token = token
        self.caller = caller
        self.headers = {"Authorization": f"Bearer {token}"}

    async def connect(self, *, header: bool = True, **auth: Any) -> Socket:
        """A WebSocket, authenticated by header, or by an auth frame with the given fields."""
        client = self._node.client
        headers = self.headers if header else {}
        socket = Socket(
            await client.ws_connect(
                self._node.url("/v1/ws"), headers=headers, protocols=("tidings.v1",), autoping=False
            )
        )
        if not header:
            await socket.send({"type": "auth", "token": self.token, **auth})
        return socket

    async def ready(self, **auth: Any) -> Socket:
        """A WebSocket whose `ready` was read."""
        socket = await self.connect(header=not auth, **auth)
        socket.ready = await socket.next("ready")
        return socket

    async def sync(self, **request: Any) -> wire.SyncReply:
        return await self._node.syncs.sync(self.caller, wire.SyncRequest(**request))


class Socket:
    """The device's end of a WebSocket: batches unpacked, presence set aside."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket
        self.ready: dict[str, Any] = {}
        self._frames: list[dict[str, Any]] = []
        self.presence: list[dict[str, Any]] = []

    async def send(self, frame: Any) -> None:
        await self.raw.send_str(msgspec.json.encode(frame).decode())

    async def next(self, *types: str) -> dict[str, Any]:
        """The next frame, which is to be of one of the types if any are given."""
        async with asyncio.timeout(DEADLINE_S):
            while not self._frames:
                message = await self.raw.receive()
                if message.type is aiohttp.WSMsgType.PING:
                    await self.raw.pong(message.data)
                    continue
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise EOFError(self.raw.close_code)
                frame = msgspec.json.decode(message.data)
                frames = frame["updates"] if frame["type"] == "batch" else [frame]
                for each in frames:
                    kept = self.presence if each["type"] == "presence" else self._frames
                    kept.append(each)
        frame = self._frames.pop(0)
        assert not types or frame["type"] in types, frame
        assert isinstance(frame, dict)
        return frame

    async def rest(self) -> list[dict[str, Any]]:
        """All frames up to a pong of our own."""
        await self.send({"type": "ping", "ref": "the end"})
        frames = []
        while (frame := await self.next()) != {"type": "pong", "ref": "the end"}:
            frames.append(frame)
        return frames

    async def closed(self) -> int | None:
        """The close code, once the service closed."""
        try:
            while True:
                await self.next()
        except EOFError:
            return self.raw.close_code

    async def close(self) -> None:
        await self.raw.close()


class Node:
    """One node of the service, as far as delivery goes."""

    def __init__(
        self,
        store: Store,
        bus: Bus | None = None,
        *,
        ledger: Ledger | None = None,
        peers: Peers | None = None,
    ) -> None:
        """With a ledger that several nodes share, its commits are told by whom it likes."""
        self.store = store
        self.cursors = Cursors(b"a secret of the tests")
        self.bus = bus or LocalBus()
        whereabouts = Whereabouts(store, system_clock, peers or Alone())
        self.hub = Hub(self.cursors, Metrics(), self.bus, whereabouts)
        self.people = People(
            store,
            system_clock,
            IdMaker(system_clock),
            self.cursors,
            policy=None,
            who_is_online=self.hub.presence.online,
            online_sessions=self.hub.presence.online_sessions,
            on_revoked=self.hub.on_revoked,
            first_cursor=partial(first_cursor, store, self.cursors),
        )
        self.ledger = ledger or Ledger(store, self.hub.publish, self.hub.signal)
        self.syncs = Syncs(store, self.cursors, self.people.credentials, self.hub)
        self.sockets = Sockets(
            self.hub,
            self.syncs,
            self.ledger,
            self.ledger,
            self.people.credentials,
            self.people.limits,
        )
        self.events = Events(self.hub, self.syncs)
        app = web.Application()
        app.router.add_get("/v1/ws", self._open_socket)
        app.router.add_get("/v1/events", self._open_events)
        self.server = TestServer(app)
        self.client: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    async def _caller(self, request: web.Request) -> Caller | None:
        _, _, token = request.headers.get("Authorization", "").partition(" ")
        return await self.people.credentials.authenticate(token) if token else None

    async def _open_socket(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self.sockets.handle(request, await self._caller(request))
        except TidingsError as error:
            return web.Response(status=problem_of(error).status)

    async def _open_events(self, request: web.Request) -> web.StreamResponse:
        try:
            caller = await self._caller(request)
            assert caller is not None
            return await self.events.handle(request, caller)
        except TidingsError as error:
            return web.Response(status=problem_of(error).status)

    async def start(self) -> None:
        self.hub.start(
            self.ledger.inbox_item,
            self.ledger.companions,
            self.people.credentials.authenticate,
            mend=self.syncs.mend,
            versions=self.syncs.versions,
        )
        await self.bus.start()
        await self.server.start_server()
        self.client = aiohttp.ClientSession()

    async def stop(self) -> None:
        await self.client.close()
        await self.server.close()
        await self.syncs.queues.stop()
        await self.bus.stop()
        await self.hub.stop()

    async def device(self, user_id: str, role: wire.Role = "customer") -> Device:
        """A new session of the user, who is made if need be."""
        body = wire.CreateUser(id=user_id, role=role, name=user_id)
        await self.people.users.create(_KEY, body)
        opened = await self.people.credentials.create_session(
            _KEY, wire.CreateSession(user_id=user_id)
        )
        caller = await self.people.credentials.authenticate(opened.token)
        return Device(self, user_id, opened.token, caller)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def store(store_kind: StoreKind, tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(store_kind, tmp_path) as opened:
        yield opened


@pytest.fixture
async def node(store: Store) -> AsyncIterator[Node]:
    node = Node(store)
    await node.people.workspaces.create("Acme", WORKSPACE)
    await node.start()
    yield node
    await node.stop()
