"""Loads over WebSockets: devices that keep so many messages in flight and check what they get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from tidings.bench.sockets import Broken, FastSocket

SETTLE_DEADLINE_S = 60.0
SETTLE_LOOK_S = 0.02
_TEXT = "the parcel left our house this morning and should reach you on friday"


class _Entry(Struct):
    seq: int
    sender_id: str | None = None
    client_id: str | None = None


class _Update(Struct):
    type: str
    entry: _Entry | None = None
    problem: msgspec.Raw = msgspec.Raw(b"")


class _Frame(_Update):
    updates: list[_Update] = []


_decode = msgspec.json.Decoder(_Frame).decode


class Tally(Struct):
    """What all devices of one load did so far."""

    sent: int = 0
    acknowledged: int = 0
    delivered: int = 0
    """Messages received by a member other than their sender."""
    frames: int = 0
    bytes: int = 0


class Sender:
    """One device in one room: sends, keeps `in_flight` unacknowledged, and checks the log.

    A device that only listens has `in_flight` 0. Every entry has to come exactly once and in
    order, and the messages of each sender in the order of sending; the first that does not is kept
    in `fault`.
    """

    def __init__(self, tally: Tally, room_id: str, user_id: str, *, in_flight: int) -> None:
        self.tally = tally
        self.room_id = room_id
        self.user_id = user_id
        self.in_flight = in_flight
        self.sent = 0
        self.acknowledged = 0
        self.seq = 0
        self.fault: str | None = None
        self.is_sending = False
        self.on_delivery: asyncio.Future[float] | None = None
        """Resolved with the moment at which the next message of another arrives."""
        self._numbers: dict[str | None, int] = {}
        self._socket: FastSocket | None = None
        self._head = (
            f'{{"type":"send","room_id":"{room_id}","text":"{_TEXT}","client_id":"{user_id}:'
        ).encode()

    async def connect(self, url: str, token: str) -> None:
        """Open the socket."""
        self._socket = await FastSocket.open(url, token, self._receive)

    def start(self) -> None:
        """Put the first messages in flight."""
        self.is_sending = True
        self._send(self.in_flight)

    def send_one(self) -> None:
        """Send one message."""
        self._send(1)

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()

    @property
    def is_lost(self) -> bool:
        """Whether the connection ended."""
        return self._socket is None or self._socket.lost.done()

    def _send(self, count: int) -> None:
        if self._socket is None:
            raise Broken("not connected")
        number = self.sent
        self.sent += count
        self.tally.sent += count
        head = self._head
        self._socket.send(
            *[b'%b%d","ref":%d}' % (head, n, n) for n in range(number + 1, number + count + 1)]
        )

    def _receive(self, payload: bytes) -> None:
        tally = self.tally
        tally.frames += 1
        tally.bytes += len(payload)
        try:
            frame = _decode(payload)
        except msgspec.DecodeError as error:
            self._find(f"no frame: {error}")
            return
        acknowledged = 0
        for update in frame.updates or (frame,):
            kind = update.type
            if kind == "entry":
                entry = update.entry
                if entry is None or entry.seq != self.seq + 1:
                    self._find(f"entry {entry and entry.seq} after {self.seq}")
                    continue
                self.seq = entry.seq
                sender_id = entry.sender_id
                number = int((entry.client_id or ":0").rpartition(":")[2])
                if number != self._numbers.get(sender_id, 0) + 1:
                    self._find(f"message {number} of {sender_id} out of its turn")
                self._numbers[sender_id] = number
                if sender_id != self.user_id:
                    tally.delivered += 1
                    if self.on_delivery is not None and not self.on_delivery.done():
                        self.on_delivery.set_result(time.perf_counter())
            elif kind == "ack":
                acknowledged += 1
            elif kind == "error":
                self._find(f"refused: {bytes(update.problem)!r}")
        if acknowledged:
            self.acknowledged += acknowledged
            tally.acknowledged += acknowledged
            if self.is_sending:
                self._send(acknowledged)

    def _find(self, fault: str) -> None:
        if self.fault is None:
            self.fault = f"{self.room_id}, {self.user_id}: {fault}"


class Load:
    """Rooms with devices in them; `rooms` holds all the devices of each room."""

    def __init__(self, rooms: Sequence[Sequence[Sender]], tally: Tally) -> None:
        self.rooms = rooms
        self.tally = tally

    @property
    def senders(self) -> list[Sender]:
        """All devices."""
        return [sender for room in self.rooms for sender in room]

    def start(self) -> None:
        """All that send begin."""
        for sender in self.senders:
            if sender.in_flight:
                sender.start()

    async def settle(self) -> None:
        """Stop sending, wait for what is under way, and check that everything came exactly once.

        Raises `Broken` for a message that was lost, doubled, out of order or refused.
        """
        for sender in self.senders:
            sender.is_sending = False
        async with asyncio.timeout(SETTLE_DEADLINE_S):
            while not self._is_settled() and not self.faults():  # noqa: ASYNC110
                await asyncio.sleep(SETTLE_LOOK_S)  # an event per message would cost more
        if faults := self.faults():
            raise Broken("; ".join(faults[:5]))

    def _is_settled(self) -> bool:
        return all(
            sender.sent == sender.acknowledged and sender.seq == sum(each.sent for each in room)
            for room in self.rooms
            for sender in room
        )

    def faults(self) -> list[str]:
        """What went wrong so far."""
        return [
            sender.fault or f"{sender.user_id} lost its connection"
            for sender in self.senders
            if sender.fault or sender.is_lost
        ]

    def close(self) -> None:
        """End all connections."""
        for sender in self.senders:
            sender.close()
