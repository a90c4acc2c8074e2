"""The planning half of a commit: pure functions from what is stored and asked to what is written.

`plan_commit` takes rooms with the commands that wait for them and the badges of everybody it
concerns, and returns one transaction, what it tells each user, and the answer to each command.
`plan_advance` brings members of a large room up to its head. Neither knows a clock, a store or
chance, so property tests drive them directly.

Every transaction carries a condition that its own success makes false (the room's head and
epoch, or the version of each user it touches), so sending it twice applies it once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tidings.chat import commands, marks
from tidings.chat.attachments import LEFT_BLOBS, left_subject, plan_attached, plan_holding
from tidings.chat.commands import Command, ReadMark
from tidings.chat.counts import fold, fold_end, preview_of
from tidings.chat.room_plans import RoomPlan
from tidings.chat.rows import (
    WAKING,
    BadgeRow,
    Participation,
    RoomRow,
    participation_to_item,
    room_to_item,
)
from tidings.chat.updates import PostedEntry, RoomUpdate, UserUpdate
from tidings.chat.views import RoomView, Torn
from tidings.cluster.schedule import plan_due, plan_undue
from tidings.errors import TidingsError, ValidationFailed
from tidings.storage.interface import Absent, Delete, Equals, Exists, Item, Put, Update, Write
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    user_key,
)


class Plan(msgspec.Struct):
    """One transaction, and what it means."""

    writes: list[Write] = []
    updates: list[UserUpdate] = []
    answers: list[tuple[Command, Any]] = []
    """What each command is answered once the writes are durable: a value or a TidingsError."""
    receipts: dict[int, commands.Post] = {}
    """Index of a receipt's write to the post that it belongs to."""
    attached: dict[int, list[commands.Post]] = {}
    """Index of a blob's write to the posts that link to it."""
    refused: list[tuple[str, commands.Post]] = []
    """Posts that can't be done now, with their room's key; one accepted before is still so."""
    unproven: list[tuple[str, Command]] = []
    """Commands, by room id, whose answers no condition stands behind: refusals, and what was so
    already. They hold for what was read, and say nothing where that was long ago."""
    rooms: dict[str, RoomRow] = {}
    """Rooms by id as they are afterwards, with the members of those that are inline."""
    members: dict[str, frozenset[str] | None] = {}
    participations: dict[tuple[str, str], Participation] = {}
    """Rows by (user, room) as they are afterwards."""
    badges: dict[str, BadgeRow] = {}
    entries_count: int = 0
    is_renewing: bool = False
    """Whether previews change of entries that were counted before."""


def plan_commit(
    workspace: str,
    work: Sequence[tuple[str, RoomView, Sequence[Command]]],
    badges: Mapping[str, BadgeRow],
    node_id: str,
) -> Plan:
    """One transaction for the commands of some rooms, given as (room id, view, commands).

    `badges` has the rows of all members of inline rooms and of all users that commands name.
    The node of that id is to run the fan-outs that this opens. A command that can't be done is
    answered with its error and changes nothing. Raises Torn for rows that can't have been there at
    one moment.
    """
    plan = Plan()
    rooms: list[RoomPlan] = []
    asked: list[RoomPlan] = []  # the room of each answer
    for room_id, view, waiting in work:
        planned = RoomPlan(workspace, room_id, view)
        asked.extend(planned for _ in waiting)
        for command in waiting:
            try:
                plan.answers.append((command, planned.apply(command)))
            except TidingsError as error:
                plan.answers.append((command, error))
                if isinstance(command, commands.Post) and isinstance(error, ValidationFailed):
                    plan.refused.append((planned.there.key, command))
        planned.settle()
        if planned.room is not None:
            rooms.append(planned)
    for planned in rooms:
        _write_room(plan, planned, node_id)
    _write_blobs(plan, workspace, rooms)
    _write_users(plan, workspace, rooms, badges)
    _complete_reads(plan, asked, badges)
    _note_unproven(plan, asked)
    return plan


