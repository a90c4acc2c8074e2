"""How far one load generator goes: the chat load against a server that does nothing else.

The server keeps no log and checks nobody; it numbers messages and hands them to both sides, in
one batch per side for all that one read brought.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from typing import ClassVar, cast

import uvloop

from tidings.bench.loads import Load, Sender, Tally
from tidings.bench.measures import IN_FLIGHT, PAIRS
from tidings.bench.services import LOAD_CORE, SERVICE_CORE

SECONDS = 5.0
_TOKEN = re.compile(rb"Bearer (\S+)\.(\S+)\r\n")
_PARTS = re.compile(rb'"client_id":"([^"]+)","ref":(\d+)')
_ENTRY = (
    b'{"room_id":"%b","seq":%d,"id":"ent_0000","type":"text","sender_id":"%b","created_at":'
    b'"2026-11-23T10:12:01.000Z","client_id":"%b","text":"the parcel left our house this morning '
    b'and should reach you on friday","blobs":[],"reply_to":null,"mentions":[],"reactions":{},'
    b'"edited_at":null,"deleted_at":null,"data":{}}'
)
_UPDATE = (
    b'{"type":"entry","entry":%b,"unread":1,"mentions":0,"total":{"unread":1,"mentions":0,'
    b'"version":1},"version":1,"cursor":"abcdefghijklmnopqrstuvwxyz"}'
)


def _frame(updates: list[bytes]) -> bytes:
    text = b'{"type":"batch","updates":[%b]}' % b",".join(updates)
    if len(text) < 65_536:
        return b"\x81\x7e" + len(text).to_bytes(2) + text
    return b"\x81\x7f" + len(text).to_bytes(8) + text


class Echo(asyncio.Protocol):
    """One connection; the token says its room and user."""

    rooms: ClassVar[dict[bytes, list[Echo]]] = {}
    heads: ClassVar[dict[bytes, int]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nobody is known yet."""
        self.transport = cast(asyncio.Transport, transport)
        self.room = self.user = b""

    def data_received(self, data: bytes) -> None:
        """Frames are not cut: what matters in them is found where it stands."""
        if not self.room:
            found = _TOKEN.search(data)
            assert found is not None
            self.room, self.user = found.groups()
            self.rooms.setdefault(self.room, []).append(self)
            self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            return
        entries, acks = [], []
        for client_id, ref in _PARTS.findall(data):
            head = self.heads[self.room] = self.heads.get(self.room, 0) + 1
            entry = _ENTRY % (self.room, head, self.user, client_id)
            entries.append(_UPDATE % entry)
            acks.append(b'{"type":"ack","ref":%b,"entry":%b}' % (ref, entry))
        for side in self.rooms[self.room]:
            side.transport.write(_frame(entries + acks if side is self else entries))


async def _serve() -> None:
    os.sched_setaffinity(0, {SERVICE_CORE})
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _measure() -> None:
    os.sched_setaffinity(0, {LOAD_CORE})
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "serve", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(await process.stdout.readline())}"
    tally = Tally()
    try:
        rooms = []
        for number in range(PAIRS):
            users = [f"u{number}a", f"u{number}b"]
            room = [Sender(tally, f"r{number}", user, in_flight=IN_FLIGHT) for user in users]
            for sender, user in zip(room, users, strict=True):
                await sender.connect(url, f"r{number}.{user}")
            rooms.append(room)
        load = Load(rooms, tally)
        load.start()
        await asyncio.sleep(1)
        before, used_s, started = tally.delivered, time.process_time(), time.perf_counter()
        await asyncio.sleep(SECONDS)
        elapsed_s = time.perf_counter() - started
        per_s = (tally.delivered - before) / elapsed_s
        share = (time.process_time() - used_s) / elapsed_s
        await load.settle()
        load.close()
        print(f"{per_s:,.0f} messages/s, load generator {share:.0%} of its core")
    finally:
        process.terminate()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(_serve() if "serve" in sys.argv else _measure())
