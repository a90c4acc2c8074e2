"""Every decision about people, as a table: caller × user."""

from __future__ import annotations

from typing import Any

import pytest

from tidings import wire
from tidings.people import access
from tidings.people.callers import Caller
from tidings.people.rows import UserRow


def _session(user_id: str, role: wire.Role) -> Caller:
    return Caller(
        workspace="acme",
        kind="session",
        credential_id=f"ses_{user_id}",
        user_id=user_id,
        role=role,
        session_id=f"ses_{user_id}",
    )


def _key(*scopes: Any, workspace: str = "acme") -> Caller:
    return Caller(
        workspace=workspace, kind="api_key", credential_id="key", scopes=frozenset(scopes)
    )


CALLERS = {
    "admin": _session("ada", "admin"),
    "manager": _session("max", "manager"),
    "customer": _session("cleo", "customer"),
    "bot": _session("robo", "bot"),
    "users key": _key("users"),
    "other key": _key("rooms", "messages", "sessions"),
    "foreign key": _key("users", workspace="globex"),
    "operator": Caller(workspace="", kind="operator", credential_id="op"),
}
PEOPLE = {
    row.user_id: row
    for row in (
        UserRow("acme", "ada", "Ada", "admin"),
        UserRow("acme", "max", "Max", "manager"),
        UserRow("acme", "cleo", "Cleo", "customer"),
        UserRow("acme", "robo", "Robo", "bot"),
    )
}
ALL, NAME, NOTHING = "everything", "name_if_sharing_a_room", "nothing"


@pytest.mark.parametrize(
    ("caller", "asks", "lists", "administers", "chooses_id", "opens_sessions"),
    [
        ("admin", True, True, True, False, False),
        ("manager", True, True, False, False, False),
        ("customer", True, False, False, False, False),
        ("bot", True, False, False, False, False),
        ("users key", True, True, True, True, False),
        ("other key", False, False, False, True, True),
        ("operator", False, False, False, False, False),
    ],
)
def test_what_a_caller_may_do_at_all(
    caller: str, asks: bool, lists: bool, administers: bool, chooses_id: bool, opens_sessions: bool
) -> None:
    who = CALLERS[caller]
    assert (
        access.may_ask_for_users(who),
        access.may_list_users(who),
        access.administers_users(who),
        access.may_choose_user_id(who),
        access.may_open_sessions(who),
    ) == (asks, lists, administers, chooses_id, opens_sessions)


@pytest.mark.parametrize(
    ("caller", "of_ada", "of_max", "of_cleo", "of_robo"),
    [
        ("admin", ALL, ALL, ALL, ALL),
        ("manager", ALL, ALL, ALL, ALL),
        ("customer", NAME, NAME, ALL, NAME),
        ("bot", NAME, NAME, NAME, ALL),
        ("users key", ALL, ALL, ALL, ALL),
        ("other key", NOTHING, NOTHING, NOTHING, NOTHING),
        ("foreign key", NOTHING, NOTHING, NOTHING, NOTHING),
        ("operator", NOTHING, NOTHING, NOTHING, NOTHING),
    ],
)
def test_whom_a_caller_sees(
    caller: str, of_ada: str, of_max: str, of_cleo: str, of_robo: str
) -> None:
    seen = [access.sight_of(CALLERS[caller], PEOPLE[each]) for each in ("ada", "max", "cleo")]
    assert [*seen, access.sight_of(CALLERS[caller], PEOPLE["robo"])] == [
        of_ada,
        of_max,
        of_cleo,
        of_robo,
    ]


FIELDS = ("name", "role", "email", "attributes", "is_deactivated")


@pytest.mark.parametrize(
    ("caller", "changes_of_others", "changes_of_self"),
    [
        ("admin", FIELDS, FIELDS),
        ("manager", (), ("name",)),
        ("customer", (), ("name",)),
        ("bot", (), ("name",)),
        ("users key", FIELDS, ()),
        ("other key", (), ()),
        ("foreign key", (), ()),
        ("operator", (), ()),
    ],
)
def test_what_a_caller_changes(
    caller: str, changes_of_others: tuple[str, ...], changes_of_self: tuple[str, ...]
) -> None:
    who = CALLERS[caller]
    for row in PEOPLE.values():
        allowed = changes_of_self if row.user_id == who.user_id else changes_of_others
        for field in FIELDS:
            assert access.may_change_user(who, row, {field}) == (field in allowed), field
        assert access.may_change_user(who, row, {"name", "role"}) == ("role" in allowed)
        assert access.may_deactivate_user(who, row) == (caller in ("admin", "users key"))


def test_nobody_reaches_into_another_workspace() -> None:
    foreign = UserRow("globex", "ada", "Ada of Globex", "customer")
    for name, caller in CALLERS.items():
        if name != "foreign key":
            assert access.sight_of(caller, foreign) == NOTHING, name
            assert not access.may_change_user(caller, foreign, {"name"}), name
            assert not access.may_deactivate_user(caller, foreign), name


@pytest.mark.parametrize(
    ("role", "usually", "where_allowed"),
    [
        ("customer", True, True),
        ("manager", False, True),
        ("admin", False, True),
        ("bot", False, False),
    ],
)
def test_who_comes_by_identity_token(role: wire.Role, usually: bool, where_allowed: bool) -> None:
    assert access.may_come_by_jwt(role, is_jwt_for_managers=False) == usually
    assert access.may_come_by_jwt(role, is_jwt_for_managers=True) == where_allowed


@pytest.mark.parametrize(
    ("origin", "allowed", "visitor", "identified"),
    [
        (None, (), True, True),
        ("https://a.example", (), True, True),
        ("https://a.example", ("https://a.example",), True, True),
        ("https://b.example", ("https://a.example",), False, False),
        ("null", ("https://a.example",), False, False),
        (None, ("https://a.example",), False, True),
    ],
)
def test_where_sessions_may_be_opened_from(
    origin: str | None, allowed: tuple[str, ...], visitor: bool, identified: bool
) -> None:
    assert access.may_come_from(origin, allowed, is_identified=False) == visitor
    assert access.may_come_from(origin, allowed, is_identified=True) == identified
