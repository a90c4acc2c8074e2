"""The bus over Redis or Valkey: one pub/sub channel for all nodes of a store.

What waits at one moment leaves in one packet. Packets are numbered per node and hear themselves
come back, so a lost one, a broken connection and a server that hangs all show within seconds.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tidings.delivery.bus import Handler
from tidings.metrics import Metrics

QUEUE_BYTES_MAX = 8 * 1024 * 1024
"""Bytes that may wait to be sent; what comes beyond them is dropped."""
PACKET_BYTES_MAX = 512 * 1024
"""Bytes after which a packet takes no further message; a single message may be larger."""
BEAT_S = 1.0
"""A node that has nothing to say sends an empty packet this often."""
SILENT_S = 3.5
"""A server, or another node, that was not heard for so long is gone."""
CALL_TIMEOUT_S = 2.0
"""For each call to the server, connecting included."""
RECONNECT_S_MAX = 2.0
"""Longest pause before the next attempt to connect; the first are shorter."""
RECONNECT_FIRST_S = 0.1
START_S_MAX = 1.0
"""How long a start waits for the first connection; the node works without it."""
STOP_S_MAX = 0.5
"""How long a stop waits for what is still to be sent."""
PEERS_MAX = 1_000
"""Other nodes whose packets are counted."""

_FORMAT = "1"
"""Nodes whose packets differ have channels of their own, and so do not hear one another."""
_FAILURES = (RedisError, OSError, TimeoutError)

_log = structlog.get_logger(__name__)


class _Packet(msgspec.Struct, array_like=True, frozen=True):
    """Messages in order; `after` less `first` is more than their number if some were dropped."""

    first: int
    after: int
    messages: list[tuple[str, bytes]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packet).decode


class _Peer:
    """What was heard of another node: the number of its next message, and when that was known."""

    __slots__ = ("heard_at_s", "next_number")

    def __init__(self, next_number: int, heard_at_s: float) -> None:
        self.next_number = next_number
        self.heard_at_s = heard_at_s


class RedisBus:
    """Messages between nodes by pub/sub; see `delivery.bus.Bus`.

    `on_gap` is called after every connecting, when a packet of another node is missing, and when
    another node falls silent, for what it did last it may not have told.
    """

    def __init__(self, url: str, *, channel: str, node_id: str, metrics: Metrics) -> None:
        """`channel` is the same for all nodes of one store. Raises ValueError for a wrong URL."""
        self.on_gap: Callable[[], None] | None = None
        self._url = url
        self._channel = f"tidings:{_FORMAT}:{channel}"
        self._sender = node_id.encode() + b"#"
        self._metrics = metrics
        self._handlers: dict[str, Handler] = {}
        self._queue: deque[tuple[str, bytes]] = deque()
        self._queue_bytes = 0
        self._number = 0
        """Of the next message: counts all that were to be sent."""
        self._packed = 0
        """The number at which the next packet begins."""
        self._peers: dict[bytes, _Peer] = {}
        self._has_messages = asyncio.Event()
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        parse_url(url)  # refuses a wrong one

    def _client(self) -> Redis:
        client: Redis = Redis.from_url(
            self._url,
            protocol=2,
            socket_timeout=CALL_TIMEOUT_S,
            socket_connect_timeout=CALL_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        return client

    @property
    def is_connected(self) -> bool:
        """Whether packets of our own came back lately."""
        return self._connected.is_set()

    def on(self, topic: str, handler: Handler) -> None:
        """Let the handler have other nodes' messages of the topic."""
        self._handlers[topic] = handler

    def send(self, topic: str, body: bytes) -> None:
        """Send soon, or drop it where there is no connection or too much waits."""
        self._number += 1
        if not self.is_connected or self._queue_bytes + len(body) > QUEUE_BYTES_MAX:
            self._metrics.bus("dropped", 1)
            return
        self._queue.append((topic, body))
        self._queue_bytes += len(body)
        self._has_messages.set()

    async def start(self) -> None:
        """Connect, and connect again whenever that is lost; waits START_S_MAX for the first."""
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(START_S_MAX):
                await self._connected.wait()
        except TimeoutError:
            _log.warning("bus_not_connected")

    async def stop(self) -> None:
        """Send what waits, for a moment, and end."""
        if self._task is None:
            return
        deadline_s = asyncio.get_running_loop().time() + STOP_S_MAX
        while self._queue and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._is_stopping = True
        self._task.cancel()
        await asyncio.wait([self._task], timeout=STOP_S_MAX)

    async def _run(self) -> None:
        failures = 0
        while not self._is_stopping:
            try:
                await self._stay_connected()
            except* _FAILURES as group:
                if self.is_connected or not failures:
                    _log.warning("bus_lost", error=repr(_first(group)))
                failures = 0 if self.is_connected else failures + 1
            except* Exception:  # noqa: BLE001  # the root of a task
                _log.exception("unexpected", place="bus")
                self._metrics.unexpected("bus")
                failures += 1
            finally:
                self._disconnect()
            pause_s = min(RECONNECT_S_MAX, RECONNECT_FIRST_S * 2**failures)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311

    def _disconnect(self) -> None:
        """Forget what waits. The numbers tell the others, once they hear of us again."""
        self._connected.clear()
        self._metrics.bus("dropped", len(self._queue))
        self._queue.clear()
        self._queue_bytes = 0
        self._number += 1
        self._peers.clear()

    async def _stay_connected(self) -> None:
        client = self._client()
        subscription = client.pubsub()
        try:
            await subscription.subscribe(self._channel)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(subscription))
                group.create_task(self._send(client))
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call]
            await client.aclose()

    async def _send(self, client: Redis) -> None:
        while not _is_ending():
            packet = self._pack()
            await self._publish(client, self._sender + _encode(packet))
            self._metrics.bus("sent", len(packet.messages))
            if not self._queue:
                self._has_messages.clear()
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._has_messages.wait()
                except TimeoutError:
                    continue

    async def _publish(self, client: Redis, packet: bytes) -> None:
        """Raises one of _FAILURES, also for a connection that was reset before it is written to:
        event loops call that by names of their own (redis-py #4287, uvloop #506).
        """
        try:
            await client.publish(self._channel, packet)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ConnectionResetError("the connection was lost before the packet") from error

    def _pack(self) -> _Packet:
        messages: list[tuple[str, bytes]] = []
        size = 0
        while self._queue and size < PACKET_BYTES_MAX:
            message = self._queue.popleft()
            messages.append(message)
            size += len(message[1])
        self._queue_bytes -= size
        first = self._packed
        self._packed = self._number - len(self._queue)
        return _Packet(first, self._packed, messages)

    async def _receive(self, subscription: PubSub) -> None:
        clock_s = asyncio.get_running_loop().time
        heard_at_s = clock_s()
        while not _is_ending():
            message = await subscription.get_message(
                ignore_subscribe_messages=True, timeout=SILENT_S
            )
            now_s = clock_s()
            if message is not None:
                sender, _, body = message["data"].partition(b"#")
                if message["data"].startswith(self._sender):
                    heard_at_s = now_s
                    self._connect()
                else:
                    self._take(sender, body, now_s)
            if now_s - heard_at_s > SILENT_S:
                raise TimeoutError("the server is silent")
            self._look_for_silent_peers(now_s)

    def _connect(self) -> None:
        """A packet of our own came back."""
        if not self.is_connected:
            self._connected.set()
            _log.info("bus_connected")
            self._tell_gap()

    def _tell_gap(self) -> None:
        self._metrics.bus_gap()
        if self.on_gap is not None:
            self.on_gap()

    def _take(self, sender: bytes, body: bytes, now_s: float) -> None:
        try:
            packet = _decode(body)
        except msgspec.DecodeError as error:
            _log.warning("bus_packet_not_read", error=str(error))
            return
        peer = self._peers.get(sender)
        is_whole = packet.after - packet.first == len(packet.messages)
        if peer is None:
            if len(self._peers) < PEERS_MAX:
                self._peers[sender] = _Peer(packet.after, now_s)
        else:
            is_whole = is_whole and packet.first == peer.next_number
            peer.next_number = packet.after
            peer.heard_at_s = now_s
        self._metrics.bus("received", len(packet.messages))
        for topic, message in packet.messages:
            handler = self._handlers.get(topic)
            if handler is not None:
                try:
                    handler(message)
                except msgspec.DecodeError as error:
                    _log.warning("bus_message_not_read", topic=topic, error=str(error))
        if not is_whole:
            self._tell_gap()

    def _look_for_silent_peers(self, now_s: float) -> None:
        silent = [s for s, peer in self._peers.items() if now_s - peer.heard_at_s > SILENT_S]
        for sender in silent:
            del self._peers[sender]
        if silent:
            self._tell_gap()


def _is_ending() -> bool:
    """Whether this task was cancelled: a call to the server that ends at the same moment hides it
    (`asyncio.wait_for` of Python 3.11).
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
