"""Connections of the whole service: catching up, being slow, signed out, and sent away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import Opening, Site
from tests.command_line import lasting_port, run_tidings, running_service
from tests.delivery.conftest import Socket
from tests.delivery.doors import HttpDevice
from tidings.client import Client

EFFECT_S = 5.0
"""A revoked session takes effect everywhere within this time."""
SLACK_S = 2.0
"""For a machine that is busy with other things."""
END_S = 10
"""A planned stop ends within this time."""
STORM_DEVICES = 300
LARGE_TEXT = "x" * 8_000


async def device_of(server: Client, user_id: str, stack: AsyncExitStack) -> HttpDevice:
    """A new session of the user, who is made if need be."""
    await server.create_user(user_id, "manager", user_id=user_id)
    token = (await server.create_session(user_id)).token
    client = Client(str(server.url), token, session=server.connections())
    return HttpDevice(await stack.enter_async_context(client), user_id)


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[tuple[Client, AsyncExitStack]]:
    """A client with an API key, and what its devices are closed with."""
    async with Client(site.url, await site.key()) as server, AsyncExitStack() as stack:
        yield server, stack


async def ready(device: HttpDevice, since: str | None = None) -> Socket:
    """A socket of the device whose `ready` was read."""
    socket = await device.connect(header=False, **({} if since is None else {"since": since}))
    socket.ready = await socket.next("ready")
    return socket


def seqs(frames: Sequence[dict[str, Any]], room_id: str) -> list[int]:
    """The sequences of the entries of a room that were told, in order."""
    found = []
    for frame in frames:
        if frame["type"] == "entry" and frame["entry"]["room_id"] == room_id:
            found.append(frame["entry"]["seq"])
        for room in frame.get("rooms", ()):
            if room["room_id"] == room_id:
                found += [entry["seq"] for entry in room.get("entries", ())]
    return found


async def test_catch_up_on_a_live_socket_comes_in_windows_between_live_updates(site: Site) -> None:
    async with served(site) as (server, stack):
        ann = await device_of(server, "ann", stack)
        bob = await device_of(server, "bob", stack)
        rooms = [(await server.create_room("group", members=["ann", "bob"])).id for _ in range(3)]
        since = (await bob.sync()).cursor
        for number in range(10):
            for room_id in rooms:
                await ann.client.post_message(room_id, f"missed {number}")
        socket = await ready(bob)
        version = socket.ready["version"]
        windows: list[dict[str, Any]] = []
        live: list[dict[str, Any]] = []
        while not windows or windows[-1]["more"]:
            await ann.client.post_message(rooms[0], f"live {len(windows)}")
            await socket.send({"type": "sync", "ref": len(windows), "since": since, "limit": 4})
            while (frame := await socket.next("entry", "sync"))["type"] != "sync":
                live.append(frame)
            assert frame["ref"] == len(windows)
            windows.append(frame)
            since = frame["cursor"]
        await ann.client.post_message(rooms[0], "the end")
        live += await socket.rest()
        assert len(windows) > 5
        # what a window told already is not told again, and nothing else is left out
        for room_id in rooms:
            head = (await server.room(room_id)).head
            told = sorted({*seqs(windows, room_id), *seqs(live, room_id)})
            assert told == list(range(1, head + 1))
            assert seqs(windows, room_id) == sorted(set(seqs(windows, room_id)))
            assert seqs(live, room_id) == sorted(set(seqs(live, room_id)))
        versions = [frame["version"] for frame in live]
        assert versions == sorted(set(versions))
        assert set(range(windows[-1]["version"] + 1, versions[-1] + 1)) <= set(versions)
        assert versions[0] > version
        assert versions[-1] == (await bob.client.badge()).version


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.slow
async def test_connections_of_a_revoked_session_close(open_site: Opening, where: str) -> None:
    async with open_site() as site, open_site() as other, served(site) as (server, stack):
        bob = await device_of(server, "bob", stack)
        stays = await device_of(server, "bob", stack)
        socket, staying = await ready(bob), await ready(stays)
        [own] = [one for one in (await bob.client.sessions()).items if one.is_current]
        async with bob.stream(None) as stream:
            assert (await stream.next())[1]["type"] == "ready"
            nearest = stays.client if where == "here" else Client(other.url, stays.client.token)
            async with nearest, asyncio.timeout(EFFECT_S + SLACK_S):
                await nearest.revoke_session(own.session_id)
                assert await socket.closed() == 4401
                with pytest.raises(EOFError):
                    await stream.next()
        assert await staying.rest() == []


@pytest.mark.slow
async def test_slow_reader_is_closed_with_4408_and_catches_up(site: Site) -> None:
    async with served(site) as (server, stack):
        ann = await device_of(server, "ann", stack)
        bob = await device_of(server, "bob", stack)
        room_id = (await server.create_room("group", members=["ann", "bob"])).id
        since = (await bob.sync()).cursor
        socket = await ready(bob, since)
        connected = socket.raw._response.connection
        assert connected is not None
        assert connected.transport is not None
        connected.transport.pause_reading()
        [connection] = site.service.hub.connections
        while connection.close_code is None:
            posts = [ann.client.post_message(room_id, LARGE_TEXT) for _ in range(30)]
            await asyncio.gather(*posts)
        connected.transport.resume_reading()
        frames = []
        with suppress(EOFError):
            while True:
                frames.append(await socket.next("entry", "sync"))
        assert socket.raw.close_code == 4408
        got = seqs(frames, room_id)
        head = (await server.room(room_id)).head
        assert got == list(range(1, len(got) + 1))
        assert len(got) < head
        again = await ready(bob, frames[-1]["cursor"])
        windows = [await again.next("sync")]
        while windows[-1]["more"]:
            windows.append(await again.next("sync"))
        assert sorted({*got, *seqs(windows, room_id)}) == list(range(1, head + 1))
        assert windows[-1]["total"]["unread"] == head


@pytest.mark.slow
async def test_stream_that_is_not_read_ends_and_goes_on_at_its_last_event(site: Site) -> None:
    async with served(site) as (server, stack):
        ann = await device_of(server, "ann", stack)
        bob = await device_of(server, "bob", stack)
        room_id = (await server.create_room("group", members=["ann", "bob"])).id
        last_id: str | None = (await bob.sync()).cursor
        got: set[int] = set()
        async with bob.stream(last_id) as stream:
            await stream.next()
            [connection] = site.service.hub.connections
            while connection.close_code is None:
                posts = [ann.client.post_message(room_id, LARGE_TEXT) for _ in range(30)]
                await asyncio.gather(*posts)
            with suppress(EOFError):
                while True:
                    last_id, frame = await stream.next()
                    got |= set(seqs([frame], room_id))
        head = (await server.room(room_id)).head
        assert len(got) < head
        async with bob.stream(last_id) as stream:
            while len(got) < head:
                got |= set(seqs([(await stream.next())[1]], room_id))
        assert got == set(range(1, head + 1))


async def closing_of(socket: Socket) -> int:
    """When the service says to come back, after which it closes."""
    while (frame := await socket.next())["type"] != "closing":
        pass
    retry_after_ms = frame["retry_after_ms"]
    assert isinstance(retry_after_ms, int)
    assert await socket.closed() == 1001
    return retry_after_ms


async def deaf(device: HttpDevice) -> asyncio.StreamWriter:
    """A WebSocket that is authenticated and never read from."""
    url = device.client.url
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1_024)
    lines = [
        "GET /v1/ws HTTP/1.1",
        f"Host: {url.authority}",
        f"Authorization: Bearer {device.client.token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol: tidings.v1",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return writer


@pytest.mark.slow
async def test_sigterm_sends_everybody_away_and_ends_in_time(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/tidings.db"
    key = run_tidings("keys", "create", "--store", store).last_line
    async with AsyncExitStack() as stack:
        service = stack.enter_context(running_service(store, "--rate-limit", "off"))
        server = await stack.enter_async_context(Client(service.url, key))
        ann = await device_of(server, "ann", stack)
        bob = await device_of(server, "bob", stack)
        room_id = (await server.create_room("group", members=["ann", "bob"])).id
        readers = [await device_of(server, f"reader{number}", stack) for number in range(30)]
        sockets = [await ready(reader) for reader in readers]
        unread = [await deaf(bob) for _ in range(5)]
        posts = [ann.client.post_message(room_id, LARGE_TEXT) for _ in range(120)]
        await asyncio.gather(*posts)
        closings = [asyncio.create_task(closing_of(socket)) for socket in sockets]
        polling = asyncio.create_task(readers[0].sync(since=None, wait=60))
        async with readers[1].stream(None) as stream:
            await stream.next()
            service.process.send_signal(signal.SIGTERM)
            spread = await asyncio.gather(*closings)
            assert (await stream.next())[1]["type"] == "closing"
            with pytest.raises(EOFError):
                await stream.next()
        assert (await polling).rooms == []
        assert await asyncio.to_thread(service.process.wait, END_S) == 0
        assert len(set(spread)) > 20
        assert all(0 <= retry_after_ms <= 60_000 for retry_after_ms in spread)
        for writer in unread:
            writer.transport.abort()


async def come_back(device: HttpDevice, since: str, room_id: str) -> list[int]:
    """Connect until the service takes the device; the entries it got, up to the second."""
    while True:
        try:
            socket = await device.connect(header=False, since=since)
        except aiohttp.ClientError:
            await asyncio.sleep(0.05)
            continue
        frame = await socket.next("ready", "closing")
        if frame["type"] == "closing":
            await socket.close()
            await asyncio.sleep(frame["retry_after_ms"] / 1000)
            continue
        got: list[int] = []
        while 2 not in got:
            got += seqs([await socket.next()], room_id)
        await socket.close()
        return got


@pytest.mark.slow
async def test_all_devices_come_back_at_once_after_a_restart(tmp_path: Path) -> None:
    store, port = f"sqlite:///{tmp_path}/tidings.db", str(lasting_port())
    arguments = (store, "--port", port, "--rate-limit", "off")
    key = run_tidings("keys", "create", "--store", store).last_line
    names = [f"user{number}" for number in range(STORM_DEVICES)]
    async with AsyncExitStack() as stack:
        with running_service(*arguments) as service:
            server = await stack.enter_async_context(Client(service.url, key, deadline_s=60))
            gate = asyncio.Semaphore(20)

            async def make(name: str) -> HttpDevice:
                async with gate:
                    return await device_of(server, name, stack)

            devices = await asyncio.gather(*[make(name) for name in names])
            room_id = (await server.create_room("group", members=names)).id
            await server.post_message(room_id, "before", as_user=names[0])

            async def connect(device: HttpDevice) -> Socket:
                async with gate:
                    return await ready(device)

            sockets = await asyncio.gather(*[connect(device) for device in devices])
            cursors = [socket.ready["cursor"] for socket in sockets]
            closings = [asyncio.create_task(closing_of(socket)) for socket in sockets]
            service.process.send_signal(signal.SIGTERM)
            spread = await asyncio.gather(*closings)
            assert await asyncio.to_thread(service.process.wait, END_S) == 0
        assert len(set(spread)) > STORM_DEVICES / 3
        arriving = [
            asyncio.create_task(come_back(device, cursor, room_id))
            for device, cursor in zip(devices, cursors, strict=True)
        ]
        with running_service(*arguments):
            await server.post_message(room_id, "after", as_user=names[0])
            async with asyncio.timeout(60):
                arrived = await asyncio.gather(*arriving)
            assert all(got in ([1, 2], [2]) for got in arrived)
