"""Identifiers: what is allowed, and new ones that sort by the time of their making."""

from __future__ import annotations

import random
import re
import secrets
from hashlib import blake2b
from typing import Annotated

import msgspec

from tidings.clock import Clock

ID_PATTERN = r"^[A-Za-z0-9._:-]{1,64}(?!\n)$"
"""Ids, `client_id` among them; `#`, which joins the parts of a key, is not in it.

Where `$` also stands before a last line feed, as in Python, the look ahead refuses that.
"""

Id = Annotated[str, msgspec.Meta(pattern=ID_PATTERN, min_length=1, max_length=64)]

_PAIR_BYTES = 16

_is_id = re.compile(r"[A-Za-z0-9._:-]{1,64}").fullmatch


def is_id(text: str) -> bool:
    """Whether the text may be an id."""
    return _is_id(text) is not None


def pair_room_id(one: str, other: str) -> str:
    """The id of the one direct room of two users, whoever asks first."""
    pair = "#".join(sorted((one, other))).encode()
    return f"dm_{blake2b(pair, digest_size=_PAIR_BYTES).hexdigest()}"


class IdMaker:
    """Makes ids such as `room_019ab0…`: 12 hex digits of time, then 16 that grow within one maker.

    Ids of one maker sort in the order of their making; two makers make the same id in the same
    millisecond with a probability of 2^-63. The idea is that of ULID; hex is quickly written.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._time_ms = 0
        self._random = 0
        self._time_text = ""

    def new(self, prefix: str) -> str:
        """A new id with the prefix, such as `usr`, `room`, `ses`, `ent`."""
        now = self._clock()
        if now > self._time_ms:
            self._time_ms = now
            self._time_text = f"{now:012x}"
            self._random = secrets.randbits(63)
        else:
            self._random += 1 + random.getrandbits(24)  # ids are no secrets
        return f"{prefix}_{self._time_text}{self._random:016x}"
