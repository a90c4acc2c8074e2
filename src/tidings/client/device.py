"""A device: sends exactly once, misses nothing, and knows the present state of its rooms."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from weakref import WeakSet

import msgspec

from tidings import wire
from tidings.client.backoff import Backoff
from tidings.client.calls import Client, new_client_id
from tidings.client.frames import Ack, Closing, Failed, Received, Update
from tidings.client.outbox import Outbox, Outgoing
from tidings.client.problems import (
    ClientError,
    NotFound,
    Problem,
    Unreachable,
    problem_from,
)
from tidings.client.readers import Updates, entries_of
from tidings.client.state import LocalRoom, State, ranges
from tidings.client.ways import Line, is_final, open_polls, open_socket, open_stream

Way: TypeAlias = Literal["websocket", "events", "poll"]

START_DEADLINE_S = 30.0
RECONNECT_FIRST_S = 0.25
RECONNECT_MOST_S = 30.0
RESUME_ROOMS_MAX = 50
"""Rooms of which the device says what it has when it comes back."""
SYNC_ROUNDS_MAX = 10_000
"""Replies with `more` in one catch-up."""
LAST_WORD_S = 1.0
"""How long the end of a device may take to acknowledge what it handled."""
SEEN_EVERY_S = 5.0
"""How often the session's queue is acknowledged over a socket."""

_OPEN = {"websocket": open_socket, "events": open_stream, "poll": open_polls}
_CONNECTION_ERRORS = (ClientError, msgspec.DecodeError)


