"""Server-Sent Events: the same updates with cursors as ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.delivery.conftest import DEADLINE_S, Device, Node
from tests.stores import EVERY_STORE
from tidings.delivery import events

STORES = EVERY_STORE


class Stream:
    """The device's end of an event stream; presence set aside."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0

    async def next(self) -> tuple[str | None, dict[str, Any]]:
        """The next event: its id and its data. Raises EOFError at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = (await self.response.content.readline()).decode()
                if not line:
                    raise EOFError
                if line.startswith(":"):
                    self.comments += 1
                elif line.strip():
                    name, _, value = line.rstrip("\n").partition(": ")
                    fields[name] = value
                elif fields.get("event") == "presence":
                    fields.clear()
                elif fields:
                    data = msgspec.json.decode(fields["data"])
                    assert data["type"] == fields["event"]
                    if "cursor" in data:
                        assert fields["id"] == data["cursor"]
                    return fields.get("id"), data


@asynccontextmanager
async def stream(node: Node, device: Device, since: str | None = None) -> AsyncIterator[Stream]:
    headers = device.headers | ({"Last-Event-ID": since} if since else {})
    async with node.client.get(node.url("/v1/events"), headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Stream(response)


async def test_stream_goes_on_after_the_last_event(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    async with stream(node, bob) as first:
        _, ready = await first.next()
        assert (ready["type"], ready["version"]) == ("ready", 1)
        await node.ledger.post("r1", "ann", "one", "two")
        assert (await first.next())[1]["entry"]["text"] == "one"
        last_id, two = await first.next()
        assert (two["entry"]["text"], two["unread"]) == ("two", 2)
    await node.ledger.post("r1", "ann", "three")
    async with stream(node, bob, last_id) as second:
        await second.next()
        _, missed = await second.next()
        assert missed["type"] == "sync"
        assert [entry["text"] for entry in missed["rooms"][0]["entries"]] == ["three"]
        await node.ledger.post("r1", "ann", "four")
        assert (await second.next())[1]["entry"]["text"] == "four"
    assert await node.people.credentials.acknowledged(bob.caller) == last_id


async def test_whoever_saw_part_of_a_commit_gets_the_whole_again(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    async with stream(node, bob) as first:
        await first.next()
        await node.ledger.post("r1", "ann", "one", "two", "three")
        id_of_one, _ = await first.next()
    async with stream(node, bob, id_of_one) as second:
        await second.next()
        _, missed = await second.next()
        assert [entry["seq"] for entry in missed["rooms"][0]["entries"]] == [1, 2, 3]


async def test_comment_keeps_the_stream_alive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.0)
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    async with stream(node, bob) as opened:
        await opened.next()
        (connection,) = node.hub.connections
        assert connection.beat(asyncio.get_running_loop().time())
        await node.ledger.post("r1", "ann", "one")
        await opened.next()
        assert opened.comments == 1


async def test_stream_ends_with_its_session_and_with_the_node(node: Node) -> None:
    bob, ann = await node.device("bob"), await node.device("ann")
    async with stream(node, bob) as at_bob, stream(node, ann) as at_ann:
        await at_bob.next()
        await at_ann.next()
        await node.people.credentials.revoke_session(bob.caller, bob.caller.session_id or "")
        with pytest.raises(EOFError):
            await at_bob.next()
        draining = asyncio.create_task(node.hub.drain())
        assert (await at_ann.next())[1]["type"] == "closing"
        with pytest.raises(EOFError):
            await at_ann.next()
        await draining


async def test_wrong_last_event_id_is_refused(node: Node) -> None:
    bob = await node.device("bob")
    headers = bob.headers | {"Last-Event-ID": "made up"}
    async with node.client.get(node.url("/v1/events"), headers=headers) as response:
        assert response.status == 400
