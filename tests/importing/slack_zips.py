"""Makes export zips as Slack lays them out, with people and talk that we have made up."""

from __future__ import annotations

import json
import random
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

START_S = 1_700_000_000
DAY_S = 86_400
_WORDS = (
    *("the", "new", "build", "is", "green", "so", "we", "can", "ship", "it"),
    *("on", "monday", "unless", "tests", "say", "no"),
)

Record = dict[str, Any]


def ts(number: float, micros: int = 0) -> str:
    """Slack's name of the message that was sent so many seconds after the start."""
    return f"{START_S + int(number)}.{micros:06d}"


def user(user_id: str, name: str, **fields: Any) -> Record:
    """An element of users.json."""
    profile = {"display_name": name.title(), "real_name": f"{name.title()} Example"}
    profile |= {"email": f"{name}@example.com"}
    return {"id": user_id, "team_id": "T0", "name": name, "deleted": False, "profile": profile,
            "is_bot": False, **fields}  # fmt: skip


def conversation(channel_id: str, name: str | None, members: list[str], **fields: Any) -> Record:
    """An element of channels.json and its like."""
    named = {} if name is None else {"name": name}
    return {"id": channel_id, "created": START_S - 100, "creator": members[0],
            "is_archived": False, "members": members, **named, **fields}  # fmt: skip


def message(at: float, user_id: str, text: str, **fields: Any) -> Record:
    """An element of a day's file."""
    return {"type": "message", "ts": ts(at), "user": user_id, "text": text,
            "blocks": [{"type": "rich_text", "elements": []}], **fields}  # fmt: skip


def event(at: float, user_id: str, subtype: str, text: str = "", **fields: Any) -> Record:
    """A message with a subtype."""
    return {"type": "message", "subtype": subtype, "ts": ts(at), "user": user_id,
            "text": text or f"<@{user_id}> did something", **fields}  # fmt: skip


class Export:
    """What goes into a zip."""

    def __init__(self) -> None:
        self.users: list[Any] = []
        self.lists: dict[str, list[Any]] = {"channels": []}
        self.talk: dict[str, list[Record]] = defaultdict(list)
        """Messages by folder."""
        self.files: dict[str, bytes] = {}
        """Anything else, which takes the place of what would have been made."""

    def days(self) -> dict[str, bytes]:
        """The files of all folders."""
        files: dict[str, list[Record]] = defaultdict(list)
        for folder, records in self.talk.items():
            for record in records:
                moment = datetime.fromtimestamp(float(record["ts"]), UTC)
                files[f"{folder}/{moment:%Y-%m-%d}.json"].append(record)
        return {name: json.dumps(records, indent=4).encode() for name, records in files.items()}

    def write(self, path: Path, root: str = "") -> Path:
        """Make the zip."""
        files = {"users.json": json.dumps(self.users).encode()}
        files |= {f"{name}.json": json.dumps(each).encode() for name, each in self.lists.items()}
        files |= self.days() | self.files
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, content in files.items():
                made.writestr(root + name, content)
        return path


ANN, BEN, CLO, DAN, GUEST, BOT = "U0ANN", "U0BEN", "U0CLO", "U0DAN", "U0GUEST", "U0BOT"
GENERAL, DEV, SECRET, PAIR, SELF, SEVERAL = "C0GEN", "C0DEV", "G0SEC", "D0AB", "D0AA", "G0MP"


