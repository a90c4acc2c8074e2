"""The mapping file: how an application of its own keeps its lists in Redis. TOML, read once.

[lists]                              # a sorted set for each owner
key = "convs:{owner}"
member = "{opponent}"
score = "ms"                         # or "s"

[metadata]                           # a key for each line of a list; may be left out
key = "conv:{owner}:{opponent}"
type = "hash"                        # or "json", a string
unread = "unread"                    # names of fields; those that are not kept are left out
muted = "muted"
text = "last_text"
sender = "last_from"
message_id = "last_id"

[messages]                           # a list or stream for each conversation, oldest first
key = "msgs:{low}:{high}"            # the two of them in order; {owner} and {opponent} do too
type = "list"                        # of JSON objects, or "stream"
id = "id"
sender = "from"
text = "text"
at = "at"
newest = 1000                        # of each conversation come along

[people]                             # who exists; may be left out
key = "user:{owner}"
name = "name"                        # field of a hash

[unread]
carry = "exact"                      # "last", "none": see docs/moving.md
text = "(an earlier message)"
"""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tidings.wire import TEXT_CHARACTERS_MAX

MESSAGES_NEWEST_MAX = 10_000
_PLACES = re.compile(r"\{([a-z]*)\}")
_GLOB = re.compile(rb"([*?\[\]\\])")

Unit = Literal["s", "ms"]


class MappingRefused(ValueError):
    """The mapping file can't be worked with; the text says where and why."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Lists(_Part, frozen=True):
    """The sorted sets."""

    key: str
    member: str = "{opponent}"
    score: Unit = "ms"


class Metadata(_Part, frozen=True):
    """The key of one line, and the names of its fields."""

    key: str
    type: Literal["hash", "json"] = "hash"
    unread: str | None = None
    muted: str | None = None
    text: str | None = None
    sender: str | None = None
    message_id: str | None = None


class Messages(_Part, frozen=True):
    """Where the messages of one conversation are."""

    key: str
    type: Literal["list", "stream"] = "list"
    id: str = "id"
    sender: str = "sender"
    text: str = "text"
    at: str = "at"
    unit: Unit = "ms"
    newest: Annotated[int, msgspec.Meta(ge=1, le=MESSAGES_NEWEST_MAX)] = 1_000


class People(_Part, frozen=True):
    """Where it says who exists."""

    key: str
    name: str | None = None
    role: Literal["customer", "manager"] = "customer"


class Unread(_Part, frozen=True):
    """What becomes of an unread number that no message proves."""

    carry: Literal["exact", "last", "none"] = "exact"
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_CHARACTERS_MAX)] = (
        "(an earlier message)"
    )


class Mapping(_Part, frozen=True):
    """The whole file."""

    lists: Lists
    metadata: Metadata | None = None
    messages: Messages | None = None
    people: People | None = None
    unread: Unread = Unread()

    def __post_init__(self) -> None:
        _check("lists.key", self.lists.key, {"owner"})
        _check("lists.member", self.lists.member, {"opponent"})
        if self.metadata is not None:
            _check("metadata.key", self.metadata.key, {"owner", "opponent"})
        if self.messages is not None:
            pair = {"low", "high"} if "{low}" in self.messages.key else {"owner", "opponent"}
            _check("messages.key", self.messages.key, pair)
        if self.people is not None:
            _check("people.key", self.people.key, {"owner"})

    def list_key(self, owner: str) -> bytes:
        """The sorted set of an owner."""
        return self.lists.key.replace("{owner}", owner).encode()

    def owner_of(self, key: bytes) -> bytes:
        """Whose sorted set a key is, of those that `scan_pattern` matches."""
        return _between(self.lists.key, key) or b""

    @property
    def scan_pattern(self) -> bytes:
        """What the keys of all sorted sets match, as SCAN takes it."""
        before, _, after = self.lists.key.encode().partition(b"{owner}")
        return _GLOB.sub(rb"\\\1", before) + b"*" + _GLOB.sub(rb"\\\1", after)

    def member(self, opponent: str) -> bytes:
        """Somebody as a member of a sorted set."""
        return self.lists.member.replace("{opponent}", opponent).encode()

    def opponent_of(self, member: bytes) -> bytes | None:
        """Who a member is; None where it does not look like the mapping's members."""
        return _between(self.lists.member, member)

    def score(self, at_ms: int) -> float:
        """A time as a score."""
        return at_ms / 1000 if self.lists.score == "s" else at_ms

    def at_ms(self, score: float) -> float:
        """A score as milliseconds; not finite where the score is not."""
        return score * 1000 if self.lists.score == "s" else score

    def metadata_key(self, owner: str, opponent: str) -> bytes:
        """The key of a line. There must be a `metadata`."""
        assert self.metadata is not None
        return _filled(self.metadata.key, owner=owner, opponent=opponent)

    def messages_key(self, owner: str, opponent: str) -> bytes:
        """The key of a conversation's messages. There must be `messages`."""
        assert self.messages is not None
        low, high = sorted((owner, opponent), key=_as_number)
        return _filled(self.messages.key, owner=owner, opponent=opponent, low=low, high=high)

    def person_key(self, owner: str) -> bytes:
        """Where it says that somebody exists. There must be `people`."""
        assert self.people is not None
        return self.people.key.replace("{owner}", owner).encode()


def read_mapping(path: Path) -> Mapping:
    """The mapping that a file describes. Raises MappingRefused, OSError."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Mapping)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise MappingRefused(f"{path}: {error}") from error


def pattern_parts(pattern: str) -> list[str | int]:
    """A pattern's texts in their order, with 1 for the owner and 2 for the opponent."""
    places = {"owner": 1, "opponent": 2}
    parts: list[str | int] = []
    for number, part in enumerate(_PLACES.split(pattern)):
        if number % 2:
            parts.append(places[part])
        elif part:
            parts.append(part)
    return parts


def _check(name: str, pattern: str, places: set[str]) -> None:
    found = _PLACES.findall(pattern)
    if sorted(found) != sorted(places):
        wanted = " and ".join(f"{{{place}}}" for place in sorted(places))
        raise MappingRefused(f"{name}: {pattern!r} needs {wanted}, once each, and no other")


def _filled(pattern: str, **values: str) -> bytes:
    return _PLACES.sub(lambda place: values[place[1]], pattern).encode()


@lru_cache(maxsize=16)
def _around(pattern: str) -> tuple[bytes, bytes]:
    """What stands before and after the pattern's only place."""
    before, _, after = _PLACES.sub("\0", pattern).encode().partition(b"\0")
    return before, after


def _between(pattern: str, text: bytes) -> bytes | None:
    """What stands in the pattern's only place; None where the text does not fit."""
    before, after = _around(pattern)
    if len(text) <= len(before) + len(after):
        return None
    if not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _as_number(text: str) -> tuple[int, int, str]:
    """Numbers by their value and before words, as applications that order ids by `<` do."""
    return (0, int(text), "") if text.isdecimal() and len(text) < 20 else (1, 0, text)
