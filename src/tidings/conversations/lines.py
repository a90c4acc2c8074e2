"""What one line of a list says in Redis: read leniently, with a reason for all that is odd."""

from __future__ import annotations

import math
from collections.abc import Mapping as Fields
from typing import Any, Literal

import msgspec

from tidings.conversations.mapping import Mapping, Metadata
from tidings.wire import TEXT_CHARACTERS_MAX

UNREAD_MAX = 10**9
"""An unread number above this is a mistake."""
_YES = frozenset({"1", "true", "yes", "on"})


class Line(msgspec.Struct, array_like=True):
    """The metadata of one line, as far as it could be read."""

    unread: int = 0
    is_muted: bool = False
    text: str | None = None
    sender_id: str | None = None
    message_id: str | None = None
    odd: list[str] = []
    """Why something was left out or changed."""


def fields_of(kind: Literal["hash", "json"], raw: Any) -> tuple[dict[str, Any], str | None]:
    """The stored fields by name, and what is wrong with them.

    `raw` is what HGETALL or GET returned, or the error that it raised; None and {} are no fields.
    """
    if isinstance(raw, Exception):
        return {}, "it is of another type"
    if not raw:
        return {}, None
    if kind == "hash":
        return {name.decode(errors="replace"): value for name, value in raw.items()}, None
    try:
        decoded = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {}, "it is no JSON"
    if not isinstance(decoded, dict):
        return {}, "it is no JSON object"
    return decoded, None


def read_line(metadata: Metadata, raw: Any) -> Line:
    """The metadata of one line; `raw` is what `fields_of` takes."""
    fields, wrong = fields_of(metadata.type, raw)
    line = line_of(metadata, fields)
    if wrong is not None:
        line.odd.insert(0, wrong)
    return line


def line_of(metadata: Metadata, fields: Fields[str, Any]) -> Line:
    """The metadata of one line, from its stored fields by name."""
    line = Line()
    if metadata.unread is not None:
        line.unread = _count(fields, metadata.unread, line.odd)
    if metadata.muted is not None:
        line.is_muted = (_text(fields, metadata.muted, line.odd) or "").lower() in _YES
    if metadata.text is not None:
        text = _text(fields, metadata.text, line.odd) or None
        if text is not None and len(text) > TEXT_CHARACTERS_MAX:
            line.odd.append(f"{metadata.text} is too long and was cut")
            text = text[:TEXT_CHARACTERS_MAX]
        line.text = text
    if metadata.sender is not None:
        line.sender_id = _text(fields, metadata.sender, line.odd) or None
    if metadata.message_id is not None:
        line.message_id = _text(fields, metadata.message_id, line.odd) or None
    return line


def time_of(mapping: Mapping, score: float, now_ms: int, odd: list[str]) -> int:
    """The time that a score stands for, between 1970 and now; a reason where it is not."""
    at_ms = mapping.at_ms(score)
    if 0 <= at_ms <= now_ms:
        return int(at_ms)
    if math.isnan(at_ms):
        odd.append("a score that is no time, taken as 1970")
    elif at_ms < 0:
        odd.append("a score before 1970, taken as 1970")
    else:
        odd.append("a score in the future, taken as now")
        return now_ms
    return 0


def _count(fields: Fields[str, Any], name: str, odd: list[str]) -> int:
    value = fields.get(name)
    if value is None or value in (b"", ""):
        return 0
    try:
        count = int(value)
    except (TypeError, ValueError):
        odd.append(f"{name} is no number: taken as 0")
        return 0
    if not 0 <= count <= UNREAD_MAX:
        odd.append(f"{name} is out of range: taken as 0")
        return 0
    return count


def _text(fields: Fields[str, Any], name: str, odd: list[str]) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            odd.append(f"{name} is not UTF-8: what can't be read was replaced")
            return value.decode(errors="replace")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    odd.append(f"{name} is no text")
    return None
