"""The planner, driven directly: whatever is asked in whatever order, what it writes is exact.

The store is a few dicts, conditions are checked as the interface says, and every count is made
anew from the whole log after each step. Rooms fan out from four members on here, and a step goes
over six entries, so that short examples reach what large rooms do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tidings.chat import commands, counts, room_plans, rows
from tidings.chat.commands import Command, Posted, items_max, named_seqs, named_users
from tidings.chat.counts import fold_range, read_range
from tidings.chat.plans import Plan, plan_advance, plan_commit
from tidings.chat.rows import (
    BadgeRow,
    Participation,
    RoomRow,
    badge_from_item,
    entry_to_wire,
    participation_from_item,
    participation_to_item,
    room_from_item,
    room_to_item,
)
from tidings.chat.updates import PostedEntry, UserUpdate
from tidings.chat.views import RoomView
from tidings.errors import TidingsError
from tidings.storage.interface import (
    SET_ITEMS_MAX,
    Absent,
    Condition,
    Delete,
    Equals,
    Exists,
    Item,
    Key,
    Put,
    Update,
    Write,
)
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    TABLES,
    room_key,
    user_key,
)

WORKSPACE = "acme"
NODE = "node_1"
USERS = tuple(f"u{number}" for number in range(6))
FOUNDED = {"pair": USERS[:2], "edge": USERS[:3], "crowd": USERS[:5]}
"""Rooms and who is in them at first: a direct room, one at the edge, one that fans out."""
INLINE_MEMBERS_MAX = 3
COUNT_ENTRIES_MAX = 6
COMMANDS_MAX = 3
"""In one batch of a room: their entries must fit into a step, as they do in full size."""
FOUNDERS_INLINE_MAX = 2
SEQ_MAX = 30
"""Sequences that commands name; rooms become longer and shorter than that."""


class Shelf:
    """Tables as dicts, with writes as the storage interface describes them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Key, Item]] = {table.name: {} for table in TABLES}

    def failures(self, writes: Sequence[Write]) -> list[int]:
        """Indexes of the writes whose conditions do not hold."""
        names = [(write.table.name, _key(write)) for write in writes]
        assert len(set(names)) == len(names), "two writes name the same item"
        assert len(names) <= SET_ITEMS_MAX
        return [
            index
            for index, (write, (name, key)) in enumerate(zip(writes, names, strict=True))
            if not all(_holds(when, self.tables[name].get(key)) for when in write.when)
        ]

    def write(self, writes: Sequence[Write]) -> list[int]:
        """Apply all of it, or nothing; the indexes of the writes that forbid it."""
        failures = self.failures(writes)
        if failures:
            return failures
        for write in writes:
            table, key = self.tables[write.table.name], _key(write)
            match write:
                case Put():
                    table[key] = _stored(write.item)
                case Update():
                    assert not write.add, "plans know the new values"
                    old = table[key]  # plans update only what is there
                    left = {name: old[name] for name in old if name not in write.remove}
                    table[key] = _stored({**left, **write.set})
                case Delete():
                    table.pop(key, None)
        return []

    def all(self, name: str, partition: str) -> list[Item]:
        """The items of a partition, ascending."""
        return [item for key, item in sorted(self.tables[name].items()) if key[0] == partition]


def _key(write: Write) -> Key:
    return write.table.key(write.item) if isinstance(write, Put) else write.key


def _stored(item: Mapping[str, Any]) -> Item:
    return {name: value for name, value in item.items() if value is not None}


def _holds(condition: Condition, item: Item | None) -> bool:
    match condition:
        case Absent():
            return item is None
        case Exists():
            return item is not None
        case Equals(field=field, value=value):
            return item is not None and item.get(field) == value
        case _:
            raise AssertionError("plans use no other conditions")


