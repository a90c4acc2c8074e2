"""`tidings import slack`: an export becomes users, rooms and entries with their own times.

Public channels are public rooms, private ones private, a direct message is the direct room of its
two, one of several people a private room. The zip is read twice: to learn who speaks and what was
changed or deleted later, then to load room by room. Ids follow from Slack's, so importing again, or
a newer export, adds only what is new.

Memory is bounded by the people and conversations of the export (some 1 KB each), the changes that
it tells of afterwards (CHANGES_MAX) and one slice of a day, not by its messages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

import msgspec

from tidings.ids import pair_room_id
from tidings.importing.loading import Loading
from tidings.importing.quarantine import Quarantine
from tidings.importing.records import (
    MemberRecord,
    MessageRecord,
    RoomRecord,
    UserRecord,
    fitting_id,
)
from tidings.importing.reports import Report
from tidings.importing.slackrecords import (
    JOINS,
    LEAVES,
    MESSAGES,
    NOTICES,
    Conversation,
    ConversationKind,
    People,
    Reading,
    SlackMessage,
    SlackUser,
    order,
    time_ms,
    user_record,
)
from tidings.importing.slackzips import Found, SlackZip
from tidings.people.callers import Caller
from tidings.people.rows import user_from_item
from tidings.people.users import Users
from tidings.storage.interface import Store
from tidings.storage.tables import USERS, user_key

SLICE_MESSAGES = 20_000
"""Messages of a day that are put in order together; more are taken slice by slice."""
CHUNK_MESSAGES = 500
"""Messages that are handed to the loader at once."""
CHANGES_MAX = 200_000
"""Changes and deletions, told in records of their own, that are remembered between the passes."""
USERS_TOGETHER = 500

Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in all)"""

_LISTS: tuple[ConversationKind, ...] = ("channels", "groups", "mpims", "dms")


class SlackReport(msgspec.Struct):
    """What an import did: effects, and what was left out."""

    effects: Report
    conversations: int = 0
    records: int = 0
    """Records of messages that were read."""
    joins: int = 0
    leaves: int = 0
    users_deactivated: int = 0
    files_linked: int = 0
    skipped: dict[str, int] = {}
    """Notices by subtype, and files that have no part in an import."""
    odd: dict[str, int] = {}
    """What is in the quarantine, by reason."""


class _Place(msgspec.Struct):
    """A conversation, its files, and what the first pass found in them."""

    kind: ConversationKind
    conversation: Conversation
    days: list[str]
    bots: set[str] = set()
    last_at: int | None = None
    changed: dict[str, SlackMessage] = {}
    """Messages by their time, as records of their own say they are now."""
    deleted: dict[str, int] = {}


