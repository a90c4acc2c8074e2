"""A push service of our own: it checks who sends, and reads what was sent as the device would."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import http_ece  # type: ignore[import-untyped]
import jwt
import msgspec
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

DEADLINE_S = 60.0


class Push(msgspec.Struct, frozen=True):
    """One push that was taken, or not."""

    device: str
    topic: str
    urgency: str
    life_s: int
    body: Any
    public_key: str


class Browser:
    """A device's keys, and where it is reached."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self.endpoint = endpoint
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.auth = os.urandom(16)

    @property
    def subscription(self) -> dict[str, Any]:
        """As `PushSubscription.toJSON()` gives it."""
        point = self.key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        keys = {"p256dh": text(point), "auth": text(self.auth)}
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": keys}


class PushService:
    """Takes pushes for its browsers; `answers` are the next statuses, and 201 after them."""

    def __init__(self) -> None:
        self.url = ""
        self.pushes: list[Push] = []
        self.refused: list[int] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self._browsers: dict[str, Browser] = {}
        self._changed = asyncio.Condition()

    def browser(self, name: str) -> Browser:
        """A new device."""
        browser = self._browsers[name] = Browser(name, f"{self.url}/to/{name}")
        return browser

    async def until(self, is_true: Callable[[], object]) -> None:
        """Wait until that is so of what came. Raises TimeoutError."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(is_true)

    def to(self, name: str) -> list[Any]:
        """The bodies that a device got."""
        return [push.body for push in self.pushes if push.device == name]

    async def take(self, request: web.Request) -> web.Response:
        """One push."""
        browser = self._browsers[request.match_info["name"]]
        public_key = self._check_sender(request)
        assert request.headers["Content-Encoding"] == "aes128gcm"
        raw = await request.read()
        assert len(raw) <= 4096
        body = http_ece.decrypt(
            raw, private_key=browser.key, auth_secret=browser.auth, version="aes128gcm"
        )
        topic = request.headers["Topic"]
        assert 0 < len(topic) <= 32
        push = Push(
            browser.name,
            topic,
            request.headers["Urgency"],
            int(request.headers["TTL"]),
            msgspec.json.decode(body),
            public_key,
        )
        status, headers = self.answers.pop(0) if self.answers else (201, {})
        async with self._changed:
            if status == 201:
                self.pushes.append(push)
            else:
                self.refused.append(status)
            self._changed.notify_all()
        return web.Response(status=status, headers=headers)

    def _check_sender(self, request: web.Request) -> str:
        scheme, _, rest = request.headers["Authorization"].partition(" ")
        assert scheme == "vapid"
        given = dict(each.strip().split("=", 1) for each in rest.split(","))
        point = base64.urlsafe_b64decode(given["k"] + "=" * (-len(given["k"]) % 4))
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        claims = jwt.decode(given["t"], key, ["ES256"], audience=self.url)
        assert 0 < claims["exp"] - time.time() <= 24 * 3600
        assert claims["sub"].startswith("mailto:")
        return given["k"]


def text(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@asynccontextmanager
async def push_service() -> AsyncIterator[PushService]:
    """A push service on a free port of this machine."""
    service = PushService()
    application = web.Application()
    application.router.add_post("/to/{name}", service.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield service
    finally:
        await runner.cleanup()