def small() -> Export:
    """A team's export with one of everything that exports have."""
    made = Export()
    made.users = [
        user(ANN, "ann", is_admin=True),
        user(BEN, "ben"),
        user(CLO, "clo", deleted=True),
        user(DAN, "dan", profile={"display_name": "", "real_name": "Dan Example"}),
        user(GUEST, "gus", is_restricted=True),
        user(BOT, "deploybot", is_bot=True),
    ]
    made.lists["channels"] = [
        conversation(GENERAL, "general", [ANN, BEN, DAN, GUEST]),
        conversation(DEV, "dev", [ANN, BEN]),
    ]
    made.lists["groups"] = [conversation(SECRET, "secret-plans", [ANN, DAN])]
    made.lists["dms"] = [
        conversation(PAIR, None, [ANN, BEN]),
        conversation(SELF, None, [ANN, ANN]),
    ]
    made.lists["mpims"] = [conversation(SEVERAL, "mpdm-ann--ben--dan-1", [ANN, BEN, DAN])]
    made.talk["general"] = [
        event(0, ANN, "channel_join"),
        event(1, ANN, "channel_topic", f"<@{ANN}> set the channel topic: All &amp; sundry"),
        event(2, CLO, "channel_join"),
        message(10, ANN, f"Hello <!here>, welcome <@{BEN}> &lt;3 see <#{DEV}|dev>"),
        message(11, BEN, "Thanks", thread_ts=ts(10)),
        message(
            12,
            CLO,
            "A first draft",
            edited={"user": CLO, "ts": ts(20)},
            reactions=[
                {"name": "+1", "users": [ANN, BEN], "count": 2},
                {"name": "party_parrot", "users": [ANN], "count": 1},
            ],
        ),
        event(30, CLO, "channel_leave"),
        message(
            DAY_S + 1,
            DAN,
            "",
            files=[
                {
                    "id": "F1",
                    "name": "plan.pdf",
                    "mimetype": "application/pdf",
                    "size": 1234,
                    "url_private": "https://files.example.com/plan.pdf?t=xoxe-1-secret",
                }
            ],
        ),
        message(
            DAY_S + 2,
            BOT,
            "",
            subtype="bot_message",
            bot_id="B0DEPLOY",
            attachments=[{"title": "Deploy", "text": "done in <http://ci.example.com|7 s>"}],
        ),
        event(DAY_S + 3, GUEST, "thread_broadcast", "Also to the channel", thread_ts=ts(10)),
        event(DAY_S + 4, ANN, "me_message", "waves"),
        event(DAY_S + 5, ANN, "pinned_item"),
    ]
    made.talk["dev"] = [
        {
            "type": "message",
            "subtype": "bot_message",
            "ts": ts(5),
            "bot_id": "B0HOOK",
            "username": "hooky",
            "text": "pushed 3 commits",
        },
        message(6, BEN, "<https://example.com/a?b=1&amp;c=2> and <mailto:x@y.zz|x@y.zz>"),
        message(7, BEN, "x" * 9_000),
        message(8, BEN, "soon gone"),
        message(9, BEN, "to be changed"),
        event(20, BEN, "message_deleted", deleted_ts=ts(8), hidden=True),
        event(
            21,
            BEN,
            "message_changed",
            hidden=True,
            message={
                "type": "message",
                "user": BEN,
                "ts": ts(9),
                "text": "changed",
                "edited": {"user": BEN, "ts": ts(21)},
            },
        ),
    ]
    made.talk["secret-plans"] = [message(3, DAN, f"for <@{ANN}> only")]
    made.talk[PAIR] = [message(3, ANN, "psst"), message(4, BEN, "what?")]
    made.talk[SELF] = [message(3, ANN, "milk, eggs")]
    made.talk["mpdm-ann--ben--dan-1"] = [message(3, DAN, "we three")]
    return made


def large(seed: int, people: int, channels: int, messages: int) -> Export:
    """Generated talk: threads, edits, reactions and mentions as often as teams have them."""
    chance = random.Random(seed)
    made = Export()
    ids = [f"U{number:06d}" for number in range(people)]
    made.users = [user(each, f"user{number}") for number, each in enumerate(ids)]
    names = [f"channel-{number}" for number in range(channels)]
    for number, name in enumerate(names):
        members = chance.sample(ids, min(len(ids), 4 + number % 16))
        made.lists["channels"].append(conversation(f"C{number:06d}", name, members))
        made.talk[name] = list(_talk(chance, members, messages // channels))
    return made


def _talk(chance: random.Random, members: list[str], count: int) -> Iterable[Record]:
    starts: list[str] = []
    for number in range(count):
        author = chance.choice(members)
        text = " ".join(chance.choices(_WORDS, k=chance.randint(2, 20)))
        made = message(number * 60, author, text)
        if starts and chance.random() < 0.3:
            made["thread_ts"] = chance.choice(starts[-50:])
        elif chance.random() < 0.1:
            starts.append(made["ts"])
        if chance.random() < 0.05:
            made["text"] += f" <@{chance.choice(members)}>"
        if chance.random() < 0.05:
            made["edited"] = {"user": author, "ts": ts(number * 60 + 30)}
        if chance.random() < 0.05:
            made["reactions"] = [{"name": "tada", "users": [chance.choice(members)], "count": 1}]
        yield made
