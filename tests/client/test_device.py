"""A device against a service that misbehaves: lost answers, gaps, closings, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.client.scene import USER, Scene
from tidings.client import (
    Client,
    Conflict,
    Device,
    EntryUpdate,
    Forbidden,
    OutboxFull,
    RateLimited,
    Unauthorized,
    Unavailable,
    Way,
    outbox,
)
from tidings.client.state import State

WAYS: tuple[Way, ...] = ("websocket", "events", "poll")


def soon(client: Client, way: Way = "websocket", since: str | None = None) -> Device:
    """A device that comes back at once."""
    return Device(client, way=way, since=since, random_0_1=lambda: 0.02)


def has_log(room: str, texts: Sequence[str | None]) -> Callable[[State], bool]:
    def holds(state: State) -> bool:
        known = state.rooms.get(room)
        return known is not None and [entry.text for entry in known.log()] == list(texts)

    return holds


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_whose_acknowledgement_was_lost_is_one_entry(way: Way) -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client, way) as device:
        scene.acks_to_lose = 2
        entry = await device.send("room_1", "hello")
        assert (entry.seq, entry.text) == (1, "hello")
        await device.until(has_log("room_1", ["hello"]))
    assert [entry["text"] for entry in scene.logs["room_1"]] == ["hello"]
    assert len({frame["client_id"] for frame in scene.received if frame["type"] == "send"}) == 1
    assert sum(frame["type"] == "send" for frame in scene.received) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_what_happened_before_and_during_is_told_in_order_and_once(way: Way) -> None:
    scene = Scene()
    scene.post("room_1", "before")
    async with scene.opened() as client, soon(client, way, since="1") as device:
        entries = device.entries("room_1")
        await device.until(lambda state: state.version == 1)
        for text in ("a", "b", "c"):
            await scene.say("room_1", text)
        texts = [(await asyncio.wait_for(anext(entries), 60)).text for _ in range(3)]
        assert texts == ["a", "b", "c"]
        assert device.total.unread == 4
        assert device.cursor == "4"


async def test_messages_sent_at_once_keep_their_order() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        scene.acks_to_lose = 1
        scene.problems.append((429, "rate_limited", {}))
        texts = [f"message {number}" for number in range(20)]
        await asyncio.gather(*[device.send("room_1", text) for text in texts])
    assert [entry["text"] for entry in scene.logs["room_1"]] == texts


async def test_a_jump_of_the_version_leads_to_a_catch_up() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        entries = device.entries()
        await scene.say("room_1", "one")
        scene.entries_to_lose = 2
        for text in ("two", "three", "four"):
            await scene.say("room_1", text)
        told = [(await asyncio.wait_for(anext(entries), 60)).text for _ in range(4)]
        assert told == ["one", "two", "three", "four"]
        await device.settled()
        assert device.state.version == 4
        assert device.cursor == "4"
        assert device.connections == 1


async def test_frames_that_come_again_change_nothing() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        updates = device.updates()
        frames = [scene.entry_frame(scene.post("room_1", text)) for text in ("a", "b")]
        await scene.tell(*frames, frames[0], frames[0], frames[1])
        await scene.say("room_1", "c")
        texts: list[str | None] = []
        while len(texts) < 3:
            update = await asyncio.wait_for(anext(updates), 60)
            if isinstance(update, EntryUpdate):
                texts.append(update.entry.text)
        assert texts == ["a", "b", "c"]
        assert (device.rooms["room_1"].unread, device.total.unread) == (3, 3)


async def test_a_closing_service_is_left_alone_for_as_long_as_it_asks() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        await device.until(lambda _: bool(scene.sockets))
        started = asyncio.get_running_loop().time()
        await scene.tell({"type": "closing", "retry_after_ms": 300})
        entry = await device.send("room_1", "after")
        assert asyncio.get_running_loop().time() - started >= 0.3
        assert entry.seq == 1
        assert device.connections == 2
        assert scene.auths[1]["since"] is not None


async def test_an_edited_entry_is_fetched_again() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        first = await scene.say("room_1", "helo")
        await device.until(has_log("room_1", ["helo"]))
        first["text"] = "hello"
        await scene.tell(
            scene.entry_frame(scene.append("room_1", "edited", "usr_b", data={"seq": 1}))
        )
        await device.until(has_log("room_1", ["hello", None]))
        await device.settled()


async def test_frames_of_a_later_service_are_left_out() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        await device.until(lambda _: bool(scene.sockets))
        frame = scene.entry_frame(scene.post("room_1", "hi"))
        await scene.tell({"type": "hologram", "x": 1}, frame)
        await device.until(has_log("room_1", ["hi"]))
        assert device.connections == 1


async def test_a_refused_message_raises_and_the_device_lives() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        scene.problems.append((403, "forbidden", {}))
        with pytest.raises(Forbidden):
            await device.send("room_1", "no")
        assert (await device.send("room_1", "yes")).seq == 1


async def test_the_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_MAX", 2)
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        await scene.tell({"type": "closing", "retry_after_ms": 60_000})
        waiting = [asyncio.create_task(device.send("room_1", f"{n}")) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OutboxFull):
            await device.send("room_1", "too much")
        for task in waiting:
            task.cancel()


async def test_a_revoked_session_ends_the_device_for_all_that_wait() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        await device.until(lambda _: bool(scene.sockets))
        updates = device.updates()
        for socket in list(scene.sockets):
            await socket.close(code=4401)
        with pytest.raises(Unauthorized):
            await asyncio.wait_for(anext(updates), 60)
        with pytest.raises(Unauthorized):
            await device.send("room_1", "hello")


async def test_calls_are_made_again_only_where_that_does_no_harm() -> None:
    scene = Scene()
    async with scene.opened() as client:
        scene.problems.extend([(503, "unavailable", {"Retry-After": "0"})] * 2)
        assert (await client.badge()).unread == 0
        scene.problems.extend([(503, "unavailable", {})] * 4)
        with pytest.raises(Unavailable):
            await client.badge()
        assert scene.requests.count("GET /v1/badge") == 7
        scene.problems.append((409, "conflict", {}))
        with pytest.raises(Conflict):
            await client.messages("room_1")
        scene.acks_to_lose = 1
        entry = await client.post_message("room_1", "hello")
        assert entry.sender_id == USER
        assert [entry["text"] for entry in scene.logs["room_1"]] == ["hello"]


async def test_a_wait_that_is_longer_than_the_deadline_is_not_begun() -> None:
    scene = Scene()
    async with scene.opened() as client:
        scene.problems.append((429, "rate_limited", {"Retry-After": "60"}))
        with pytest.raises(RateLimited) as raised:
            await client.badge()
        assert raised.value.retry_after_s == 60
        assert raised.value.status == 429


async def test_waiting_for_a_message_can_be_given_up_without_losing_it() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        sending: Awaitable[object] = asyncio.ensure_future(device.send("room_1", "hello"))
        await asyncio.sleep(0)
        assert isinstance(sending, asyncio.Future)
        sending.cancel()
        await device.until(has_log("room_1", ["hello"]))
        assert device.outbox_size == 0


async def test_a_socket_that_is_not_taken_ends_or_is_tried_again_later() -> None:
    scene = Scene()
    async with scene.opened() as client, soon(client) as device:
        await device.until(lambda _: bool(scene.sockets))
        scene.refusals.append((4429, {"status": 429, "code": "rate_limited"}))
        scene.refusals.append((4403, {"status": 403, "code": "forbidden"}))
        updates = device.updates()
        for socket in list(scene.sockets):
            await socket.close(code=1011)
        with pytest.raises(Forbidden):
            await asyncio.wait_for(anext(updates), 60)
        assert len(scene.auths) == 3
