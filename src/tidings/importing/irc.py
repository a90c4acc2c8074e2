"""`tidings import irc`: logs become users, rooms and entries with their own times, exactly once.

Two shapes. `group`: a channel is one public room. `support`: the channel was a company's help
desk, so each nick is a customer with a support room of their own, and the team's nicks are
managers; `HelpDesk` says which room a line of the team belongs to.

Importing again adds nothing: users, rooms and `client_id`s follow from the logs alone, and
receipts of imported entries never expire.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import msgspec

from tidings import wire
from tidings.chat.messages import ImportedMessage, Messages
from tidings.chat.rooms import Rooms
from tidings.errors import Conflict, ValidationFailed
from tidings.importing.irclogs import ClientIds, Moved, Numbered, Odd, Spoken, name_id, read_log
from tidings.importing.quarantine import Quarantine
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.users import Users

BATCH_LINES = 200
"""Lines of one room that are committed by one call."""
PENDING_LINES_MAX = 5_000
"""Lines of all rooms together that wait for their batch to fill."""
ODD_SHOWN_MAX = 20
"""Odd lines that a report holds in full; the rest are counted."""
ODD_EXCERPT_CHARACTERS = 120
CONVERSATION_GAP_MS = 15 * 60 * 1000
"""After so long a silence with a customer, an engineer's line is for whoever spoke last."""
NICK_ATTRIBUTE = "irc_nick"
"""The attribute that marks a user made by an import, and by which it is known again."""

Shape: TypeAlias = Literal["support", "group"]
Progress: TypeAlias = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in all)"""

_ADDRESSED = re.compile(r"@?([^\s:,<>]+)[:,](?=\s|$)\s*")


class Options(msgspec.Struct, frozen=True):
    """How logs become rooms."""

    workspace: str
    shape: Shape = "group"
    team: frozenset[str] = frozenset()
    bots: frozenset[str] = frozenset()
    room_id: str | None = None
    """The one group room for every line; None: a room for each channel, with its name."""


class Target(msgspec.Struct, frozen=True):
    """The room that a line belongs to: the channel, and the customer's nick in a help desk."""

    channel: str
    customer: str | None = None


class OddLine(msgspec.Struct, frozen=True):
    """A line that was not imported, or not as it was: where, why, and how it begins."""

    path: str
    number: int
    reason: str
    excerpt: str


class Report(msgspec.Struct):
    """What an import did: counts of effects, not of attempts."""

    entries_added: int = 0
    entries_present: int = 0
    users_made: int = 0
    users_present: int = 0
    rooms_made: int = 0
    rooms_present: int = 0
    members_joined: int = 0
    lines: int = 0
    skipped: Counter[str] = msgspec.field(default_factory=Counter)
    """Joins, leaves, renames and notices."""
    odd: Counter[str] = msgspec.field(default_factory=Counter)
    """Odd lines by reason."""
    odd_lines: list[OddLine] = msgspec.field(default_factory=list)
    """The first ODD_SHOWN_MAX of them."""

    def note(self, line: Numbered, reason: str) -> None:
        """Count an odd line, and keep it while there is room."""
        self.odd[reason] += 1
        if len(self.odd_lines) < ODD_SHOWN_MAX:
            excerpt = line.raw[:ODD_EXCERPT_CHARACTERS]
            self.odd_lines.append(OddLine(str(line.path), line.number, reason, excerpt))


class Routing(Protocol):
    """Says where a file's lines belong, from that file's earlier lines alone."""

    def target(self, line: Spoken) -> Target | Odd:
        """The room, or why there is none. Called once per line, in order."""
        ...


class Channels:
    """Every line of a channel belongs to the channel's room."""

    def target(self, line: Spoken) -> Target:
        return Target(line.channel)


