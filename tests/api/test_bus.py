"""Two services on one store and one Redis: what happens at one is told at the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.api.conftest import DEADLINE_S, Opening, Site, soon
from tests.redis_server import needs_redis, running_redis
from tidings.client import Client, Device, ReaderUpdate
from tidings.config import SettingRefused
from tidings.delivery import mending


async def metric(site: Site, name: str) -> float:
    """The value of a metric without labels, or the sum over its labels."""
    raw = (await site.call("GET", "/metrics", await site.key(operator=True))).raw.decode()
    lines = [line for line in raw.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    assert lines, name
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@needs_redis
async def test_devices_and_polls_of_two_nodes_hear_of_each_other(
    open_site: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "QUIET_SWEEP_S", 1_000.0)
    async with (
        running_redis(tmp_path) as server,
        open_site(bus=server.url) as here,
        open_site(bus=server.url) as there,
    ):
        ann, bob = await here.user("ann"), await here.user("bob")
        async with Client(here.url, ann) as at_here, Client(there.url, bob) as at_there:
            room = await at_here.create_room("group", members=["bob"])
            async with Device(at_there, way="websocket") as device:
                await device.until(lambda _: device.is_connected, deadline_s=DEADLINE_S)
                poll = asyncio.create_task(at_there.sync(device.cursor, wait_s=30))
                sent = await at_here.post_message(room.id, "hello")
                async with asyncio.timeout(5):
                    (synced,) = (await poll).rooms
                    assert synced.entries == [sent]
                    await device.until(lambda state: bool(state.rooms[room.id].entries))
                assert device.rooms[room.id].log()[-1] == sent
                await device.read(room.id, sent.seq)
                updates = device.updates()
                await at_here.read(room.id, sent.seq)
                async with asyncio.timeout(5):
                    assert await anext(updates) == ReaderUpdate(room.id, "ann", sent.seq)
                assert device.connections == 1
            assert await metric(here, "tidings_bus_connected") == 1
            assert await metric(there, "tidings_bus_messages_total") > 0

            await server.stop()

            async def is_gone() -> bool:
                return await metric(here, "tidings_bus_connected") == 0

            await soon(is_gone)
            assert (await here.call("GET", "/readyz")).status == 200
            assert (await at_here.post_message(room.id, "nobody hears, all will read")).seq == 2


async def test_two_nodes_without_a_bus_find_out_by_themselves(
    open_site: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "QUIET_SWEEP_S", 1_000.0)
    async with open_site() as here, open_site() as there:
        for site in (here, there):
            await site.service.nodes.look()
        ann, bob = await here.user("ann"), await here.user("bob")
        async with Client(here.url, ann) as at_here, Client(there.url, bob) as at_there:
            room = await at_here.create_room("group", members=["bob"])
            async with Device(at_there, way="websocket") as device:
                await device.until(lambda _: device.is_connected, deadline_s=DEADLINE_S)

                async def is_online() -> bool:
                    return (await at_here.user("bob")).is_online is True

                await soon(is_online)
                sent = await at_here.post_message(room.id, "hello")
                await device.until(lambda state: bool(state.rooms[room.id].log()))
                assert device.rooms[room.id].log() == [sent]
                assert device.connections == 1


async def test_wrong_bus_is_refused(open_site: Opening) -> None:
    with pytest.raises(SettingRefused, match="bus"):
        async with open_site(bus="local:elsewhere"):
            pass
    with pytest.raises(SettingRefused, match="bus"):
        async with open_site(bus="redis://127.0.0.1:port"):
            pass
