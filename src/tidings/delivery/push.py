"""Pushes: devices that are not connected hear of messages, and of what was read elsewhere.

The node that made a commit pushes it, so that it is done once. A moment later, for what comes
together, is told together, and who is connected by then needs no push. With each push it is stored
what the device was told; what a node that died did not get to is found by that, and told by
another: at least once, and the topic makes a second push take the place of the first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

import msgspec
import structlog

from tidings import wire
from tidings.chat.rows import BadgeRow, badge_from_item
from tidings.chat.updates import UserUpdate
from tidings.cursors import Cursors
from tidings.delivery import queues
from tidings.delivery.bus import Bus
from tidings.delivery.push_notices import (
    badge_notice,
    message_in,
    message_notice,
    read_notice,
)
from tidings.delivery.push_senders import (
    Gone,
    Notice,
    Refused,
    Sender,
    Subscription,
    TryLater,
)
from tidings.delivery.whereabouts import Device
from tidings.errors import Forbidden, NotFound, TidingsError, ValidationFailed
from tidings.metrics import Metrics
from tidings.people.callers import Caller
from tidings.people.rows import session_from_item
from tidings.storage.interface import (
    Check,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    Position,
    Put,
    Store,
    Update,
)
from tidings.storage.metered import unmetered
from tidings.storage.tables import BADGES, PUSHES, SESSIONS, user_key

PAUSE_S = 1.0
"""How long what comes for a user is gathered, and connected devices may read it."""
USERS_WAITING_MAX = 20_000
"""Users with something to push; of more, only a sweep finds out."""
ROOMS_MAX = 10
"""Rooms of one user that are pushed at one time; the badge number holds all of them."""
USERS_TOGETHER_MAX = 64
"""Users who are seen to at the same time."""
DEADLINE_S = 120.0
"""For one user, all attempts included."""
ATTEMPTS_MAX = 4
RETRY_FIRST_S = 0.5
RETRY_S_MAX = 30.0
NOBODY_LIFE_S = 300.0
"""How long it is believed that a user has no subscription, should the bus not say otherwise."""
NOBODIES_MAX = 100_000
ROW_LIFE_S = 60 * 24 * 3_600
"""A subscription that nothing was sent to for so long is forgotten; browsers renew theirs."""
SWEEP_USERS_MAX = 5_000
"""Subscriptions that one sweep finds something for."""
LEASE = "pushes"
CHANGED = "push"
"""Topic of the bus: a user has subscribed."""

_User: TypeAlias = tuple[str, str]
OnlineSessions: TypeAlias = Callable[[str, str], Awaitable[set[str]]]
"""(workspace, user id): the ids of the user's sessions that are connected to any node."""
NameOf: TypeAlias = Callable[[str, str], Awaitable[str | None]]
"""(workspace, user id): what the user is called."""

_log = structlog.get_logger(__name__)
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[str, str]).decode


class Once(Protocol):
    """Work that one node at a time does (`cluster.leases.Leases`)."""

    async def hold(self, name: str) -> Any:
        """Something where this node may do it; None where another one does."""
        ...

    async def release(self, name: str) -> None:
        """Let others have it."""
        ...


class _Noted(msgspec.Struct):
    """What waits to be pushed to one user."""

    due_s: float
    rooms: dict[str, wire.Entry | None] = {}
    """The newest message in each room; None where the room was read, or left."""
    disconnected: set[str] = set()
    """Sessions that were connected, and may not have got what was last told them."""


