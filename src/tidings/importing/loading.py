"""Loading: neutral records become rooms, logs and counts, in bulk where that is possible.

A new room of up to 24 members is folded from its messages, and its log is put in bulk; nobody sees
it, since there is no room yet. `publish` then makes each such room visible together with all rows
and totals that follow from it (`tidings.importing.publishing`). A load that was broken off has
therefore changed no count; running it again puts the same rows over what it left. Rooms that are
there already, and larger ones, get what is new through the service's own commits
(`tidings.importing.adding`), so a second run adds nothing.

The first entry of each new room is put on the condition that neither it nor the room is there:
what a running service writes meanwhile is never overwritten.

Memory is bounded: ITEMS_WAITING_MAX items, and for each room that is being read the sequences of
its last messages (`folding.KEYS_REMEMBERED_MAX`). What is staged is on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TypeVar

from tidings import wire
from tidings.chat.commits import Commits
from tidings.chat.rows import INLINE_MEMBERS_MAX
from tidings.clock import Clock
from tidings.cluster.leases import LEASE_S, Lease, Leases
from tidings.errors import Conflict
from tidings.ids import IdMaker
from tidings.importing.adding import Adding, find_seqs, get_all
from tidings.importing.folding import RoomFold, StagedRoom
from tidings.importing.publishing import Publishing
from tidings.importing.quarantine import Quarantine
from tidings.importing.records import MessageRecord, RoomRecord, UserRecord
from tidings.importing.reports import Report
from tidings.importing.staging import Staging
from tidings.people.rows import UserRow, user_to_item
from tidings.storage.interface import (
    SET_ITEMS_MAX,
    Absent,
    Check,
    ConditionFailed,
    Delete,
    Item,
    Position,
    Put,
    Store,
    Write,
)
from tidings.storage.tables import ENTRIES, RECEIPTS, ROOMS, USERS, room_key, user_key

ITEMS_WAITING_MAX = 16_000
"""Items of new rooms that wait to be put together; as many are on their way."""
PUTS_AT_ONCE = 2
"""Parts of the entries, and of the receipts, that are put at one time: a store that waits for its
disk for one of them takes another meanwhile."""
MESSAGES_TOGETHER = 500
"""Messages of one room that are looked at together."""
SETS_AT_ONCE = 8
"""Conditional write sets under way at one time."""
LEASE_TRIES = 15
LEASE_PAUSE_S = LEASE_S / 10
"""Whoever died with the lease is noticed within these tries and pauses."""

_Work = TypeVar("_Work")
_Done = TypeVar("_Done")


class Loading:
    """One import into one workspace: users, then rooms, then `publish`.

    Raises Conflict where another import has the workspace; Unavailable where the store can't take
    more, such as for a full disk: free it, and run the import again.
    """

    def __init__(
        self,
        store: Store,
        commits: Commits,
        workspace: str,
        clock: Clock,
        quarantine: Quarantine,
        staging: Staging,
        lease: Lease,
    ) -> None:
        """Use `open`."""
        self.report = Report()
        self.quarantine = quarantine
        self._store = store
        self._workspace = workspace
        self._clock = clock
        self._staging = staging
        self._lease = lease
        self.adding = Adding(store, commits, workspace, clock, self.report, self._odd)
        self._publishing = Publishing(store, workspace, self._taken, self._clear)
        self._entries: list[Item] = []
        self._receipts: list[Item] = []
        self._turn = asyncio.Lock()
        self._putting: asyncio.Task[None] | None = None
        self._is_broken = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        store: Store,
        commits: Commits,
        workspace: str,
        clock: Clock,
        quarantine: Quarantine,
    ) -> AsyncIterator[Loading]:
        """Have the workspace for this import alone until left. Raises Conflict, Unavailable."""
        leases = Leases(store, IdMaker(clock).new("import"))
        lease = await _held(leases, f"import#{workspace}")
        await leases.start()
        staging = Staging()
        loading = cls(store, commits, workspace, clock, quarantine, staging, lease)
        try:
            yield loading
        finally:
            await loading._give_up()
            staging.close()
            quarantine.flush()
            await leases.stop()

    # --- people --------------------------------------------------------------------------------

    async def add_users(self, users: Sequence[UserRecord]) -> None:
        """Make those who are not there; who is there stays as they are."""
        unique = {user.user_id: user for user in users}
        keys = [(user_key(self._workspace, user_id),) for user_id in unique]
        found = await get_all(self._store, USERS, keys)
        missing = [user for user, row in zip(unique.values(), found, strict=True) if row is None]
        self.report.users_present += len(unique) - len(missing)
        now_ms = self._clock()
        items = [user_to_item(_user_row(self._workspace, user, now_ms)) for user in missing]
        puts = [Put(USERS, item, when=(Absent(),)) for item in items]
        made = await _all(_parts(puts, SET_ITEMS_MAX), self._make_users)
        self.report.users_made += sum(made)
        self.report.users_present += len(missing) - sum(made)

    async def _make_users(self, writes: Sequence[Put]) -> int:
        while writes:
            try:
                await self._store.write(*writes)
                break
            except ConditionFailed as failed:
                there = {each.index for each in failed.failures}
                writes = [each for index, each in enumerate(writes) if index not in there]
        return len(writes)

    async def known_users(self, user_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are users of the workspace."""
        ids = sorted(set(user_ids))
        keys = [(user_key(self._workspace, user_id),) for user_id in ids]
        found = await get_all(self._store, USERS, keys)
        return {user_id for user_id, row in zip(ids, found, strict=True) if row is not None}

    # --- rooms ---------------------------------------------------------------------------------

    def is_staged(self, room_id: str) -> bool:
        """Whether the room was loaded by this run and waits to be published."""
        return self._staging.has(room_id)

    def claim(self, room_id: str, source: str) -> bool:
        """Whether the room is for what the source calls `source`, and for nothing else of it."""
        return self._staging.claim(room_id, source) == source

    def has_claimed(self, room_id: str, source: str) -> bool:
        """Whether `claim` has said so in this run."""
        return self._staging.owner(room_id) == source

    async def has_room(self, room_id: str) -> bool:
        """Whether the room is visible already."""
        return await self._store.get(ROOMS, (room_key(self._workspace, room_id),)) is not None

    async def has_rooms(self, *room_ids: str) -> list[bool]:
        """Whether each of some rooms is visible already."""
        keys = [(room_key(self._workspace, room_id),) for room_id in room_ids]
        return [item is not None for item in await get_all(self._store, ROOMS, keys)]

    async def add_room(
        self, room: RoomRecord, messages: AsyncIterable[Sequence[MessageRecord]]
    ) -> None:
        """Load a room with its messages, in their order; its people are users already.

        A room that this run has staged is left alone. Where `messages` raise, the room is not
        there, and may be added again from the start.
        """
        if self._staging.has(room.room_id):
            return
        if await self.has_room(room.room_id):
            self.report.rooms_present += 1
            await self._add_to(room, messages)
        elif len(room.members) > INLINE_MEMBERS_MAX:
            await self.adding.create(room)
            await self._add_to(room, messages)
        else:
            await self._fold(room, messages)

    async def update_room(
        self,
        room: RoomRecord,
        messages: Sequence[MessageRecord],
        *,
        left: Collection[str] = (),
        removed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Bring what changed into a room that is visible: messages that are new or changed, who
        has left, and messages that are gone, by `client_id` with their senders.
        """
        await self._add_to(room, _once(messages))
        for user_id in left:
            await self.adding.leave(room.room_id, user_id)
        key = room_key(self._workspace, room.room_id)
        found = await find_seqs(self._store, key, removed, sorted(set(removed.values())))
        for client_id, seq in found.items():
            await self.adding.remove(room.room_id, seq, removed[client_id], self._clock())

    async def remove_messages(self, client_ids: Collection[str]) -> int:
        """Delete messages of which nothing else is known; how many were found.

        It looks through all entries of the store.
        """
        wanted = frozenset(client_ids)
        found: list[Item] = []
        after: Position | None = None
        while wanted:
            page = await self._store.scan(ENTRIES, after=after)
            found += [item for item in page.items if item.get("client_id") in wanted]
            if (after := page.after) is None:
                break
        for item in found:
            workspace, _, room_id = item["room"].partition("#")
            if workspace == self._workspace and item.get("deleted_at") is None:
                sender = item["sender_id"]
                await self.adding.remove(room_id, item["seq"], sender, self._clock())
        return len(found)

    async def add_rooms(self, rooms: Sequence[tuple[RoomRecord, Sequence[MessageRecord]]]) -> None:
        """Load many small rooms, each of them once, in less time than one by one."""
        keys = [(room_key(self._workspace, room.room_id),) for room, _ in rooms]
        found = await get_all(self._store, ROOMS, keys)
        for (room, messages), item in zip(rooms, found, strict=True):
            if item is None and len(room.members) <= INLINE_MEMBERS_MAX:
                if not self._staging.has(room.room_id):
                    await self._fold(room, _once(messages))
            else:
                await self.add_room(room, _once(messages))

    async def _add_to(
        self, room: RoomRecord, messages: AsyncIterable[Sequence[MessageRecord]]
    ) -> None:
        self._require_lease()
        await self.adding.members(room)
        async for chunk in messages:
            for part in _parts(chunk, MESSAGES_TOGETHER):
                await self.adding.messages(room, part)
                await asyncio.sleep(0)  # a near store answers at once: let the lease be moved
                self._require_lease()
        await self.adding.reads(room)

    async def _fold(
        self, room: RoomRecord, messages: AsyncIterable[Sequence[MessageRecord]]
    ) -> None:
        fold = RoomFold(self._workspace, room, self._clock(), self._odd)
        try:
            async for chunk in messages:
                await self._remember_replied(fold, room, chunk)
                fold.take(chunk, self._entries, self._receipts)
                await self._put_waiting(ITEMS_WAITING_MAX // 2)
        except BaseException:
            self._drop(room_key(self._workspace, room.room_id))
            raise
        self._staging.put(fold.staged())
        self.report.messages_added += fold.messages

    async def _remember_replied(
        self, fold: RoomFold, room: RoomRecord, chunk: Sequence[MessageRecord]
    ) -> None:
        """Look up what replies name and the fold no longer has in mind."""
        unknown = fold.unknown_replies(chunk)
        if unknown and fold.is_forgetful:
            await self._put_all()
            key = room_key(self._workspace, room.room_id)
            found = await find_seqs(self._store, key, set(unknown), sorted(fold.senders))
            for client_id, seq in found.items():
                fold.remember(client_id, seq)

    # --- putting -------------------------------------------------------------------------------

    async def _put_waiting(self, entries_min: int) -> None:
        """If so many entries wait begin to put them, once those begun before are there.

        Meanwhile more is read: neither waits for the other's disk or network.
        """
        if len(self._entries) < entries_min:
            return
        async with self._turn:
            if len(self._entries) < entries_min:
                return
            await self._put_begun()
            self._require_lease()
            entries, self._entries = self._entries, []
            receipts, self._receipts = self._receipts, []
            self._putting = asyncio.create_task(self._put(entries, receipts))

    async def _put_all(self) -> None:
        """Put what waits. Nothing is on its way afterwards."""
        await self._put_waiting(0)
        async with self._turn:
            await self._put_begun()

    async def _put_begun(self) -> None:
        if self._is_broken:
            raise Conflict("This load has failed already.")
        putting, self._putting = self._putting, None
        if putting is not None:
            try:
                await putting
            except BaseException:
                self._is_broken = True
                raise

    async def _put(self, entries: Sequence[Item], receipts: Sequence[Item]) -> None:
        """Put these; the logs of new rooms begin with what nobody else has begun."""
        await self._begin_logs([item for item in entries if item["seq"] == 1])
        rest = [item for item in entries if item["seq"] != 1]
        await asyncio.gather(
            *[self._store.put_many(ENTRIES, part) for part in _pieces(rest)],
            *[self._store.put_many(RECEIPTS, part) for part in _pieces(receipts)],
        )

    async def _give_up(self) -> None:
        if self._putting is not None:
            self._putting.cancel()
            await asyncio.gather(self._putting, return_exceptions=True)

    async def _begin_logs(self, firsts: list[Item]) -> None:
        await _all(_parts(firsts, SET_ITEMS_MAX // 2), self._begin)

    async def _begin(self, firsts: Sequence[Item]) -> None:
        """Put first entries of rooms that are not there, where no other run has left any."""
        waiting = list(firsts)
        while waiting:
            writes: list[Write] = [Put(ENTRIES, item, when=(Absent(),)) for item in waiting]
            writes += [Check(ROOMS, (item["room"],), when=(Absent(),)) for item in waiting]
            try:
                await self._store.write(*writes)
                return
            except ConditionFailed as failed:
                for failure in failed.failures:
                    if failure.index >= len(waiting):
                        room = waiting[failure.index - len(waiting)]["room"].partition("#")[2]
                        raise Conflict(
                            f"The room {room} was made while it was loaded: run the import again."
                        ) from None
                for failure in failed.failures:
                    await self._clear(waiting[failure.index]["room"])

    async def _clear(self, room: str) -> None:
        """Remove the log that a broken load has left of a room that never became visible."""
        for table in (ENTRIES, RECEIPTS):
            while True:
                page = await self._store.query(table, room, limit=SET_ITEMS_MAX - 1)
                if not page.items:
                    break
                deletes = [Delete(table, table.key(item)) for item in page.items]
                await self._store.write(Check(ROOMS, (room,), when=(Absent(),)), *deletes)

    def _drop(self, room: str) -> None:
        """Forget what waits of a room."""
        self._entries = [item for item in self._entries if item["room"] != room]
        self._receipts = [item for item in self._receipts if item["room"] != room]

    # --- the end -------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Make everything visible that was loaded. More may be loaded afterwards."""
        await self._put_all()
        await self._publishing.run(self._staging.rooms())
        for user_id in self._staging.uneven():
            await self._publishing.put_in_order(user_id)
        self.report.rooms_made += self._publishing.published
        self._publishing.published = 0
        self._staging.clear()

    def _taken(self, staged: StagedRoom) -> None:
        self._odd("room", staged.room.room_id, "made by somebody else meanwhile: run it again")

    def _odd(self, kind: str, key: str, reason: str) -> None:
        self.quarantine.add(kind, key, reason)

    def _require_lease(self) -> None:
        if not self._lease.is_held:
            raise Conflict("Another import has taken this workspace over.")


async def _held(leases: Leases, name: str) -> Lease:
    for _ in range(LEASE_TRIES):
        lease = await leases.hold(name)
        if lease is not None:
            return lease
        await asyncio.sleep(LEASE_PAUSE_S)
    raise Conflict("Another import into this workspace is under way.")


async def _all(works: Sequence[_Work], do: Callable[[_Work], Awaitable[_Done]]) -> list[_Done]:
    """Do all of it, some at a time."""
    done: list[_Done] = []
    for part in _parts(works, SETS_AT_ONCE):
        done += await asyncio.gather(*[do(work) for work in part])
    return done


async def _once(messages: Sequence[MessageRecord]) -> AsyncIterator[Sequence[MessageRecord]]:
    yield messages


def _parts(items: Sequence[_Work], size: int) -> list[Sequence[_Work]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pieces(items: Sequence[Item]) -> list[Sequence[Item]]:
    """PUTS_AT_ONCE parts, in which what is stored side by side stays together."""
    return _parts(items, max(1, -(-len(items) // PUTS_AT_ONCE)))


def _user_row(workspace: str, user: UserRecord, now_ms: int) -> UserRow:
    created_at = now_ms if user.created_at is None else user.created_at
    return UserRow(
        workspace=workspace,
        user_id=user.user_id,
        name=user.name[: wire.NAME_CHARACTERS_MAX] or user.user_id,
        role=user.role,
        email=user.email,
        attributes=user.attributes,
        created_at=created_at,
        updated_at=created_at,
    )