def _note_unproven(plan: Plan, rooms: Sequence[RoomPlan]) -> None:
    """A room that is written proves who is in it and its log, a total the user's own rows."""
    for (command, answer), planned in zip(plan.answers, rooms, strict=True):
        is_room_proven = planned.room is not None and planned.room != planned.before
        if isinstance(command, commands.Read | commands.Mute | commands.Hide) and not isinstance(
            answer, TidingsError
        ):
            is_proven = command.user_id in plan.badges
        else:
            is_proven = is_room_proven
        if not is_proven:
            plan.unproven.append((planned.room_id, command))


def _write_room(plan: Plan, planned: RoomPlan, node_id: str) -> None:
    room, before = planned.room, planned.before
    assert room is not None
    writes = plan.writes
    plan.rooms[room.room_id] = room
    plan.members[room.room_id] = (
        frozenset(planned.member_ids)
        if planned.member_ids is not None and planned.is_inline
        else None
    )
    if room == before:
        return
    plan.entries_count += len(planned.appended)
    writes.extend(Put(ENTRIES, item, when=(Absent(),)) for item in planned.appended)
    for receipt, command in planned.receipt_posts:
        plan.receipts[len(writes)] = command
        writes.append(Put(RECEIPTS, receipt, when=(Absent(),)))
    for seq, fields in planned.changed.items():
        writes.append(Update(ENTRIES, (room.key, seq), set=fields, when=(Exists(),)))
    writes.extend(Put(MEMBERS, item) for item in planned.joined.values())
    writes.extend(
        Delete(MEMBERS, (room.key, user_id))
        for user_id in planned.left
        if user_id in planned.view.participations
    )
    item = room_to_item(room)
    if before is None:
        writes.append(Put(ROOMS, item, when=(Absent(),)))
    else:
        old = room_to_item(before)
        changes = {name: value for name, value in item.items() if old[name] != value}
        seen = [Equals("head", before.head), Equals("epoch", before.epoch)]
        if before.is_fanning:  # closing the fan-out moves neither
            seen.append(Equals("is_fanning", True))
        writes.append(Update(ROOMS, (room.key,), set=changes, when=tuple(seen)))
    _write_fanout(plan, planned, room, node_id)
    _write_waking(plan, before, room)


def _write_blobs(plan: Plan, workspace: str, rooms: Sequence[RoomPlan]) -> None:
    """Blobs that entries link to are held by them, and those that were let go of are looked at."""
    posts: dict[str, list[commands.Post]] = {}
    for planned in rooms:
        for seq, post in planned.attaching:
            for blob in post.blobs:
                blob_id = blob["blob_id"]
                plan.writes.append(plan_holding(workspace, planned.room_id, seq, blob_id))
                posts.setdefault(blob_id, []).append(post)
        for seq, at in planned.letting_go.items():
            subject = left_subject(planned.there.key, seq)
            plan.writes.append(plan_due(LEFT_BLOBS, subject, at, seq))
    for blob_id, attaching in posts.items():  # an item is written once in a transaction
        plan.attached[len(plan.writes)] = attaching
        plan.writes.append(plan_attached(workspace, blob_id, len(attaching)))


def _write_waking(plan: Plan, before: RoomRow | None, room: RoomRow) -> None:
    """The end of a snooze goes into the schedule, and out of it, with the snooze itself."""
    old = None if before is None else before.wakes_at
    if room.wakes_at == old:
        return
    if old is not None:
        plan.writes.append(plan_undue(WAKING, room.key, old))
    if room.wakes_at is not None:
        plan.writes.append(plan_due(WAKING, room.key, room.wakes_at, room.head))


