"""`tidings import redis`: lists, counts and their order come along, and what is odd is said."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.command_line import run_tidings
from tests.importing.redis_lists import MAPPING, Lists
from tests.importing.redis_scene import imported
from tests.redis_server import RedisServer, needs_redis, running_redis
from tidings.clock import system_clock
from tidings.conversations import MappingRefused, read_mapping
from tidings.importing import redis_source
from tidings.storage.interface import Item
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ENTRIES, INBOXES, MOVES, USERS

pytestmark = needs_redis

NOW_MS = system_clock()
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def lists(server: RedisServer) -> AsyncIterator[Lists]:
    redis = Redis.from_url(server.url)
    yield Lists(redis)
    await redis.aclose()


async def _list(folder: Path, owner: str) -> list[Item]:
    """The owner's list, newest first, without what is hidden."""
    async with SqliteStore.open(folder / "t.db") as store:
        users = (await store.scan(USERS)).items
        workspace = users[0]["workspace"]
        page = await store.query(INBOXES, f"{workspace}#{owner}", index="by_feed", reverse=True)
    return [
        item
        for item in page.items
        if item.get("hidden_seq") is None or item["counted_seq"] > item["hidden_seq"]
    ]


async def _rows(folder: Path, table: Any) -> list[Item]:
    async with SqliteStore.open(folder / "t.db") as store:
        return (await store.scan(table)).items


