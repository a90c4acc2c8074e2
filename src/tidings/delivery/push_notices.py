"""What pushes say: values to JSON and a topic, which is the room."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from tidings import wire
from tidings.chat.rows import BadgeRow
from tidings.chat.updates import RoomUpdate
from tidings.delivery.push_senders import BODY_BYTES_MAX, Notice

MESSAGE_LIFE_S = 24 * 3_600
"""How long a push service keeps what was missed."""
READ_LIFE_S = 3_600

_encode = msgspec.json.Encoder().encode


def message_in(room: RoomUpdate, user_id: str) -> wire.Entry | None:
    """The newest message in an update that is one to hear of."""
    if room.is_muted or room.is_left or not room.unread:
        return None
    for posted in reversed(room.entries):
        entry = posted.entry
        if entry.type in wire.COUNTABLE_TYPES and entry.sender_id != user_id:
            return entry
    return None


def message_notice(message: wire.Entry, name: str | None, badge: BadgeRow) -> Notice:
    """A message came, of somebody with that name: the device is woken for it."""
    preview = message.text
    if preview is None and message.blobs:
        preview = message.blobs[0].name
    body = {
        "type": "entry",
        "room_id": message.room_id,
        "seq": message.seq,
        "sender_id": message.sender_id,
        "sender_name": name,
        "preview": None if preview is None else preview[: wire.PREVIEW_CHARACTERS_MAX],
        "total": _total(badge),
    }
    return _notice(message.room_id, body, is_urgent=True, life_s=MESSAGE_LIFE_S)


def read_notice(room_id: str, badge: BadgeRow) -> Notice:
    """A room was read elsewhere: what a device shows of it goes, and nobody is woken."""
    body = {"type": "read", "room_id": room_id, "total": _total(badge)}
    return _notice(room_id, body, is_urgent=False, life_s=READ_LIFE_S)


def badge_notice(badge: BadgeRow, *, is_urgent: bool) -> Notice:
    """The device may have missed something: how much is unread."""
    body = {"type": "badge", "total": _total(badge)}
    return _notice("", body, is_urgent=is_urgent, life_s=MESSAGE_LIFE_S)


def _notice(about: str, body: dict[str, Any], *, is_urgent: bool, life_s: int) -> Notice:
    topic = blake2b(about.encode(), digest_size=16).hexdigest()  # 32 characters, as it may have
    encoded = _encode(body)
    assert len(encoded) <= BODY_BYTES_MAX, "a name and a preview are short"
    return Notice(topic, encoded, is_urgent, life_s)


def _total(badge: BadgeRow) -> dict[str, int]:
    return {"unread": badge.unread, "mentions": badge.mentions, "version": badge.version}
