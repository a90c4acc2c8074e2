"""A conversation as it was in Redis becomes a direct room: its log, and the rows of its two people.

Pure. Every count of a room is that of its messages, so an unread number needs messages behind it:
those that the mapping names, or as many entries that stand for them (`[unread]` of the mapping).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from tidings.clock import parse_rfc3339
from tidings.conversations.lines import Line, time_of
from tidings.conversations.mapping import Mapping, Messages
from tidings.ids import pair_room_id
from tidings.importing.records import fitting_id
from tidings.importing.redis_oddities import Oddities
from tidings.importing.redis_source import Pair, Side, message_fields
from tidings.wire import TEXT_CHARACTERS_MAX

UNREAD_CARRIED_MAX = 100
"""Entries that stand for unread messages, for each of the two."""


class Said(msgspec.Struct, frozen=True):
    """One entry of the log."""

    sender_id: str
    client_id: str
    text: str
    at_ms: int


class Seat(msgspec.Struct, frozen=True):
    """One of the two, with their own line; hidden where their list does not have it."""

    user_id: str
    name: str
    """What Redis calls them."""
    score: float
    active_at: int
    read_seq: int
    unread: int
    unread_in_source: int
    is_muted: bool
    is_hidden: bool


class Folded(msgspec.Struct, frozen=True):
    """A conversation ready to be stored."""

    room_id: str
    log: list[Said]
    seats: tuple[Seat, Seat]


def fold(mapping: Mapping, pair: Pair, now_ms: int, oddities: Oddities) -> Folded:
    """The room that the conversation becomes."""
    found, other = pair.sides
    names = (found.owner, pair.opponent)
    ids = (fitting_id(names[0], "redis"), fitting_id(names[1], "redis"))
    lines = (found.line, Line() if other is None else other.line)
    scores = (found.score, -math.inf if other is None else other.score)
    times = [_time(mapping, side, now_ms, oddities) for side in pair.sides if side is not None]
    newest = max(times)
    if mapping.messages is None:
        log = _log(mapping, pair, names, ids, newest)
    else:
        log = _messages(mapping.messages, mapping, pair, names, now_ms, oddities)
    seats = []
    for side in (0, 1):
        is_hidden = not pair.is_listed or pair.sides[side] is None
        read_seq, carried = _read(log, ids[side], lines[side].unread)
        if carried < lines[side].unread:
            key = f"{names[side]} with {names[1 - side]}"
            detail = f"{lines[side].unread} unread, carried as {carried}"
            oddities.add("unread", key, "more than has entries behind it", detail=detail)
        seats.append(
            Seat(
                ids[side],
                names[side],
                scores[side],
                newest if is_hidden else times[side],
                read_seq,
                carried,
                lines[side].unread,
                lines[side].is_muted,
                is_hidden,
            )
        )
    return Folded(pair_room_id(*ids), log, (seats[0], seats[1]))


def _time(mapping: Mapping, side: Side, now_ms: int, oddities: Oddities) -> int:
    reasons: list[str] = []
    at_ms = time_of(mapping, side.score, now_ms, reasons)
    for reason in reasons:
        oddities.add("score", mapping.list_key(side.owner), reason, detail=str(side.score))
    return at_ms


def _log(
    mapping: Mapping, pair: Pair, names: tuple[str, str], ids: tuple[str, str], newest: int
) -> list[Said]:
    """What is known of the messages: the last one, and that some before it are unread."""
    first, second = pair.sides
    lines = (first.line, Line() if second is None else second.line)
    last = _last(pair)
    sender = None if last is None else _last_sender(names, lines, last)
    log: list[Said] = []
    if mapping.unread.carry == "exact":
        # who wrote last wrote after all that they have not read themselves
        for writer in (0, 1) if sender != 0 else (1, 0):
            unread = min(lines[1 - writer].unread, UNREAD_CARRIED_MAX)
            for number in range(1, unread + (sender != writer)):
                log.append(Said(ids[writer], f"earlier-{number}", mapping.unread.text, newest))
    if last is not None and sender is not None and mapping.unread.carry != "none":
        text = lines[last].text or ""
        client_id = fitting_id(lines[last].message_id or f"{newest} {text}", "redis")
        log.append(Said(ids[sender], client_id, text, newest))
    return log


def _last(pair: Pair) -> int | None:
    """Which of the two has the last message, if anybody has one."""
    first, second = pair.sides
    if second is None or second.line.text is None:
        return None if first.line.text is None else 0
    return 0 if first.line.text is not None and first.score >= second.score else 1


def _last_sender(names: tuple[str, str], lines: tuple[Line, Line], last: int) -> int:
    """Who wrote the last message: who is named, else whoever the other one has not read."""
    named = lines[last].sender_id
    if named in names:
        return names.index(named)
    return 0 if lines[1].unread and not lines[0].unread else 1


def _messages(
    messages: Messages,
    mapping: Mapping,
    pair: Pair,
    names: tuple[str, str],
    now_ms: int,
    oddities: Oddities,
) -> list[Said]:
    log: list[Said] = []
    ids: set[str] = set()
    where = f"{names[0]} with {names[1]}"
    at_ms = 0
    for raw in pair.messages:
        fields, wrong = message_fields(mapping, raw)
        if wrong is not None:
            oddities.add("message", where, wrong, is_left_out=True)
            continue
        sender = _as_text(fields.get(messages.sender))
        message_id = _as_text(fields.get(messages.id))
        text = _as_text(fields.get(messages.text))
        if sender not in names:
            oddities.add(
                "message", f"{where}: {message_id}", "it is of a stranger", is_left_out=True
            )
            continue
        if not message_id or not text:
            oddities.add("message", f"{where}: {message_id}", "no id or no text", is_left_out=True)
            continue
        client_id = fitting_id(message_id, "redis")
        if client_id in ids:
            oddities.add("message", f"{where}: {message_id}", "it is there twice", is_left_out=True)
            continue
        ids.add(client_id)
        if len(text) > TEXT_CHARACTERS_MAX:
            oddities.add("message", f"{where}: {message_id}", "its text is too long and was cut")
        at_ms = _message_time(fields.get(messages.at), messages.unit, at_ms, now_ms)
        log.append(Said(fitting_id(sender, "redis"), client_id, text[:TEXT_CHARACTERS_MAX], at_ms))
    return log


def _message_time(value: Any, unit: str, before: int, now_ms: int) -> int:
    """When a message was sent: a number, or RFC 3339; that of the one before where it is neither"""
    text = _as_text(value)
    if text is None:
        return before
    try:
        at_ms = float(text) * (1000 if unit == "s" else 1)
    except ValueError:
        try:
            at_ms = parse_rfc3339(text)
        except (ValueError, OverflowError):
            return before
    return int(at_ms) if 0 <= at_ms <= now_ms else before


def _read(log: Sequence[Said], user_id: str, unread: int) -> tuple[int, int]:
    """Where the read mark stands so that `unread` entries of the other one follow it, and how many
    do, where there are fewer.
    """
    carried = 0
    if unread == 0:
        return len(log), 0
    for index in range(len(log) - 1, -1, -1):
        if log[index].sender_id != user_id:
            carried += 1
            if carried == unread:
                return index, carried
    return 0, carried


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return None