class Model(Shelf):
    """The chat's rows, what a plan needs to see of them, and what was told of them."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[tuple[str, str], list[int]] = {}
        """Sequences delivered to a user of a room since they are in it."""
        self.versions: dict[str, int] = {}
        self.accepted: dict[tuple[str, str], int] = {}
        """(room, receipt) to the sequence that the sender was told."""
        self.made = 0

    def number(self) -> int:
        self.made += 1
        return self.made

    # What plans see.

    def room(self, room_id: str) -> RoomRow | None:
        item = self.tables[ROOMS.name].get((room_key(WORKSPACE, room_id),))
        return None if item is None else room_from_item(item)

    def there(self, room_id: str) -> RoomRow:
        room = self.room(room_id)
        assert room is not None
        return room

    def members(self, room_id: str) -> list[str]:
        return [member["user_id"] for member in self.all("members", room_key(WORKSPACE, room_id))]

    def row(self, user_id: str, room_id: str) -> Participation | None:
        item = self.tables[INBOXES.name].get((user_key(WORKSPACE, user_id), room_id))
        return None if item is None else participation_from_item(item)

    def badge(self, user_id: str) -> BadgeRow:
        return badge_from_item(self.tables[BADGES.name].get((user_key(WORKSPACE, user_id),)))

    def founding(self, room_id: str) -> tuple[str, ...]:
        item = self.tables[FANOUTS.name].get((room_key(WORKSPACE, room_id),))
        return tuple((item or {}).get("founding") or ())

    def entries(self, room_id: str, seqs: Iterable[int]) -> dict[int, Item]:
        key = room_key(WORKSPACE, room_id)
        return {seq: self.tables[ENTRIES.name][key, seq] for seq in seqs}

    def view(self, room_id: str, waiting: Sequence[Command]) -> RoomView:
        """No more of the room than a plan is promised."""
        room = self.room(room_id)
        if room is None:
            return RoomView(room=None)
        members = frozenset(self.members(room_id)) if room.is_inline else None
        named = {user for command in waiting for user in named_users(command)} | (members or set())
        found = {user: row for user in named if (row := self.row(user, room_id)) is not None}
        seqs = {seq for each in waiting for seq in named_seqs(each) if 1 <= seq <= room.head}
        for command in waiting:
            if isinstance(command, commands.Read):
                row = found.get(command.user_id)
                if row is not None and not row.is_left:
                    reading = read_range(row, room.head, command.seq)
                    for low, high in filter(None, (fold_range(row, room.head), reading)):
                        seqs.update(range(low, high + 1))
        return RoomView(room, members, found, self.entries(room_id, seqs))

    def plan(self, batch: Mapping[str, Sequence[Command]]) -> Plan:
        work = [(room_id, self.view(room_id, batch[room_id]), batch[room_id]) for room_id in batch]
        users = {user for _, view, _ in work for user in view.member_ids or ()}
        users |= {user for asked in batch.values() for each in asked for user in named_users(each)}
        badges = {user: self.badge(user) for user in users}
        plan = plan_commit(WORKSPACE, work, badges, NODE)
        refused = {id(each) for each, answer in plan.answers if isinstance(answer, TidingsError)}
        if refused:
            allowed = [
                (room_id, view, [each for each in asked if id(each) not in refused])
                for room_id, view, asked in work
            ]
            other = plan_commit(WORKSPACE, allowed, badges, NODE)
            assert other.writes == plan.writes, "a refused command changed something"
        _check_size(work, plan)
        return plan

    # What plans do.

    def take(self, plan: Plan) -> bool:
        """Apply a plan if its conditions hold; then never again, and all that it says is so."""
        before = {user_id: self.badge(user_id).version for user_id in plan.badges}
        if self.write(plan.writes):
            return False
        if plan.writes:
            assert self.failures(plan.writes), "a plan may be applied twice"
        for user_id, badge in plan.badges.items():
            assert badge == self.badge(user_id)
            assert badge.version == before[user_id] + 1
        for (user_id, room_id), row in plan.participations.items():
            key = (user_key(WORKSPACE, user_id), room_id)
            assert self.tables[INBOXES.name][key] == _stored(
                participation_to_item(row, WORKSPACE, user_id)
            )
        written = {_key(write) for write in plan.writes if write.table is ROOMS}
        for room_id, room in plan.rooms.items():
            if (room.key,) in written:
                assert self.tables[ROOMS.name][(room.key,)] == _stored(room_to_item(room))
                members = plan.members[room_id]
                assert members is None or members == set(self.members(room_id))
        for update in plan.updates:
            self._hear(update)
        assert {update.user_id for update in plan.updates} == plan.badges.keys()
        for command, answer in plan.answers:
            if isinstance(answer, Posted):
                assert isinstance(command, commands.Post)
                entry = answer.entry.entry
                accepted = self.accepted.setdefault((entry.room_id, command.receipt), entry.seq)
                assert accepted == entry.seq, "one client_id, two entries"
        return True

    def _hear(self, update: UserUpdate) -> None:
        user_id = update.user_id
        assert update.version == self.versions.get(user_id, 0) + 1, "a version was left out"
        self.versions[user_id] = update.version
        badge = self.badge(user_id)
        assert (update.unread, update.mentions) == (badge.unread, badge.mentions)
        for room in update.rooms:
            row = self.row(user_id, room.room_id)
            assert row is not None
            assert (room.unread, room.mentions, room.read_seq) == (
                row.unread,
                row.mentions,
                row.read_seq,
            )
            assert room.is_left is row.is_left
            seqs = [posted.entry.seq for posted in room.entries]
            told = self.told.setdefault((user_id, room.room_id), [])
            if seqs and seqs[0] == row.joined_seq:
                told.clear()
            told += seqs

    def do(self, batch: Mapping[str, Sequence[Command]]) -> None:
        """Commit as the service does: what was accepted before is answered, the rest goes on."""
        left = {room_id: list(asked) for room_id, asked in batch.items()}
        while True:
            plan = self.plan(left)
            failed = self.failures(plan.writes)
            if not failed:
                assert self.take(plan)
                return
            for index in failed:
                post = plan.receipts[index]  # nothing else can fail: nobody was faster
                write = plan.writes[index]
                assert isinstance(write, Put)
                room_id = write.item["room"].partition("#")[2]
                kept = self.tables[RECEIPTS.name][_key(write)]
                assert self.accepted[room_id, post.receipt] == kept["seq"]
                left[room_id] = [each for each in left[room_id] if each is not post]

    def race(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
        """Two nodes plan on the same state; the slower one only gets through where it may."""
        plan, late = self.plan(first), self.plan(second)
        self.take(plan)
        self.take(late)

    def advance(self, room_id: str, users: Sequence[str], *, is_late: bool) -> None:
        """One chunk of a fan-out, perhaps planned before an earlier one of the same members."""
        planned = [self._advanced(room_id, users) for _ in range(1 + is_late)]
        for plan in planned:
            self.take(plan)

    def _advanced(self, room_id: str, users: Sequence[str]) -> Plan:
        room = self.there(room_id)
        found = {user: row for user in users if (row := self.row(user, room_id)) is not None}
        low = min((row.counted_seq for row in found.values() if not row.is_left), default=room.head)
        nearest = {
            user: row
            for user, row in found.items()
            if row.counted_seq < low + counts.COUNT_ENTRIES_MAX
        }
        entries = self.entries(room_id, range(low + 1, room.head + 1))
        posted = {seq: PostedEntry(entry_to_wire(item, room_id)) for seq, item in entries.items()}
        badges = {user: self.badge(user) for user in nearest}
        return plan_advance(WORKSPACE, room, nearest, badges, entries, posted)

    def closing(self, room_id: str) -> list[Write]:
        """The write that ends a fan-out whose members all reached this head."""
        room = self.there(room_id)
        seen = (Equals("head", room.head), Equals("epoch", room.epoch), Equals("is_fanning", True))
        return [
            Update(ROOMS, (room.key,), remove=("is_fanning",), when=seen),
            Delete(FANOUTS, (room.key,), when=(Exists(),)),
        ]

    def has_reached(self, room_id: str) -> bool:
        head = self.there(room_id).head
        found = [self.row(user, room_id) for user in self.members(room_id)]
        return all(row is not None and row.counted_seq == head for row in found)

    # What must always be so.

    def check(self) -> None:
        totals: dict[str, list[int]] = {}
        for room_id in FOUNDED:
            if self.room(room_id) is not None:
                self._check_room(room_id)
        for (user, room_id), item in self.tables[INBOXES.name].items():
            user_id = user.partition("#")[2]
            self._check_row(user_id, room_id, participation_from_item(item))
            total = totals.setdefault(user_id, [0, 0])
            if not item.get("is_muted") and not item.get("is_left"):
                total[0] += item["unread"]
                total[1] += item["mentions"]
        for user_id, (unread, mentions) in totals.items():
            badge = self.badge(user_id)
            assert (badge.unread, badge.mentions) == (unread, mentions)
            assert badge.version == self.versions[user_id]
            assert badge.read_version <= badge.version

    def _check_room(self, room_id: str) -> None:
        room = self.there(room_id)
        log = self.all(ENTRIES.name, room.key)
        assert [entry["seq"] for entry in log] == list(range(1, room.head + 1))
        members = self.all(MEMBERS.name, room.key)
        assert len(members) == room.member_count
        assert room.is_fanning is ((room.key,) in self.tables[FANOUTS.name])
        joins = {0} | {entry["seq"] for entry in log if entry["type"] == "joined"}
        assert {member["joined_seq"] for member in members} <= joins
        sent = [(e["sender_id"], e["client_id"]) for e in log if e["type"] == "text"]
        receipts = {item["receipt"]: item["seq"] for item in self.all(RECEIPTS.name, room.key)}
        for receipt, seq in receipts.items():
            sender, _, client_id = receipt.partition("#")
            assert (log[seq - 1]["sender_id"], log[seq - 1]["client_id"]) == (sender, client_id)
        for sender, client_id in sent:
            assert f"{sender}#{client_id}" in receipts
        assert len(set(sent)) == len(sent)

    def _check_row(self, user_id: str, room_id: str, row: Participation) -> None:
        room = self.there(room_id)
        member = self.tables[MEMBERS.name].get((room.key, user_id))
        assert row.is_left is (member is None)
        assert row.joined_seq <= row.read_seq <= row.counted_seq <= room.head
        assert (row.unread_feed is not None) is (row.unread > 0)
        if row.is_left:
            assert (row.unread, row.mentions) == (0, 0)
            return
        assert member is not None
        assert member["joined_seq"] == row.joined_seq
        if not room.is_fanning:
            assert row.counted_seq == room.head
        log = self.all(ENTRIES.name, room.key)[: row.counted_seq]
        unread = [
            entry
            for entry in log[row.read_seq :]
            if entry["type"] == "text"
            and entry["sender_id"] != user_id
            and not any(e["type"] == "deleted" and e["data"]["seq"] == entry["seq"] for e in log)
        ]
        mentions = [entry for entry in unread if user_id in entry.get("mentions", ())]
        assert (row.unread, row.mentions) == (len(unread), len(mentions))
        told = self.told.get((user_id, room_id), [])
        assert told == list(range(max(row.joined_seq, 1), row.counted_seq + 1)), (user_id, row)
        shown = log[row.preview_seq - 1] if row.preview_seq else {}
        if (shown.get("deleted_seq") or room.head + 1) <= row.counted_seq:
            assert row.preview is None


def _check_size(work: Sequence[tuple[str, RoomView, Sequence[Command]]], plan: Plan) -> None:
    """A plan is never larger than what its commands were counted as when they were taken."""
    size, badges = 0, set[str]()
    for _, view, asked in work:
        members = view.member_ids or ()
        is_inline = view.room is None or view.member_ids is not None
        is_shut = view.room is not None and view.room.status in ("snoozed", "closed")
        size += 1 + len(members) + (not is_inline)
        badges.update(members)
        for each in asked:
            size += items_max(each, is_inline=is_inline, is_shut=is_shut)
            is_shut |= isinstance(each, commands.Change)
    size += len(badges)
    erased = sum(isinstance(each, commands.Erase) for _, _, asked in work for each in asked)
    assert erased or len(plan.writes) <= size


Asked = tuple[str, str, int, int, Sequence[str], bool]
"""What is chosen of a command: its kind, who, a sequence, another number, users, and a flag."""

_people = st.sampled_from(USERS)
_asked: st.SearchStrategy[Asked] = st.tuples(
    st.sampled_from(
        [
            *["post"] * 6,
            *["read"] * 4,
            *["join"] * 2,
            *["leave"] * 2,
            *["remove"] * 3,
            "edit",
            "erase",
            "react",
            "change",
            "mute",
        ]
    ),
    _people,
    st.integers(1, SEQ_MAX),
    st.integers(0, 8),
    st.lists(_people, max_size=2, unique=True),
    st.booleans(),
)
_batches = st.dictionaries(
    st.sampled_from(tuple(FOUNDED)), st.lists(_asked, min_size=1, max_size=COMMANDS_MAX), min_size=1
)


def _command(model: Model, room_id: str, asked: Asked) -> Command:
    kind, who, seq, other, users, is_on = asked
    at = model.number()
    entry_id = f"e{at}"
    if seq <= SEQ_MAX - 5:  # mostly one near the head
        seq = max(1, model.there(room_id).head + 1 - other)
    match kind:
        case "post":
            return commands.Post(
                who, f"c{other}", "hash", entry_id, at, text=f"text {at}", mentions=list(users),
                reply_to=seq if other == 8 else None, is_joining=is_on and room_id != "pair",
            )  # fmt: skip
        case "read":
            return commands.Read(who, seq)
        case "join":
            return commands.Join(who, who, entry_id, at)
        case "leave":
            return commands.Leave(who, who, entry_id, at)
        case "remove":
            return commands.Remove(who, seq, entry_id, at, is_moderator=is_on)
        case "edit":
            return commands.Edit(who, seq, f"text {other}", entry_id, at)
        case "erase":
            return commands.Erase((seq, 1), at)
        case "react":
            return commands.React(who, seq, "+1", is_on, entry_id, at)
        case "change":
            return commands.Change(who, {"title": f"t{other}"}, entry_id, f"{entry_id}.j", at)
        case _:
            return commands.Mute(who, is_on)


class Planner(RuleBasedStateMachine):
    """Random batches, races, chunks of fan-outs and sweeps, in rooms of every size."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def _batch(self, asked: Mapping[str, Sequence[Asked]]) -> dict[str, list[Command]]:
        return {
            room_id: [_command(self.model, room_id, each) for each in asked[room_id]]
            for room_id in asked
        }

    def _fanning(self) -> list[str]:
        return [room_id for room_id in FOUNDED if self.model.there(room_id).is_fanning]

    @initialize()
    def found(self) -> None:
        for room_id, members in FOUNDED.items():
            self.model.do({room_id: [_creation(room_id, members)]})

    @rule(asked=_batches)
    def commit(self, asked: Mapping[str, Sequence[Asked]]) -> None:
        self.model.do(self._batch(asked))

    @rule(first=_batches, second=_batches)
    def race(
        self, first: Mapping[str, Sequence[Asked]], second: Mapping[str, Sequence[Asked]]
    ) -> None:
        self.model.race(self._batch(first), self._batch(second))

    @precondition(lambda self: bool(self._fanning()))
    @rule(users=st.lists(_people, min_size=1, unique=True), is_late=st.booleans(), data=st.data())
    def advance(self, users: Sequence[str], is_late: bool, data: st.DataObject) -> None:
        room_id = data.draw(st.sampled_from(self._fanning()))
        founding = self.model.founding(room_id)
        if founding:
            self.model.do({room_id: [commands.Found(founding, self.model.number())]})
        else:
            present = [user for user in users if user in self.model.members(room_id)]
            self.model.advance(room_id, present, is_late=is_late)

    @precondition(lambda self: bool(self._fanning()))
    @rule(asked=_batches, is_raced=st.booleans())
    def close(self, asked: Mapping[str, Sequence[Asked]], is_raced: bool) -> None:
        for room_id in self._fanning():
            if self.model.has_reached(room_id) and not self.model.founding(room_id):
                closing = self.model.closing(room_id)
                late = self.model.plan(self._batch(asked)) if is_raced else None
                assert not self.model.write(closing)
                assert self.model.failures(closing), "a fan-out may be closed twice"
                if late is not None:
                    self.model.take(late)

    @invariant()
    def is_exact(self) -> None:
        self.model.check()


