"""Reading IRC logs: strict about what a line is, and never lost on one that is something else.

A line is `<channel> <date> [<time>] <nick> text`, the time in brackets, such as

    stripe 2019-09-04 [22:44:46] <karllekko> hello
    stripe 2019-09-04 [22:44:50] * karllekko waves

The time may lack its seconds, or be left out. Logs name no zone: times are taken as UTC.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from tidings import wire

LINE_BYTES_MAX = 64 * 1024
"""A longer line is odd; IRC itself carries 512 bytes, bridges somewhat more."""
NAME_ID_CHARACTERS_MAX = 48
"""Longer ids of nicks and channels are cut and end in a hash, so that a prefix still fits."""

Membership: TypeAlias = Literal["join", "leave", "rename", "notice"]

_HEAD = re.compile(
    r"(?P<channel>\S+)[ \t]+(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[ \t]+\[(?P<time>\d\d:\d\d(?::\d\d)?)\])?(?:[ \t]+(?P<rest>.*))?"
)
_SAID = re.compile(r"<[@+%&~!]?(?P<nick>[^\s<>@+%&~!][^\s<>]*)>[ \t]*(?P<text>.*)")
_DID = re.compile(r"\*[ \t]*(?P<nick>[^\s*<>:]+)[ \t]+(?P<text>.*)")
_NOTICE = re.compile(r"(?:\*\*\*|-!-|-->|<--|->|<-|={2,3}|→|←)[ \t]*(?P<text>.*)")
_MEMBERSHIP = re.compile(
    r"(?P<nick>\S+)(?:[ \t]+[\[(]\S*[\])])?[ \t]+"
    r"(?:(?P<join>(?:has )?joined\b)|(?P<leave>has left\b|has quit\b|left #|quit\b)"
    r"|(?P<rename>is now known as\b))"
)
_MEMBERSHIP_AS_ACTION = re.compile(
    r"(?:[\[(]\S*[\])][ \t]+)?"
    r"(?:(?P<join>has joined #)|(?P<leave>has left #|has quit\b)|(?P<rename>is now known as ))"
)
_MEMBERSHIP_LABELLED = re.compile(
    r"\*[ \t]*(?:(?P<join>Joins)|(?P<leave>Parts|Quits)|(?P<rename>Nick)):[ \t]"
)
_STYLES = re.compile(r"\x03(?:\d{1,2}(?:,\d{1,2})?)?|\x04[0-9A-Fa-f]{6}|[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class Spoken(msgspec.Struct, frozen=True):
    """Somebody said something, or did something (`* nick waves`, kept in that form)."""

    channel: str
    at: int
    """Milliseconds since 1970, of the second (or minute, or day) that the log gives."""
    nick: str
    text: str


class Moved(msgspec.Struct, frozen=True):
    """Somebody came, left or changed their nick, or the network said something: not a message."""

    kind: Membership


class Odd(msgspec.Struct, frozen=True):
    """A line that is none of these, and why."""

    reason: str


Line: TypeAlias = Spoken | Moved | Odd


class Numbered(msgspec.Struct, frozen=True):
    """A line with its place in its file."""

    path: Path
    number: int
    raw: str
    line: Line
    is_latin: bool
    """It was not UTF-8, so each of its bytes was read as the Latin-1 character."""
    size_bytes: int


def _moment(date: str, time: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(f"{date}T{time or '00:00'}").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * 1000


def _membership(match: re.Match[str]) -> Moved:
    if match["join"]:
        return Moved("join")
    return Moved("leave" if match["leave"] else "rename")


def parse_line(raw: str) -> Line:
    """What one line (without its end) is. Colours and other control characters are taken out."""
    text = _STYLES.sub("", raw)
    if not text.strip():
        return Odd("blank line")
    head = _HEAD.fullmatch(text)
    if head is None:
        return Odd("does not start with a channel and a date")
    at = _moment(head["date"], head["time"])
    if at is None:
        return Odd("no such date or time")
    rest = (head["rest"] or "").strip()
    if said := _SAID.fullmatch(rest):
        nick, words = said["nick"], said["text"]
    elif notice := _NOTICE.fullmatch(rest):
        membership = _MEMBERSHIP.match(notice["text"])
        return _membership(membership) if membership else Moved("notice")
    elif membership := _MEMBERSHIP.match(rest) or _MEMBERSHIP_LABELLED.match(rest):
        return _membership(membership)
    elif did := _DID.fullmatch(rest):
        if membership := _MEMBERSHIP_AS_ACTION.match(did["text"]):
            return _membership(membership)
        nick = did["nick"]
        words = did["text"] and f"* {nick} {did['text']}"
    else:
        return Odd("no nick after the time" if rest else "nothing after the time")
    if not words:
        return Odd("a nick without a text")
    if len(words) > wire.TEXT_CHARACTERS_MAX:
        return Odd(f"a text of more than {wire.TEXT_CHARACTERS_MAX:,} characters")
    return Spoken(head["channel"].lstrip("#") or head["channel"], at, nick, words)


def read_log(path: Path) -> Iterator[Numbered]:
    """Every line of a file, in its order; holds one line at a time. Raises OSError."""
    with path.open("rb") as file:
        number = 0
        while chunk := file.readline(LINE_BYTES_MAX):
            number += 1
            size_bytes = len(chunk)
            is_whole = chunk.endswith(b"\n") or len(chunk) < LINE_BYTES_MAX
            rest = chunk
            while not is_whole and (rest := file.readline(LINE_BYTES_MAX)):
                size_bytes += len(rest)
                is_whole = rest.endswith(b"\n")
            if number == 1:
                chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            chunk = chunk.rstrip(b"\r\n")
            try:
                raw, is_latin = chunk.decode(), False
            except UnicodeDecodeError:
                raw, is_latin = chunk.decode("latin-1"), True
            line = (
                parse_line(raw)
                if size_bytes <= LINE_BYTES_MAX
                else Odd(f"longer than {LINE_BYTES_MAX:,} bytes")
            )
            yield Numbered(
                path, number, raw, line, is_latin and isinstance(line, Spoken), size_bytes
            )


def name_id(name: str) -> str:
    """The id for a nick or a channel: letters, digits, `_` and `-` stay, all else is `.` and hex.

    `Aaron|home` is `Aaron.7chome`. Different names have different ids: what would be longer than
    NAME_ID_CHARACTERS_MAX is cut and ends in `:` and a hash. Nicks that differ in case only are
    two people, since a log always shows one person's nick in the case they registered.
    """
    escaped = _UNSAFE.sub(lambda match: "".join(f".{b:02x}" for b in match[0].encode()), name)
    if len(escaped) <= NAME_ID_CHARACTERS_MAX:
        return escaped
    digest = blake2b(name.encode(), digest_size=8).hexdigest()
    return f"{escaped[: NAME_ID_CHARACTERS_MAX - 17]}:{digest}"


class ClientIds:
    """Gives each line of one file a `client_id` that is the same wherever the line stands.

    It is a hash of channel, time, nick, text, and how many equal lines came before it within the
    same second. So a line has the same id in a file that overlaps with another, in a longer
    excerpt, and in two files put together; and somebody who says the same twice in one second
    said it twice. What can't be told apart: two equal lines of one second where a file begins
    between them.
    """

    def __init__(self) -> None:
        self._at = -1
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def of(self, line: Spoken) -> str:
        """The id of the next line of the file."""
        if line.at != self._at:
            self._at = line.at
            self._seen.clear()
        key = (line.channel, line.nick, line.text)
        parts = (line.channel, str(line.at), line.nick, line.text, str(self._seen[key]))
        self._seen[key] += 1
        return "irc:" + blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
