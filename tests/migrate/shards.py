"""A server before the engine of the tests that deals one stream out to many shards, which split.

The engine has one shard for each stream. Here a stream begins as two, by the hash of the key; each
ends after ROOT_RECORDS records, and two others go on.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from tidings.config import DynamoAddress

ROOT_RECORDS = 7


class ShardedStreams:
    """Answers what is asked about streams; nothing else is sent here."""

    def __init__(self, server: DynamoAddress) -> None:
        self.address = server
        self.read: set[str] = set()
        """Shards that somebody read from."""
        self._endpoint = str(server.endpoint)
        self._http: aiohttp.ClientSession

    async def answer(self, incoming: web.Request) -> web.Response:
        """One call."""
        action = incoming.headers["x-amz-target"].rpartition(".")[2]
        asked = msgspec.json.decode(await incoming.read())
        match action:
            case "DescribeStream":
                real = await self._ask(action, {"StreamArn": asked["StreamArn"]})
                shards = self._describe(await self._deal(asked["StreamArn"]))
                real["StreamDescription"]["Shards"] = shards
                return web.json_response(real)
            case "GetShardIterator":
                place = f"{asked['StreamArn']}|{asked['ShardId']}"
                after = asked.get("SequenceNumber", "")
                return web.json_response({"ShardIterator": f"{place}|{after}"})
            case "GetRecords":
                return web.json_response(await self._records(asked["ShardIterator"]))
        raise AssertionError(action)

    async def _records(self, iterator: str) -> dict[str, Any]:
        arn, shard_id, after = iterator.split("|")
        self.read.add(shard_id)
        dealt = await self._deal(arn)
        records = [
            record for record in dealt[shard_id] if record["dynamodb"]["SequenceNumber"] > after
        ][:3]
        answer: dict[str, Any] = {"Records": records}
        is_over = shard_id in "01" and len(dealt[shard_id]) == ROOT_RECORDS
        last = records[-1]["dynamodb"]["SequenceNumber"] if records else after
        if not is_over or records:
            answer["NextShardIterator"] = f"{arn}|{shard_id}|{last}"
        return answer

    async def _deal(self, arn: str) -> dict[str, list[dict[str, Any]]]:
        """The records of each shard; "0" has the children "00" and "01"."""
        dealt: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("0", "1", "00", "01", "10", "11")
        }
        described = await self._ask("DescribeStream", {"StreamArn": arn})
        shard = described["StreamDescription"]["Shards"][0]["ShardId"]
        wanted = {"StreamArn": arn, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
        iterator = (await self._ask("GetShardIterator", wanted))["ShardIterator"]
        while records := (await self._ask("GetRecords", {"ShardIterator": iterator})):
            for record in records["Records"]:
                key = zlib.crc32(msgspec.json.encode(record["dynamodb"]["Keys"], order="sorted"))
                root = str(key & 1)
                is_full = len(dealt[root]) == ROOT_RECORDS
                dealt[root + str(key >> 1 & 1) if is_full else root].append(record)
            iterator = records["NextShardIterator"]
            if not records["Records"]:
                break
        return dealt

    def _describe(self, dealt: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = []
        for root in "01":
            shards.append({"ShardId": root})
            if len(dealt[root]) == ROOT_RECORDS:
                shards += [{"ShardId": f"{root}{n}", "ParentShardId": root} for n in (0, 1)]
        return shards[::-1]

    async def _ask(self, action: str, payload: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "x-amz-target": f"DynamoDBStreams_20120810.{action}",
            "content-type": "application/x-amz-json-1.0",
            "authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/x",
        }
        async with self._http.post(
            self._endpoint, data=msgspec.json.encode(payload), headers=headers
        ) as answer:
            found: dict[str, Any] = msgspec.json.decode(await answer.read())
            assert answer.status == 200, found
            return found

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ShardedStreams]:
        """Listen on this machine; `address` is then the way through."""
        application = web.Application()
        application.router.add_post("/", self.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.address = msgspec.structs.replace(self.address, endpoint=url)
            async with aiohttp.ClientSession() as self._http:
                yield self
        finally:
            await runner.cleanup()
