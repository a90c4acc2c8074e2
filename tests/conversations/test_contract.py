"""What every store of conversation lists promises, whoever keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conversations.scene import AT_MS, JSON_MAPPING, connected, mapped, served
from tests.redis_server import needs_redis, running_redis
from tidings.conversations import (
    Conversations,
    Message,
    MovingConversations,
    RedisConversations,
    TidingsConversations,
)

pytestmark = needs_redis

KINDS = ("redis", "redis-json", "tidings", "moving-redis", "moving-both", "moving-tidings")


@pytest.fixture(params=KINDS)
async def lists(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Conversations]:
    kind: str = request.param
    if kind == "tidings":
        async with served(tmp_path) as site, TidingsConversations(site.client) as new:
            yield new
        return
    async with running_redis(tmp_path) as server, connected(server.url) as redis:
        old = RedisConversations(redis, mapped(*([JSON_MAPPING] if "json" in kind else [])))
        if not kind.startswith("moving"):
            yield old
            return
        async with (
            served(tmp_path) as site,
            MovingConversations(old, TidingsConversations(site.client)) as moving,
        ):
            for stage in ("noted", "both", "tidings"):
                if kind != "moving-redis":
                    await moving.stages.change(stage)
                if kind == f"moving-{stage}":
                    break
            yield moving


def message(sender: str, receiver: str, number: int, text: str = "") -> Message:
    message_id = f"m{number}"
    return Message(sender, receiver, message_id, AT_MS + number * 1000, text or f"text {number}")


async def names(lists: Conversations, owner: str) -> list[str]:
    return [line.opponent for line in (await lists.list(owner)).items]


async def test_a_message_begins_both_lists(lists: Conversations) -> None:
    await lists.touch(message("ann", "ben", 1))
    await lists.touch(message("cleo", "ann", 2))
    await lists.touch(message("ben", "cleo", 3))
    assert await names(lists, "ann") == ["cleo", "ben"]
    assert await names(lists, "ben") == ["cleo", "ann"]
    assert await names(lists, "cleo") == ["ben", "ann"]
    await lists.touch(message("ben", "ann", 4, "news " * 100))
    assert await names(lists, "ann") == ["ben", "cleo"]
    line = await lists.get("ann", "ben")
    assert line is not None
    assert (line.opponent, line.preview, line.is_muted) == ("ben", ("news " * 100)[:120], False)


async def test_what_others_wrote_is_unread_until_it_is_read(lists: Conversations) -> None:
    for number in range(3):
        await lists.touch(message("ann", "ben", number))
    await lists.touch(message("ben", "ann", 3))
    unread = [await lists.get(*pair) for pair in (("ann", "ben"), ("ben", "ann"))]
    assert [None if line is None else line.unread for line in unread] == [1, 3]
    await lists.read("ben", "ann")
    await lists.read("ben", "ann")
    await lists.read("ben", "nobody")
    unread = [await lists.get(*pair) for pair in (("ann", "ben"), ("ben", "ann"))]
    assert [None if line is None else line.unread for line in unread] == [1, 0]


async def test_what_is_removed_comes_back_with_the_next_message(lists: Conversations) -> None:
    await lists.touch(message("ann", "ben", 1))
    await lists.touch(message("cleo", "ben", 2))
    await lists.mute("ben", "ann", muted=True)
    await lists.remove("ben", "ann")
    await lists.remove("ben", "ann")
    await lists.remove("ben", "nobody")
    assert await names(lists, "ben") == ["cleo"]
    assert await lists.get("ben", "ann") is None
    assert await lists.count("ben") == 1
    assert await names(lists, "ann") == ["ben"]
    await lists.touch(message("ann", "ben", 3))
    line = await lists.get("ben", "ann")
    assert line is not None
    assert (line.unread, line.is_muted, await names(lists, "ben")) == (1, False, ["ann", "cleo"])


async def test_muting_is_for_one_side_and_for_lines_that_are_there(lists: Conversations) -> None:
    await lists.touch(message("ann", "ben", 1))
    await lists.mute("ben", "ann", muted=True)
    await lists.mute("ben", "nobody", muted=True)
    muted = [(await lists.list(owner)).items[0].is_muted for owner in ("ann", "ben")]
    assert muted == [False, True]
    assert await lists.count("ben") == 1
    await lists.mute("ben", "ann", muted=False)
    line = await lists.get("ben", "ann")
    assert line is not None
    assert (line.is_muted, line.unread) == (False, 1)


async def test_a_list_is_paged_and_counted(lists: Conversations) -> None:
    for number in range(12):
        await lists.touch(message(f"p{number:02}", "ann", number))
    expected = [f"p{number:02}" for number in reversed(range(12))]
    found: list[str] = []
    cursor: str | None = None
    for _ in range(6):
        page = await lists.list("ann", limit=5, cursor=cursor)
        assert len(page.items) <= 5
        found += [line.opponent for line in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert (found, cursor) == (expected, None)
    assert await lists.count("ann") == 12
    assert (await lists.count("nobody"), await names(lists, "nobody")) == (0, [])


async def test_the_same_message_again_changes_nothing(lists: Conversations) -> None:
    for _ in range(2):
        await lists.touch(message("ann", "ben", 1))
    line = await lists.get("ben", "ann")
    assert line is not None
    assert line.unread == 1


async def test_nonsense_is_refused_by_all(lists: Conversations) -> None:
    with pytest.raises(ValueError, match="page"):
        await lists.list("ann", limit=0)
    with pytest.raises(ValueError, match="owner"):
        await lists.remove("a b", "ben")
    with pytest.raises(ValueError, match="between two"):
        message("ann", "ann", 1)
    with pytest.raises(ValueError, match="characters"):
        message("ann", "ben", 1, "x" * 8_001)