class Device:
    """One session's device, used as an `async with` block.

    - **Sent once.** A message has its `client_id` before the first try, and is sent again, over
      whatever connection there is, until the service acknowledged it as durable or refused it for
      good. A room's messages keep their order. At most OUTBOX_MAX messages wait (`OutboxFull`).
      Cancelling a `send` gives up waiting for it, not the message.
    - **Nothing missed.** A lost connection is made anew with jitter, after `retry_after_ms` where
      the service named it, and resumed at the cursor. A jump of the version leads to a catch-up,
      a hole in a room to a range request.
    - **State.** `state` shows rooms, entries and counts as a fresh fetch would, after each update.

    `way` chooses WebSocket, Server-Sent Events or long polls; over the last two, messages are
    posted. `since` is the cursor of an earlier run (`device.cursor`); without it the session's
    own queue goes on where it was last acknowledged. `inbox_rooms_max` rooms of the inbox are
    loaded at the start. Where coming back is of no use (the session was revoked), every waiting
    call and reader gets the `Problem`.
    """

    def __init__(
        self,
        client: Client,
        *,
        way: Way = "websocket",
        since: str | None = None,
        inbox_rooms_max: int = 100,
        random_0_1: Callable[[], float] = random.random,
    ) -> None:
        self.state = State()
        self.state.cursor = since
        self.connections = 0
        """How many connections were opened so far."""
        self._client = client
        self._way = way
        self._inbox_rooms_max = inbox_rooms_max
        self._random_0_1 = random_0_1
        self._outbox = Outbox(random_0_1)
        self._line: Line | None = None
        self._is_greeted = False
        """The service took this connection: it said something besides what is wrong."""
        self._seen = since
        self._closing_s: float | None = None
        self._needs_mending = asyncio.Event()
        self._readers: WeakSet[Updates] = WeakSet()
        self._changed: set[asyncio.Future[None]] = set()
        self.failure: Exception | None = None
        """What ended the device; None while it lives."""
        self._task: asyncio.Task[None] | None = None

    @property
    def cursor(self) -> str | None:
        """Where to go on from in a later run: everything before it was told."""
        return self.state.cursor

    @property
    def rooms(self) -> dict[str, LocalRoom]:
        """The rooms that the device knows."""
        return self.state.rooms

    @property
    def total(self) -> wire.Total:
        """The counts over all rooms that are not muted."""
        return self.state.total

    @property
    def outbox_size(self) -> int:
        """Messages and read marks without an acknowledgement."""
        return len(self._outbox)

    @property
    def is_connected(self) -> bool:
        """Whether a connection is open now."""
        return self._line is not None

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(START_DEADLINE_S):
            await self._catch_up()
            await self._load_inbox()
        self._task = asyncio.create_task(self._run(), name="tidings device")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._say_seen()
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._fail(Unreachable("the device was closed"))

    # What the owner does

    async def send(
        self,
        room_id: str,
        text: str | None = None,
        *,
        client_id: str | None = None,
        blobs: Sequence[str] = (),
        reply_to: int | None = None,
        mentions: Sequence[str] = (),
    ) -> wire.Entry:
        """Send a message; returns its entry once it is durable.

        Raises `OutboxFull`, or the `Problem` where the service refuses the message for good.
        """
        body = wire.PostMessage(
            client_id or new_client_id(), text, list(blobs), reply_to, list(mentions)
        )
        entry: wire.Entry = await self._put(room_id, body)
        return entry

    async def read(self, room_id: str, seq: int) -> wire.ReadReply:
        """Move the user's read mark forward; returns the counts after it."""
        reply: wire.ReadReply = await self._put(room_id, wire.MarkRead(seq))
        return reply

    async def typing(self, room_id: str) -> None:
        """Tell those who are looking that the user types; lost without a connection."""
        line = self._line
        if line is None:
            return
        if line.can_send:
            with suppress(Unreachable):
                await line.send({"type": "typing", "room_id": room_id})
        else:
            await self._client.typing(room_id)

    async def history(
        self, room_id: str, *, before: int | None = None, limit: int = 50
    ) -> list[wire.Entry]:
        """Fetch older entries of a room into the state; the newest without `before`."""
        reply = await self._client.messages(room_id, before=before, limit=limit)
        self.state.take_history(room_id, reply.items, reply.head)
        return reply.items

    def updates(self) -> Updates:
        """The updates from this call on: entries in order and each once per room."""
        updates = Updates(lambda: self.failure)
        self._readers.add(updates)
        return updates

    def entries(self, room_id: str | None = None) -> AsyncIterator[wire.Entry]:
        """The new entries from this call on, of one room or of all."""
        return entries_of(self.updates(), room_id)

    async def until(self, holds: Callable[[State], bool], *, deadline_s: float = 10.0) -> None:
        """Wait until something holds for the state. Raises TimeoutError past the deadline."""
        async with asyncio.timeout(deadline_s):
            while not holds(self.state):
                if self.failure is not None:
                    raise self.failure
                changed = asyncio.get_running_loop().create_future()
                self._changed.add(changed)
                try:
                    await changed
                finally:
                    self._changed.discard(changed)

    async def settled(self, *, deadline_s: float = 10.0) -> None:
        """Wait until the outbox is empty and nothing is known to be missing."""

        def is_settled(state: State) -> bool:
            is_whole = not (state.has_gap or state.holed_rooms or state.stale_rooms)
            return is_whole and not self._outbox and not self._needs_mending.is_set()

        await self.until(is_settled, deadline_s=deadline_s)

    # The connection

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._stay_connected())
                group.create_task(self._mend())
                if self._way == "websocket":
                    group.create_task(self._acknowledge())
                else:
                    group.create_task(self._post_outbox())
        except* Exception as group:  # noqa: BLE001  # a task root: whoever waits gets to know
            self._fail(_first(group))

    async def _stay_connected(self) -> None:
        backoff = Backoff(
            first_s=RECONNECT_FIRST_S, most_s=RECONNECT_MOST_S, random_0_1=self._random_0_1
        )
        while True:
            wait_s: float | None = None
            self._closing_s = None
            try:
                have = self.state.have(RESUME_ROOMS_MAX)
                async with _OPEN[self._way](self._client, self.state.cursor, have) as line:
                    await self._follow(line, backoff)
            except _CONNECTION_ERRORS as error:
                if is_final(error):
                    raise
                if isinstance(error, Problem) and error.retry_after_s is not None:
                    wait_s = backoff.next_s(at_least_s=error.retry_after_s)
            if self._closing_s is not None:
                wait_s = self._closing_s
            await asyncio.sleep(backoff.next_s() if wait_s is None else wait_s)

    async def _follow(self, line: Line, backoff: Backoff) -> None:
        self._outbox.begin_again()
        self.connections += 1
        self._is_greeted = False
        self._line = line
        sender: asyncio.Task[None] | None = None
        if line.can_send:
            sender = asyncio.create_task(self._send_outbox(line))
        try:
            async for frames in line.frames():
                for frame in frames:
                    if not isinstance(frame, Failed | Closing):
                        backoff.reset()
                        self._is_greeted = True
                    self._receive(frame)
                self._wake()
                if self._closing_s is not None:
                    return
        finally:
            self._line = None
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    def _receive(self, frame: Received) -> None:
        match frame:
            case Ack():
                self._take_acknowledgement(frame)
            case Failed():
                self._take_failure(frame)
            case Closing():
                self._closing_s = frame.retry_after_ms / 1000
            case _:
                for update in self.state.apply(frame):
                    self._tell(update)
                self._look_for_holes()

    def _take_acknowledgement(self, frame: Ack) -> None:
        outgoing = self._outbox.get(frame.ref)
        if outgoing is not None:
            if frame.read is not None:
                self.state.take_read(outgoing.room_id, frame.read)
            self._outbox.answer(outgoing, frame.entry or frame.read)

    def _take_failure(self, frame: Failed) -> None:
        problem = problem_from(frame.problem)
        outgoing = self._outbox.get(frame.ref)
        if outgoing is None:
            if problem.problem_code == "unauthorized" or not self._is_greeted:
                raise problem  # this connection will bring nothing
        elif problem.is_passing:
            self._outbox.hold(problem)
        else:
            self._outbox.refuse(outgoing, problem)

    def _look_for_holes(self) -> None:
        if self.state.has_gap or self.state.holed_rooms or self.state.stale_rooms:
            self._needs_mending.set()

    # The outbox

    async def _put(self, room_id: str, body: wire.PostMessage | wire.MarkRead) -> Any:
        if self.failure is not None:
            raise self.failure
        return await asyncio.shield(self._outbox.put(room_id, body).answer)

    async def _send_outbox(self, line: Line) -> None:
        while True:
            for outgoing in await self._outbox.next():
                outgoing.is_sent = True
                await line.send(outgoing.frame())
                if not outgoing.is_sent:
                    break  # held while this one was handed over

    async def _post_outbox(self) -> None:
        while True:
            for outgoing in await self._outbox.next():
                try:
                    await self._post(outgoing)
                except Unreachable:
                    self._outbox.hold()
                    break
                except Problem as problem:
                    if problem.is_passing:
                        self._outbox.hold(problem)
                        break
                    self._outbox.refuse(outgoing, problem)
                self._wake()

    async def _post(self, outgoing: Outgoing) -> None:
        if isinstance(outgoing.body, wire.PostMessage):
            entry = await self._client.post(outgoing.room_id, outgoing.body)
            self._outbox.answer(outgoing, entry)
        else:
            read = await self._client.read(outgoing.room_id, outgoing.body.seq)
            self.state.take_read(outgoing.room_id, read)
            self._outbox.answer(outgoing, read)

    async def _acknowledge(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            await self._say_seen()

    async def _say_seen(self) -> None:
        line, cursor = self._line, self.state.cursor
        if line is not None and line.can_send and cursor != self._seen:
            with suppress(Unreachable):
                await line.send({"type": "seen", "cursor": cursor})
                self._seen = cursor

    # Catching up

    async def _catch_up(self) -> None:
        """Bring the state to the present."""
        for _ in range(SYNC_ROUNDS_MAX):
            reply = await self._client.sync(
                self.state.cursor, have=self.state.have(RESUME_ROOMS_MAX)
            )
            for update in self.state.apply_sync(reply):
                self._tell(update)
            self._look_for_holes()
            if not reply.more:
                return

    async def _load_inbox(self) -> None:
        """Rooms that nothing happened in lately are at least as new as the badge before them."""
        if self._inbox_rooms_max:
            badge = await self._client.badge()
            async for item in self._client.inbox_items(items_max=self._inbox_rooms_max):
                self.state.take_item(item, badge.version)
            self._look_for_holes()

    async def _mend(self) -> None:
        backoff = Backoff(
            first_s=RECONNECT_FIRST_S, most_s=RECONNECT_MOST_S, random_0_1=self._random_0_1
        )
        while True:
            await self._needs_mending.wait()
            try:
                if self.state.has_gap:
                    await self._catch_up()
                for room in self.state.holed_rooms:
                    await self._fill(room)
                for room in self.state.stale_rooms:
                    await self._fetch_again(room)
            except ClientError as error:
                if isinstance(error, Problem) and error.problem_code == "unauthorized":
                    raise
                await asyncio.sleep(backoff.next_s())
            else:
                backoff.reset()
                self._needs_mending.clear()
                self._look_for_holes()
            self._wake()

    async def _fill(self, room: LocalRoom) -> None:
        """Fetch what is missing of a room, page by page."""
        for _ in range(SYNC_ROUNDS_MAX):
            if not room.has_hole:
                return
            counts_version = room.counts_version
            try:
                reply = await self._client.missing_messages(
                    room.room_id, room.have(), limit=wire.LIST_LIMIT_MAX
                )
            except NotFound:  # the user left meanwhile
                if self.state.set_aside(room, counts_version):
                    return
                continue
            is_all = len(reply.items) < wire.LIST_LIMIT_MAX
            for update in self.state.take_range(
                room.room_id, reply.items, reply.head, is_all=is_all
            ):
                self._tell(update)

    async def _fetch_again(self, room: LocalRoom) -> None:
        """Fetch entries that were edited, deleted or reacted to since they came."""
        seqs = self.state.take_stale(room)
        counts_version = room.counts_version
        try:
            while seqs:
                low, high = ranges(seqs)[0]
                limit = min(high - low + 1, wire.LIST_LIMIT_MAX)
                reply = await self._client.messages(room.room_id, after=low - 1, limit=limit)
                self.state.take_again(room.room_id, reply.items)
                seqs = [seq for seq in seqs if seq > low + limit - 1]
        except NotFound:
            self.state.put_stale_back(room, seqs)
            seqs = []
            self.state.set_aside(room, counts_version)
        finally:
            if seqs and room.room_id in self.state.rooms:
                self.state.put_stale_back(room, seqs)

    # Telling

    def _tell(self, update: Update) -> None:
        for reader in self._readers:
            reader.put(update)

    def _wake(self) -> None:
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)

    def _fail(self, failure: Exception) -> None:
        if self.failure is None:
            self.failure = failure
        self._outbox.refuse_all(self.failure)
        for reader in self._readers:
            reader.wake()
        self._wake()


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
