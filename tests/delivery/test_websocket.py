"""The WebSocket as the contract has it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.delivery.conftest import Node
from tidings.delivery import websocket
from tidings.delivery.admission import Admission
from tidings.people.limits import RateLimits, policy_of


def seqs(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["entry"]["seq"] for frame in frames if frame["type"] == "entry"]


async def test_message_is_acknowledged_and_reaches_both(node: Node) -> None:
    ann, bob = await node.device("ann"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    at_ann, at_bob = await ann.ready(), await bob.ready()
    assert at_ann.raw.protocol == "tidings.v1"
    assert at_ann.ready["user_id"] == "ann"
    assert at_ann.ready["version"] == 1

    await at_ann.send(
        {"type": "send", "ref": 7, "room_id": "r1", "client_id": "c1", "text": "hello"}
    )
    told = await at_bob.next("entry")
    assert told["entry"]["text"] == "hello"
    assert (told["unread"], told["mentions"]) == (1, 0)
    assert told["total"] == {"unread": 1, "mentions": 0, "version": 2}
    assert told["version"] == 2
    mine = [await at_ann.next(), await at_ann.next()]
    by_type = {frame["type"]: frame for frame in mine}
    assert by_type["ack"] == {"type": "ack", "ref": 7, "entry": told["entry"]}
    assert by_type["entry"]["unread"] == 0


async def test_read_mark_is_told_to_the_other_device(node: Node) -> None:
    ann, again = await node.device("ann"), await node.device("ann")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "bob", "one", "two")
    first, second = await ann.ready(), await again.ready()
    await first.send({"type": "read", "ref": "x", "room_id": "r1", "seq": 1})
    total = {"unread": 1, "mentions": 0, "version": 3}
    told = await second.next("read")
    assert told.pop("cursor")
    assert told == {
        "type": "read",
        "room_id": "r1",
        "read_seq": 1,
        "unread": 1,
        "mentions": 0,
        "total": total,
        "version": 3,
    }
    own = {frame["type"]: frame for frame in [await first.next(), await first.next()]}
    assert own["ack"] == {
        "type": "ack",
        "ref": "x",
        "read": {"read_seq": 1, "unread": 1, "mentions": 0, "total": total},
    }


async def test_many_entries_of_one_commit_share_the_version_and_keep_order(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    at_bob = await bob.ready()
    await node.ledger.post("r1", "ann", *(f"text {n}" for n in range(600)))
    frames = [await at_bob.next("entry") for _ in range(600)]
    assert seqs(frames) == list(range(1, 601))
    assert {frame["version"] for frame in frames} == {2}
    # who stores the cursor of any but the last frame gets the whole commit again
    reply = await bob.sync(since=frames[598]["cursor"])
    assert len(reply.rooms[0].entries) == 100
    assert reply.more
    assert (await bob.sync(since=frames[599]["cursor"])).rooms == []


async def test_rows_and_totals_come_in_order_with_entries(node: Node) -> None:
    bob = await node.device("bob")
    at_bob = await bob.ready()
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "one")
    await node.ledger.leave("r1", "bob")
    frames = [await at_bob.next() for _ in range(5)]
    assert [frame["type"] for frame in frames] == ["room", "badge", "entry", "room", "badge"]
    assert [frame["version"] for frame in frames] == [1, 1, 2, 3, 3]
    assert frames[0]["room"]["room_id"] == "r1"
    assert frames[3]["room"]["left"] is True
    assert frames[4]["unread"] == 0


async def test_auth_frame_with_since_catches_up_before_live_updates(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    socket = await bob.ready()
    cursor = socket.ready["cursor"]
    await socket.close()
    texts = [f"text {n}" for n in range(1_300)]
    await node.ledger.post("r1", "ann", *texts)
    socket = await bob.ready(since=cursor)
    posting = asyncio.create_task(node.ledger.post("r1", "ann", "live"))
    assert socket.ready["cursor"] == cursor
    windows: list[dict[str, Any]] = []
    while not windows or windows[-1]["more"]:
        windows.append(await socket.next("sync"))
    got = [entry["seq"] for window in windows for entry in window["rooms"][0]["entries"]]
    await posting
    rest = await socket.rest()
    assert got[:1300] == list(range(1, 1301))
    assert set(got + seqs(rest)) == set(range(1, 1302))
    await socket.close()


async def test_sync_frame_is_answered_with_its_ref(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    await node.ledger.post("r1", "ann", "one", "two", "three")
    socket = await bob.ready()
    await socket.send({"type": "sync", "ref": "s", "have": {"r1": "2"}})
    reply = await socket.next("sync")
    assert reply["ref"] == "s"
    assert [entry["seq"] for entry in reply["rooms"][0]["entries"]] == [1, 3]
    await node.ledger.post("r1", "ann", "four")
    assert (await socket.next("entry"))["entry"]["seq"] == 4


async def test_seen_acknowledges_the_queue(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    socket = await bob.ready()
    await node.ledger.post("r1", "ann", "one")
    told = await socket.next("entry")
    assert len((await bob.sync()).rooms) == 1
    await socket.send({"type": "seen", "cursor": told["cursor"]})
    await socket.rest()
    assert (await bob.sync()).rooms == []
    await node.syncs.queues.flush()
    assert await node.people.credentials.acknowledged(bob.caller) == told["cursor"]


async def test_typing_and_presence_reach_companions(node: Node) -> None:
    ann, bob = await node.device("ann"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    at_bob = await bob.ready()
    assert node.hub.presence.is_here("acme", "bob")
    assert not node.hub.presence.is_here("acme", "ann")
    at_ann = await ann.ready()
    await at_ann.send({"type": "typing", "room_id": "r1"})
    assert await at_bob.next() == {"type": "typing", "room_id": "r1", "user_id": "ann"}
    await at_bob.rest()
    assert at_bob.presence == [{"type": "presence", "user_id": "ann", "is_online": True}]


BAD_FRAMES = [
    "",
    "{",
    "[]",
    '"text"',
    '{"type":"nothing"}',
    '{"type":"send","ref":9}',
    '{"type":"send","ref":9,"room_id":"a#b","client_id":"c","text":"x"}',
    '{"type":"send","ref":9,"room_id":"r1","client_id":"c","text":"x","extra":1}',
    '{"type":"send","ref":9,"room_id":"elsewhere","client_id":"c","text":"x"}',
    '{"type":"read","ref":9,"room_id":"r1","seq":-1}',
    '{"type":"sync","ref":9,"since":"made up"}',
    '{"type":"sync","ref":9,"have":{"r1":"5-3"}}',
    '{"type":"sync","ref":9,"limit":0}',
    '{"type":"seen","cursor":"made up"}',
    '{"type":"ping","ref":' + "9" * 400 + "}",
    '{"type":"ping","ref":' + "[" * 20_000 + "}",
    '{"type":"ping","ref":"\\ud800"}',
    '{"type":"auth","token":"again"}',
]


@pytest.mark.parametrize("text", BAD_FRAMES)
async def test_bad_frame_gets_a_problem_and_the_connection_stays(node: Node, text: str) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    socket = await bob.ready()
    await socket.raw.send_str(text)
    frame = await socket.next("error")
    assert 400 <= frame["problem"]["status"] < 500
    if '"ref":9,' in text or text.endswith('"ref":9}'):
        assert frame["ref"] == 9
    await socket.raw.send_bytes(b"{}")
    assert (await socket.next("error"))["problem"]["code"] == "validation_failed"
    await socket.send({"type": "ping"})
    assert await socket.next() == {"type": "pong"}


async def test_bad_utf8_and_large_frames_end_the_connection(node: Node) -> None:
    bob = await node.device("bob")
    socket = await bob.ready()
    transport = socket.raw._response.connection.transport  # type: ignore[union-attr]
    assert transport is not None
    transport.write(b"\x81\x82\x00\x00\x00\x00\xff\xff")
    assert await socket.closed() == 1007
    socket = await bob.ready()
    await socket.raw.send_str('{"type":"' + "x" * websocket.INBOUND_BYTES_MAX + '"}')
    assert await socket.closed() == 1009
    assert not list(node.hub.connections)


async def test_without_a_valid_credential_the_socket_is_closed(node: Node) -> None:
    bob = await node.device("bob")
    socket = await bob.connect(header=False, token="ts_wrong")
    assert (await socket.next("error"))["problem"]["code"] == "unauthorized"
    assert await socket.closed() == 4401


async def test_who_is_late_with_a_credential_may_come_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "AUTH_DEADLINE_S", 0.05)
    async with node.client.ws_connect(node.url("/v1/ws")) as silent:
        assert (await silent.receive_json())["type"] == "closing"
        await silent.receive()
        assert silent.close_code == 1013


async def test_malformed_auth_may_be_sent_again(node: Node) -> None:
    bob = await node.device("bob")
    socket = await bob.connect(header=False, since="made up")
    assert (await socket.next("error"))["problem"]["code"] == "validation_failed"
    await socket.send({"type": "auth", "token": bob.token})
    await socket.next("ready")


async def test_signing_out_closes_the_connections_of_the_session(node: Node) -> None:
    bob, other = await node.device("bob"), await node.device("bob")
    socket, stays = await bob.ready(), await other.ready()
    await node.people.credentials.revoke_session(other.caller, bob.caller.session_id or "")
    assert await socket.closed() == 4401
    assert await stays.rest() == []


async def test_slow_reader_is_closed_and_catches_up(node: Node) -> None:
    bob = await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    socket = await bob.ready()
    (connection,) = node.hub.connections
    while connection.close_code is None:
        await node.ledger.post("r1", "ann", *["x" * 8_000] * 30)
    assert connection.close_code == 4408
    head = node.ledger.rooms["r1"].head
    got = []
    while True:
        try:
            got.append((await socket.next("entry"))["entry"]["seq"])
        except EOFError:
            break
    assert socket.raw.close_code == 4408
    assert got == list(range(1, len(got) + 1))
    assert len(got) < head
    again = await bob.connect(header=False, since=socket.ready["cursor"])
    await again.next("ready")
    fetched: list[int] = []
    more = True
    while more:
        window = await again.next("sync")
        fetched += [entry["seq"] for entry in window["rooms"][0]["entries"]]
        more = window["more"]
    assert fetched == list(range(1, head + 1))


async def test_too_many_connections_of_one_user_are_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidings.delivery.hub.USER_CONNECTIONS_MAX", 2)
    bob = await node.device("bob")
    first, _second = await bob.ready(), await bob.ready()
    third = await bob.connect()
    assert (await third.next("error"))["problem"]["status"] == 429
    assert await third.closed() == 4429
    await first.close()
    while len(list(node.hub.connections)) > 1:
        await asyncio.sleep(0.01)
    await bob.ready()


async def test_reconnect_storm_is_spread(node: Node) -> None:
    bob = await node.device("bob")
    node.syncs.admission = Admission(arrivals_max=1, waiting_max=1)
    async with node.syncs.admission.pass_through():
        waiting = await bob.connect()
        async with asyncio.timeout(60):
            while not list(node.hub.connections):
                await asyncio.sleep(0.01)
        refused = await bob.connect(header=False)
        assert 0 <= (await refused.next("closing"))["retry_after_ms"] <= 60_000
        assert await refused.closed() == 1013
    await waiting.next("ready")


async def test_frames_past_the_rate_limit_are_refused(node: Node) -> None:
    bob = await node.device("bob")
    node.sockets.limits = RateLimits(policy_of(1))
    socket = await bob.ready()
    for number in range(10):
        await socket.send({"type": "ping", "ref": number})
    answers = [await socket.next("pong", "error") for _ in range(10)]
    refused = [answer for answer in answers if answer["type"] == "error"]
    assert refused
    assert all(answer["problem"]["status"] == 429 for answer in refused)
    assert [answer["ref"] for answer in answers] == list(range(10))


async def test_device_that_floods_is_read_no_faster_than_answered(node: Node) -> None:
    ann, bob = await node.device("ann"), await node.device("bob")
    await node.ledger.open_room("r1", "ann", "bob")
    socket, at_bob = await ann.ready(), await bob.ready()
    count = websocket.IN_FLIGHT_MAX * 3
    for number in range(count):
        frame = {"type": "send", "ref": number, "room_id": "r1", "client_id": f"c{number}"}
        await socket.send(frame | {"text": "x"})
    got = [await socket.next("ack", "entry") for _ in range(2 * count)]
    acks = [frame for frame in got if frame["type"] == "ack"]
    assert [ack["ref"] for ack in acks] == list(range(count))
    assert [ack["entry"]["seq"] for ack in acks] == list(range(1, count + 1))
    assert seqs([await at_bob.next() for _ in range(count)]) == list(range(1, count + 1))


async def test_draining_says_when_to_come_back(node: Node) -> None:
    devices = [await node.device(f"user{n}") for n in range(20)]
    sockets = [await device.ready() for device in devices]
    poll = asyncio.create_task(devices[0].sync(wait=60))
    await asyncio.sleep(0)
    closings = [asyncio.create_task(closing_of(socket)) for socket in sockets]
    await node.hub.drain()
    said = [await task for task in closings]
    assert len({frame["retry_after_ms"] for frame in said}) > 10
    assert all(0 <= frame["retry_after_ms"] <= 60_000 for frame in said)
    assert {socket.raw.close_code for socket in sockets} == {1001}
    assert (await poll).rooms == []
    refused = await node.client.get(node.url("/v1/ws"), headers=devices[0].headers)
    assert refused.status == 503


async def closing_of(socket: Any) -> Any:
    frame = await socket.next("closing")
    assert await socket.closed() == 1001
    return frame
