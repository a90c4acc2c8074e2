"""The records of a Slack export: what of them is used, and what they become.

Source: "How to read Slack data exports" in Slack's help pages, and its API documentation for the
message event and its subtypes.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import msgspec

from tidings import wire
from tidings.importing.records import MessageRecord, UserRecord, fitting_id
from tidings.importing.slacktext import emoji, plain, text_of_blocks

SLACKBOT = "USLACKBOT"
JOINS = frozenset({"channel_join", "group_join", "mpim_join"})
LEAVES = frozenset({"channel_leave", "group_leave", "mpim_leave"})
MESSAGES = frozenset(
    {
        "bot_message",
        "channel_name",
        "channel_purpose",
        "channel_topic",
        "file_comment",
        "file_mention",
        "file_share",
        "group_name",
        "group_purpose",
        "group_topic",
        "huddle_thread",
        "me_message",
        "reply_broadcast",
        "slackbot_response",
        "thread_broadcast",
    }
)
"""Subtypes that somebody said, or that read as if they had: `Ann set the channel topic: …`."""
NOTICES = frozenset(
    {
        "app_conversation_join",
        "bot_add",
        "bot_disable",
        "bot_enable",
        "bot_remove",
        "channel_archive",
        "channel_canvas_updated",
        "channel_convert_to_private",
        "channel_convert_to_public",
        "channel_posting_permissions",
        "channel_unarchive",
        "ekm_access_denied",
        "group_archive",
        "group_unarchive",
        "message_replied",
        "pinned_item",
        "reminder_add",
        "sh_room_created",
        "sh_room_shared",
        "unpinned_item",
    }
)
"""Subtypes that are counted and left out: they tell of Slack, not of the talk."""
EXPORT_TOKEN = re.compile(r"[?&]t=xox[a-z]-[^&#]*")
"""Links to files in an export carry a token that opens them to anybody: it is taken out."""
_TIME = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?")

ConversationKind: TypeAlias = Literal["channels", "groups", "dms", "mpims"]


class Profile(msgspec.Struct, frozen=True):
    """How a user calls themselves."""

    display_name: str | None = None
    real_name: str | None = None
    name: str | None = None
    email: str | None = None
    title: str | None = None


class SlackUser(msgspec.Struct, frozen=True):
    """An element of users.json."""

    id: str
    name: str | None = None
    real_name: str | None = None
    profile: Profile | None = None
    deleted: bool = False
    is_bot: bool = False
    is_restricted: bool = False
    is_ultra_restricted: bool = False


class Conversation(msgspec.Struct, frozen=True):
    """An element of channels.json, groups.json, dms.json or mpims.json."""

    id: str
    name: str | None = None
    created: int | None = None
    creator: str | None = None
    members: list[str] | None = None


class Edited(msgspec.Struct, frozen=True):
    """When a message was edited last."""

    ts: str


class Reaction(msgspec.Struct, frozen=True):
    """Who reacted with one emoji."""

    name: str
    users: list[str] = []


class File(msgspec.Struct, frozen=True):
    """A file that a message names; its bytes are not in an export."""

    name: str | None = None
    title: str | None = None
    mimetype: str | None = None
    size: int | None = None
    mode: str | None = None
    url_private: str | None = None
    permalink: str | None = None


class SlackMessage(msgspec.Struct, frozen=True):
    """An element of a day's file."""

    ts: str
    type: str = "message"
    subtype: str | None = None
    user: str | None = None
    bot_id: str | None = None
    username: str | None = None
    text: str | None = None
    thread_ts: str | None = None
    edited: Edited | None = None
    reactions: list[Reaction] | None = None
    files: list[File] | None = None
    attachments: Any = None
    """Of other programs' making, as the blocks are: whatever of them is no text is passed over."""
    blocks: Any = None
    user_profile: Profile | None = None
    bot_profile: Profile | None = None
    message: dict[str, Any] | None = None
    """In `message_changed`: the message as it is now."""
    deleted_ts: str | None = None
    """In `message_deleted`: which."""

    @property
    def sender(self) -> str | None:
        """Slack's id of who said it, or a name for a program that has none."""
        if self.user:
            return self.user
        if self.bot_id:
            return self.bot_id
        return fitting_id(f"bot:{self.username}", "bot") if self.username else None

    @property
    def sender_name(self) -> str | None:
        """What the message itself calls them."""
        profile = self.user_profile or self.bot_profile
        given = None if profile is None else name_of(profile, None)
        return given or (None if self.user else self.username)


def name_of(profile: Profile, name: str | None) -> str | None:
    """What people call a user."""
    return profile.display_name or profile.real_name or profile.name or name


def time_ms(ts: str) -> int | None:
    """Slack's time and name of a message, in milliseconds; None for what is none."""
    match = _TIME.fullmatch(ts)
    if match is None:
        return None
    return int(match[1]) * 1000 + int((match[2] or "").ljust(6, "0")) // 1000


def order(ts: str) -> tuple[int, int]:
    """What messages of one conversation are in the order of."""
    seconds, _, fraction = ts.partition(".")
    return int(seconds), int(fraction.ljust(6, "0") or 0)


def client_id(ts: str, part: int = 1) -> str:
    """What the message is known by; a text too long for one entry has several."""
    return f"slack:{ts}" if part == 1 else f"slack:{ts}:{part}"


def user_record(user: SlackUser, user_id: str) -> UserRecord:
    """The user: guests of one or a few channels see no more than these here too."""
    role: wire.Role = "manager"
    if user.is_bot or user.id == SLACKBOT:
        role = "bot"
    elif user.is_restricted or user.is_ultra_restricted:
        role = "customer"
    profile = user.profile or Profile()
    try:
        email = msgspec.convert(profile.email, wire.Email | None)
    except msgspec.ValidationError:
        email = None
    name = name_of(profile, user.real_name) or user.name or user.id
    return UserRecord(user_id, name, role, email, {"slack_id": user.id})


