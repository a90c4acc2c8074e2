"""Parameters that several endpoints share: ids in paths, and how lists are paged."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.ids import Id

CURSOR_CHARACTERS_MAX = 8_192

Cursor = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=CURSOR_CHARACTERS_MAX,
        description="The `next` of the page before.",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=wire.LIST_LIMIT_MAX, description="How many items at most.")]


class RoomPath(Struct, frozen=True):
    """A room."""

    room_id: Id


class UserPath(Struct, frozen=True):
    """A user."""

    user_id: Id


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A page of a list."""

    limit: Limit = wire.LIST_LIMIT_DEFAULT
    cursor: Cursor | UnsetType = UNSET

    @property
    def cursor_or_none(self) -> str | None:
        """Where to go on; None at the beginning."""
        return given(self.cursor)


def given(value: str | UnsetType) -> str | None:
    """A text parameter; None where it was left out."""
    return None if value is UNSET else value