class HelpDesk:
    """Finds the customer that each line of a help desk's channel is for.

    - A customer's line is in that customer's room.
    - A line of the team that starts with customers' nicks (`nick: …`, `nick, …`, `@nick: …`)
      is in the room of the first of them.
    - Any other line of the team is for the customer with whom this engineer talked last: who was
      addressed by them, or addressed them, or got the last line of theirs by this rule; within
      CONVERSATION_GAP_MS of the last line between the two.
    - Else it is for the customer who spoke last. Before any customer spoke it has no room.

    It is a heuristic: the log does not say. One is made per file, so that where a line goes does
    not depend on which files are imported together.
    """

    def __init__(self, team: frozenset[str], customers: dict[str, str]) -> None:
        """`customers`: nick by nick in lower case, of everyone who speaks in the file."""
        self._team = frozenset(nick.lower() for nick in team)
        self._customers = customers
        self._talks: dict[tuple[str, str], tuple[str, int]] = {}
        self._last_speaker: dict[str, str] = {}

    def target(self, line: Spoken) -> Target | Odd:
        nick = line.nick.lower()
        addressed = self._addressed(line.text)
        if nick not in self._team:
            self._last_speaker[line.channel] = line.nick
            for engineer in addressed:
                if engineer in self._team:
                    self._talks[line.channel, engineer] = (line.nick, line.at)
            for engineer in self._team:
                talk = self._talks.get((line.channel, engineer))
                if talk is not None and talk[0] == line.nick:
                    self._talks[line.channel, engineer] = (line.nick, line.at)
            return Target(line.channel, line.nick)
        customer = next((self._customers[n] for n in addressed if n in self._customers), None)
        if customer is None:
            talk = self._talks.get((line.channel, nick))
            if talk is not None and abs(line.at - talk[1]) <= CONVERSATION_GAP_MS:
                customer = talk[0]
            else:
                customer = self._last_speaker.get(line.channel)
        if customer is None:
            return Odd("a line of the team before any customer's")
        self._talks[line.channel, nick] = (customer, line.at)
        return Target(line.channel, customer)

    @staticmethod
    def _addressed(text: str) -> list[str]:
        nicks = []
        position = 0
        while match := _ADDRESSED.match(text, position):
            nicks.append(match[1].lower())
            position = match.end()
        return nicks


class _Placed(msgspec.Struct, frozen=True):
    """A line that is imported: its room and the id that makes it exactly one entry."""

    line: Spoken
    target: Target
    client_id: str


class _Survey(msgspec.Struct):
    """What the first pass over the files found out."""

    paths: list[Path]
    """In the order of their first line's time."""
    nicks: dict[str, int] = {}
    """Who speaks, and the time of their first line."""
    customers: dict[Path, dict[str, str]] = {}
    rooms: dict[Target, dict[str, None]] = {}
    """The nicks who speak in each room, in the order of their first line."""
    size_bytes: int = 0