class People:
    """Who is who: users by Slack's id, with the ids and names that they have here."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._bots: set[str] = set()

    def add(self, slack_id: str, record: UserRecord) -> None:
        """Know one more."""
        self._names[slack_id] = record.name
        self._ids[slack_id] = record.user_id
        if record.role == "bot":
            self._bots.add(slack_id)

    def __contains__(self, slack_id: str) -> bool:
        return slack_id in self._ids

    def id(self, slack_id: str) -> str:
        """Their id here. Raises KeyError."""
        return self._ids[slack_id]

    def name(self, slack_id: str) -> str | None:
        """Their name, if they are known."""
        return self._names.get(slack_id)

    def is_bot(self, slack_id: str) -> bool:
        """Whether they are a program."""
        return slack_id in self._bots

    def ids(self, slack_ids: Any) -> tuple[str, ...]:
        """The ids here of those who are known, each once."""
        return tuple(dict.fromkeys(self._ids[each] for each in slack_ids if each in self._ids))


class Reading:
    """Turns messages of one conversation into records of ours."""

    def __init__(
        self, people: People, channels: dict[str, str], member_ids: frozenset[str]
    ) -> None:
        """`channels`: names by Slack's id; `member_ids`: who may be mentioned, by ids here."""
        self._people = people
        self._channels = channels
        self._member_ids = member_ids

    def moved(self, message: SlackMessage) -> MessageRecord:
        """Somebody joined or left. The sender is known."""
        return MessageRecord(
            client_id=client_id(message.ts),
            sender_id=self._people.id(message.sender or ""),
            created_at=time_ms(message.ts) or 0,
            type="joined" if message.subtype in JOINS else "left",
        )

    def said(self, message: SlackMessage, deleted_at: int | None = None) -> list[MessageRecord]:
        """What was said, in one entry or more; none where there is nothing in it. The sender is
        known.
        """
        people = self._people
        words = plain(_text(message), people.name, self._channels.get)
        text = words.text
        if message.subtype == "me_message":
            text = f"* {people.name(message.sender or '')} {text}"
        files = [_linked(file) for file in message.files or () if file.url_private]
        text = "\n".join([text, *(f"{file['name']}: {file['url']}" for file in files)]).strip()
        is_deleted = deleted_at is not None or message.subtype == "tombstone"
        if not text and not is_deleted:
            return []
        parts = _parts(text) or [""]
        is_reply = message.thread_ts is not None and message.thread_ts != message.ts
        created_at = time_ms(message.ts) or 0
        edited_at = None if message.edited is None else time_ms(message.edited.ts)
        mentions = [each for each in people.ids(words.user_ids) if each in self._member_ids]
        first = MessageRecord(
            client_id=client_id(message.ts),
            sender_id=people.id(message.sender or ""),
            created_at=created_at,
            text=parts[0] or None,
            reply_to=client_id(message.thread_ts or "") if is_reply else None,
            edited_at=edited_at,
            deleted_at=(deleted_at or created_at) if is_deleted else None,
            mentions=tuple(mentions[: wire.MENTIONS_MAX]),
            reactions=self._reactions(message),
            data={"files": files} if files else {},
        )
        return [
            first,
            *(
                msgspec.structs.replace(
                    first,
                    client_id=client_id(message.ts, number),
                    text=part,
                    mentions=(),
                    reactions=None,
                    data={},
                )
                for number, part in enumerate(parts[1:], start=2)
            ),
        ]

    def _reactions(self, message: SlackMessage) -> dict[str, list[str]] | None:
        """By emoji as it is given here; None where there are none, so that none is taken back."""
        given: dict[str, list[str]] = {}
        for reaction in message.reactions or ():
            written = emoji(reaction.name)
            users = self._people.ids(reaction.users)
            if written is not None and users:
                there = given.setdefault(written, [])
                there += [each for each in users if each not in there]
        return given or None


def _text(message: SlackMessage) -> str:
    """All that a message says, in Slack's markup."""
    text = message.text or ""
    if text and message.subtype != "bot_message":
        return text
    lines = [text]
    attachments = message.attachments if isinstance(message.attachments, list) else []
    for attached in attachments:
        lines += _attached(attached) if isinstance(attached, dict) else []
    return "\n".join(line for line in lines if line) or text_of_blocks(message.blocks)


def _attached(attached: dict[str, Any]) -> list[str]:
    """The lines of what an app has attached to its message."""
    words = {name: text for name, text in attached.items() if isinstance(text, str) and text}
    if "title" in words and "title_link" in words:
        words["title"] += f" ({words['title_link']})"
    lines = [words[name] for name in ("pretext", "title", "text") if name in words]
    return lines or [words.get("fallback", "")]


def _linked(file: File) -> dict[str, Any]:
    url = EXPORT_TOKEN.sub("", file.url_private or "")
    named = {"name": file.name or file.title or "file", "url": url}
    rest = {"type": file.mimetype, "size": file.size}
    return named | {name: value for name, value in rest.items() if value is not None}


def _parts(text: str) -> list[str]:
    """The text in pieces that entries can hold, cut at the end of a line where there is one."""
    parts = []
    while len(text) > wire.TEXT_CHARACTERS_MAX:
        cut = text.rfind("\n", 1, wire.TEXT_CHARACTERS_MAX)
        cut = wire.TEXT_CHARACTERS_MAX if cut < wire.TEXT_CHARACTERS_MAX // 2 else cut
        parts.append(text[:cut])
        text = text[cut:].lstrip("\n")
    return [*parts, text] if text else parts
