"""Push over HTTP: where devices are reached that are not connected."""

from __future__ import annotations

from tidings import wire
from tidings.api.endpoints import Call, Callers, Nothing, Section
from tidings.api.people import SessionPath

SECTION = Section(
    "Push",
    "Devices that are not connected hear of messages by push, and of what was read elsewhere.",
)


@SECTION.endpoint("GET", "/v1/push", callers=Callers.SESSION)
async def get_push_key(call: Call[Nothing, Nothing, Nothing]) -> wire.PushKey:
    """Get the public key that browsers subscribe with.

    It is the service's VAPID key (RFC 8292), and stays the same."""
    return wire.PushKey(call.features.push_key())


@SECTION.endpoint("PUT", "/v1/sessions/{session_id}/push", callers=Callers.SESSION)
async def subscribe(call: Call[SessionPath, Nothing, wire.PushSubscription]) -> None:
    """Let one of the caller's devices be pushed to.

    The body is what a browser's `PushSubscription.toJSON()` gives. It ends with the session, and
    when the push service says that it is gone.
    """
    await call.features.pushes.subscribe(call.caller, call.path.session_id, call.body)


@SECTION.endpoint("DELETE", "/v1/sessions/{session_id}/push", callers=Callers.SESSION)
async def unsubscribe(call: Call[SessionPath, Nothing, Nothing]) -> None:
    """Push to a device no more."""
    await call.features.pushes.unsubscribe(call.caller, call.path.session_id)
