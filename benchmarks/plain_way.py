"""Counting unread messages on DynamoDB in the plain way that is published for it.

A message is an entry, put under the next sequence by a conditional write. Then, for each receiver,
one transaction raises the badge of the room and the receiver's total, idempotent by a request
token; what is refused is tried again after an exponential backoff with full jitter. Nothing is
read, previewed, ordered or remembered: it stores less than Tidings does.

Where there was a choice it is the one that was faster when tried: the process hands out the
sequences, so that the conditional write hardly ever fails; the transactions of one message follow
one another, which refuses fewer of them; and the backoff begins and ends where most got through.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from tidings.storage.credentials import LOCAL_KEYS
from tidings.storage.interface import Table
from tidings.storage.signatures import Signer

BACKOFF_FIRST_S = 0.025
"""Tried: 0.01, 0.025, 0.05 and 0.1."""
BACKOFF_S_MAX = 1.0
"""Tried: 0.25, 1, 2 and 20."""
DEADLINE_S = 60.0
"""How long a write is tried; after that the message is lost."""
CONNECTIONS_MAX = 200
RECEIVERS_AT_ONCE = 1
"""Transactions of one message under way at once. Tried: 1, 2, 7 and 49."""

ENTRIES = Table(
    name="plain_entries",
    partition="room",
    sort="seq",
    fields={"room": str, "seq": int, "id": str, "sender_id": str, "text": str, "created_at": int},
)
BADGES = Table(
    name="plain_badges",
    partition="user",
    sort="room_id",
    fields={"user": str, "room_id": str, "unread": int},
)
TOTALS = Table(
    name="plain_totals", partition="user", sort=None, fields={"user": str, "unread": int}
)
PLAIN_TABLES = (ENTRIES, BADGES, TOTALS)

_REFUSED = (
    "TransactionCanceledException",
    "TransactionConflictException",
    "TransactionInProgressException",
)


class Lost(Exception):
    """A message was given up."""


class PlainWay:
    """One process that sends messages in the plain way, to an engine without credentials."""

    name = "plain"

    def __init__(self, endpoint: str, prefix: str) -> None:
        self.raised = 0.0
        self._endpoint = URL(endpoint)
        self._prefix = prefix
        self._signer = Signer("local", f"{self._endpoint.host}:{self._endpoint.port}")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX))
        self._heads: Counter[str] = Counter()
        self._members: Mapping[str, Sequence[str]] = {}

    async def open(self, rooms: Mapping[str, Sequence[str]]) -> None:
        """Make the tables. Rooms are members by room id; badges begin with their first message."""
        self._members = rooms
        for table in PLAIN_TABLES:
            keys = [(table.partition, "HASH")] + ([(table.sort, "RANGE")] if table.sort else [])
            definitions = [
                {
                    "AttributeName": name,
                    "AttributeType": "N" if table.fields[name] is int else "S",
                }
                for name, _ in keys
            ]
            await self._call(
                "CreateTable",
                {
                    "TableName": f"{self._prefix}.{table.name}",
                    "KeySchema": [{"AttributeName": n, "KeyType": kind} for n, kind in keys],
                    "AttributeDefinitions": definitions,
                    "BillingMode": "PAY_PER_REQUEST",
                },
            )

    async def send(self, room_id: str, sender_id: str, text: str) -> None:
        """One message with all its badges. Raises Lost."""
        await self._append(room_id, sender_id, text)
        gate = asyncio.Semaphore(RECEIVERS_AT_ONCE)

        async def badge(user_id: str) -> None:
            async with gate:
                await self._raise_badges(room_id, user_id)
                self.raised += 1 / len(receivers)

        receivers = [user_id for user_id in self._members[room_id] if user_id != sender_id]
        async with asyncio.TaskGroup() as group:
            for user_id in receivers:
                group.create_task(badge(user_id))

    async def settle(self) -> None:
        """Nothing goes on after a message was sent."""

    async def totals(self, users: Sequence[str]) -> list[int]:
        """What each user has unread."""
        found: list[int] = []
        for user_id in users:
            key = {"user": {"S": user_id}}
            table = f"{self._prefix}.{TOTALS.name}"
            _, answer = await self._call("GetItem", {"TableName": table, "Key": key})
            found.append(int(answer["Item"]["unread"]["N"]) if "Item" in answer else 0)
        return found

    async def close(self) -> None:
        """Let go of the connections."""
        await self._session.close()

    async def _append(self, room_id: str, sender_id: str, text: str) -> None:
        while True:
            self._heads[room_id] += 1
            item = {
                "room": {"S": room_id},
                "seq": {"N": str(self._heads[room_id])},
                "id": {"S": uuid.uuid4().hex},
                "sender_id": {"S": sender_id},
                "text": {"S": text},
                "created_at": {"N": str(int(datetime.now(UTC).timestamp() * 1000))},
            }
            payload = {
                "TableName": f"{self._prefix}.{ENTRIES.name}",
                "Item": item,
                "ConditionExpression": "attribute_not_exists(room)",
            }
            if await self._until_done("PutItem", payload):
                return

    async def _raise_badges(self, room_id: str, user_id: str) -> None:
        raised = {
            "UpdateExpression": "ADD unread :one",
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }
        badge = {"user": {"S": user_id}, "room_id": {"S": room_id}}
        total = {"user": {"S": user_id}}
        payload = {
            "ClientRequestToken": uuid.uuid4().hex,
            "TransactItems": [
                {"Update": {"TableName": f"{self._prefix}.{BADGES.name}", "Key": badge, **raised}},
                {"Update": {"TableName": f"{self._prefix}.{TOTALS.name}", "Key": total, **raised}},
            ],
        }
        await self._until_done("TransactWriteItems", payload)

    async def _until_done(self, action: str, payload: dict[str, Any]) -> bool:
        """Try until it is written; False where its condition refused it. Raises Lost."""
        loop = asyncio.get_running_loop()
        deadline, attempt = loop.time() + DEADLINE_S, 0
        while True:
            code, _ = await self._call(action, payload)
            if code is None:
                return True
            if code == "ConditionalCheckFailedException":
                return False
            if code not in _REFUSED:
                raise RuntimeError(f"{action}: {code}")
            pause_s = random.uniform(0, min(BACKOFF_S_MAX, BACKOFF_FIRST_S * 2**attempt))
            attempt += 1
            if loop.time() + pause_s > deadline:
                raise Lost(f"{action} was refused {attempt} times")
            await asyncio.sleep(pause_s)

    async def _call(self, action: str, payload: dict[str, Any]) -> tuple[str | None, Any]:
        """One signed request: (code of the error or None, answer)."""
        body = msgspec.json.encode(payload)
        target = f"DynamoDB_20120810.{action}"
        headers = self._signer.headers(LOCAL_KEYS, target, body, datetime.now(UTC))
        async with self._session.post(self._endpoint, data=body, headers=headers) as response:
            answer = msgspec.json.decode(await response.read())
            if response.status == 200:
                return None, answer
            return answer["__type"].rpartition("#")[2], answer
