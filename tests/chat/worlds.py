"""A small world of rooms built row by row, by the naive reading of the rules.

Counts are made by going through the whole log each time: slow, and with nothing in common with
the code under test.
"""

from __future__ import annotations

from typing import Any

from tidings.chat import marks as marking
from tidings.chat.rows import room_from_item
from tidings.storage.interface import Item, Key, Put, Store, Table
from tidings.storage.tables import (
    BADGES,
    ENTRIES,
    FANOUTS,
    INBOXES,
    MEMBERS,
    RECEIPTS,
    ROOMS,
    TABLES,
    USERS,
)

START_MS = 1_700_000_000_000
RECEIPT_LIFE_S = 30 * 24 * 3600
COUNTABLE = ("text", "audio", "campaign")


class World:
    """Users and rooms of workspace `acme`; each action is one commit."""

    def __init__(self) -> None:
        self.items: dict[str, dict[Key, Item]] = {table.name: {} for table in TABLES}
        self.now_ms = START_MS
        self._changed: set[tuple[str, Key]] = set()

    # Rows.

    def put(self, table: Table, **item: Any) -> None:
        key = table.key(item)
        self.items[table.name][key] = item
        self._changed.add((table.name, key))

    def change(self, table: Table, key: Key, **fields: Any) -> None:
        self.put(table, **{**self.items[table.name][key], **fields})

    def inbox(self, user: str, room: str) -> Item:
        return self.items["inboxes"][f"acme#{user}", room]

    def room_item(self, room: str) -> Item:
        return self.items["rooms"][(f"acme#{room}",)]

    def members(self, room: str) -> list[str]:
        return sorted(user for key, user in self.items["members"] if key == f"acme#{room}")

    def log(self, room: str) -> list[Item]:
        entries = self.items["entries"].items()
        return [entry for (key, _), entry in sorted(entries) if key == f"acme#{room}"]

    async def save(self, store: Store) -> None:
        """Write what changed since the last time, all or nothing."""
        tables = {table.name: table for table in TABLES}
        await store.write(
            *(Put(tables[name], self.items[name][key]) for name, key in sorted(self._changed))
        )
        self._changed.clear()

    async def fill(self, store: Store) -> None:
        """Write everything, in bulk."""
        for table in TABLES:
            await store.put_many(table, list(self.items[table.name].values()))
        self._changed.clear()

    # Actions.

    def add_user(self, user: str) -> None:
        self.put(
            USERS, user=f"acme#{user}", workspace="acme", user_id=user, role="manager", name=user
        )

    def open(self, room: str, *users: str, kind: str = "group") -> None:
        support = {"status": "open", "customer_id": users[0]} if kind == "support" else {}
        self.put(
            ROOMS,
            room=f"acme#{room}",
            kind=kind,
            created_at=self.now_ms,
            head=0,
            epoch=1,
            member_count=len(users),
            scope="private" if kind == "group" else None,
            **support,
        )
        for user in users:
            self._participate(room, user, 0)
        self._commit(room, users)
        if kind == "support":
            shard_keys = self._listing(room)
            self.change(ROOMS, (f"acme#{room}",), **shard_keys)

    def _listing(self, room: str) -> dict[str, Any]:
        row = room_from_item(self.room_item(room))
        return {"listing": row.listing, "waiting": row.waiting, "listed_at": self.now_ms}

    def _participate(self, room: str, user: str, seq: int) -> None:
        self.put(MEMBERS, room=f"acme#{room}", user_id=user, role="member", joined_seq=seq)
        self.put(
            INBOXES,
            user=f"acme#{user}",
            room_id=room,
            kind=self.room_item(room)["kind"],
            unread=0,
            mentions=0,
            read_seq=seq,
            counted_seq=seq,
            joined_seq=seq,
            active_at=self.now_ms,
            feed=0,
            marks="",
        )

    def append(self, room: str, kind: str, sender: str | None, **fields: Any) -> int:
        """Only the entry and the head: the members do not know of it yet."""
        seq = int(self.room_item(room)["head"]) + 1
        self.change(ROOMS, (f"acme#{room}",), head=seq)
        self.put(
            ENTRIES,
            room=f"acme#{room}",
            seq=seq,
            id=f"ent_{seq}",
            type=kind,
            sender_id=sender,
            created_at=self.now_ms,
            **fields,
        )
        return seq

    def append_message(
        self, room: str, sender: str, *, client_id: str | None = None, **fields: Any
    ) -> int:
        client_id = client_id or f"c{self.room_item(room)['head'] + 1}"
        seq = self.append(
            room, fields.pop("kind", "text"), sender, client_id=client_id, text="hello", **fields
        )
        self.put(
            RECEIPTS,
            room=f"acme#{room}",
            receipt=f"{sender}#{client_id}",
            seq=seq,
            body_hash="h",
            expires_at=self.now_ms // 1000 + RECEIPT_LIFE_S,
        )
        return seq

    def append_deletion(self, room: str, seq: int) -> int:
        by = self.append(room, "deleted", "ann", data={"seq": seq})
        self.change(
            ENTRIES, (f"acme#{room}", seq), text=None, deleted_at=self.now_ms, deleted_seq=by
        )
        return by

    def post(self, room: str, sender: str, **fields: Any) -> int:
        seq = self.append_message(room, sender, **fields)
        self._commit(room, self.members(room))
        return seq

    def delete(self, room: str, seq: int) -> int:
        by = self.append_deletion(room, seq)
        self._commit(room, self.members(room))
        return by

    def read(self, room: str, user: str, seq: int) -> None:
        row = self.inbox(user, room)
        self.change(INBOXES, (f"acme#{user}", room), read_seq=max(seq, row["read_seq"]))
        self._count(room, user, row["counted_seq"], is_read=True)

    def mute(self, room: str, user: str) -> None:
        self.change(INBOXES, (f"acme#{user}", room), is_muted=True)
        self._count(room, user, self.inbox(user, room)["counted_seq"], is_read=True)

    def join(self, room: str, user: str) -> None:
        seq = self.append(room, "joined", user)
        key = (f"acme#{room}",)
        item = self.room_item(room)
        self.change(ROOMS, key, epoch=item["epoch"] + 1, member_count=item["member_count"] + 1)
        before = self.items["inboxes"].get((f"acme#{user}", room))
        self._participate(room, user, seq)
        if before is not None:
            self.change(INBOXES, (f"acme#{user}", room), feed=before["feed"], marks=before["marks"])
        self._commit(room, self.members(room))

    def leave(self, room: str, user: str) -> None:
        seq = self.append(room, "left", user)
        key = (f"acme#{room}",)
        item = self.room_item(room)
        self.change(ROOMS, key, epoch=item["epoch"] + 1, member_count=item["member_count"] - 1)
        self._commit(room, self.members(room))
        member = (f"acme#{room}", user)
        del self.items["members"][member]
        self.change(
            INBOXES,
            (f"acme#{user}", room),
            is_left=True,
            unread=0,
            mentions=0,
            unread_feed=None,
            read_seq=seq,
        )
        self._total(user)

    def begin_fanout(self, room: str) -> None:
        self.change(ROOMS, (f"acme#{room}",), is_fanning=True)
        self.put(FANOUTS, room=f"acme#{room}")

    def reach(self, room: str, user: str, seq: int) -> None:
        """The fan-out brings one member to that sequence."""
        self._count(room, user, seq)

    # Counts.

    def _commit(self, room: str, users: Any) -> None:
        for user in users:
            self._count(room, user, self.room_item(room)["head"])

    def _count(self, room: str, user: str, counted: int, *, is_read: bool = False) -> None:
        row = self.inbox(user, room)
        version = self.items["badges"].get((f"acme#{user}",), {"version": 0})["version"] + 1
        unread = [
            entry
            for entry in self.log(room)
            if row["read_seq"] < entry["seq"] <= counted
            and entry["type"] in COUNTABLE
            and entry["sender_id"] != user
            and not (entry.get("deleted_seq") and entry["deleted_seq"] <= counted)
        ]
        feed = row["feed"] if is_read and row["feed"] else version
        self.change(
            INBOXES,
            (f"acme#{user}", room),
            counted_seq=counted,
            unread=len(unread),
            mentions=sum(user in (entry.get("mentions") or []) for entry in unread),
            unread_feed=(row.get("unread_feed") or feed) if unread else None,
            feed=feed,
            marks=marking.append(row["marks"], version, counted),
        )
        self._total(user, is_read=is_read)

    def _total(self, user: str, *, is_read: bool = False) -> None:
        before = self.items["badges"].get((f"acme#{user}",), {"version": 0, "read_version": 0})
        rows = [
            row
            for (owner, _), row in self.items["inboxes"].items()
            if owner == f"acme#{user}" and not row.get("is_muted") and not row.get("is_left")
        ]
        version = before["version"] + 1
        self.put(
            BADGES,
            user=f"acme#{user}",
            unread=sum(row["unread"] for row in rows),
            mentions=sum(row["mentions"] for row in rows),
            version=version,
            read_version=version if is_read else before["read_version"],
        )


