"""The ways of one session to a real service over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from tests.delivery.conftest import Socket
from tests.delivery.test_events import Stream
from tidings import errors, wire
from tidings.client import Client, Conflict


class HttpDevice:
    """A session of a user over HTTP, by each of the four ways."""

    def __init__(self, client: Client, user_id: str) -> None:
        self.user_id = user_id
        self.client = client

    async def connect(self, *, header: bool = True, **auth: Any) -> Socket:
        """A WebSocket, authenticated by header, or by an auth frame with the given fields."""
        headers = self.client.headers() if header else {}
        socket = Socket(
            await self.client.connections().ws_connect(
                f"{self.client.url}/v1/ws",
                headers=headers,
                protocols=("tidings.v1",),
                autoping=False,
            )
        )
        if not header:
            try:
                await socket.send({"type": "auth", "token": self.client.token, **auth})
            except BaseException:
                await socket.close()
                raise
        return socket

    @asynccontextmanager
    async def stream(self, since: str | None) -> AsyncIterator[Stream]:
        """An event stream. Raises aiohttp.ClientResponseError where it is refused."""
        headers = self.client.headers() | ({"Last-Event-ID": since} if since else {})
        url = f"{self.client.url}/v1/events"
        async with self.client.connections().get(url, headers=headers) as response:
            response.raise_for_status()
            yield Stream(response)

    async def sync(self, **request: Any) -> wire.SyncReply:
        """A long poll by GET, or a catch-up by POST. Raises tidings.errors.Conflict."""
        if "wait" in request:
            query = {name: str(value) for name, value in request.items() if value is not None}
            headers, url = self.client.headers(), f"{self.client.url}/v1/sync"
            async with self.client.connections().get(url, headers=headers, params=query) as reply:
                if reply.status == 409:
                    raise errors.Conflict
                reply.raise_for_status()
                return msgspec.json.decode(await reply.read(), type=wire.SyncReply)
        try:
            return await self.client.sync(**request)
        except Conflict as error:
            raise errors.Conflict from error
