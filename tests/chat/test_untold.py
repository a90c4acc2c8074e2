"""A commit whose answer was lost is told to nobody, and so its users are named for a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chat.test_commits import WORKSPACE, World
from tidings.chat import commands
from tidings.clock import system_clock
from tidings.errors import Unavailable
from tidings.storage.interface import Write
from tidings.storage.sqlite import SqliteStore


class Answers:
    """Loses the answers to writes, or lets them through again."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.are_lost = False
        self._write = store.write
        monkeypatch.setattr(store, "write", self.write)

    async def write(self, *writes: Write) -> None:
        await self._write(*writes)
        if self.are_lost:
            raise Unavailable("the answer was lost")


async def test_users_of_a_lost_answer_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore.open(tmp_path / "chat.db")
    answers = Answers(store, monkeypatch)
    world = World(store, system_clock)
    nudged: list[set[str]] = []

    def nudge(workspace: str, users: Sequence[str]) -> None:
        assert workspace == WORKSPACE
        nudged.append(set(users))

    world.commits.nudge = nudge
    await world.people(3)
    await world.room("r1", ["u0", "u1"])
    await world.room("r2", ["u0", "u2"])
    await world.post("r1", "u0", "first")
    assert nudged == []

    answers.are_lost = True
    with pytest.raises(Unavailable):
        await world.post("r1", "u0", "second")
    assert nudged == [{"u0", "u1"}]
    answers.are_lost = False
    posted = await world.post("r1", "u0", "second")
    assert (posted.is_new, posted.entry.entry.seq) == (False, 2)
    assert nudged == [{"u0", "u1"}] * 2
    assert world.seqs["u1", "r1"] == [1], "nobody was told of the second one"

    answers.are_lost = True
    with pytest.raises(Unavailable):
        await world.post("r1", "u0", "third", mentions=["u1"])
    answers.are_lost = False
    leave = commands.Leave("u1", None, "ent_left", system_clock())
    await world.commits.submit(WORKSPACE, "r1", leave)
    posted = await world.post("r1", "u0", "third", mentions=["u1"])
    assert not posted.is_new, "accepted once, although it would be refused now"
    # Whoever has left since has a newer version, by which they know what they miss.
    assert nudged[2:] == [{"u0", "u1"}, {"u0"}]
    await world.commits.stop()
    await store.close()
