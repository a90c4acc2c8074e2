"""Devices on a real service, over a network that breaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.client.proxy import CuttingProxy
from tests.client.service import served, session
from tidings import wire
from tidings.client import Client, Device, NotFound, ReaderUpdate, Unauthorized, Way

WAYS: tuple[Way, ...] = ("websocket", "events", "poll")


async def fresh(client: Client) -> tuple[wire.Badge, dict[str, wire.InboxItem]]:
    """What somebody who just arrived would be told."""
    return await client.badge(), {item.room_id: item async for item in client.inbox_items()}


async def assert_same(device: Device, client: Client, rooms: list[str]) -> None:
    """Old state and updates are a fresh fetch."""
    badge, items = await fresh(client)
    await device.until(lambda state: state.version >= badge.version, deadline_s=30)
    await device.settled(deadline_s=30)
    total = device.total
    assert (total.unread, total.mentions, total.version) == (
        badge.unread,
        badge.mentions,
        badge.version,
    )
    for room_id in rooms:
        room, item = device.rooms[room_id], items[room_id]
        assert (room.head, room.unread, room.mentions) == (item.head, item.unread, item.mentions)
        assert room.read_seq >= item.read_seq
        log = await client.messages(room_id, after=0, limit=500)
        assert room.log() == log.items


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_is_sent_arrives_is_counted_and_read(tmp_path: Path, way: Way) -> None:
    async with served(tmp_path) as server:
        ada, bo = await session(server, "ada"), await session(server, "bo")
        room = await server.create_room("direct", members=["ada", "bo"])
        async with ada.live(way=way) as sender, bo.live(way=way) as receiver:
            entries = receiver.entries(room.id)
            entry = await sender.send(room.id, "hello", client_id="c1")
            assert (entry.seq, entry.sender_id, entry.client_id) == (1, "ada", "c1")
            assert await asyncio.wait_for(anext(entries), 60) == entry
            await receiver.until(lambda state: state.total.unread == 1)
            updates = sender.updates()
            reply = await receiver.read(room.id, 1)
            assert (reply.unread, reply.total.unread) == (0, 0)
            await receiver.until(lambda state: state.total.unread == 0)
            assert receiver.rooms[room.id].read_seq == 1
            assert (await ada.readers(room.id)).items == [wire.Reader("bo", 1)]
            if way != "poll":  # hints are for those who are connected
                async with asyncio.timeout(10):
                    while (update := await anext(updates)) != ReaderUpdate(room.id, "bo", 1):
                        assert not isinstance(update, ReaderUpdate)
            with pytest.raises(NotFound):
                await sender.send("room_of_nobody", "hello?")


async def test_what_came_while_a_device_was_away_waits_for_it(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        ada, bo = await session(server, "ada"), await session(server, "bo")
        room = await server.create_room("direct", members=["ada", "bo"])
        async with bo.live() as device:
            await ada.post_message(room.id, "one")
            await device.until(lambda state: state.total.unread == 1)
            cursor = device.cursor
        await ada.post_message(room.id, "two")
        for since in (None, cursor):
            device = bo.live(since=since)
            entries = device.entries()
            async with device:
                entry = await asyncio.wait_for(anext(entries), 60)
                assert (entry.text, device.total.unread) == ("two", 2)


async def test_a_device_whose_session_is_revoked_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        ada = await session(server, "ada")
        async with ada.live() as device:
            await device.until(lambda _: device.is_connected)
            [own] = (await ada.sessions()).items
            await ada.revoke_session(own.session_id)
            with pytest.raises(Unauthorized):
                await device.until(lambda _: False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_devices_on_a_breaking_network_end_with_the_same_state(
    tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    async with served(tmp_path) as server, AsyncExitStack() as stack:
        port = server.url.port
        assert port is not None
        proxy = await stack.enter_async_context(CuttingProxy(port).opened())
        names = ["ada", "bo", "cy"]
        people = {name: await session(server, name) for name in names}
        rooms = [(await server.create_room("group", members=names)).id for _ in range(3)]
        devices: dict[str, list[Device]] = {name: [] for name in names}
        for name in names:
            for way in WAYS:
                token = (await server.create_session(name)).token
                client = await stack.enter_async_context(Client(proxy.url, token))
                device = Device(client, way=way, random_0_1=lambda: dice.random() / 20)
                devices[name].append(await stack.enter_async_context(device))

        async def act(name: str, device: Device) -> None:
            for number in range(25):
                room = dice.choice(rooms)
                match dice.randrange(10):
                    case 0 if device.rooms.get(room):
                        await device.read(room, device.rooms[room].head)
                    case 1:
                        log = await people[name].messages(room, limit=50)
                        own = [
                            entry.seq
                            for entry in log.items
                            if entry.sender_id == name
                            and entry.type == "text"
                            and entry.deleted_at is None
                        ]
                        if own:
                            await people[name].edit_message(room, dice.choice(own), f"e{number}")
                    case 2:
                        await people[name].mute(room, muted=dice.random() < 0.5)
                    case _:
                        await device.send(room, f"{name} {number}")
                if dice.random() < 0.1:
                    proxy.cut()
                await asyncio.sleep(dice.random() / 50)

        async with asyncio.timeout(60):
            await asyncio.gather(*[act(name, device) for name in names for device in devices[name]])
        assert proxy.cuts > 5
        for name in names:
            for device in devices[name]:
                await assert_same(device, people[name], rooms)