async def test_lists_come_along_in_their_order_with_their_counts(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    for number in range(20):
        at = NOW_MS - DAY_MS + (number * 7 % 20) * 1000
        await lists.pair(f"p{number:02}", "ann", at, text=f"text {number}", unread=number % 4)
    for tied in ("b", "a", "c"):
        await lists.pair(tied, "ann", NOW_MS - 500)
    await lists.redis.hset("conv:ann:p03", "muted", 1)
    report = await imported(tmp_path, server.url)
    assert (report.lists, report.members, report.lines_added) == (24, 46, 46)
    assert (report.rooms_made, report.users_made) == (23, 24)
    assert report.unread_in_source == report.unread_carried == 30
    found = await _list(tmp_path, "ann")
    expected = [member.decode() for member in await lists.redis.zrevrange("convs:ann", 0, -1)]
    assert [row["peer_id"] for row in found] == expected
    for row in found:
        unread = int(await lists.redis.hget(f"conv:ann:{row['peer_id']}", "unread"))
        assert row["unread"] == unread
        score = await lists.redis.zscore("convs:ann", row["peer_id"])
        assert row["active_at"] == score
    assert [row["peer_id"] for row in found if row.get("is_muted")] == ["p03"]
    previews = {row["peer_id"]: row["preview"] for row in found}
    assert previews["p07"] == "text 7"


async def test_a_list_of_any_length_comes_along_though_it_changes(
    tmp_path: Path, server: RedisServer, lists: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_source, "PAGE_MEMBERS", 7)
    for number in range(100):
        await lists.line("ann", f"p{number:02}", NOW_MS - DAY_MS + number // 25)
    read = redis_source.RedisSource._read
    gone: list[bytes] = []

    async def read_and_remove(self: Any, places: Any) -> Any:
        part = await read(self, places)
        for each in part.longer[: len(gone) < 3]:
            gone.append(each.member)
            await lists.redis.zrem(each.key, each.member)
        return part

    monkeypatch.setattr(redis_source.RedisSource, "_read", read_and_remove)
    await imported(tmp_path, server.url)
    left = [each.decode() for each in await lists.redis.zrevrange("convs:ann", 0, -1)]
    found = [row["peer_id"] for row in await _list(tmp_path, "ann")]
    assert [each for each in found if each.encode() not in gone] == left
    assert (len(left), len(gone)) == (97, 3)


async def test_a_second_run_adds_what_is_new_and_nothing_else(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await lists.pair("ann", "ben", NOW_MS - 5000, unread=2)
    await imported(tmp_path, server.url)
    again = await imported(tmp_path, server.url)
    assert (again.lines_added, again.lines_present, again.messages_added) == (0, 2, 0)
    await lists.pair("cleo", "ben", NOW_MS - 4000, unread=3)
    await lists.line("ben", "dora", NOW_MS - 3000, unread=1)
    third = await imported(tmp_path, server.url)
    assert (third.lines_added, third.lines_present, third.rooms_made) == (3, 2, 2)
    found = await _list(tmp_path, "ben")
    unread = {row["peer_id"]: row["unread"] for row in found}
    assert unread == {"ann": 2, "cleo": 3, "dora": 1}
    assert await _list(tmp_path, "dora") == []


async def test_an_unread_number_is_carried_as_the_mapping_says(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await lists.pair("ann", "ben", NOW_MS - 5000, text="the last", unread=3)
    await lists.redis.hset("conv:ann:ben", "unread", 2)
    await lists.pair("ann", "cleo", NOW_MS - 4000, unread=500)
    for carry, texts, unread in (
        ("exact", ["-", "-", "-", "-", "the last"], {"ann": 2, "ben": 3}),
        ("last", ["the last"], {"ann": 0, "ben": 1}),
        ("none", [], {"ann": 0, "ben": 0}),
    ):
        folder = tmp_path / carry
        folder.mkdir()
        mapping = f'{MAPPING}[unread]\ncarry = "{carry}"\ntext = "-"\n'
        report = await imported(folder, server.url, mapping)
        assert report.unread_in_source == 505
        carried = sum(unread.values()) + {"exact": 100, "last": 1, "none": 0}[carry]
        assert report.unread_carried == carried
        assert any(reason.startswith("unread: ") for reason in report.changed)
        rows = [row for name in unread for row in await _list(folder, name)]
        found = {("ben" if row["peer_id"] == "ann" else "ann"): row["unread"] for row in rows
                 if row["peer_id"] != "cleo"}  # fmt: skip
        assert found == unread
        room = next(row["room_id"] for row in rows if row["peer_id"] != "cleo")
        entries = [
            entry for entry in await _rows(folder, ENTRIES) if entry["room"].endswith(f"#{room}")
        ]
        assert [entry["text"] for entry in sorted(entries, key=lambda e: e["seq"])] == texts


@pytest.mark.parametrize("kind", ["list", "stream"])
async def test_messages_come_along_where_the_mapping_names_them(
    tmp_path: Path, server: RedisServer, lists: Lists, kind: str
) -> None:
    await lists.pair("9", "10", NOW_MS - 1000, unread=2)
    said = [
        {"id": "m1", "from": "9", "text": "one", "at": str(NOW_MS - 9000)},
        {"id": "m2", "from": "10", "text": "two", "at": str(NOW_MS - 8000)},
        {"id": "m3", "from": "9", "text": "three", "at": str(NOW_MS - 7000)},
        {"id": "m4", "from": "9", "text": "four", "at": "yesterday"},
        {"id": "m4", "from": "9", "text": "four again", "at": str(NOW_MS)},
        {"id": "m5", "from": "11", "text": "of a stranger", "at": str(NOW_MS)},
    ]
    for each in said:
        if kind == "list":
            await lists.redis.rpush("msgs:9:10", json.dumps(each))
        else:
            await lists.redis.xadd("msgs:9:10", each)
    mapping = (
        f'{MAPPING}[messages]\nkey = "msgs:{{low}}:{{high}}"\ntype = "{kind}"\nsender = "from"\n'
    )
    report = await imported(tmp_path, server.url, mapping)
    assert report.messages_added == 4
    assert sum(report.left_out.values()) == 2
    entries = sorted(await _rows(tmp_path, ENTRIES), key=lambda entry: int(entry["seq"]))
    times = [NOW_MS - 9000, NOW_MS - 8000, NOW_MS - 7000, NOW_MS - 7000]
    assert [entry["created_at"] for entry in entries] == times
    (row,) = await _list(tmp_path, "10")
    assert (row["unread"], row["read_seq"], row["preview"]) == (2, 2, "four")


async def test_json_metadata_and_scores_in_seconds(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    score = NOW_MS // 1000 - 60.25
    await lists.redis.zadd("user:ann:dms", {"u/ben": score})
    await lists.redis.zadd("user:ben:dms", {"u/ann": score})
    await lists.redis.set("dm/ann/ben", json.dumps({"n": 1, "quiet": True, "t": "hi", "by": "ben"}))
    mapping = """
[lists]
key = "user:{owner}:dms"
member = "u/{opponent}"
score = "s"
[metadata]
key = "dm/{owner}/{opponent}"
type = "json"
unread = "n"
muted = "quiet"
text = "t"
sender = "by"
"""
    await imported(tmp_path, server.url, mapping)
    (row,) = await _list(tmp_path, "ann")
    assert (row["unread"], row["is_muted"], row["preview"]) == (1, True, "hi")
    assert row["active_at"] == int(score * 1000)


async def test_bad_records_are_named_and_stop_nothing(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    redis = lists.redis
    await lists.pair("ann", "ben", NOW_MS - 9000, unread=1)
    await redis.set("convs:wrong", "no set")
    await redis.zadd("convs:ann", {"ann": 1, "": 2, b"\xff\xfe": 3, "evicted": 4, "nobody": 5})
    await redis.zadd("convs:ann", {"past": "-inf", "future": "inf", "late": NOW_MS + DAY_MS})
    await redis.zadd(b"convs:\xff", {"x": 1})
    await redis.set("conv:ann:past", "no hash")
    await redis.hset("conv:ann:late", mapping={"unread": "many", "last_text": b"caf\xe9"})
    await redis.zadd("convs:ann", {"with blank": NOW_MS - 8000})
    for name in ("ann", "ben", "evicted", "past", "future", "late", "with blank", "wrong"):
        await redis.hset(f"user:{name}", "name", name.title())
    mapping = f'{MAPPING}[people]\nkey = "user:{{owner}}"\nname = "name"\n'
    odd = tmp_path / "odd.jsonl"
    report = await imported(tmp_path, server.url, mapping, odd)
    assert report.left_out == {
        "list: it is no sorted set": 1,
        "list: it is not UTF-8": 1,
        "member: somebody with themselves": 1,
        "member: it is not UTF-8": 1,
        "member: it does not look like the mapping's": 1,
        "member: it is nobody": 1,
    }
    assert {reason.partition(":")[0] for reason in report.changed} == {
        "line",
        "person",
        "score",
    }
    assert sum(report.changed.values()) == 7
    lines = [json.loads(line) for line in odd.read_text().splitlines()]
    assert len(lines) == 6 + 7
    found = [row["peer_id"] for row in await _list(tmp_path, "ann")]
    hashed = next(each for each in found if each.startswith("redis-"))
    assert found == ["future", "late", hashed, "ben", "evicted", "past"]
    users = {user["user_id"]: user["name"] for user in await _rows(tmp_path, USERS)}
    assert (users[hashed], users["ann"]) == ("With Blank", "Ann")


async def test_an_import_that_was_broken_off_begins_anew(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await lists.pair("ann", "ben", NOW_MS - 9000, unread=4)
    await imported(tmp_path, server.url)
    async with SqliteStore.open(tmp_path / "t.db") as store:
        (mark,) = (await store.scan(MOVES)).items
        await store.put_many(MOVES, [{**mark, "stage": "loading"}])
        (badge, *_) = (await store.scan(BADGES)).items
        await store.put_many(BADGES, [{**badge, "unread": 77}])
    await lists.redis.zrem("convs:ann", "ben")
    await lists.redis.delete("conv:ann:ben")
    report = await imported(tmp_path, server.url)
    assert (report.rooms_made, report.lines_added, report.lines_hidden) == (1, 1, 1)
    assert (report.users_made, report.users_present) == (0, 2)


def test_a_mapping_that_says_nonsense_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mapping.toml"
    for text, reason in (
        ("[lists]\n", "missing required field `key`"),
        ('[lists]\nkey = "convs"\n', "needs {owner}"),
        ('[lists]\nkey = "c:{owner}"\nscores = "ms"\n', "unknown field `scores`"),
        ("[lists", "Expected ']'"),
    ):
        file.write_text(text)
        with pytest.raises(MappingRefused, match=re.escape(reason)):
            read_mapping(file)


async def test_the_command_says_what_it_did_and_what_is_wrong(
    tmp_path: Path, server: RedisServer, lists: Lists
) -> None:
    await lists.pair("ann", "ben", NOW_MS - 9000, unread=4)
    file = tmp_path / "mapping.toml"
    file.write_text(MAPPING)
    importing = ("import", "redis", str(file), "--store", f"sqlite:///{tmp_path}/t.db", "--source")
    outcome = run_tidings(*importing, server.url, "--json", "--budget", "100000")
    assert outcome.code == 0, outcome.errors
    report = json.loads(outcome.output)
    assert (report["members"], report["lines_added"], report["unread_carried"]) == (2, 2, 4)
    file.write_text("[lists]")
    for arguments, reason in (
        ((*importing, server.url), "missing required field `key`"),
        ((*importing, "http://nowhere"), "redis://host:port/0"),
    ):
        outcome = run_tidings(*arguments)
        assert outcome.code == 2
        assert reason in outcome.errors
