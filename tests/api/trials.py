"""Endpoints that only the tests have: an echo, one that breaks, and ones that wait at a gate."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from tidings.api.endpoints import Call, Callers, Nothing, Section

SECRET = "sesame-7f3a"  # never to be seen in a log or in a reply to somebody else
TRIALS = Section("Trials", "Only in tests.")


class Gate:
    """Where calls wait, and what became of them."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()
        self.ended: list[str] = []

    async def pass_through(self, name: str) -> None:
        """Wait until the gate is opened."""
        self.arrived.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.ended.append(f"{name} canceled")
            raise
        self.ended.append(f"{name} done")


GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)


class Parcel(Struct, frozen=True, forbid_unknown_fields=True):
    """Something to echo."""

    text: str
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    more: Any = None


class ParcelQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Something to echo."""

    count: Annotated[int, Meta(ge=1, le=9)] = 1
    is_fine: bool = False


@TRIALS.endpoint("POST", "/v1/trials", scope="rooms")
async def echo(call: Call[Nothing, ParcelQuery, Parcel]) -> Parcel:
    """Say it again."""
    return call.body


@TRIALS.endpoint("GET", "/v1/trials/broken", callers=Callers.OPEN)
async def break_down(call: Call[Nothing, Nothing, Nothing]) -> Parcel:
    """Break."""
    raise RuntimeError(SECRET)


@TRIALS.endpoint("GET", "/v1/trials/stream", callers=Callers.OPEN, is_stream=True)
async def break_off(call: Call[Nothing, Nothing, Nothing]) -> web.StreamResponse:
    """Begin to answer, then break."""
    response = web.StreamResponse()
    await response.prepare(call.request)
    await response.write(b"so far so good")
    raise RuntimeError(SECRET)


@TRIALS.endpoint("GET", "/v1/trials/wait", callers=Callers.OPEN)
async def look(call: Call[Nothing, Nothing, Nothing]) -> None:
    """Wait at the gate to read."""
    await call.request.app[GATE].pass_through("look")


@TRIALS.endpoint("POST", "/v1/trials/wait", callers=Callers.OPEN)
async def change(call: Call[Nothing, Nothing, Nothing]) -> None:
    """Wait at the gate to change something."""
    await call.request.app[GATE].pass_through("change")