class Pushes:
    """Looks after subscriptions, and pushes."""

    def __init__(
        self,
        store: Store,
        cursors: Cursors,
        metrics: Metrics,
        bus: Bus,
        senders: Mapping[str, Sender],
        once: Once,
        *,
        now_s: Callable[[], float],
        online_sessions: OnlineSessions,
        name_of: NameOf,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`senders` are by the kind of subscription; `now_s` is in seconds since 1970."""
        self._store = store
        self._cursors = cursors
        self._metrics = metrics
        self._bus = bus
        self._senders = senders
        self._once = once
        self._now_s = now_s
        self._online_sessions = online_sessions
        self._name_of = name_of
        self._monotonic = monotonic
        self._noted: OrderedDict[_User, _Noted] = OrderedDict()
        self._nobodies: OrderedDict[_User, float] = OrderedDict()
        """Users without a subscription, until when that is believed."""
        self._has_noted = asyncio.Event()
        self._is_sweep_due = asyncio.Event()
        self._slots = asyncio.Semaphore(USERS_TOGETHER_MAX)
        self._busy: set[_User] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        bus.on(CHANGED, self._take_changed)

    # Subscriptions

    async def subscribe(self, caller: Caller, session_id: str, body: wire.PushSubscription) -> None:
        """Push to one of the caller's own sessions from now on, in place of where it was before.

        Raises Forbidden, NotFound, ValidationFailed.
        """
        user = _own(caller)
        sender = self._senders.get(body.kind)
        if sender is None:
            raise NotFound("This service does not push.")
        sender.check(body)
        key = user_key(*user)
        badge = badge_from_item(await self._store.get(BADGES, (key,)))
        row: Item = {
            "user": key,
            "session_id": session_id,
            "kind": body.kind,
            "endpoint": body.endpoint,
            "keys": {"p256dh": body.keys.p256dh, "auth": body.keys.auth},
            "told_version": badge.version,
            "told_unread": badge.unread,
            "expires_at": int(self._now_s()) + ROW_LIFE_S,
        }
        there = Check(SESSIONS, (key, session_id), when=(Exists(),))
        try:
            await self._store.write(there, Put(PUSHES, row))
        except ConditionFailed:
            raise NotFound("There is no such session.") from None
        self._nobodies.pop(user, None)
        if self._bus.is_connected:
            self._bus.send(CHANGED, _pack(user))

    async def unsubscribe(self, caller: Caller, session_id: str) -> None:
        """Push there no more. Raises Forbidden; NotFound where nothing is pushed."""
        key = (user_key(*_own(caller)), session_id)
        try:
            await self._store.write(Delete(PUSHES, key, when=(Exists(),)))
        except ConditionFailed:
            raise NotFound("There is no subscription of this session.") from None

    def on_revoked(self, workspace: str, user_id: str, session_id: str | None) -> None:
        """A session has ended, or all of a user's: nothing is kept of where they were."""
        if (workspace, user_id) not in self._nobodies:
            with unmetered():
                self._spawn(self._forget(workspace, user_id, session_id))

    async def _forget(self, workspace: str, user_id: str, session_id: str | None) -> None:
        key = user_key(workspace, user_id)
        with suppress(TidingsError):  # what stays is found to have no session
            for item in (await self._store.query(PUSHES, key)).items:
                if session_id in (None, item["session_id"]):
                    await self._store.write(Delete(PUSHES, (key, item["session_id"])))

    def _take_changed(self, body: bytes) -> None:
        self._nobodies.pop(_unpack(body), None)

    # What happens

    def note(self, workspace: str, updates: Sequence[UserUpdate]) -> None:
        """A commit of this node changed something (`chat.updates.Publish`). Never blocks."""
        if not self._senders:
            return
        for update in updates:
            user = (workspace, update.user_id)
            if self._is_nobody(user):
                continue
            for room in update.rooms:
                message = message_in(room, update.user_id)
                if message is not None or room.is_read_moved or room.is_left:
                    self._note(user, room.room_id, message)

    def on_disconnected(self, device: Device) -> None:
        """A device was connected to this node and is no more (`Presence.on_gone`).

        A connection that broke may have looked whole for a while: what was sent into it then, and
        not acknowledged, is pushed.
        """
        workspace, user_id, session_id = device
        user = (workspace, user_id)
        if self._senders and not self._is_nobody(user):
            noted = self._waiting(user)
            if noted is not None:
                noted.disconnected.add(session_id)

    def _is_nobody(self, user: _User) -> bool:
        believed_until_s = self._nobodies.get(user)
        return believed_until_s is not None and believed_until_s > self._monotonic()

    def _waiting(self, user: _User) -> _Noted | None:
        """What waits for the user; None where too many wait."""
        noted = self._noted.get(user)
        if noted is None and len(self._noted) < USERS_WAITING_MAX:
            noted = self._noted[user] = _Noted(self._monotonic() + PAUSE_S)
            self._has_noted.set()
        return noted

    def _note(self, user: _User, room_id: str, message: wire.Entry | None) -> None:
        noted = self._waiting(user)
        if noted is None:
            return
        noted.rooms.pop(room_id, None)
        noted.rooms[room_id] = message
        if len(noted.rooms) > ROOMS_MAX:
            del noted.rooms[next(iter(noted.rooms))]

    # Life

    def start(self) -> None:
        """Push from now on, and look for what a node that died did not."""
        if self._senders:
            with unmetered():
                self._spawn(self._keep_pushing())
                self._spawn(self._keep_sweeping())
            self.sweep_soon()

    async def stop(self) -> None:
        """Break off; what was not told is found by the next start."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sender in self._senders.values():
            await sender.close()

    def sweep_soon(self, node_id: str = "") -> None:
        """A node may have died before it pushed what it had to."""
        self._is_sweep_due.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_pushing(self) -> None:
        while True:
            await self._has_noted.wait()
            user = next((each for each in self._noted if each not in self._busy), None)
            if user is None:
                self._has_noted.clear()  # set again by the next one, or by who is done
                continue
            await asyncio.sleep(self._noted[user].due_s - self._monotonic())
            await self._slots.acquire()
            self._busy.add(user)
            self._spawn(self._see_to(user, self._noted.pop(user)))

    async def _see_to(self, user: _User, noted: _Noted) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._tell(user, noted)
        except TimeoutError:
            _log.warning("push_took_too_long")
        except TidingsError as error:
            _log.warning("push_broken_off", detail=error.detail)
        except Exception:  # noqa: BLE001  # the root of a task
            self._metrics.unexpected("push")
            _log.exception("unexpected", place="push")
        finally:
            self._busy.discard(user)
            self._slots.release()
            if self._noted:
                self._has_noted.set()

    # Pushing

    async def _tell(self, user: _User, noted: _Noted) -> None:
        """Tell those of a user's devices that are subscribed and connected nowhere."""
        subscriptions = await self._subscriptions(user)
        if not subscriptions:
            self._nobodies[user] = self._monotonic() + NOBODY_LIFE_S
            while len(self._nobodies) > NOBODIES_MAX:
                self._nobodies.popitem(last=False)
            return
        online = await self._online_sessions(*user)
        away = [each for each in subscriptions if each.session_id not in online]
        away = await self._still_signed_in(away)
        if not away:
            return
        if not noted.rooms:
            lost = [each for each in away if each.session_id in noted.disconnected]
            await asyncio.gather(*map(self._catch_up, lost))
            return
        badge = badge_from_item(await self._store.get(BADGES, (user_key(*user),)))
        notices: list[Notice] = []
        for room_id, message in noted.rooms.items():
            if message is not None and badge.unread:
                name = await self._name_of(user[0], message.sender_id or "")
                notices.append(message_notice(message, name, badge))
            else:
                notices.append(read_notice(room_id, badge))
        await asyncio.gather(*(self._tell_device(each, notices, badge) for each in away))

    async def _tell_device(
        self, subscription: Subscription, notices: Sequence[Notice], badge: BadgeRow
    ) -> None:
        """Send what concerns the device, and remember what it was told."""
        # What was read elsewhere is of use to a device that shows more than there is.
        is_showing_more = subscription.told_unread > badge.unread
        wanted = [each for each in notices if each.is_urgent or is_showing_more]
        sent = [await self._send(subscription, each) for each in wanted]
        if any(sent):
            fields = {
                "told_version": badge.version,
                "told_unread": badge.unread,
                "expires_at": int(self._now_s()) + ROW_LIFE_S,
            }
            await self._change(subscription, fields)

    async def _send(self, subscription: Subscription, notice: Notice) -> bool:
        """Whether the push service took it, after some attempts."""
        sender = self._senders.get(subscription.kind)
        if sender is None:
            return False
        for attempt in range(ATTEMPTS_MAX):
            try:
                await sender.send(subscription, notice)
            except Gone:
                self._metrics.pushed(subscription.kind, "gone")
                await self._change(subscription, None)
                return False
            except Refused as error:
                self._metrics.pushed(subscription.kind, "refused")
                _log.warning("push_refused", reason=str(error))
                return False
            except TryLater as error:
                self._metrics.pushed(subscription.kind, "retried")
                most_s = min(RETRY_S_MAX, RETRY_FIRST_S * 2**attempt)
                pause_s = error.retry_after_s + random.uniform(0, most_s)  # noqa: S311
                _log.info("push_retried", attempt=attempt + 1, reason=str(error))
                if attempt + 1 < ATTEMPTS_MAX:
                    await asyncio.sleep(pause_s)
            else:
                self._metrics.pushed(subscription.kind, "sent")
                return True
        self._metrics.pushed(subscription.kind, "failed")
        return False

    async def _change(self, subscription: Subscription, fields: Item | None) -> None:
        """Change the subscription, or forget it, unless it is another one by now."""
        key = (user_key(subscription.workspace, subscription.user_id), subscription.session_id)
        seen = (Equals("endpoint", subscription.endpoint),)
        with suppress(ConditionFailed):
            if fields is None:
                await self._store.write(Delete(PUSHES, key, when=seen))
            else:
                await self._store.write(Update(PUSHES, key, set=fields, when=seen))

    async def _subscriptions(self, user: _User) -> list[Subscription]:
        page = await self._store.query(PUSHES, user_key(*user), consistent=False)
        return [_subscription(item) for item in page.items]

    async def _still_signed_in(self, away: Sequence[Subscription]) -> list[Subscription]:
        """Those whose sessions are there; the others are forgotten."""
        keys = [(user_key(each.workspace, each.user_id), each.session_id) for each in away]
        found = await self._store.get_many(SESSIONS, keys) if keys else []
        for subscription, session in zip(away, found, strict=True):
            if session is None:
                await self._change(subscription, None)
        return [each for each, session in zip(away, found, strict=True) if session is not None]

    # What nodes that died did not push, and what connections that broke did not bring

    async def _keep_sweeping(self) -> None:
        while True:
            await self._is_sweep_due.wait()
            self._is_sweep_due.clear()
            try:
                if await self._once.hold(LEASE) is not None:
                    try:
                        await self.sweep()
                    finally:
                        await self._once.release(LEASE)
            except TidingsError as error:
                _log.warning("push_sweep_broken_off", detail=error.detail)
            except Exception:  # noqa: BLE001  # the root of a task
                self._metrics.unexpected("push")
                _log.exception("unexpected", place="push")

    async def sweep(self) -> int:
        """Tell devices whose badge is another one than they were told, and that don't know it
        from having been connected; how many.
        """
        told = 0
        after: Position | None = None
        while told < SWEEP_USERS_MAX:
            page = await self._store.scan(PUSHES, after=after)
            for item in page.items:
                told += await self._catch_up(_subscription(item))
            after = page.after
            if after is None:
                break
        return told

    async def _catch_up(self, subscription: Subscription) -> bool:
        user = (subscription.workspace, subscription.user_id)
        key = user_key(*user)
        badge = badge_from_item(await self._store.get(BADGES, (key,)))
        if badge.version <= subscription.told_version or badge.unread == subscription.told_unread:
            return False
        session = await self._store.get(SESSIONS, (key, subscription.session_id))
        if session is None:
            await self._change(subscription, None)
            return False
        if self._acknowledged(user, session) >= badge.version:
            return False
        if subscription.session_id in await self._online_sessions(*user):
            return False
        notice = badge_notice(badge, is_urgent=badge.unread > subscription.told_unread)
        await self._tell_device(subscription, [notice], badge)
        return True

    def _acknowledged(self, user: _User, session: Item) -> int:
        """The version up to which the device knows."""
        cursor = session_from_item(session).cursor
        if cursor is None:
            return 0
        try:
            return queues.unseal(self._cursors, *user, cursor).version
        except ValidationFailed:
            return 0


def _own(caller: Caller) -> _User:
    if caller.user_id is None or caller.session_id is None:
        raise Forbidden("Only a session has devices.")
    return caller.workspace, caller.user_id


def _subscription(item: Item) -> Subscription:
    workspace, _, user_id = item["user"].partition("#")
    return Subscription(
        workspace=workspace,
        user_id=user_id,
        session_id=item["session_id"],
        kind=item["kind"],
        endpoint=item["endpoint"],
        keys=item["keys"],
        told_version=item["told_version"],
        told_unread=item["told_unread"],
    )
