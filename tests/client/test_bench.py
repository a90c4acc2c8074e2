"""What the bench's numbers rest on: that it would notice a fault, and fills stores rightly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tidings.bench import figures
from tidings.bench.figures import Figure
from tidings.bench.filling import filled
from tidings.bench.loads import Load, Sender, Tally
from tidings.bench.machines import describe, disk_write_s
from tidings.bench.profiles import summary
from tidings.bench.services import create_key
from tidings.bench.sockets import Broken, FastHttp, FastSocket
from tidings.chat.audit import audit
from tidings.storage.sqlite import SqliteStore

Answer = Callable[[web.WebSocketResponse, dict[str, Any], int], Awaitable[None]]


def entry(sequence: int, user_id: str, client_id: str) -> dict[str, Any]:
    inner = {"room_id": "r", "seq": sequence, "sender_id": user_id, "client_id": client_id}
    return {"type": "entry", "entry": inner}


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that answers the frames of its only socket."""

    async def socket(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(protocols=("tidings.v1",))
        await response.prepare(request)
        number = 0
        async for message in response:
            number += 1
            await answer(response, json.loads(message.data), number)
        return response

    async def large(request: web.Request) -> web.Response:
        return web.Response(status=int(request.query.get("status", 200)), body=b"x" * 300_000)

    application = web.Application()
    application.router.add_get("/v1/ws", socket)
    application.router.add_get("/large", large)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("size", [1, 125, 126, 65_535, 65_536, 1_000_000])
async def test_frames_of_every_size_go_and_come_whole(size: int) -> None:
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def echo(socket: web.WebSocketResponse, frame: dict[str, Any], _: int) -> None:
        await socket.ping()
        await socket.send_str(frame["text"])
        await socket.send_str("end")

    async with answering(echo) as url:
        socket = await FastSocket.open(url, "ts_x", received.put_nowait)
        socket.send(json.dumps({"text": "x" * size}).encode())
        assert await asyncio.wait_for(received.get(), 60) == b"x" * size
        assert await asyncio.wait_for(received.get(), 60) == b"end"
        socket.close()
        await asyncio.wait_for(socket.lost, 60)


async def test_replies_are_timed_and_problems_raised() -> None:
    async def never(socket: web.WebSocketResponse, frame: dict[str, Any], _: int) -> None:
        raise NotImplementedError

    async with answering(never) as url:
        connection = await FastHttp.open(url)
        assert await connection.call("GET", "/large", "ts_x") > 0
        assert len(connection.body) == 300_000
        with pytest.raises(Broken, match="503"):
            await connection.call("GET", "/large?status=503", "ts_x")
        connection.close()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("none", ""),
        ("doubled", "entry 3 after 3"),
        ("lost", "entry 4 after 2"),
        ("out of turn", "message 5 of u out of its turn"),
        ("refused", "refused"),
        ("cut off", "lost its connection"),
    ],
)
async def test_a_load_notices_what_is_not_exactly_once_and_in_order(fault: str, told: str) -> None:
    async def answer(socket: web.WebSocketResponse, frame: dict[str, Any], number: int) -> None:
        client_id = frame["client_id"]
        updates = [entry(number, "u", client_id), {"type": "ack", "ref": frame["ref"]}]
        if number == 3 and fault == "doubled":
            updates.append(updates[0])
        elif number == 3 and fault == "lost":
            del updates[0]
        elif number == 3 and fault == "out of turn":
            updates[0] = entry(number, "u", "u:5")
        elif number == 3 and fault == "refused":
            updates = [{"type": "error", "ref": frame["ref"], "problem": {"code": "forbidden"}}]
        elif number == 3 and fault == "cut off":
            await socket.close()
            return
        await socket.send_str(json.dumps({"type": "batch", "updates": updates}))

    async with answering(answer) as url:
        sender = Sender(Tally(), "r", "u", in_flight=2)
        await sender.connect(url, "ts_x")
        load = Load([[sender]], sender.tally)
        load.start()
        async with asyncio.timeout(60):
            while sender.acknowledged < 10 and not load.faults():
                await asyncio.sleep(0.01)
        if told:
            with pytest.raises(Broken, match=told):
                await load.settle()
        else:
            await load.settle()
            assert sender.sent == sender.acknowledged == sender.seq >= 10
        load.close()


async def test_a_filled_store_passes_the_audit(tmp_path: Path) -> None:
    path = tmp_path / "filled.db"
    await create_key(path)
    pairs = await filled(path, entries=2_000, users=5, crowds={"many": 30, "few": 3})
    async with SqliteStore.open(path) as store:
        report = await audit(store)
    assert report.broken == []
    assert report.ok
    assert (len(pairs), report.checked["entries"]) == (4, 2_033)


def test_a_figure_is_held_against_its_target() -> None:
    least = Figure("a", (9.0, 11.0, 30.0), "/s", 10, "at least 10/s", is_most=False)
    most = Figure("b", (9.0, 11.0, 30.0), "ms", 10, "at most 10 ms", is_most=True)
    assert (least.median, least.is_passed, most.is_passed) == (11.0, True, False)
    assert least.cells() == ("a", "11.0 /s (9.00 to 30.0 /s)", "at least 10/s", "1.10", "", "pass")


def test_runs_are_appended_to_the_document(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "benchmarks.md"
    figure = Figure("a", (9.0,), "/s", 10, "at least 10/s", is_most=False, notes="alone")
    for heading in ("first", "second"):
        section = figures.as_markdown([figure], heading=heading, machine="a machine", remarks="")
        figures.append(path, section)
    text = path.read_text()
    assert text.count("# Benchmarks\n") == 1
    assert text.index("## first") < text.index("## second")
    assert text.count("| a | 9.00 /s | at least 10/s | 0.90 |  | short |") == 2


def test_a_profile_is_summed_up_by_function() -> None:
    raw = "run (/x/app.py:1);work (/x/y/chat.py:3) 30\nrun (/x/app.py:2);idle (/x/app.py:9) 10\n"
    shown = summary(raw).splitlines()
    assert shown[0] == "40 samples"
    assert shown[2] == " 75.0%  75.0%  work (y/chat.py)"


def test_the_machine_is_described_without_its_names(tmp_path: Path) -> None:
    text = describe(tmp_path)
    assert "cores" in text
    assert "SQLite" in text
    assert str(tmp_path) not in text
    assert disk_write_s(tmp_path, 3) > 0