def small_world() -> World:
    """Three people in a group, a direct, a support and a fanning room, with a bit of everything.

    In `team`: 1-2 by ann, 3 a deletion of 2, 4 dan joins, 5 by bob mentions ann, 6 a reply to it.
    """
    world = World()
    for user in ("ann", "bob", "cat", "dan"):
        world.add_user(user)
    world.open("team", "ann", "bob", "cat")
    world.open("pair", "ann", "bob", kind="direct")
    world.open("help", "cat", kind="support")
    world.open("hall", "ann", "bob", "cat", "dan")
    world.post("team", "ann")
    world.post("team", "ann")
    world.delete("team", 2)
    world.join("team", "dan")
    world.post("team", "bob", mentions=["ann"])
    world.post("team", "cat", reply_to=5)
    world.read("team", "bob", 1)
    world.post("pair", "ann")
    world.post("pair", "bob")
    world.post("pair", "ann")
    world.mute("pair", "bob")
    world.post("hall", "ann", mentions=["dan"])
    world.begin_fanout("hall")
    world.append_message("hall", "bob", mentions=["cat", "dan"])
    world.append_deletion("hall", 2)
    world.reach("hall", "cat", 2)
    world.reach("hall", "dan", 3)
    world.join("help", "dan")
    world.post("help", "cat")
    world.post("help", "dan")
    world.leave("help", "dan")
    return world