class IrcImport:
    """Brings logs into one workspace. Safe beside a running service, and safe to break off."""

    def __init__(
        self,
        users: Users,
        rooms: Rooms,
        messages: Messages,
        options: Options,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Odd lines go into the quarantine, whole."""
        self._users = users
        self._rooms = rooms
        self._messages = messages
        self._options = options
        self._quarantine = quarantine or Quarantine()
        self._caller = Caller(
            workspace=options.workspace,
            kind="api_key",
            credential_id="import",
            scopes=ALL_SCOPES,
        )

    async def run(self, paths: Sequence[Path], progress: Progress | None = None) -> Report:
        """Import the files, oldest first; each file's lines in their order.

        Raises OSError for a file that can't be read, before anything is written, and
        ValidationFailed where a nick or a room does not fit what the workspace already has.
        """
        report = Report()
        show: Progress = progress or (lambda what, done, total: None)
        survey = self._survey(paths, show)
        user_ids = await self._store_users(survey, report)
        room_ids = await self._store_rooms(survey, user_ids, report)
        await self._store_entries(survey, user_ids, room_ids, report, show)
        return report

    def _note(self, report: Report, line: Numbered, reason: str) -> None:
        report.note(line, reason)
        self._quarantine.add("line", f"{line.path}:{line.number}", reason, {"line": line.raw})

    def _routing(self, path: Path, survey: _Survey) -> Routing:
        if self._options.shape == "group":
            return Channels()
        return HelpDesk(self._options.team, survey.customers[path])

    def _lines(self, survey: _Survey) -> Iterator[tuple[Numbered, _Placed | Moved | Odd]]:
        """Every line of every file, and what becomes of it."""
        for path in survey.paths:
            routing = self._routing(path, survey)
            client_ids = ClientIds()
            for numbered in read_log(path):
                line = numbered.line
                if not isinstance(line, Spoken):
                    yield numbered, line
                    continue
                client_id = client_ids.of(line)
                target = routing.target(line)
                if isinstance(target, Odd):
                    yield numbered, target
                else:
                    yield numbered, _Placed(line, target, client_id)

    def _survey(self, paths: Sequence[Path], show: Progress) -> _Survey:
        unique = list(dict.fromkeys(paths))
        total = sum(path.stat().st_size for path in unique)
        survey = _Survey(paths=unique, size_bytes=total)
        team = {nick.lower() for nick in self._options.team}
        starts: dict[Path, int] = {}
        done = 0
        for path in unique:
            customers = survey.customers[path] = {}
            for numbered in read_log(path):
                done += numbered.size_bytes
                line = numbered.line
                if isinstance(line, Spoken):
                    starts.setdefault(path, line.at)
                    survey.nicks.setdefault(line.nick, line.at)
                    if line.nick.lower() not in team:
                        customers.setdefault(line.nick.lower(), line.nick)
            show("Reading", done, total)
        survey.paths.sort(key=lambda path: starts.get(path, 0))
        for _, fate in self._lines(survey):
            if isinstance(fate, _Placed):
                speakers = survey.rooms.setdefault(fate.target, {})
                if fate.target.customer is not None:
                    speakers.setdefault(fate.target.customer)
                speakers.setdefault(fate.line.nick)
        return survey

    def _role(self, nick: str) -> wire.Role:
        if nick.lower() in {name.lower() for name in self._options.team}:
            return "manager"
        if nick.lower() in {name.lower() for name in self._options.bots}:
            return "bot"
        return "customer"

    async def _store_users(self, survey: _Survey, report: Report) -> dict[str, str]:
        """The id of each nick's user, made where there is none."""
        user_ids: dict[str, str] = {}
        misfits = []
        for nick in survey.nicks:
            role = self._role(nick)
            plain = name_id(nick)
            for user_id in (plain, f"irc:{plain}"):
                row = await self._users.find(self._options.workspace, user_id)
                is_imported = row is not None and row.attributes.get(NICK_ATTRIBUTE) == nick
                is_team = row is not None and role == "manager" and row.role in ("manager", "admin")
                if row is None or is_imported or is_team:
                    break
            else:
                misfits.append(f"{plain} and irc:{plain} are other people's ids")
                continue
            user_ids[nick] = user_id
            if row is not None and self._options.shape == "support":
                was_team = row.role in ("manager", "admin")
                if was_team and role != "manager":
                    misfits.append(f"{nick} is a {row.role} here: name them in --team")
                elif role == "manager" and not was_team:
                    misfits.append(f"{nick} is a {row.role} here, not one of the team")
        if misfits:
            raise ValidationFailed("; ".join(misfits))
        for nick, user_id in user_ids.items():
            body = wire.CreateUser(
                role=self._role(nick),
                name=nick[: wire.NAME_CHARACTERS_MAX],
                id=user_id,
                attributes={NICK_ATTRIBUTE: nick},
            )
            _, is_new = await self._users.create(self._caller, body)
            report.users_made += is_new
            report.users_present += not is_new
        return user_ids

    def _room_id(self, target: Target, user_ids: dict[str, str]) -> str:
        if target.customer is not None:
            return f"support:{user_ids[target.customer]}"
        return self._options.room_id or name_id(target.channel)

    async def _store_rooms(
        self, survey: _Survey, user_ids: dict[str, str], report: Report
    ) -> dict[Target, str]:
        room_ids: dict[Target, str] = {}
        bodies: dict[str, wire.CreateRoom] = {}
        speakers: dict[str, dict[str, None]] = {}
        for target, nicks in survey.rooms.items():
            room_id = room_ids[target] = self._room_id(target, user_ids)
            bodies.setdefault(room_id, _room_body(target, room_id))
            speakers.setdefault(room_id, {}).update((user_ids[nick], None) for nick in nicks)
        for room_id, body in bodies.items():
            user_list = list(speakers[room_id])
            founders = user_list[: wire.FOUNDERS_MAX]
            room, is_new = await self._rooms.create(
                self._caller, msgspec.structs.replace(body, member_ids=founders)
            )
            if room.kind != body.kind:
                raise Conflict(f"The room {room_id} is there already, and is a {room.kind} room.")
            report.rooms_made += is_new
            report.rooms_present += not is_new
            await self._add_missing(room_id, user_list, report)
        return room_ids

    async def _add_missing(self, room_id: str, user_ids: list[str], report: Report) -> None:
        present: set[str] = set()
        cursor: str | None = None
        while True:
            page = await self._rooms.members(
                self._caller, room_id, limit=wire.LIST_LIMIT_MAX, cursor=cursor
            )
            present.update(member.user_id for member in page.items)
            cursor = page.next
            if cursor is None:
                break
        missing = [user_id for user_id in user_ids if user_id not in present]
        for start in range(0, len(missing), wire.FOUNDERS_MAX):
            chunk = missing[start : start + wire.FOUNDERS_MAX]
            await self._rooms.add_members(self._caller, room_id, wire.AddMember(user_ids=chunk))
            report.members_joined += len(chunk)

    async def _store_entries(
        self,
        survey: _Survey,
        user_ids: dict[str, str],
        room_ids: dict[Target, str],
        report: Report,
        show: Progress,
    ) -> None:
        waiting: OrderedDict[str, list[ImportedMessage]] = OrderedDict()
        waiting_count = 0
        done = 0

        async def flush(room_id: str) -> None:
            nonlocal waiting_count
            batch = waiting.pop(room_id)
            waiting_count -= len(batch)
            result = await self._messages.import_entries(self._options.workspace, room_id, batch)
            report.entries_added += result.added
            report.entries_present += result.present
            show("Importing", done, survey.size_bytes)

        for numbered, fate in self._lines(survey):
            done += numbered.size_bytes
            report.lines += 1
            if isinstance(fate, Odd):
                self._note(report, numbered, fate.reason)
            elif isinstance(fate, Moved):
                report.skipped[fate.kind] += 1
            else:
                if numbered.is_latin:
                    self._note(report, numbered, "not UTF-8, imported as Latin-1")
                message = ImportedMessage(
                    sender_id=user_ids[fate.line.nick],
                    client_id=fate.client_id,
                    text=fate.line.text,
                    created_at_ms=fate.line.at,
                )
                room_id = room_ids[fate.target]
                waiting.setdefault(room_id, []).append(message)
                waiting_count += 1
                if len(waiting[room_id]) >= BATCH_LINES:
                    await flush(room_id)
                elif waiting_count >= PENDING_LINES_MAX:
                    await flush(next(iter(waiting)))
        while waiting:
            await flush(next(iter(waiting)))
        show("Importing", survey.size_bytes, survey.size_bytes)


def _room_body(target: Target, room_id: str) -> wire.CreateRoom:
    channel = f"#{target.channel}"
    if target.customer is None:
        title = channel[: wire.NAME_CHARACTERS_MAX]
        return wire.CreateRoom(kind="group", id=room_id, title=title, scope="public")
    title = f"{target.customer} on {channel}"[: wire.NAME_CHARACTERS_MAX]
    return wire.CreateRoom(kind="support", id=room_id, title=title)
