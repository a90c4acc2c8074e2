"""Messages: posted exactly once by who may, read back as asked, changed by their authors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.chat.company import ADA, CARL, CLEO, KEY, MAX, MIA, ROBO, Company
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.chat.messages import ImportedMessage
from tidings.errors import (
    Conflict,
    Forbidden,
    IdempotencyMismatch,
    NotFound,
    TooLarge,
    ValidationFailed,
)
from tidings.people.callers import Caller

STORES = EVERY_STORE


def message(client_id: str = "c1", text: str | None = "Hello", **fields: Any) -> wire.PostMessage:
    return wire.PostMessage(client_id=client_id, text=text, **fields)


async def seqs(acme: Company, caller: Caller, room_id: str, **bounds: Any) -> list[int]:
    return [entry.seq for entry in (await acme.messages.list(caller, room_id, **bounds)).items]


async def test_the_same_message_again_is_the_first_one(acme: Company) -> None:
    room = await acme.open("group", "max", "mia")
    first, is_new = await acme.messages.post(MAX, room.id, message(mentions=["mia"]))
    again, is_new_again = await acme.messages.post(MAX, room.id, message(mentions=["mia"]))
    assert (is_new, is_new_again) == (True, False)
    assert first == again
    changed = (
        message(text="Hello!", mentions=["mia"]),
        message(),
        message(mentions=["mia"], reply_to=1),
    )
    for body in changed:
        with pytest.raises(IdempotencyMismatch):
            await acme.messages.post(MAX, room.id, body)
    other, is_new = await acme.messages.post(MIA, room.id, message())
    assert (other.seq, is_new) == (2, True)


async def test_many_of_the_same_message_at_once_are_one(acme: Company) -> None:
    room = await acme.open("group", "max", "mia")
    posted = await asyncio.gather(
        *(acme.messages.post(MAX, room.id, message(f"c{n % 5}")) for n in range(50))
    )
    assert {entry.seq for entry, _ in posted} == {1, 2, 3, 4, 5}
    assert sum(is_new for _, is_new in posted) == 5


async def test_messages_of_one_sender_keep_their_order(acme: Company) -> None:
    room = await acme.open("direct", "max", "mia")
    futures = [await acme.messages.submit(MAX, room.id, message(f"c{n}")) for n in range(60)]
    assert [(await future).entry.entry.seq for future in futures] == list(range(1, 61))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (message(text=None), ValidationFailed),
        (message(text=None, blobs=["b1"]), ValidationFailed),
        (message(blobs=["b1"]), ValidationFailed),
        (wire.PostMessage(text="Hello"), ValidationFailed),
        (message(text="x" * 8_001), TooLarge),
        (message(reply_to=1), ValidationFailed),
        (message(mentions=["carl"]), ValidationFailed),
        (message(as_user="mia"), Forbidden),
    ],
)
async def test_what_can_not_be_posted_is_refused(
    acme: Company, body: wire.PostMessage, error: type[Exception]
) -> None:
    room = await acme.open("group", "max", "mia")
    with pytest.raises(error):
        await acme.messages.post(MAX, room.id, body)
    assert (await acme.rooms.get(MAX, room.id)).head == 0


async def test_who_may_post_where(acme: Company) -> None:
    public = await acme.open("group", "max", scope="public")
    private = await acme.open("group", "max", "cleo")
    desk = await acme.open("support", "cleo")
    await acme.say(CLEO, private.id, "Customers talk in rooms of theirs")
    with pytest.raises(Forbidden):
        await acme.say(MIA, public.id, "I see it, but am no member")
    for caller, room in ((MIA, private), (CARL, desk), (ROBO, public), (CARL, public)):
        with pytest.raises(NotFound):
            await acme.say(caller, room.id, "I see nothing")
    with pytest.raises(NotFound):
        await acme.say(MAX, "nowhere", "Hello")
    await acme.say(MIA, desk.id, "A manager who posts becomes a member")
    assert (await acme.rooms.get(MIA, desk.id)).member_count == 2
    assert [entry.type for entry in (await acme.messages.list(MIA, desk.id)).items] == [
        "joined",
        "text",
    ]


async def test_a_key_posts_as_somebody_with_their_rights(acme: Company) -> None:
    room = await acme.open("group", "max", scope="public")
    entry = await acme.say(KEY, room.id, "Hello", as_user="max")
    assert entry.sender_id == "max"
    with pytest.raises(Forbidden):
        await acme.say(KEY, room.id, "Hello")
    for as_user in ("mia", "cleo"):
        with pytest.raises(Forbidden):
            await acme.say(KEY, room.id, "Hello", as_user=as_user)
    await acme.people.users.delete(KEY, "max")
    for as_user in ("nobody", "max"):
        with pytest.raises(ValidationFailed):
            await acme.say(KEY, room.id, "Hello", as_user=as_user)


async def test_a_log_is_read_by_its_sequences(acme: Company) -> None:
    room = await acme.open("group", "max")
    assert await acme.messages.list(MAX, room.id) == wire.EntryList([], 0)
    for number in range(10):
        await acme.say(MAX, room.id, f"Line {number}")
    assert await seqs(acme, MAX, room.id, limit=3) == [8, 9, 10]
    assert await seqs(acme, MAX, room.id, before=5, limit=3) == [2, 3, 4]
    assert await seqs(acme, MAX, room.id, before=3) == [1, 2]
    assert await seqs(acme, MAX, room.id, before=1) == []
    assert await seqs(acme, MAX, room.id, after=7) == [8, 9, 10]
    assert await seqs(acme, MAX, room.id, after=0, limit=2) == [1, 2]
    assert await seqs(acme, MAX, room.id, after=10) == []
    assert await seqs(acme, MAX, room.id, after=2, before=6, limit=2) == [3, 4]
    assert await seqs(acme, MAX, room.id, after=6, before=3) == []
    assert await seqs(acme, MAX, room.id, before=99, limit=1) == [10]
    assert await seqs(acme, MAX, room.id, have="") == list(range(1, 11))
    assert await seqs(acme, MAX, room.id, have="1-3,5,8-99") == [4, 6, 7]
    assert await seqs(acme, MAX, room.id, have="1-3,5", limit=2) == [4, 6]
    assert await seqs(acme, MAX, room.id, have="2", after=3, before=6) == [4, 5]
    assert (await acme.messages.list(MAX, room.id, before=3)).head == 10
    with pytest.raises(ValidationFailed):
        await acme.messages.list(MAX, room.id, have="3-1")
    with pytest.raises(NotFound):
        await acme.messages.list(CARL, room.id)


async def test_history_since_join_hides_what_was_before(acme: Company) -> None:
    room = await acme.open("group", "max", history="since_join")
    for number in range(3):
        await acme.say(MAX, room.id, f"Line {number}")
    await acme.rooms.add_members(MAX, room.id, wire.AddMember(user_id="mia"))
    await acme.say(MAX, room.id, "Welcome")
    assert await seqs(acme, MAX, room.id) == [1, 2, 3, 4, 5]
    for bounds in ({}, {"after": 0}, {"have": ""}):
        assert await seqs(acme, MIA, room.id, **bounds) == [4, 5]
    assert await seqs(acme, MIA, room.id, before=4) == []
    with pytest.raises(NotFound):
        await acme.messages.react(MIA, room.id, 2, "👍", is_given=True)


async def test_authors_edit_and_delete_and_admins_delete(acme: Company) -> None:
    room = await acme.open("group", "max", "mia", scope="public")
    entry = await acme.say(MAX, room.id, "Helo")
    edited = await acme.messages.edit(MAX, room.id, entry.seq, wire.EditMessage(text="Hello"))
    assert (edited.text, edited.edited_at is not None) == ("Hello", True)
    for caller in (MIA, ADA, KEY):
        with pytest.raises(Forbidden):
            await acme.messages.edit(caller, room.id, entry.seq, wire.EditMessage(text="No"))
    with pytest.raises(Forbidden):
        await acme.messages.delete(MIA, room.id, entry.seq)
    with pytest.raises(TooLarge):
        await acme.messages.edit(MAX, room.id, entry.seq, wire.EditMessage(text="x" * 8_001))
    for seq in (99, entry.seq + 1):
        with pytest.raises((NotFound, Conflict)):
            await acme.messages.delete(MAX, room.id, seq)
    assert (await acme.inboxes.badge(MIA)).unread == 1
    gone = await acme.messages.delete(ADA, room.id, entry.seq)
    assert (gone.text, gone.deleted_at is not None) == (None, True)
    assert (await acme.messages.delete(ADA, room.id, entry.seq)) == gone
    assert (await acme.inboxes.badge(MIA)).unread == 0
    with pytest.raises(Conflict):
        await acme.messages.edit(MAX, room.id, entry.seq, wire.EditMessage(text="Back"))
    last = await acme.say(MAX, room.id, "Bye")
    assert (await acme.messages.delete(KEY, room.id, last.seq)).deleted_at is not None


async def test_members_react(acme: Company) -> None:
    room = await acme.open("group", "max", "mia", scope="public")
    entry = await acme.say(MAX, room.id, "Cake in the kitchen")
    for caller in (MAX, MIA, MIA):
        given = await acme.messages.react(caller, room.id, entry.seq, "🎂", is_given=True)
    assert given.reactions == {"🎂": ["max", "mia"]}
    taken = await acme.messages.react(MAX, room.id, entry.seq, "🎂", is_given=False)
    assert taken.reactions == {"🎂": ["mia"]}
    for caller in (ADA, KEY):
        with pytest.raises(Forbidden):
            await acme.messages.react(caller, room.id, entry.seq, "🎂", is_given=True)
    for emoji in ("", "a#b", "a\n", "a b", "x" * 33):
        with pytest.raises(ValidationFailed):
            await acme.messages.react(MAX, room.id, entry.seq, emoji, is_given=True)


async def test_a_read_mark_only_moves_forward(acme: Company) -> None:
    room = await acme.open("group", "max", "mia", scope="public")
    for number in range(5):
        await acme.say(MAX, room.id, f"Line {number}", mentions=["mia"])
    reply = await acme.messages.read(MIA, room.id, 3)
    assert (reply.read_seq, reply.unread, reply.mentions) == (3, 2, 2)
    assert (reply.total.unread, reply.total.mentions) == (2, 2)
    again = await acme.messages.read(MIA, room.id, 1)
    assert again == reply
    with pytest.raises(ValidationFailed):
        await acme.messages.read(MIA, room.id, 6)
    for caller in (ADA, KEY):
        with pytest.raises(Forbidden):
            await acme.messages.read(caller, room.id, 1)
    with pytest.raises(NotFound):
        await acme.messages.read(CLEO, room.id, 1)


async def test_a_long_absence_is_read_in_one_call(acme: Company) -> None:
    room = await acme.open("group", "max", "mia")
    lines = [ImportedMessage("max", f"line-{n}", f"Line {n}", 1_000 + n) for n in range(2_600)]
    await acme.messages.import_entries("acme", room.id, lines)
    assert (await acme.inboxes.badge(MIA)).unread == 2_600
    reply = await acme.messages.read(MIA, room.id, 1_300)
    assert (reply.read_seq, reply.unread, reply.total.unread) == (1_300, 1_300, 1_300)
    assert (await acme.messages.read(MIA, room.id, 2_600)).total.unread == 0


async def test_importing_again_adds_nothing(acme: Company) -> None:
    room = await acme.open("group", "max", "mia")
    lines = [ImportedMessage("max", f"line-{n}", f"Line {n}", 1_000 + n) for n in range(250)]
    first = await acme.messages.import_entries("acme", room.id, lines[:200])
    second = await acme.messages.import_entries("acme", room.id, lines)
    assert (first.added, first.present) == (200, 0)
    assert (second.added, second.present) == (50, 200)
    entries = (await acme.messages.list(MAX, room.id, after=0, limit=500)).items
    assert [entry.text for entry in entries] == [line.text for line in lines]
    assert entries[0].created_at == "1970-01-01T00:00:01.000Z"
    stranger = ImportedMessage("carl", "line-x", "Line", 1_000)
    with pytest.raises(Forbidden):
        await acme.messages.import_entries("acme", room.id, [stranger])