def _creation(room_id: str, members: Sequence[str]) -> commands.Create:
    kind: Any = "direct" if room_id == "pair" else "group"
    room = RoomRow(workspace=WORKSPACE, room_id=room_id, kind=kind, created_at=1)
    founders = tuple((member, "member") for member in members[:FOUNDERS_INLINE_MAX])
    return commands.Create(room, founders, tuple(members[FOUNDERS_INLINE_MAX:]), 1)


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms that fan out and reads in steps, within a few members and entries."""
    monkeypatch.setattr(rows, "INLINE_MEMBERS_MAX", INLINE_MEMBERS_MAX)
    monkeypatch.setattr(counts, "COUNT_ENTRIES_MAX", COUNT_ENTRIES_MAX)
    monkeypatch.setattr(room_plans, "FOUNDERS_INLINE_MAX", FOUNDERS_INLINE_MAX)
    monkeypatch.setattr(commands, "FOUNDERS_INLINE_MAX", FOUNDERS_INLINE_MAX)


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Planner,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.usefixtures("_small_steps")
def test_plans_are_exact() -> None:
    _run(examples=15, steps=15)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_steps")
def test_plans_are_exact_in_many_histories() -> None:
    _run(examples=200, steps=30)


@pytest.mark.usefixtures("_small_steps")
def test_a_read_takes_away_what_the_row_counted_though_it_was_deleted_since() -> None:
    model = Model()
    model.do({"crowd": [_creation("crowd", FOUNDED["crowd"])]})
    while founding := model.founding("crowd"):
        model.do({"crowd": [commands.Found(founding, model.number())]})
    for number in range(8):
        model.do({"crowd": [_command(model, "crowd", ("post", "u0", 1, number, [], False))]})
    model.do({"crowd": [commands.Remove("u0", 2, "deletion", model.number())]})
    model.do({"crowd": [commands.Read("u1", 4)]})
    model.check()
    row = model.row("u1", "crowd")
    assert row is not None
    assert (row.counted_seq, row.read_seq, row.unread) == (6, 4, 2)
    model.advance("crowd", ["u1"], is_late=True)
    model.check()
    row = model.row("u1", "crowd")
    assert row is not None
    assert (row.counted_seq, row.unread) == (9, 4)