class SlackImport:
    """Brings one export into one workspace. Safe beside a running service, and to break off."""

    def __init__(
        self,
        export: SlackZip,
        store: Store,
        users: Users,
        loading: Loading,
        caller: Caller,
        *,
        is_unread: bool = False,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """`is_unread`: what is imported counts as unread, where it otherwise counts as read."""
        self._export = export
        self._store = store
        self._users = users
        self._loading = loading
        self._caller = caller
        self._is_unread = is_unread
        self._progress = progress
        self._people = People()
        self._channels: dict[str, str] = {}
        self._deactivated: list[str] = []
        self._damaged: set[str] = set()
        self._skipped: Counter[str] = Counter()
        self._changes = 0
        self._bytes_done = 0
        self._report = SlackReport(loading.report)

    @property
    def _odd(self) -> Quarantine:
        return self._loading.quarantine

    async def run(self) -> SlackReport:
        """Import everything. Raises Conflict where another import is under way; Unavailable."""
        report = self._report
        known = self._read_users()
        places = self._read_conversations()
        strangers = await self._survey(places)
        await self._store_users(known, places, strangers)
        self._bytes_done = 0
        for place in places:
            await self._load(place)
        await self._loading.publish()
        for user_id in self._deactivated:
            await self._deactivate(user_id)
        for name in self._export.unread:
            self._skipped[f"file {name.rpartition('/')[2]}"] += 1
        report.conversations = len(places)
        report.skipped = dict(sorted(self._skipped.items()))
        report.odd = {
            f"{kind}: {reason}": count for (kind, reason), count in sorted(self._odd.counts.items())
        }
        return report

    # --- reading -------------------------------------------------------------------------------

    def _typed(self, kind: str, found: Found, shape: Any) -> Any | None:
        """The record as what it should be; None, with a note, where it is something else."""
        if found.reason is not None:
            self._odd.add(kind, found.source, found.reason, found.record)
            if not found.is_whole:
                return None
        try:
            return msgspec.convert(found.record, shape)
        except msgspec.ValidationError as error:
            self._odd.add(kind, found.source, str(error), found.record)
            return None

    def _read_users(self) -> dict[str, SlackUser]:
        users: dict[str, SlackUser] = {}
        for found in self._export.records("users.json"):
            user: SlackUser | None = self._typed("user", found, SlackUser)
            if user is None:
                continue
            if user.id in users or not user.id:
                self._odd.add("user", found.source, "a second user with this id", found.record)
            else:
                users[user.id] = user
        return users

    def _read_conversations(self) -> list[_Place]:
        """Every conversation that a list names, with its files."""
        places: dict[str, _Place] = {}
        folders = dict(self._export.days)
        for kind in _LISTS:
            if not self._export.has(f"{kind}.json"):
                continue
            for found in self._export.records(f"{kind}.json"):
                conversation: Conversation | None = self._typed("conversation", found, Conversation)
                if conversation is None:
                    continue
                if conversation.id in places or not conversation.id:
                    reason = "a second conversation with this id"
                    self._odd.add("conversation", found.source, reason, found.record)
                    continue
                days = folders.pop(conversation.id, None)
                if days is None and conversation.name:
                    days = folders.pop(conversation.name, None)
                places[conversation.id] = _Place(kind, conversation, days or [])
                if conversation.name and kind in ("channels", "groups"):
                    self._channels[conversation.id] = conversation.name
        for folder, days in sorted(folders.items()):
            reason = "no list names it, so nobody knows who may see it"
            self._odd.add("folder", folder, reason, {"files": len(days)})
        return list(places.values())

    async def _survey(self, places: list[_Place]) -> dict[str, str]:
        """The first pass: names of those who are in no list, by Slack's id."""
        strangers: dict[str, str] = {}
        total = sum(self._export.size_bytes(day) for place in places for day in place.days)
        done = 0
        for place in places:
            for day in place.days:
                for number, found in enumerate(self._export.records(day)):
                    if number % CHUNK_MESSAGES == 0:
                        await asyncio.sleep(0)  # the lease is kept meanwhile
                    if not found.is_whole and "damaged in the zip" in (found.reason or ""):
                        self._damaged.add(day)
                    self._look(place, found, strangers)
                done += self._export.size_bytes(day)
                self._progress("Reading", done, total)
        return strangers

    def _look(self, place: _Place, found: Found, strangers: dict[str, str]) -> None:
        try:
            message = msgspec.convert(found.record, SlackMessage)
        except msgspec.ValidationError:
            return  # noted in the second pass
        at = time_ms(message.ts)
        if not found.is_whole or at is None:
            return
        if message.subtype in ("message_changed", "message_deleted"):
            self._look_at_change(place, message, found)
            return
        place.last_at = at if place.last_at is None else max(place.last_at, at)
        sender = message.sender
        if sender is not None:
            name = message.sender_name
            if name or sender not in strangers:
                strangers[sender] = name or sender
            if message.bot_id or message.subtype == "bot_message":
                place.bots.add(sender)

    def _look_at_change(self, place: _Place, message: SlackMessage, found: Found) -> None:
        if self._changes >= CHANGES_MAX:
            self._odd.add("message", found.source, "one change too many", found.record)
            return
        self._changes += 1
        if message.subtype == "message_deleted":
            if message.deleted_ts is not None:
                place.deleted[message.deleted_ts] = time_ms(message.ts) or 0
            return
        try:
            now = msgspec.convert(message.message or {}, SlackMessage)
        except msgspec.ValidationError as error:
            self._odd.add("message", found.source, str(error), found.record)
        else:
            place.changed[now.ts] = now

    # --- people --------------------------------------------------------------------------------

    async def _store_users(
        self, known: dict[str, SlackUser], places: list[_Place], strangers: dict[str, str]
    ) -> None:
        """Make everybody who is in a list, spoke, or is a member."""
        bots = {bot for place in places for bot in place.bots}
        everybody = dict(known)
        for slack_id, name in strangers.items():
            if slack_id not in everybody:
                is_bot = slack_id in bots
                everybody[slack_id] = SlackUser(slack_id, name, is_bot=is_bot, is_restricted=True)
        for place in places:
            for slack_id in place.conversation.members or ():
                if slack_id not in everybody:
                    self._odd.add("member", slack_id, "in no list of users, made with that name")
                    everybody[slack_id] = SlackUser(slack_id, is_restricted=True)
        users = list(everybody.values())
        for start in range(0, len(users), USERS_TOGETHER):
            some = users[start : start + USERS_TOGETHER]
            records = await self._records(some)
            await self._loading.add_users(records)
            for user, record in zip(some, records, strict=True):
                self._people.add(user.id, record)
                if user.deleted:
                    self._deactivated.append(record.user_id)

    async def _records(self, users: list[SlackUser]) -> list[UserRecord]:
        """With ids that are nobody else's."""
        wanted = [fitting_id(user.id, "slack") for user in users]
        keys = [(user_key(self._caller.workspace, user_id),) for user_id in wanted]
        there = await self._store.get_many(USERS, keys)
        records = []
        for user, user_id, row in zip(users, wanted, there, strict=True):
            is_other = row is not None and user_from_item(row).attributes.get("slack_id") != user.id
            own_id = fitting_id(f"slack:{user.id}", "slack") if is_other else user_id
            records.append(user_record(user, own_id))
        return records

    async def _deactivate(self, user_id: str) -> None:
        row = await self._users.find(self._caller.workspace, user_id)
        if row is not None and not row.is_deactivated:
            await self._users.delete(self._caller, user_id)
            self._report.users_deactivated += 1

    # --- rooms ---------------------------------------------------------------------------------

    def _room(self, place: _Place) -> RoomRecord:
        conversation, people = place.conversation, self._people
        members = list(dict.fromkeys(conversation.members or ()))
        is_pair = place.kind == "dms" and len(members) == 2
        if not is_pair:
            members += sorted(bot for bot in place.bots if bot not in members)
        ids = people.ids(members)
        name = conversation.name
        if place.kind == "dms" or place.kind == "mpims":
            name = ", ".join(people.name(each) or each for each in members)
        read_at = None if self._is_unread else place.last_at
        return RoomRecord(
            room_id=pair_room_id(*ids) if is_pair else fitting_id(conversation.id, "slack"),
            kind="direct" if is_pair else "group",
            members=tuple(MemberRecord(each, read_at=read_at) for each in ids),
            title=None if is_pair else name or conversation.id,
            scope=None if is_pair else "public" if place.kind == "channels" else "private",
            created_at=(conversation.created or 0) * 1000 or None,
            created_by=next(iter(people.ids([conversation.creator])), None),
        )

    async def _load(self, place: _Place) -> None:
        room = self._room(place)
        if self._loading.is_staged(room.room_id):
            key = place.conversation.id
            self._odd.add("conversation", key, "a second conversation of the same two people")
            return
        await self._loading.add_room(room, self._chunks(place, room))
        for ts in sorted(place.changed.keys() | place.deleted.keys()):
            self._odd.add("message", f"{place.conversation.id}:{ts}", "a change of no message")

    async def _chunks(self, place: _Place, room: RoomRecord) -> AsyncIterator[list[MessageRecord]]:
        """The second pass over one conversation: its messages in their order."""
        member_ids = frozenset(member.user_id for member in room.members)
        reading = Reading(self._people, self._channels, member_ids)
        total = sum(self._export.size_bytes(name) for days in self._export.days.values()
                    for name in days)  # fmt: skip
        waiting: list[MessageRecord] = []
        for day in place.days:
            for messages in self._slices(day):
                for source, message, record in messages:
                    waiting += self._taken(place, reading, source, message, record)
                    if len(waiting) >= CHUNK_MESSAGES:
                        yield waiting
                        waiting = []
                        await asyncio.sleep(0)  # the lease is kept, though all may be there
            self._bytes_done += self._export.size_bytes(day)
            self._progress("Importing", self._bytes_done, total)
        if waiting:
            yield waiting

    def _slices(self, day: str) -> Iterator[list[tuple[str, SlackMessage, dict[str, Any]]]]:
        """The messages of a day by their times."""
        if day in self._damaged:
            self._odd.add("file", day, "damaged in the zip, left out")
            return
        some: list[tuple[str, SlackMessage, dict[str, Any]]] = []
        for found in self._export.records(day):
            self._report.records += found.is_whole
            message: SlackMessage | None = self._typed("message", found, SlackMessage)
            if message is None:
                continue
            if message.type != "message" or time_ms(message.ts) is None:
                reason = "a time that is none" if message.type == "message" else "no message"
                self._odd.add("message", found.source, reason, found.record)
                continue
            some.append((found.source, message, found.record))
            if len(some) >= SLICE_MESSAGES:
                yield sorted(some, key=lambda each: order(each[1].ts))
                some = []
        yield sorted(some, key=lambda each: order(each[1].ts))

    def _taken(
        self,
        place: _Place,
        reading: Reading,
        source: str,
        message: SlackMessage,
        record: dict[str, Any],
    ) -> list[MessageRecord]:
        """What becomes of one message."""
        subtype = message.subtype
        if subtype in ("message_changed", "message_deleted"):
            return []  # taken in the first pass, and told with the message itself
        if subtype in NOTICES:
            self._skipped[subtype or ""] += 1
            return []
        if message.sender is None or message.sender not in self._people:
            self._odd.add("message", source, "a message of nobody", record)
            return []
        if subtype in JOINS or subtype in LEAVES:
            self._report.joins += subtype in JOINS
            self._report.leaves += subtype in LEAVES
            return [reading.moved(message)]
        if subtype is not None and subtype not in MESSAGES and subtype != "tombstone":
            self._odd.add(
                "message", source, f"taken as a message, though it is a {subtype}", record
            )
        now = place.changed.pop(message.ts, None)
        if now is not None:
            edited = now.edited or message.edited
            message = msgspec.structs.replace(message, text=now.text, edited=edited)
        said = reading.said(message, place.deleted.pop(message.ts, None))
        if not said:
            self._odd.add("message", source, "nothing is in it", record)
        for one in said:
            self._report.files_linked += len(one.data.get("files", ()))
        return said
