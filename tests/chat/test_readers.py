"""Readers: who is told how far others have read, when, and how little."""

from __future__ import annotations

import asyncio

import pytest

from tests.chat.company import ADA, CARL, CLEO, KEY, MAX, MIA, Company
from tidings import wire
from tidings.chat.rows import INLINE_MEMBERS_MAX
from tidings.errors import NotFound
from tidings.people.callers import Caller

NEXT_S = 5.0


async def marks(acme: Company, caller: Caller, room_id: str) -> dict[str | None, int]:
    reply = await acme.chat.readers.list(caller, room_id)
    return {reader.user_id: reader.read_seq for reader in reply.items}


async def told(acme: Company) -> tuple[set[str], dict[str, object], dict[str, object]]:
    async with asyncio.timeout(NEXT_S):
        return await acme.apart.get()


async def test_the_team_is_told_each_reader_and_customers_only_how_far(acme: Company) -> None:
    desk = await acme.open("support", "cleo", "max", "mia")
    for text in ("one", "two", "three"):
        await acme.say(CLEO, desk.id, text)
    await acme.messages.read(MAX, desk.id, 2)
    await acme.messages.read(MIA, desk.id, 1)
    await acme.messages.read(CLEO, desk.id, 3)
    assert await marks(acme, MAX, desk.id) == {"cleo": 3, "mia": 1}
    assert await marks(acme, ADA, desk.id) == {"cleo": 3, "max": 2, "mia": 1}
    assert await marks(acme, KEY, desk.id) == {"cleo": 3, "max": 2, "mia": 1}
    assert await marks(acme, CLEO, desk.id) == {None: 2}
    with pytest.raises(NotFound):
        await acme.chat.readers.list(CARL, desk.id)
    alone = await acme.open("support", "carl")
    assert await marks(acme, CARL, alone.id) == {}


async def test_moves_are_told_once_in_a_while_to_the_others_alone(acme: Company) -> None:
    desk = await acme.open("support", "cleo", "max", "mia")
    for text in ("one", "two", "three"):
        await acme.say(CLEO, desk.id, text)
    for seq in (1, 2, 3, 3, 2):
        await acme.messages.read(MAX, desk.id, seq)
    frame = {"type": "reader", "room_id": desk.id, "read_seq": 3}
    assert await told(acme) == (
        {"cleo", "mia"},
        frame | {"user_id": "max"},
        frame | {"user_id": None},
    )
    await acme.messages.read(MAX, desk.id, 3)
    await acme.messages.read(CLEO, desk.id, 3)
    assert (await told(acme))[1] == frame | {"user_id": "cleo"}
    assert acme.apart.empty()


async def test_notes_about_a_customer_tell_the_customer_nothing(acme: Company) -> None:
    desk = await acme.open("support", "cleo", "max")
    notes = await acme.open("group", "max", "mia", about=desk.id)
    await acme.say(MIA, notes.id, "careful")
    await acme.messages.read(MAX, notes.id, 1)
    assert (await told(acme))[0] == {"mia"}
    with pytest.raises(NotFound):
        await acme.chat.readers.list(CLEO, notes.id)


async def test_who_left_is_told_nothing_and_not_told_of(acme: Company) -> None:
    team = await acme.open("group", "max", "mia", "ada")
    await acme.say(MAX, team.id, "hello")
    await acme.messages.read(MIA, team.id, 1)
    await acme.rooms.remove_member(MIA, team.id, "mia")
    await acme.messages.read(ADA, team.id, 1)
    assert (await told(acme))[1]["user_id"] == "ada"
    assert acme.apart.empty()
    assert await marks(acme, MAX, team.id) == {"ada": 1}


async def test_large_rooms_have_no_readers(acme: Company) -> None:
    crowd = [f"u{number:03}" for number in range(INLINE_MEMBERS_MAX)]
    await acme.add_users(dict.fromkeys(crowd, "customer"))
    hall = await acme.open("group", "max", *crowd)
    small = await acme.open("group", "max", *crowd[:-1])
    for room in (hall, small):
        await acme.say(MAX, room.id, "hello")
        await acme.messages.read(reader(crowd[0]), room.id, 1)
    assert (await told(acme))[1]["room_id"] == small.id
    assert acme.apart.empty()
    assert await marks(acme, MAX, hall.id) == {}
    assert len(await marks(acme, MAX, small.id)) == INLINE_MEMBERS_MAX - 1


def reader(user_id: str) -> Caller:
    role: wire.Role = "customer"
    return Caller("acme", "session", f"ses_{user_id}", user_id, role, f"ses_{user_id}")
