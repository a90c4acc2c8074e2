"""The log of a room over HTTP: posting, reading, editing, deleting, reacting."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.api.decoding import refuse
from tidings.api.endpoints import Call, Callers, Created, Header, Nothing, Section
from tidings.api.parameters import Limit, RoomPath, given
from tidings.ids import Id, is_id

EMOJI_CHARACTERS_MAX = 32
IDEMPOTENCY_KEY = "Idempotency-Key"

SECTION = Section(
    "The log",
    "Every room has one append-only log: 1, 2, 3, … without holes, and no entry ever moves.",
)


class EntryPath(Struct, frozen=True):
    """An entry of a room."""

    room_id: Id
    seq: wire.Seq


class ReactionPath(Struct, frozen=True):
    """A reaction to an entry."""

    room_id: Id
    seq: wire.Seq
    emoji: Annotated[str, Meta(min_length=1, max_length=EMOJI_CHARACTERS_MAX)]


class EntryQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which entries."""

    before: (
        Annotated[int, Meta(ge=1, le=wire.SEQ_MAX, description="Entries before this sequence.")]
        | UnsetType
    ) = UNSET
    after: (
        Annotated[int, Meta(ge=0, le=wire.SEQ_MAX, description="Entries after this sequence.")]
        | UnsetType
    ) = UNSET
    have: (
        Annotated[
            wire.HaveText,
            Meta(description="What the client has, such as `1-97,105`: the others are sent."),
        ]
        | UnsetType
    ) = UNSET
    limit: Limit = wire.LIST_LIMIT_DEFAULT


@SECTION.endpoint(
    "POST",
    "/v1/rooms/{room_id}/messages",
    scope="messages",
    headers=(Header(IDEMPOTENCY_KEY, "May stand in place of `client_id`."),),
)
async def post_message(call: Call[RoomPath, Nothing, wire.PostMessage]) -> Created[wire.Entry]:
    """Post a message, exactly once.

    The same `client_id` again is answered with the first entry; with another body it is refused.
    An API key names the sender with `as_user`, which a session may not.
    """
    body = _identified(call.body, call.request.headers.get(IDEMPOTENCY_KEY))
    return Created(*await call.features.chat.messages.post(call.caller, call.path.room_id, body))


@SECTION.endpoint("GET", "/v1/rooms/{room_id}/messages", scope="messages")
async def list_messages(call: Call[RoomPath, EntryQuery, Nothing]) -> wire.EntryList:
    """List entries by sequence, ascending.

    Without parameters the newest; with `before` those that end there; with `after` those that
    begin there; with `have` those that the client lacks.
    """
    query = call.query
    return await call.features.chat.messages.list(
        call.caller,
        call.path.room_id,
        before=None if query.before is UNSET else query.before,
        after=None if query.after is UNSET else query.after,
        have=given(query.have),
        limit=query.limit,
    )


@SECTION.endpoint("PATCH", "/v1/rooms/{room_id}/messages/{seq}", scope="messages")
async def edit_message(call: Call[EntryPath, Nothing, wire.EditMessage]) -> wire.Entry:
    """Edit one's own message.

    An `edited` entry that names it tells everybody."""
    return await call.features.chat.messages.edit(
        call.caller, call.path.room_id, call.path.seq, call.body
    )


@SECTION.endpoint("DELETE", "/v1/rooms/{room_id}/messages/{seq}", scope="messages")
async def delete_message(call: Call[EntryPath, Nothing, Nothing]) -> wire.Entry:
    """Delete a message.

    Its place stays, a `deleted` entry names it, and who had it unread has one unread less."""
    return await call.features.chat.messages.delete(call.caller, call.path.room_id, call.path.seq)


@SECTION.endpoint(
    "PUT", "/v1/rooms/{room_id}/messages/{seq}/reactions/{emoji}", callers=Callers.SESSION
)
async def give_reaction(call: Call[ReactionPath, Nothing, Nothing]) -> wire.Entry:
    """React to a message."""
    return await _react(call, is_given=True)


@SECTION.endpoint(
    "DELETE", "/v1/rooms/{room_id}/messages/{seq}/reactions/{emoji}", callers=Callers.SESSION
)
async def take_reaction(call: Call[ReactionPath, Nothing, Nothing]) -> wire.Entry:
    """Take a reaction back."""
    return await _react(call, is_given=False)


@SECTION.endpoint("PUT", "/v1/rooms/{room_id}/read", callers=Callers.SESSION)
async def mark_read(call: Call[RoomPath, Nothing, wire.MarkRead]) -> wire.ReadReply:
    """Mark everything up to a sequence as read.

    A mark never goes back, and never beyond the head."""
    return await call.features.chat.messages.read(call.caller, call.path.room_id, call.body.seq)


@SECTION.endpoint("POST", "/v1/rooms/{room_id}/typing", callers=Callers.SESSION, status=202)
async def tell_typing(call: Call[RoomPath, Nothing, Nothing]) -> None:
    """Tell the others that one is writing.

    Nothing is stored."""
    await call.features.chat.rooms.typing(call.caller, call.path.room_id)


async def _react(call: Call[ReactionPath, Nothing, Nothing], *, is_given: bool) -> wire.Entry:
    path = call.path
    return await call.features.chat.messages.react(
        call.caller, path.room_id, path.seq, path.emoji, is_given=is_given
    )


def _identified(body: wire.PostMessage, header: str | None) -> wire.PostMessage:
    """The body with its `client_id`, from the header where it is not in the body.

    The header is taken bare or in quotes, as the IETF draft writes it. Raises ValidationFailed.
    """
    if header is None:
        if body.client_id is None:
            raise refuse("client_id", f"It is missing, and so is {IDEMPOTENCY_KEY}.")
        return body
    key = header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header
    if not is_id(key):
        raise refuse(IDEMPOTENCY_KEY, "It has 1 to 64 characters of A-Z a-z 0-9 . _ : -")
    if body.client_id not in (None, key):
        raise refuse(IDEMPOTENCY_KEY, "It disagrees with client_id.")
    return msgspec.structs.replace(body, client_id=key)
