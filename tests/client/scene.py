"""A service of a few lines for one user, which can be told to misbehave on the wire."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tidings.client import Client

USER = "usr_me"


class Scene:
    """Speaks the contract for `USER`; the switches make it fail as networks and services do."""

    def __init__(self) -> None:
        self.logs: dict[str, list[dict[str, Any]]] = {}
        self.version = 0
        self.changes: list[tuple[int, str]] = []
        self.unread: dict[str, int] = {}
        self.sockets: list[web.WebSocketResponse] = []
        self.streams: list[asyncio.Queue[dict[str, Any] | None]] = []
        self.received: list[dict[str, Any]] = []
        self.auths: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.acks_to_lose = 0
        self.entries_to_lose = 0
        self.problems: deque[tuple[int, str, dict[str, str]]] = deque()
        self.refusals: deque[tuple[int, dict[str, Any]]] = deque()
        self.moved = asyncio.Condition()
        self.url = ""

    # The model

    def total(self) -> dict[str, int]:
        return {"unread": sum(self.unread.values()), "mentions": 0, "version": self.version}

    def post(
        self, room: str, text: str, *, sender: str = "usr_b", client_id: str = ""
    ) -> dict[str, Any]:
        log = self.logs.setdefault(room, [])
        for entry in log:
            if client_id and entry["client_id"] == client_id:
                return entry
        return self.append(room, "text", sender, text=text, client_id=client_id or None)

    def append(self, room: str, kind: str, sender: str, **fields: Any) -> dict[str, Any]:
        log = self.logs.setdefault(room, [])
        entry = {"room_id": room, "seq": len(log) + 1, "id": f"ent_{room}_{len(log)}"}
        entry |= {"type": kind, "sender_id": sender, "created_at": "2026-11-23T10:00:00.000Z"}
        log.append(entry | {"client_id": None} | fields)
        self.version += 1
        self.changes.append((self.version, room))
        self.unread[room] = self.unread.get(room, 0) + (sender != USER and kind == "text")
        return log[-1]

    def entry_frame(self, entry: dict[str, Any]) -> dict[str, Any]:
        room = entry["room_id"]
        return {
            "type": "entry",
            "entry": dict(entry),
            "unread": self.unread[room],
            "mentions": 0,
            "total": self.total(),
            "version": self.version,
            "cursor": str(self.version),
        }

    async def tell(self, *frames: dict[str, Any]) -> None:
        """Send frames to every connection, as one batch if there are several."""
        frame = frames[0] if len(frames) == 1 else {"type": "batch", "updates": list(frames)}
        for socket in self.sockets:
            await socket.send_str(json.dumps(frame))
        for stream in self.streams:
            for single in frames:
                stream.put_nowait(single)
        async with self.moved:
            self.moved.notify_all()

    async def say(self, room: str, text: str) -> dict[str, Any]:
        """Somebody else posts, and it is told (unless it is to be lost)."""
        entry = self.post(room, text)
        if self.entries_to_lose:
            self.entries_to_lose -= 1
        else:
            await self.tell(self.entry_frame(entry))
        return entry

    # The wire

    def sync_reply(self, since: str | None, have: dict[str, str]) -> dict[str, Any]:
        start = int(since or 0)
        changed = dict.fromkeys(room for version, room in self.changes if version > start)
        rooms = []
        for room in changed | dict.fromkeys(have):
            log = self.logs.get(room, [])
            told = sum(1 for version, other in self.changes if other == room and version <= start)
            known = _parse(have[room]) if room in have else set(range(1, told + 1))
            rooms.append(
                {
                    "room_id": room,
                    "head": len(log),
                    "read_seq": 0,
                    "unread": self.unread.get(room, 0),
                    "mentions": 0,
                    "entries": [entry for entry in log if entry["seq"] not in known],
                }
            )
        return {
            "cursor": str(self.version),
            "version": self.version,
            "total": self.total(),
            "rooms": rooms,
            "more": False,
        }

    async def _refused(self, request: web.Request) -> web.Response | None:
        self.requests.append(f"{request.method} {request.path}")
        if not self.problems:
            return None
        status, code, headers = self.problems.popleft()
        return web.json_response({"status": status, "code": code}, status=status, headers=headers)

    async def _sync(self, request: web.Request) -> web.Response:
        if refused := await self._refused(request):
            return refused
        body = await request.json()
        if body.get("wait") and int(body.get("since") or 0) >= self.version:
            async with self.moved:
                await self.moved.wait()
        return web.json_response(self.sync_reply(body.get("since"), body.get("have") or {}))

    async def _badge(self, request: web.Request) -> web.Response:
        return await self._refused(request) or web.json_response(self.total())

    async def _inbox(self, request: web.Request) -> web.Response:
        items: list[dict[str, Any]] = [
            {
                "room_id": room,
                "kind": "group",
                "title": None,
                "with": [],
                "unread": self.unread[room],
                "mentions": 0,
                "read_seq": 0,
                "head": len(log),
                "updated_at": "2026-11-23T10:00:00.000Z",
                "preview": None,
            }
            for room, log in self.logs.items()
        ]
        return web.json_response({"items": items, "next": None})

    async def _messages(self, request: web.Request) -> web.Response:
        if refused := await self._refused(request):
            return refused
        room = request.match_info["room"]
        if request.method == "POST":
            body = await request.json()
            before = self.version
            entry = self.post(room, body["text"], sender=USER, client_id=body["client_id"])
            self.received.append({"type": "send", **body})
            if self.version > before:
                await self.tell(self.entry_frame(entry))
            if self.acks_to_lose:
                self.acks_to_lose -= 1
                assert request.transport is not None
                request.transport.abort()
            return web.json_response(entry, status=201)
        log = self.logs[room]
        items: list[dict[str, Any]]
        if "have" in request.query:
            known = _parse(request.query["have"])
            items = [entry for entry in log if entry["seq"] not in known]
        else:
            after = int(request.query.get("after", 0))
            items = log[after : after + int(request.query.get("limit", 25))]
        return web.json_response({"items": items, "head": len(log)})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("tidings.v1",))
        await socket.prepare(request)
        auth = json.loads(await socket.receive_str())
        self.auths.append(auth)
        if self.refusals:
            code, problem = self.refusals.popleft()
            await socket.send_str(json.dumps({"type": "error", "problem": problem}))
            await socket.close(code=code)
            return socket
        if auth.get("since") is not None:
            reply = self.sync_reply(auth["since"], auth.get("have", {}))
            await socket.send_str(json.dumps({"type": "sync"} | reply))
        ready: dict[str, Any] = {"type": "ready", "session_id": "ses_1", "user_id": USER}
        ready |= {"cursor": str(self.version), "version": self.version}
        self.sockets.append(socket)
        await socket.send_str(json.dumps(ready))
        try:
            async for message in socket:
                await self._take(socket, json.loads(message.data))
        finally:
            if socket in self.sockets:
                self.sockets.remove(socket)
        return socket

    async def _take(self, socket: web.WebSocketResponse, frame: dict[str, Any]) -> None:
        self.received.append(frame)
        if frame["type"] != "send":
            return
        if self.problems:
            status, code, _ = self.problems.popleft()
            problem = {"status": status, "code": code, "title": code}
            error = {"type": "error", "ref": frame["ref"], "problem": problem}
            await socket.send_str(json.dumps(error))
            return
        before = self.version
        entry = self.post(
            frame["room_id"], frame["text"], sender=USER, client_id=frame["client_id"]
        )
        if self.acks_to_lose:
            self.acks_to_lose -= 1
            self.sockets.remove(socket)
            await socket.close(code=1011)
            return
        ack = {"type": "ack", "ref": frame["ref"], "entry": entry}
        if self.version > before:
            await self.tell(self.entry_frame(entry), ack)
        else:
            await socket.send_str(json.dumps(ack))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        since = request.headers.get("Last-Event-ID")
        self.auths.append({"since": since})
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        queue.put_nowait({"type": "sync"} | self.sync_reply(since, {}))
        self.streams.append(queue)
        await response.write(b": hello\n\n")
        while (frame := await queue.get()) is not None:
            data = json.dumps(frame).encode()
            await response.write(b"event: %b\ndata: %b\n\n" % (frame["type"].encode(), data))
        self.streams.remove(queue)
        return response

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Client]:
        """Serve on a free port; yields a client of the user."""
        application = web.Application()
        application.router.add_post("/v1/sync", self._sync)
        application.router.add_get("/v1/badge", self._badge)
        application.router.add_get("/v1/inbox", self._inbox)
        application.router.add_get("/v1/ws", self._socket)
        application.router.add_get("/v1/events", self._events)
        application.router.add_route("*", "/v1/rooms/{room}/messages", self._messages)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with Client(self.url, "ts_me") as client:
                yield client
        finally:
            for stream in self.streams:
                stream.put_nowait(None)
            await runner.cleanup()


def _parse(have: str) -> set[int]:
    known: set[int] = set()
    for part in filter(None, have.split(",")):
        low, _, high = part.partition("-")
        known.update(range(int(low), int(high or low) + 1))
    return known
