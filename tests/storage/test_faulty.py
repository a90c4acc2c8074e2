"""A store that fails on purpose: what was promised still holds, and the faults happen as told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.storage.contract import SetClock, StoreContract, room
from tidings.config import SettingRefused
from tidings.errors import Unavailable
from tidings.storage.faults import Fault, Profile, Rates, builtin_profiles, read_profile
from tidings.storage.faulty import FaultyStore
from tidings.storage.interface import Absent, ConditionFailed, Put, Update
from tidings.storage.retries import ATTEMPT_TIMEOUTS_S, CALL_DEADLINE_S, Kind, RetryPolicy
from tidings.storage.sqlite import SqliteStore
from tidings.storage.tables import BADGES, ROOMS

ROUGH = Rates(throttle=0.05, conflict=0.05, server_error=0.05, unreachable=0.05, reset=0.05)


class Scene:
    """A faulty store on a file, whose pauses take no time, and what happened to it."""

    def __init__(self, inner: SqliteStore, seed: int = 7) -> None:
        self.inner = inner
        self.now_s = 0.0
        self.faults: Counter[tuple[str, Fault]] = Counter()
        self.retries: Counter[Kind] = Counter()
        self._random = random.Random(seed)

    def store(self, every_table: Rates, **tables: Rates) -> FaultyStore:
        policy = RetryPolicy(
            on_retry=self._on_retry,
            chance=self._random.random,
            monotonic=lambda: self.now_s,
            sleep=self._sleep,
        )
        return FaultyStore(
            self.inner,
            Profile(every_table, tables),
            policy,
            on_fault=self._on_fault,
            chance=self._random.random,
        )

    def _on_retry(self, kind: Kind) -> None:
        self.retries[kind] += 1

    def _on_fault(self, table: str, fault: Fault) -> None:
        self.faults[table, fault] += 1

    async def _sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


@pytest.fixture
async def scene(tmp_path: Path, clock: SetClock) -> AsyncIterator[Scene]:
    async with SqliteStore.open(tmp_path / "store.db", clock=clock) as inner:
        yield Scene(inner)


class TestFaulty(StoreContract):
    """The contract holds while a fifth of all attempts fail."""

    @pytest.fixture
    def store(self, scene: Scene) -> FaultyStore:
        return scene.store(
            Rates(
                throttle=0.04,
                conflict=0.04,
                server_error=0.02,
                unreachable=0.02,
                reset=0.02,
                hang=0.01,
                lost_answer=0.04,
                slow=0.01,
                slow_s=2.0,
            )
        )


async def test_each_fault_comes_at_its_rate_and_no_count_is_wrong(scene: Scene) -> None:
    rate = 0.2
    for fault in Fault:
        store = scene.store(Rates(**{fault.value: rate}))
        scene.faults.clear()
        count_one = Update(BADGES, (fault.value,), add={"unread": 1})
        outcomes = await asyncio.gather(
            *(store.write(count_one) for _ in range(500)), return_exceptions=True
        )
        given_up = sum(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert outcomes.count(None) == 500 - given_up
        item = await scene.inner.get(BADGES, (fault.value,))
        assert item is not None
        assert 500 - given_up <= item["unread"] <= 500
        count = scene.faults["badges", fault]
        assert count == scene.faults.total()
        assert rate / 2 < count / (500 + count) < rate * 2


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.LOST_ANSWER])
async def test_reads_have_no_conflicts_and_no_answers_to_lose(scene: Scene, fault: Fault) -> None:
    store = scene.store(Rates(**{fault.value: 1.0}))
    assert await store.get(ROOMS, ("a#r",)) is None
    assert not scene.faults


async def test_an_answer_that_is_lost_is_of_a_write_that_was_applied(scene: Scene) -> None:
    store = scene.store(Rates(lost_answer=1.0))
    with pytest.raises(Unavailable, match="lost_answer"):
        await store.write(Put(ROOMS, room(1), when=(Absent(),)))
    assert await scene.inner.get(ROOMS, ROOMS.key(room(1))) == room(1)
    assert scene.now_s < CALL_DEADLINE_S


async def test_what_was_applied_is_not_applied_again(scene: Scene) -> None:
    store = scene.store(Rates(lost_answer=0.5))
    for number in range(50):
        await store.write(Update(BADGES, (str(number),), add={"unread": 1}, when=(Absent(),)))
    assert scene.retries[Kind.LOST_ANSWER] > 20
    for number in range(50):
        assert await scene.inner.get(BADGES, (str(number),)) == {"user": str(number), "unread": 1}


async def test_a_condition_that_failed_is_told_even_if_its_answer_was_lost(scene: Scene) -> None:
    await scene.inner.write(Put(ROOMS, room(1)))
    store = scene.store(Rates(lost_answer=0.5))
    for _ in range(20):
        with pytest.raises(ConditionFailed):
            await store.write(Put(ROOMS, room(1), when=(Absent(),)))


async def test_a_write_fails_by_its_worst_table(scene: Scene) -> None:
    store = scene.store(Rates(throttle=0.1), badges=Rates(conflict=1.0))
    with pytest.raises(Unavailable, match="conflict"):
        await store.write(Put(ROOMS, room(1)), Update(BADGES, ("b",), add={"unread": 1}))
    assert {table for table, _ in scene.faults} == {"badges"}
    assert await scene.inner.get(BADGES, ("b",)) is None


async def test_a_hang_takes_as_long_as_an_attempt_may(scene: Scene) -> None:
    store = scene.store(Rates(hang=1.0))
    with pytest.raises(Unavailable, match="hang"):
        await store.get(ROOMS, ("a#r",))
    assert sum(ATTEMPT_TIMEOUTS_S[:2]) < scene.now_s <= CALL_DEADLINE_S


async def test_bulk_puts_fail_in_parts_and_all_arrive(scene: Scene) -> None:
    store = scene.store(ROUGH)
    await store.put_many(ROOMS, (room(number) for number in range(400)))
    assert scene.faults.total() > 0
    assert len((await scene.inner.scan(ROOMS)).items) == 400


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(builtin_profiles()))
def test_the_profiles_that_come_along_are_good(name: str) -> None:
    profile = read_profile(name)
    assert 0 < profile.every_table.total < 0.5


def test_a_profile_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("[every_table]\nslow = 0.5\nslow_s = 1\n[tables.badges]\nthrottle = 1\n")
    profile = read_profile(str(path))
    assert profile == Profile(Rates(slow=0.5, slow_s=1.0), {"badges": Rates(throttle=1.0)})


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("[every_table]\nthrotle = 0.1", "throtle"),
        ("[every_table]\nthrottle = 1.1", "1"),
        ("[every_table]\nthrottle = -0.1", "0"),
        ("[every_table]\nthrottle = 0.6\nslow = 0.6", "add up to more than 1"),
        ("[every_table]\nthrottle = 'often'", "float"),
        ("[tables.bagdes]\nthrottle = 0.1", "no table bagdes"),
        ("[all]\nthrottle = 0.1", "all"),
        ("throttle", "own.toml"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(tmp_path: Path, text: str, detail: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(SettingRefused, match=detail):
        read_profile(str(path))


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(SettingRefused, match="nor one of mild, rough"):
        read_profile(str(tmp_path / "none.toml"))
