"""Who waits for what on this node: the updates of commits find the devices of their users."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import msgspec
import structlog

from tidings import wire
from tidings.chat.access import knows_readers
from tidings.chat.updates import UserUpdate, decode_updates, encode_updates
from tidings.cursors import Cursors
from tidings.delivery import frames
from tidings.delivery.audiences import Audience, Poll
from tidings.delivery.bus import Bus, LocalBus
from tidings.delivery.connections import CloseCode, Connection, Outboxes
from tidings.delivery.marked import MarkedRooms
from tidings.delivery.mending import Mend, Mending, Versions
from tidings.delivery.presence import Companions, Presence
from tidings.delivery.queues import complete, seal
from tidings.delivery.whereabouts import Whereabouts
from tidings.errors import Conflict, Forbidden, NotFound, TidingsError, Unauthorized, Unavailable
from tidings.metrics import Metrics
from tidings.people.callers import Caller

USER_CONNECTIONS_MAX = 50
"""Sockets and streams of one user on this node."""
LANE_UPDATES_MAX = 1_000
"""Updates of one user that wait for the inbox row that an earlier one needs."""
BEAT_S = 1.0
CHECK_BEATS = 3
"""Each connection is looked after every so many beats."""
CHECKS_MAX = 16
"""Connections whose callers are checked at the same time."""
ROW_DEADLINE_S = 5.0
DRAIN_S = 2.5
"""How long a planned stop waits for devices to read what was sent to them."""
CLOSE_S = 1.0
RETURNS_PER_S = 500
"""Devices that should come back per second after a planned stop or a refusal."""
RETURN_WINDOW_MS_MIN = 1_000
RETURN_WINDOW_MS_MAX = 60_000

InboxItem: TypeAlias = Callable[[str, str, str], Awaitable[wire.InboxItem]]
"""(workspace, user id, room id) to the user's inbox row. Raises NotFound."""
Authenticate: TypeAlias = Callable[[str], Awaitable[Caller]]
"""A token to its caller. Raises Unauthorized."""

POLL_FRESH_S = 0.5
"""A poll that began so lately is not taken for older than one that another node tells of."""

UPDATES, SIGNAL, APART, ROLES = "updates", "signal", "apart", "roles"
REVOKED, NUDGE, POLLED = "revoked", "nudge", "polled"
"""Topics of the bus."""

_log = structlog.get_logger(__name__)
_pack = msgspec.msgpack.Encoder().encode
_unpack_signal = msgspec.msgpack.Decoder(tuple[str, list[str], str, bytes]).decode
_unpack_apart = msgspec.msgpack.Decoder(tuple[str, list[str], str, bytes, bytes]).decode
_unpack_session = msgspec.msgpack.Decoder(tuple[str, str, str | None]).decode
_unpack_nudge = msgspec.msgpack.Decoder(tuple[str, list[str]]).decode


