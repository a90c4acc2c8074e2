"""A log of real people played through the public API, each of them with a device of their own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tidings.bench.doors import Options
from tidings.bench.figures import percentile
from tidings.bench.services import create_key, running
from tidings.client import Client, Device
from tidings.importing.irclogs import ClientIds, Spoken, name_id, read_log

PEOPLE_MAX = 300
"""Those who said most get a device; the others' lines are left out."""
AT_ONCE_MAX = 64
"""Messages under way; more wait, which shows as lag."""
ARRIVAL_DEADLINE_S = 60.0


def _lines(path: Path) -> tuple[list[tuple[Spoken, str]], int]:
    """What was said, with a client_id each, and the number of lines that say nothing."""
    ids = ClientIds()
    said: list[tuple[Spoken, str]] = []
    others = 0
    for numbered in read_log(path):
        if isinstance(numbered.line, Spoken):
            said.append((numbered.line, ids.of(numbered.line)))
        else:
            others += 1
    talkative = {nick for nick, _ in Counter(line.nick for line, _ in said).most_common(PEOPLE_MAX)}
    kept = [(line, client_id) for line, client_id in said if line.nick in talkative]
    return kept, others + len(said) - len(kept)


async def replayed(options: Options, path: Path, speed: str, console: Console) -> None:
    """Play the log at `speed` times its own pace, or as fast as it goes (`max`).

    Everyone is a member of one room and listens on a WebSocket; at the end everyone has to have
    every entry. Raises ValueError for a speed that is no positive number.
    """
    times = None if speed == "max" else float(speed.rstrip("x×"))
    if times is not None and times <= 0:
        raise ValueError("the speed is a positive number, or max")
    said, others = _lines(path)
    if not said:
        console.print("nobody says anything in this log")
        return
    nicks = sorted({line.nick for line, _ in said})
    store = options.folder / "replay.db"
    key = await create_key(store)
    async with (
        running(store, is_pinned=options.is_pinned) as service,
        Client(service.url, key) as server,
    ):
        users = {nick: f"irc-{name_id(nick)}" for nick in nicks}
        for nick, user_id in users.items():
            await server.create_user(nick, "manager", user_id=user_id)
        room = await server.create_room(
            "group", members=list(users.values()), title=said[0][0].channel, scope="public"
        )
        devices: dict[str, Device] = {}
        async with AsyncExitStack() as online:
            for nick, user_id in users.items():
                session = await server.create_session(user_id)
                device = server.as_session(session.token).live()
                devices[nick] = await online.enter_async_context(device)
            await _play(devices, room.id, said, times, others, console)


async def _play(
    devices: dict[str, Device],
    room_id: str,
    said: list[tuple[Spoken, str]],
    times: float | None,
    others: int,
    console: Console,
) -> None:
    taken: list[float] = []
    lags: list[float] = []
    under_way = asyncio.Semaphore(AT_ONCE_MAX)

    async def send(line: Spoken, client_id: str) -> None:
        try:
            began = time.perf_counter()
            await devices[line.nick].send(room_id, line.text, client_id=client_id)
            taken.append(time.perf_counter() - began)
        finally:
            under_way.release()

    started = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("playing", total=len(said))
        async with asyncio.TaskGroup() as group:
            for line, client_id in said:
                if times is not None:
                    due = started + (line.at - said[0][0].at) / 1000 / times
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await under_way.acquire()
                if times is not None:
                    lags.append(time.perf_counter() - due)
                group.create_task(send(line, client_id))
                progress.advance(task)
    sent_s = time.perf_counter() - started
    for device in devices.values():
        await device.until(
            lambda state: room_id in state.rooms and state.rooms[room_id].position >= len(said),
            deadline_s=ARRIVAL_DEADLINE_S,
        )
    arrived_s = time.perf_counter() - started
    console.print(
        f"{len(said):,} messages by {len(devices)} people in {sent_s:.1f} s "
        f"({len(said) / sent_s:,.0f}/s), at all {len(devices)} devices after {arrived_s:.1f} s; "
        f"{others:,} lines left out"
    )
    console.print(
        f"send → durable: p50 {percentile(taken, 0.5) * 1000:.1f} ms, "
        f"p99 {percentile(taken, 0.99) * 1000:.1f} ms"
    )
    if lags:
        console.print(f"behind the log's own pace: p99 {percentile(lags, 0.99) * 1000:.1f} ms")
