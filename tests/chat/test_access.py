"""Who may see a room and do what in it, decided from values alone."""

from __future__ import annotations

import msgspec
import pytest

from tests.chat.company import ADA, CARL, CLEO, KEY, MAX, MIA, ROBO
from tidings.chat import access
from tidings.chat.rows import Participation, RoomRow
from tidings.errors import Conflict, Forbidden, NotFound
from tidings.people.callers import Caller
from tidings.people.rows import UserRow

DIRECT = RoomRow("acme", "d", "direct", 0)
PRIVATE = RoomRow("acme", "g", "group", 0, scope="private")
PUBLIC = RoomRow("acme", "p", "group", 0, scope="public")
SUPPORT = RoomRow("acme", "s", "support", 0, status="open", customer_id="cleo")
ROOMS = (DIRECT, PRIVATE, PUBLIC, SUPPORT)
OPERATOR = Caller("", "operator", "op")
MEMBER = Participation("r", "group", joined_seq=5)
FORMER = msgspec.structs.replace(MEMBER, is_left=True)


@pytest.mark.parametrize("caller", [ADA, MAX, CLEO, ROBO])
def test_members_see_their_rooms(caller: Caller) -> None:
    assert all(access.sees(caller, room, MEMBER) for room in ROOMS)


@pytest.mark.parametrize("own", [None, FORMER])
def test_others_see_what_is_open_to_their_role(own: Participation | None) -> None:
    for caller in (ADA, MAX):
        assert [access.sees(caller, room, own) for room in ROOMS] == [False, False, True, True]
    for caller in (CLEO, ROBO):
        assert not any(access.sees(caller, room, own) for room in ROOMS)


def test_keys_see_rooms_of_their_workspace_by_scope() -> None:
    assert all(access.sees(KEY, room, None) for room in ROOMS)
    for scope, is_seen in (("rooms", True), ("messages", True), ("users", False)):
        key = msgspec.structs.replace(KEY, scopes=frozenset({scope}))
        assert access.sees(key, PUBLIC, None) is is_seen
    assert not access.sees(OPERATOR, PUBLIC, MEMBER)


@pytest.mark.parametrize("caller", [ADA, MAX, CLEO, KEY])
def test_nobody_sees_another_workspace(caller: Caller) -> None:
    elsewhere = msgspec.structs.replace(PUBLIC, workspace="other")
    assert not access.sees(caller, elsewhere, MEMBER)
    assert not access.sees(caller, None, None)
    with pytest.raises(NotFound):
        access.require_sight(caller, elsewhere, MEMBER)


def test_history_begins_with_joining_where_the_room_says_so() -> None:
    late = msgspec.structs.replace(PUBLIC, history="since_join")
    founder = msgspec.structs.replace(MEMBER, joined_seq=0)
    assert access.first_visible_seq(late, MEMBER) == 5
    assert access.first_visible_seq(late, founder) == 1
    assert access.first_visible_seq(late, None) == 1
    assert access.first_visible_seq(PUBLIC, MEMBER) == 1


def test_managers_join_by_posting_in_support_rooms_only() -> None:
    assert access.is_joining(MAX, SUPPORT, None)
    assert access.is_joining(MAX, SUPPORT, FORMER)
    assert not access.is_joining(MAX, SUPPORT, MEMBER)
    for author, room in ((MAX, PUBLIC), (CARL, SUPPORT), (ROBO, SUPPORT)):
        with pytest.raises(Forbidden):
            access.is_joining(author, room, None)


def test_keys_post_as_somebody_and_sessions_as_themselves() -> None:
    access.require_naming(KEY, names_user=True)
    access.require_naming(MAX, names_user=False)
    rooms_only = msgspec.structs.replace(KEY, scopes=frozenset({"rooms"}))
    refused = ((KEY, False), (MAX, True), (OPERATOR, True), (rooms_only, True))
    for caller, names_user in refused:
        with pytest.raises(Forbidden):
            access.require_naming(caller, names_user=names_user)
    author = access.acting_as(KEY, UserRow("acme", "carl", "Carl", "customer"))
    assert (author.kind, author.user_id, author.role) == ("session", "carl", "customer")


def test_a_customers_message_opens_their_conversation_again() -> None:
    assert access.is_reopening(CLEO, SUPPORT)
    assert not access.is_reopening(MAX, SUPPORT)
    assert not access.is_reopening(CLEO, PUBLIC)


def test_admins_and_keys_moderate() -> None:
    moderators = {caller for caller in (ADA, MAX, CLEO, ROBO, KEY) if access.may_moderate(caller)}
    assert moderators == {ADA, KEY}


def test_customers_open_support_rooms_of_their_own_only() -> None:
    access.require_creation(CLEO, "support", names_id=False, names_members=False)
    access.require_creation(MAX, "direct", names_id=False, names_members=True)
    access.require_creation(KEY, "group", names_id=True, names_members=True)
    refused = (
        (CLEO, "support", True, False),
        (CLEO, "support", False, True),
        (CLEO, "group", False, False),
        (CLEO, "direct", False, True),
        (MAX, "group", True, False),
        (ROBO, "support", False, False),
        (OPERATOR, "group", False, False),
    )
    for caller, kind, names_id, names_members in refused:
        with pytest.raises(Forbidden):
            access.require_creation(caller, kind, names_id=names_id, names_members=names_members)


def test_managers_add_and_remove_and_anyone_leaves() -> None:
    for caller in (ADA, MAX, KEY):
        access.require_adding(caller, PRIVATE)
        access.require_removing(caller, PRIVATE, "carl")
    access.require_removing(CARL, PRIVATE, "carl")
    access.require_removing(MIA, SUPPORT, "mia")
    for caller in (CLEO, ROBO):
        with pytest.raises(Forbidden):
            access.require_adding(caller, PRIVATE)
        with pytest.raises(Forbidden):
            access.require_removing(caller, PRIVATE, "carl")


def test_direct_rooms_keep_their_members_and_support_rooms_their_customer() -> None:
    with pytest.raises(Conflict):
        access.require_adding(KEY, DIRECT)
    for caller, room in ((MAX, DIRECT), (KEY, DIRECT), (CLEO, SUPPORT), (KEY, SUPPORT)):
        with pytest.raises(Conflict):
            access.require_removing(caller, room, "cleo" if room is SUPPORT else "max")


def test_what_is_ones_own_needs_a_session_and_a_membership() -> None:
    assert access.require_user(CLEO) == "cleo"
    assert access.require_member(CLEO, MEMBER) == "cleo"
    for caller in (KEY, OPERATOR):
        with pytest.raises(Forbidden):
            access.require_user(caller)
    for own in (None, FORMER):
        with pytest.raises(Forbidden):
            access.require_member(MAX, own)