class Hub:
    """All live connections and waiting polls of this node.

    Updates of one user reach each of their devices in the order of their versions, from whatever
    node they come. What happens here is told to the other nodes over the bus, and what they tell
    to the devices here. Nothing here blocks, or touches the store but in tasks of its own.
    """

    def __init__(
        self,
        cursors: Cursors,
        metrics: Metrics,
        bus: Bus | None = None,
        whereabouts: Whereabouts | None = None,
    ) -> None:
        """Without a bus and whereabouts there are no other nodes."""
        self._cursors = cursors
        self._metrics = metrics
        self._bus = bus or LocalBus()
        self._whereabouts = whereabouts
        self._audiences: dict[str, dict[str, Audience]] = {}
        self._roles: dict[tuple[str, str], set[Connection]] = {}
        self._wheels: list[dict[Connection, None]] = [{} for _ in range(CHECK_BEATS)]
        self._marked = MarkedRooms()
        self._inbox_item: InboxItem | None = None
        self._authenticate: Authenticate | None = None
        self._companions: Companions | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._counter = 0
        self.presence = Presence(self.signal, self._signal_here, self._bus, whereabouts)
        self.outboxes = Outboxes(metrics)
        self.mending = Mending(self._audience, metrics)
        self.is_draining = False
        self._bus.on(UPDATES, self._take_updates)
        self._bus.on(SIGNAL, self._take_signal)
        self._bus.on(APART, self._take_apart)
        self._bus.on(ROLES, self._take_roles)
        self._bus.on(REVOKED, self._take_revoked)
        self._bus.on(NUDGE, self._take_nudge)
        self._bus.on(POLLED, self._take_polled)
        self._bus.on_gap = self._compare_all

    # Life of the hub

    def start(
        self,
        inbox_item: InboxItem,
        companions: Companions,
        authenticate: Authenticate,
        *,
        mend: Mend,
        versions: Versions,
    ) -> None:
        """Begin to look after connections; must be called on the running loop."""
        self._inbox_item = inbox_item
        self._authenticate = authenticate
        self._companions = companions
        self._spawn(self._beat)
        self._spawn(partial(self.presence.run, companions))
        if self._whereabouts is not None:
            self._spawn(self._whereabouts.run)
        self._spawn(partial(self.mending.run_mends, mend))
        self._spawn(partial(self.mending.run_comparisons, versions))

    async def stop(self) -> None:
        """End what the hub runs by itself."""
        self._companions = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(_root(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Who is here

    @property
    def connections(self) -> Iterator[Connection]:
        """All live connections."""
        for wheel in self._wheels:
            yield from wheel

    @property
    def _all_audiences(self) -> Iterator[Audience]:
        for audiences in self._audiences.values():
            yield from audiences.values()

    def _audience(self, workspace: str, user_id: str) -> Audience | None:
        audiences = self._audiences.get(workspace)
        return None if audiences is None else audiences.get(user_id)

    def _join(self, workspace: str, user_id: str) -> Audience:
        audiences = self._audiences.setdefault(workspace, {})
        audience = audiences.get(user_id)
        if audience is None:
            audience = audiences[user_id] = Audience(workspace, user_id)
        return audience

    def _leave(self, audience: Audience) -> None:
        if audience.connections or audience.polls:
            return
        audiences = self._audiences.get(audience.workspace, {})
        if audiences.get(audience.user_id) is audience:
            del audiences[audience.user_id]
            if not audiences:
                del self._audiences[audience.workspace]

    @contextmanager
    def _present(self, caller: Caller) -> Iterator[None]:
        device = (*identity(caller), caller.session_id or "")
        self.presence.come(device)
        try:
            yield
        finally:
            self.presence.go(device, asyncio.get_running_loop().time())

    @contextmanager
    def connected(self, connection: Connection) -> Iterator[bool]:
        """Updates reach the connection within; False if the user has too many of them.

        What is published from the first moment on is told or held.
        """
        workspace, user_id = identity(connection.caller)
        audience = self._join(workspace, user_id)
        if len(audience.connections) >= USER_CONNECTIONS_MAX:
            yield False
            return
        audience.connections.append(connection)
        connection.on_gap = self.mending.ask
        self._enrol(connection)
        self._counter += 1
        wheel = self._wheels[self._counter % CHECK_BEATS]
        wheel[connection] = None
        self._metrics.connected(connection.way)
        try:
            with self._present(connection.caller):
                yield True
        finally:
            self._metrics.disconnected(connection.way)
            del wheel[connection]
            self._dismiss(connection)
            audience.connections.remove(connection)
            self._leave(audience)

    def _enrol(self, connection: Connection) -> None:
        key = (connection.caller.workspace, connection.caller.role or "")
        self._roles.setdefault(key, set()).add(connection)

    def _dismiss(self, connection: Connection) -> None:
        key = (connection.caller.workspace, connection.caller.role or "")
        peers = self._roles[key]
        peers.discard(connection)
        if not peers:
            del self._roles[key]

    @contextmanager
    def polling(self, caller: Caller) -> Iterator[Poll]:
        """A poll of the caller's session that is woken within; it ends an older one."""
        workspace, user_id = identity(caller)
        session_id = caller.session_id or ""
        audience = self._join(workspace, user_id)
        self._end_poll(audience, session_id)
        if self._bus.is_connected:
            self._bus.send(POLLED, _pack((workspace, user_id, session_id)))
        poll = audience.polls[session_id] = Poll()
        self._metrics.connected("poll")
        try:
            with self._present(caller):
                yield poll
        finally:
            self._metrics.disconnected("poll")
            if audience.polls.get(session_id) is poll:
                del audience.polls[session_id]
            self._leave(audience)

    def _end_poll(self, audience: Audience, session_id: str) -> None:
        older = audience.polls.get(session_id)
        if older is not None:
            older.end(Conflict("A newer poll of this session took over."))

    def _take_polled(self, body: bytes) -> None:
        workspace, user_id, session_id = _unpack_session(body)
        audience = self._audience(workspace, user_id)
        poll = None if audience is None else audience.polls.get(session_id or "")
        if audience is not None and poll is not None and poll.age_s > POLL_FRESH_S:
            self._end_poll(audience, session_id or "")

    # What happens

    def publish(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        """Tell the devices of each user what a commit changed (`chat.updates.Publish`)."""
        self._deliver(workspace, updates)
        if self._bus.is_connected and updates:
            self._bus.send(UPDATES, encode_updates(workspace, updates))

    def _take_updates(self, body: bytes) -> None:
        self._deliver(*decode_updates(body))

    def _deliver(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        audiences = self._audiences.get(workspace)
        for update in updates:
            has_marks = has_row_changed = False
            for room in update.rooms:
                if room.is_row_changed:
                    has_row_changed = True
                if room.is_read_moved or room.is_row_changed:
                    has_marks = True
            if has_marks:
                self._marked.note(workspace, update)
            audience = None if audiences is None else audiences.get(update.user_id)
            if audience is None:
                continue
            for poll in audience.polls.values():
                poll.wake()
            if not audience.connections:
                continue
            if audience.lane is not None:
                if len(audience.lane) < LANE_UPDATES_MAX:
                    audience.lane.append(update)
                else:
                    audience.send_behind()
            elif has_row_changed:
                lane = audience.lane = deque((update,))
                self._spawn(partial(self._run_lane, audience, lane))
            else:
                self._tell(audience, update, {})

    def _tell(self, audience: Audience, update: UserUpdate, room_items: dict[str, bytes]) -> None:
        workspace, user_id, version = audience.workspace, audience.user_id, update.version
        previous = audience.cursor
        if audience.version != version - 1 or not previous:
            previous = seal(self._cursors, workspace, user_id, complete(version - 1))
        cursor = seal(self._cursors, workspace, user_id, complete(version))
        audience.version, audience.cursor = version, cursor
        told = frames.Told(update, previous_cursor=previous, cursor=cursor, room_items=room_items)
        for connection in tuple(audience.connections):
            connection.tell(told)

    async def _run_lane(self, audience: Audience, lane: deque[UserUpdate]) -> None:
        """Tell updates in their order, each with the inbox rows that it needs."""
        try:
            while lane:
                update = lane[0]
                items: dict[str, bytes] = {}
                for room in update.rooms:
                    if room.is_row_changed:
                        item = await self._read_row(audience, room.room_id)
                        if item is not None:
                            items[room.room_id] = frames.encode(item)
                lane.popleft()
                self._tell(audience, update, items)
        except (TidingsError, TimeoutError) as error:
            _log.warning("inbox row not read", error=str(error))
            audience.send_behind()
        finally:
            audience.lane = None

    async def _read_row(self, audience: Audience, room_id: str) -> wire.InboxItem | None:
        if self._inbox_item is None:
            return None
        try:
            async with asyncio.timeout(ROW_DEADLINE_S):
                return await self._inbox_item(audience.workspace, audience.user_id, room_id)
        except NotFound:
            return None

    def marked_rooms(self, workspace: str, user_id: str, since_version: int) -> list[str]:
        """Rooms whose read mark or row is known to have moved after that version.

        A hint that may be incomplete: the list of unread rooms tells the whole truth.
        """
        return self._marked.since(workspace, user_id, since_version)

    def nudge(self, workspace: str, user_ids: Sequence[str]) -> None:
        """See on all nodes whether these users have versions that nobody told them of."""
        self.mending.compare(workspace, user_ids)
        if self._bus.is_connected:
            self._bus.send(NUDGE, _pack((workspace, user_ids)))

    def _take_nudge(self, body: bytes) -> None:
        self.mending.compare(*_unpack_nudge(body))

    def on_node_gone(self, node_id: str) -> None:
        """Another node is gone: what it did last it may not have told."""
        self._compare_all()
        if self._companions is not None:
            self._spawn(partial(self.presence.tell_gone, node_id, self._companions))

    def _compare_all(self) -> None:
        self.mending.compare_all(self._all_audiences, is_exact=True)

    def signal(self, workspace: str, user_ids: Sequence[str], frame: dict[str, object]) -> None:
        """Send a frame that is not stored to users' devices (`chat.updates.Signal`)."""
        name, encoded = str(frame["type"]), frames.encode(frame)
        self._put(workspace, user_ids, name, encoded)
        if self._bus.is_connected:
            self._bus.send(SIGNAL, _pack((workspace, user_ids, name, encoded)))

    def _signal_here(
        self, workspace: str, user_ids: Sequence[str], frame: dict[str, object]
    ) -> None:
        self._put(workspace, user_ids, str(frame["type"]), frames.encode(frame))

    def _take_signal(self, body: bytes) -> None:
        self._put(*_unpack_signal(body))

    def _put(
        self,
        workspace: str,
        user_ids: Sequence[str],
        name: str,
        whole: bytes,
        less: bytes | None = None,
    ) -> None:
        less = whole if less is None else less
        audiences = self._audiences.get(workspace, {})
        for user_id in user_ids:
            audience = audiences.get(user_id)
            if audience is not None:
                for connection in tuple(audience.connections):
                    connection.put(name, whole if knows_readers(connection.caller) else less)

    def signal_apart(
        self,
        workspace: str,
        user_ids: Sequence[str],
        frame: dict[str, object],
        customers_frame: dict[str, object],
    ) -> None:
        """The same, with less for customers (`chat.updates.SignalApart`)."""
        name, whole, less = str(frame["type"]), frames.encode(frame), frames.encode(customers_frame)
        self._put(workspace, user_ids, name, whole, less)
        if self._bus.is_connected:
            self._bus.send(APART, _pack((workspace, user_ids, name, whole, less)))

    def _take_apart(self, body: bytes) -> None:
        self._put(*_unpack_apart(body))

    def signal_role(self, workspace: str, roles: Collection[str], frame: dict[str, object]) -> None:
        """Send a frame that is not stored to every device of a workspace's users of the roles."""
        name, encoded = str(frame["type"]), frames.encode(frame)
        self._put_for_roles(workspace, roles, name, encoded)
        if self._bus.is_connected:
            self._bus.send(ROLES, _pack((workspace, list(roles), name, encoded)))

    def _take_roles(self, body: bytes) -> None:
        self._put_for_roles(*_unpack_signal(body))

    def _put_for_roles(
        self, workspace: str, roles: Collection[str], name: str, encoded: bytes
    ) -> None:
        for role in roles:
            for connection in tuple(self._roles.get((workspace, role), ())):
                connection.put(name, encoded)

    def on_revoked(self, workspace: str, user_id: str, session_id: str | None) -> None:
        """End the connections and polls of a session, or of all sessions of a user, with 4401."""
        self._revoke(workspace, user_id, session_id)
        if self._bus.is_connected:
            self._bus.send(REVOKED, _pack((workspace, user_id, session_id)))

    def _take_revoked(self, body: bytes) -> None:
        self._revoke(*_unpack_session(body))

    def _revoke(self, workspace: str, user_id: str, session_id: str | None) -> None:
        audience = self._audience(workspace, user_id)
        if audience is None:
            return
        for connection in tuple(audience.connections):
            if session_id in (None, connection.caller.session_id):
                connection.close(CloseCode.UNAUTHORIZED, "signed out")
        for polled, poll in tuple(audience.polls.items()):
            if session_id in (None, polled):
                poll.end(Unauthorized())

    # Looking after connections

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        beat = 0
        while True:
            await asyncio.sleep(BEAT_S)
            beat += 1
            now_s = loop.time()
            self.presence.look(now_s)
            is_heard = self._bus.is_connected or not self.presence.is_shared
            if self.mending.is_sweep_due(now_s, is_heard=is_heard):
                self.mending.compare_all(self._all_audiences, is_exact=False)
            wheel = self._wheels[beat % CHECK_BEATS]
            waiting = iter(tuple(wheel))
            async with asyncio.TaskGroup() as group:
                for _ in range(min(CHECKS_MAX, len(wheel))):
                    group.create_task(self._check_each(waiting, wheel))

    async def _check_each(
        self, waiting: Iterator[Connection], wheel: dict[Connection, None]
    ) -> None:
        now_s = asyncio.get_running_loop().time
        for connection in waiting:
            if connection in wheel and connection.beat(now_s()):
                await self._check(connection, wheel)

    async def _check(self, connection: Connection, wheel: dict[Connection, None]) -> None:
        """Whether the caller still is who they were: revoked elsewhere, expired, another role."""
        if connection.token is None or self._authenticate is None:
            return
        try:
            caller = await self._authenticate(connection.token)
        except Unauthorized:
            connection.close(CloseCode.UNAUTHORIZED, "signed out")
            return
        except TidingsError:
            return  # the store can't answer just now; the next check will tell
        if caller != connection.caller and connection in wheel:
            self._dismiss(connection)
            connection.caller = caller
            self._enrol(connection)

    def retry_after_ms(self) -> int:
        """When a device that is sent away should come back: spread over a fitting window."""
        waiting = sum(len(wheel) for wheel in self._wheels)
        window_ms = min(
            max(waiting * 1000 // RETURNS_PER_S, RETURN_WINDOW_MS_MIN), RETURN_WINDOW_MS_MAX
        )
        return secrets.randbelow(window_ms)

    def refuse_when_draining(self) -> None:
        """Raises Unavailable once the node is being stopped."""
        if self.is_draining:
            raise Unavailable("The service is being restarted.", retry_after_s=1.0)

    async def drain(self) -> None:
        """Send everybody away: each is told when to come back, gets what is due, and is closed.

        Ends within DRAIN_S + CLOSE_S, whatever the devices do.
        """
        self.is_draining = True
        for connection in tuple(self.connections):
            connection.put("closing", frames.closing(self.retry_after_ms()))
        for audience in self._all_audiences:
            for poll in audience.polls.values():
                poll.wake()
        await self._until(lambda: all(one.is_settled for one in self.connections), DRAIN_S)
        for connection in tuple(self.connections):
            connection.close(CloseCode.GOING_AWAY, "come back later")
        await self._until(lambda: not self._audiences, CLOSE_S)

    async def _until(self, is_reached: Callable[[], bool], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while not is_reached() and loop.time() < deadline_s:  # noqa: ASYNC110 - buffers
            await asyncio.sleep(0.02)


def identity(caller: Caller) -> tuple[str, str]:
    """(workspace, user id) of a session's caller. Raises Forbidden for others."""
    if caller.user_id is None:
        raise Forbidden("Only sessions have a queue.")
    return caller.workspace, caller.user_id


async def _root(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except Exception:  # noqa: BLE001 - the root of a task
        _log.exception("a task of the hub failed")