def _write_fanout(plan: Plan, planned: RoomPlan, room: RoomRow, node_id: str) -> None:
    """The `fanouts` item goes with the commit that leaves members behind the head."""
    was_fanning = planned.before is not None and planned.before.is_fanning
    if planned.founding is not None and was_fanning:
        founding = list(planned.founding) or None
        plan.writes.append(
            Update(FANOUTS, (room.key,), set={"founding": founding}, when=(Exists(),))
        )
    elif room.is_fanning and not was_fanning:
        founding = list(planned.founding or ()) or None
        item: Item = {"room": room.key, "founding": founding, "node_id": node_id, "fence": 1}
        plan.writes.append(Put(FANOUTS, item, when=(Absent(),)))


def _write_users(
    plan: Plan, workspace: str, rooms: Sequence[RoomPlan], badges: Mapping[str, BadgeRow]
) -> None:
    concerned: dict[str, list[RoomPlan]] = {}
    for planned in rooms:
        for user_id, row in planned.rows.items():
            if row != planned.view.participations.get(user_id):
                concerned.setdefault(user_id, []).append(planned)
    for user_id, planned_rooms in concerned.items():
        before = badges[user_id]
        after = copy.copy(before)
        after.version += 1
        updates = [_write_row(plan, planned, user_id, after) for planned in planned_rooms]
        if any(user_id in planned.read for planned in planned_rooms):
            after.read_version = after.version
        _write_badge(plan, workspace, user_id, before, after)
        plan.updates.append(
            UserUpdate(user_id, after.version, after.unread, after.mentions, updates)
        )


def _write_row(plan: Plan, planned: RoomPlan, user_id: str, badge: BadgeRow) -> RoomUpdate:
    old = planned.view.participations.get(user_id)
    row = planned.rows[user_id]
    room = planned.there
    is_renewed = user_id in planned.renewed
    is_new = user_id in planned.joined
    _finish_row(row, old, badge, is_activity=is_new or row.is_left)
    plan.participations[user_id, room.room_id] = row
    plan.writes.append(_row_write(planned.workspace, user_id, old, row))
    entries: Sequence[PostedEntry] = ()
    if is_new or old is None:
        entries = planned.delivered(max(row.joined_seq, planned.first_appended), row.counted_seq)
    elif not row.is_left:
        entries = planned.delivered(old.counted_seq + 1, row.counted_seq)
    return RoomUpdate(
        room_id=room.room_id,
        head=row.counted_seq,
        read_seq=row.read_seq,
        unread=row.unread,
        mentions=row.mentions,
        entries=entries,
        is_read_moved=old is not None and not is_renewed and row.read_seq != old.read_seq,
        is_row_changed=is_renewed,
        is_left=row.is_left,
        is_muted=row.is_muted,
        is_hidden=row.is_hidden,
    )


def _finish_row(
    row: Participation, old: Participation | None, badge: BadgeRow, *, is_activity: bool
) -> None:
    """Order the row by the user's new version, and carry its counts into the total."""
    version = badge.version
    if is_activity or old is None or row.counted_seq != old.counted_seq:
        row.feed = version
        row.marks = marks.append(row.marks, version, row.counted_seq)
    if row.unread == 0:
        row.unread_feed = None
    elif row.unread_feed is None:
        row.unread_feed = version
    if old is not None and not old.is_muted and not old.is_left:
        badge.unread -= old.unread
        badge.mentions -= old.mentions
    if not row.is_muted and not row.is_left:
        badge.unread += row.unread
        badge.mentions += row.mentions
    if not badge.unread >= badge.mentions >= 0:  # the total was read before the row had changed
        raise Torn


def _row_write(
    workspace: str, user_id: str, old: Participation | None, row: Participation
) -> Write:
    if old is None or row.joined_seq != old.joined_seq:  # who joined starts anew
        return Put(INBOXES, participation_to_item(row, workspace, user_id))
    fields: dict[str, Any] = {
        "unread": row.unread,
        "mentions": row.mentions,
        "unread_feed": row.unread_feed,
    }
    if row.read_seq != old.read_seq:
        fields["read_seq"] = row.read_seq
    if row.feed != old.feed or row.preview != old.preview:
        fields |= {
            "counted_seq": row.counted_seq,
            "preview": row.preview,
            "preview_seq": row.preview_seq or None,
            "active_at": row.active_at,
            "feed": row.feed,
            "marks": row.marks,
        }
    if row.is_muted is not old.is_muted or row.is_left is not old.is_left:
        fields |= {"is_muted": row.is_muted or None, "is_left": row.is_left or None}
    if row.hidden_seq != old.hidden_seq:
        fields["hidden_seq"] = row.hidden_seq
    key = (user_key(workspace, user_id), row.room_id)
    return Update(INBOXES, key, set=fields, when=(Exists(),))


