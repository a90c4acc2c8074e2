"""All sections of the API, in the order of the documentation."""

from __future__ import annotations

from tidings.api import blobs, messages, operations, pages, people, push, rooms, updates
from tidings.api.endpoints import Section

SECTIONS: tuple[Section, ...] = (
    people.SECTION,
    rooms.SECTION,
    messages.SECTION,
    blobs.SECTION,
    updates.SECTION,
    push.SECTION,
    operations.SECTION,
    pages.SECTION,
)
