"""What Slack's texts say to a person: entities become words, and who is named is told.

Source: "Formatting text for app surfaces" and "Escaping text" in Slack's API documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from emoji import emojize

EMOJI_CHARACTERS_MAX = 32
BLOCKS_DEPTH_MAX = 8
"""Levels of a message's blocks that are looked into for its text."""

_ENTITY = re.compile(r"<([^<>\n]+)>")
_ESCAPES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}
_ESCAPE = re.compile("|".join(_ESCAPES))
_TONE = re.compile(r"::skin-tone-(\d)$")


class Words(msgspec.Struct, frozen=True):
    """A text as people read it, and the Slack ids of the users that it names."""

    text: str
    user_ids: tuple[str, ...]


def plain(
    text: str, user_name: Callable[[str], str | None], channel_name: Callable[[str], str | None]
) -> Words:
    """The text without Slack's markup of entities. Names are of users and channels by Slack's id.

    `<@U…>` is `@Name`, `<#C…|general>` `#general`, `<!here>` `@here`, a link its label with the
    address behind it.
    """
    named: dict[str, None] = {}

    def entity(match: re.Match[str]) -> str:
        content, _, label = match[1].partition("|")
        sign, rest = content[:1], content[1:]
        if sign == "@":
            named[rest] = None
            return f"@{user_name(rest) or label or rest}"
        if sign == "#":
            return f"#{label or channel_name(rest) or rest}"
        if sign == "!":
            return _special(rest, label)
        address = content.removeprefix("mailto:").removeprefix("tel:")
        return address if label in ("", address, content) else f"{label} ({address})"

    # What is escaped is no markup, so entities go first; no one of them makes another.
    words = _ENTITY.sub(entity, text)
    return Words(_ESCAPE.sub(lambda match: _ESCAPES[match[0]], words), tuple(named))


def _special(content: str, label: str) -> str:
    kind = content.partition("^")[0]
    if kind in ("here", "channel", "everyone", "group"):
        return f"@{kind}"
    if kind == "date":  # <!date^1392734382^{date_num}|2014-02-18>
        return label or content.split("^")[1]
    return label or f"@{kind}"  # <!subteam^S…|@designers>


def emoji(name: str) -> str | None:
    """A reaction as it is given here: of a workspace's own emoji the name, `:name:`. None where it
    is none.
    """
    tone = _TONE.search(name)
    bare = _TONE.sub("", name)
    written = f":{bare}:"
    known = emojize(written, language="alias")
    if known != written:
        return known + (chr(0x1F3F9 + int(tone[1])) if tone and tone[1] in "23456" else "")
    is_fit = bare and len(written) <= EMOJI_CHARACTERS_MAX and "#" not in bare
    return written if is_fit and written.isprintable() and " " not in written else None


def text_of_blocks(blocks: Any, depth: int = 0) -> str:
    """The words in a message's blocks, for one that has no other text."""
    if depth > BLOCKS_DEPTH_MAX:
        return ""
    if isinstance(blocks, list):
        parts = [text_of_blocks(block, depth + 1) for block in blocks]
        joint = "" if depth > 2 else "\n"
        return joint.join(part for part in parts if part)
    if isinstance(blocks, dict):
        text = blocks.get("text")
        if isinstance(text, str):
            return text
        inner = (blocks.get(name) for name in ("text", "elements", "fields"))
        return "\n".join(
            found for each in inner if each and (found := text_of_blocks(each, depth + 1))
        )
    return ""
