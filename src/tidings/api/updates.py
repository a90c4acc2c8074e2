"""Updates for a device over HTTP: socket, stream, poll and catch-up."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.api.endpoints import Call, Callers, Header, Nothing, Section
from tidings.api.parameters import CURSOR_CHARACTERS_MAX, given

POLL_WAIT_S = 20

SECTION = Section(
    "Updates",
    "The same updates, in the same order per room, over each of four ways. What was not "
    "acknowledged is delivered again, whatever happened in between.",
)


class SyncQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the device is, and how long it waits."""

    since: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=CURSOR_CHARACTERS_MAX,
                description="The `cursor` of the last reply, which is acknowledged by that.",
            ),
        ]
        | UnsetType
    ) = UNSET
    wait: Annotated[
        float, Meta(ge=0, le=wire.WAIT_S_MAX, description="Seconds to wait for something.")
    ] = POLL_WAIT_S
    limit: Annotated[
        int, Meta(ge=1, le=wire.LIST_LIMIT_MAX, description="How many entries at most.")
    ] = 100


@SECTION.endpoint(
    "GET", "/v1/ws", callers=Callers.OPTIONAL, scope="rooms", status=101, is_stream=True
)
async def open_socket(call: Call[Nothing, Nothing, Nothing]) -> web.StreamResponse:
    """Open a WebSocket.

    The subprotocol is `tidings.v1`. The session's token comes in the Authorization header or in
    the first frame, `{"type": "auth", "token": …}`.
    """
    return await call.features.sockets.handle(call.request, call.credential)


@SECTION.endpoint(
    "GET",
    "/v1/events",
    callers=Callers.SESSION,
    media_type="text/event-stream",
    headers=(Header("Last-Event-ID", "The cursor to go on from."),),
    is_stream=True,
)
async def open_events(call: Call[Nothing, Nothing, Nothing]) -> web.StreamResponse:
    """Open a stream of Server-Sent Events.

    The id of each event is a cursor, and its data the same object as a frame of the socket."""
    return await call.features.events.handle(call.request, call.caller)


@SECTION.endpoint("GET", "/v1/sync", callers=Callers.SESSION, is_stream=True)
async def poll(call: Call[Nothing, SyncQuery, Nothing]) -> wire.SyncReply:
    """Wait for updates.

    Answers at once if something is there, the moment it arrives, or empty after `wait` seconds.
    A newer poll of the same session ends an older one with 409.
    """
    query = call.query
    request = wire.SyncRequest(since=given(query.since), wait=query.wait, limit=query.limit)
    return await call.features.syncs.sync(call.caller, request)


@SECTION.endpoint("POST", "/v1/sync", callers=Callers.SESSION, is_stream=True)
async def sync(call: Call[Nothing, Nothing, wire.SyncRequest]) -> wire.SyncReply:
    """Catch up.

    Everything since the cursor, less what the device has."""
    return await call.features.syncs.sync(call.caller, call.body)
