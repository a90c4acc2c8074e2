"""A whole service on a real store behind a real port, with a few endpoints only for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from yarl import URL

from tests.api.trials import GATE, TRIALS, Gate
from tests.stores import StoreKind, store_address
from tidings.api.sections import SECTIONS
from tidings.app import Service, listening, open_app
from tidings.config import Settings
from tidings.people.callers import ALL_SCOPES, Scope

DEADLINE_S = 60.0


class Answer(msgspec.Struct, frozen=True):
    """A reply, read to its end."""

    status: int
    headers: Any
    raw: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.raw)

    @property
    def fields(self) -> list[str]:
        """The fields that a problem names."""
        return [error["field"] for error in self.json.get("errors", [])]


class Site:
    """A running service as its clients see it."""

    def __init__(
        self, service: Service, url: str, http: aiohttp.ClientSession, workspace: str
    ) -> None:
        self.service = service
        self.url = url
        self.http = http
        self.workspace = workspace
        self.gate = service.web[GATE]

    async def call(
        self,
        method: str,
        path: str,
        token: str | None = None,
        json: Any = None,
        *,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; `path` is sent as it is, escapes and all."""
        given = dict(headers or {})
        if token is not None:
            given["Authorization"] = f"Bearer {token}"
        if json is not None:
            data = msgspec.json.encode(json)
            given.setdefault("Content-Type", "application/json")
        url = URL(self.url + path, encoded=True)
        body = None if data is None else BytesIO(data)
        async with self.http.request(method, url, data=body, headers=given) as response:
            return Answer(response.status, response.headers, await response.read())

    async def key(self, *scopes: Scope, operator: bool = False) -> str:
        """A new API key; with every scope where none is named."""
        _, key = await self.service.people.credentials.create_key(
            self.workspace, "test", scopes or ALL_SCOPES, operator
        )
        return key

    async def user(self, user_id: str, role: str = "manager") -> str:
        """The token of a new session of that user, who is made if there is none."""
        key = await self.key()
        body = {"id": user_id, "role": role, "name": user_id.title()}
        made = await self.call("POST", "/v1/users", key, body)
        assert made.status in (200, 201), made
        opened = await self.call("POST", "/v1/sessions", key, {"user_id": user_id})
        assert opened.status == 201, opened
        token: str = opened.json["token"]
        return token


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


Opening = Callable[..., AbstractAsyncContextManager[Site]]


@pytest.fixture
async def store_url(
    store_kind: StoreKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """This test's own store, as `--store` takes it."""
    async with store_address(store_kind, tmp_path, monkeypatch) as url:
        yield url


@pytest.fixture
def open_site(store_url: str) -> Opening:
    """Opens services on this test's own store, with any settings."""

    @asynccontextmanager
    async def open_one(**settings: Any) -> AsyncIterator[Site]:
        chosen = Settings(store=store_url, **{"rate_limit": "off", **settings})
        async with (
            open_app(chosen, sections=(*SECTIONS, TRIALS)) as service,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as http,
        ):
            service.web[GATE] = Gate()
            workspace = await service.people.workspaces.default("acme")
            async with listening(service, "127.0.0.1", 0) as url:
                yield Site(service, url, http, workspace.id)

    return open_one


@pytest.fixture
async def site(open_site: Opening) -> AsyncIterator[Site]:
    """A service without rate limits."""
    async with open_site() as site:
        yield site


async def soon(is_true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is true. Raises TimeoutError."""
    async with asyncio.timeout(DEADLINE_S):
        while not await is_true():
            await asyncio.sleep(0.01)
