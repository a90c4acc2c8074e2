"""The bus over a real Redis: what is told arrives, and what may not have arrived is known."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import uvloop

from tests.redis_server import RedisServer, needs_redis, running_redis
from tidings import wire
from tidings.chat.updates import (
    PostedEntry,
    RoomUpdate,
    UserUpdate,
    decode_updates,
    encode_updates,
)
from tidings.delivery import redis as redis_bus
from tidings.delivery.redis import RedisBus
from tidings.metrics import Metrics

DEADLINE_S = 60.0


class Listener:
    """A node's end of the bus, and what came out of it."""

    def __init__(self, url: str, name: str, channel: str = "here") -> None:
        self.metrics = Metrics()
        self.bus = RedisBus(url, channel=channel, node_id=name, metrics=self.metrics)
        self.heard: list[bytes] = []
        self.gaps = 0
        self.bus.on("news", self.heard.append)
        self.bus.on(
            "numbers", lambda body: self.heard.append(msgspec.json.decode(body, type=bytes))
        )
        self.bus.on_gap = self._on_gap

    def _on_gap(self) -> None:
        self.gaps += 1

    def counted(self, fate: str) -> float:
        value = self.metrics.registry.get_sample_value("tidings_bus_messages_total", {"fate": fate})
        assert value is not None
        return value

    async def until(self, holds: Callable[[Listener], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds(self):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(url: str, *names: str, channel: str = "here") -> AsyncIterator[list[Listener]]:
    listeners = [Listener(url, name, channel) for name in names]
    for one in listeners:
        await one.bus.start()
    try:
        yield listeners
    finally:
        for one in listeners:
            await one.bus.stop()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_bus, "BEAT_S", 0.05)
    monkeypatch.setattr(redis_bus, "SILENT_S", 0.4)
    monkeypatch.setattr(redis_bus, "CALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(redis_bus, "RECONNECT_S_MAX", 0.1)


@needs_redis
async def test_others_hear_everything_in_order_and_nobody_hears_themselves(
    server: RedisServer,
) -> None:
    async with (
        listening(server.url, "a", "b", "c") as (a, b, c),
        listening(server.url, "d", channel="elsewhere") as (stranger,),
    ):
        sent = [b"%d" % number for number in range(5_000)]
        for body in sent:
            a.bus.send("news", body)
        c.bus.send("news", b"from c")
        c.bus.send("nobody listens to this", b"")
        await b.until(lambda one: len(one.heard) == 5_001)
        await a.until(lambda one: len(one.heard) == 1)
        assert [body for body in b.heard if body != b"from c"] == sent
        assert a.heard == [b"from c"]
        assert stranger.heard == []
        assert [one.gaps for one in (a, b, c)] == [1, 1, 1], "one each, for connecting"
        await a.until(lambda one: one.counted("sent") == 5_000)  # once the server has said so
        assert (a.counted("dropped"), b.counted("received")) == (0, 5_002)


@needs_redis
async def test_what_does_not_fit_is_dropped_and_the_others_know(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "QUEUE_BYTES_MAX", 1_000)
    async with listening(server.url, "a", "b") as (a, b):
        a.bus.send("news", b"first")
        await b.until(lambda one: one.heard == [b"first"])
        for number in range(20):
            a.bus.send("news", b"%0100d" % number)
        await b.until(lambda one: len(one.heard) == 11)
        await b.until(lambda one: one.gaps == 2)
        assert a.counted("dropped") == 10
        a.bus.send("news", b"last")
        await b.until(lambda one: one.heard[-1] == b"last")
        assert b.gaps == 2


@needs_redis
async def test_message_that_can_not_be_read_harms_no_other(server: RedisServer) -> None:
    async with listening(server.url, "a", "b") as (a, b):
        a.bus.send("numbers", b"{")
        a.bus.send("news", b"good")
        await b.until(lambda one: one.heard == [b"good"])
        assert b.bus.is_connected


@needs_redis
@pytest.mark.usefixtures("hasty")
def test_bus_comes_back_after_its_idle_connection_was_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the service's own event loop, which has a name of its own for writing to such a one."""
    monkeypatch.setattr(redis_bus, "BEAT_S", 0.2)
    streams: list[asyncio.StreamWriter] = []

    async def story() -> None:
        async with running_redis(tmp_path) as server:

            async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(OSError):
                    while data := await reader.read(65_536):
                        writer.write(data)
                writer.close()

            async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                streams.append(writer)
                there, back = await asyncio.open_connection("127.0.0.1", server.port)
                await asyncio.gather(pump(reader, back), pump(there, writer))

            async with await asyncio.start_server(carry, "127.0.0.1", 0) as way:
                port = way.sockets[0].getsockname()[1]
                async with listening(f"redis://127.0.0.1:{port}/0", "a") as (a,):
                    await a.until(lambda one: one.bus.is_connected)
                    publishing = streams[-1]
                    publishing.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    publishing.transport.abort()
                    await a.until(lambda one: one.gaps == 2)
                    assert a.bus.is_connected
                    registry = a.metrics.registry
                    unexpected = {"place": "bus"}
                    assert not registry.get_sample_value("tidings_errors_total", unexpected)

    uvloop.run(story())


@needs_redis
@pytest.mark.usefixtures("hasty")
async def test_bus_comes_back_after_its_server_was_away(server: RedisServer) -> None:
    async with listening(server.url, "a", "b") as (a, b):
        assert a.bus.is_connected
        await server.stop()
        for one in (a, b):
            await one.until(lambda one: not one.bus.is_connected)
        a.bus.send("news", b"lost")
        assert a.counted("dropped") >= 1
        await server.start()
        for one in (a, b):
            await one.until(lambda one: one.bus.is_connected and one.gaps >= 2)
        a.bus.send("news", b"again")
        await b.until(lambda one: one.heard == [b"again"])


@needs_redis
@pytest.mark.usefixtures("hasty")
async def test_server_that_hangs_counts_as_gone(server: RedisServer) -> None:
    async with listening(server.url, "a", "b") as (a, b):
        server.freeze()
        for one in (a, b):
            await one.until(lambda one: not one.bus.is_connected)
        server.wake()
        for one in (a, b):
            await one.until(lambda one: one.bus.is_connected and one.gaps >= 2)
        b.bus.send("news", b"again")
        await a.until(lambda one: one.heard == [b"again"])


@needs_redis
@pytest.mark.usefixtures("hasty")
async def test_node_that_falls_silent_is_a_gap(server: RedisServer) -> None:
    async with listening(server.url, "a") as (a,):
        async with listening(server.url, "b") as (b,):
            b.bus.send("news", b"still here")
            await a.until(lambda one: one.heard == [b"still here"])
            assert a.gaps == 1
        await a.until(lambda one: one.gaps == 2)


@pytest.mark.usefixtures("hasty")
async def test_node_starts_without_its_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_bus, "START_S_MAX", 0.05)
    async with listening("redis://127.0.0.1:1/0", "a") as (a,):
        assert not a.bus.is_connected
        a.bus.send("news", b"lost")
        assert a.counted("dropped") == 1
        assert a.gaps == 0


def test_wrong_address_is_refused() -> None:
    with pytest.raises(ValueError, match="Redis URL"):
        RedisBus("http://here", channel="c", node_id="n", metrics=Metrics())


def test_updates_stay_the_same_on_their_way() -> None:
    entries = [
        PostedEntry(wire.Entry("r1", seq, f"ent_{seq}", "text", "ann", "now", text="é" * seq))
        for seq in range(1, 4)
    ]
    updates = [
        UserUpdate("ann", 7, 0, 0, [RoomUpdate("r1", 3, 0, 0, 0, entries)]),
        UserUpdate("bob", 9, 2, 1, [RoomUpdate("r1", 3, 1, 2, 1, entries[1:], is_left=True)]),
        UserUpdate("eve", 1, 0, 0, [RoomUpdate("r1", 3, 0, 0, 0, is_read_moved=True)]),
    ]
    body = encode_updates("acme", updates)
    assert body.count(entries[2].json) == 1
    workspace, came = decode_updates(body)
    assert workspace == "acme"
    for before, after in zip(updates, came, strict=True):
        assert msgspec.structs.replace(before, rooms=()) == msgspec.structs.replace(after, rooms=())
        for room_before, room_after in zip(before.rooms, after.rooms, strict=True):
            assert [e.entry for e in room_before.entries] == [e.entry for e in room_after.entries]
            assert [e.json for e in room_before.entries] == [e.json for e in room_after.entries]
            assert msgspec.structs.replace(room_before, entries=()) == msgspec.structs.replace(
                room_after, entries=()
            )
    for cut in range(len(body)):
        with pytest.raises(msgspec.DecodeError):
            decode_updates(body[:cut])
    with pytest.raises(msgspec.DecodeError):
        decode_updates(
            msgspec.msgpack.encode(["acme", [], [["ann", 1, 0, 0, [["r", 1, 0, 0, 0, [0]]]]]])
        )