def _write_badge(
    plan: Plan, workspace: str, user_id: str, before: BadgeRow, after: BadgeRow
) -> None:
    plan.badges[user_id] = after
    key = user_key(workspace, user_id)
    fields: dict[str, Any] = {
        "unread": after.unread,
        "mentions": after.mentions,
        "version": after.version,
        "read_version": after.read_version,
    }
    if before.version == 0:
        plan.writes.append(Put(BADGES, {"user": key, **fields}, when=(Absent(),)))
    else:
        seen = (Equals("version", before.version),)
        plan.writes.append(Update(BADGES, (key,), set=fields, when=seen))


def _complete_reads(plan: Plan, rooms: Sequence[RoomPlan], badges: Mapping[str, BadgeRow]) -> None:
    """The counts of a read, in the room and in total, are those after the whole commit."""
    for index, ((command, answer), room) in enumerate(zip(plan.answers, rooms, strict=True)):
        if isinstance(answer, ReadMark):
            assert isinstance(command, commands.Read)
            row = room.peek(command.user_id)
            assert row is not None
            badge = plan.badges.get(command.user_id) or badges[command.user_id]
            mark = msgspec.structs.replace(
                answer,
                unread=row.unread,
                mentions=row.mentions,
                total_unread=badge.unread,
                total_mentions=badge.mentions,
                version=badge.version,
            )
            plan.answers[index] = (command, mark)


def plan_advance(
    workspace: str,
    room: RoomRow,
    rows: Mapping[str, Participation],
    badges: Mapping[str, BadgeRow],
    entries: Mapping[int, Item],
    posted: Mapping[int, PostedEntry],
    *,
    is_renewing: bool = True,
) -> Plan:
    """Bring members of a large room up to `room.head`, or a step nearer to it, and, if
    `is_renewing`, their previews to what `entries` say.

    `entries` are the log after the least `counted_seq` of the rows and those that the rows
    preview, `posted` the same for delivery. The members' versions are what makes a second time
    fail. They don't prove that an entry still says what it said: previews are only to be renewed
    from entries that are known to be so after the rows were read. Raises Torn.
    """
    plan = Plan()
    for user_id, old in rows.items():
        if old.is_left:
            continue
        row = copy.copy(old)
        last = fold_end(old.counted_seq, room.head)
        fold(row, user_id, (entries[seq] for seq in range(old.counted_seq + 1, last + 1)))
        previewed = entries.get(row.preview_seq)
        if is_renewing and previewed is not None and row.preview != preview_of(previewed):
            row.preview = preview_of(previewed)  # it was edited, deleted or erased meanwhile
            plan.is_renewing = True
        if row == old:
            continue
        before = badges[user_id]
        after = copy.copy(before)
        after.version += 1
        _finish_row(row, old, after, is_activity=False)
        plan.participations[user_id, room.room_id] = row
        plan.writes.append(_row_write(workspace, user_id, old, row))
        _write_badge(plan, workspace, user_id, before, after)
        update = RoomUpdate(
            room_id=room.room_id,
            head=row.counted_seq,
            read_seq=row.read_seq,
            unread=row.unread,
            mentions=row.mentions,
            entries=[posted[seq] for seq in range(old.counted_seq + 1, last + 1)],
            is_muted=row.is_muted,
        )
        plan.updates.append(
            UserUpdate(user_id, after.version, after.unread, after.mentions, [update])
        )
    return plan
