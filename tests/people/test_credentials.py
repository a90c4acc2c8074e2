"""Keys and sessions: who gets in, by what, for how long, and who no longer does."""

from __future__ import annotations

import asyncio

import jwt
import msgspec
import pytest

from tests.people.conftest import World, key_of
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.errors import (
    Conflict,
    Forbidden,
    NotFound,
    RateLimited,
    Unauthorized,
    ValidationFailed,
)
from tidings.people.callers import ALL_SCOPES, Caller
from tidings.people.credentials import SESSION_LIFE_S, SESSIONS_PER_USER_MAX
from tidings.people.workspaces import Workspace
from tidings.storage.interface import Store
from tidings.storage.tables import SESSIONS, TABLES, TOKENS, USERS

STORES = EVERY_STORE


KEY = key_of("acme")
SECRET = "a secret that is at least 32 bytes long"
HERE = "192.0.2.1"
pytestmark = pytest.mark.usefixtures("acme")


async def _refused(world: World, token: str) -> None:
    with pytest.raises(Unauthorized):
        await world.credentials.authenticate(token)


async def _by_jwt(world: World, workspace: Workspace, **claims: object) -> wire.NewSession:
    whole = {"sub": "cleo", "exp": world.clock() // 1000 + 300, "jti": "one", **claims}
    token = jwt.encode(whole, SECRET, "HS256")
    body = wire.CreateSession(publishable_key=workspace.publishable_key, jwt=token)
    return await world.credentials.create_session(None, body, None, HERE)


async def _visit(world: World, workspace: Workspace, origin: str | None = None) -> wire.NewSession:
    body = wire.CreateSession(publishable_key=workspace.publishable_key)
    return await world.credentials.create_session(None, body, origin, HERE)


# API keys


async def test_a_key_acts_for_its_workspace_in_its_scopes(world: World) -> None:
    key_id, key = await world.credentials.create_key("acme", "server", ("users", "rooms"))
    assert key.startswith("tk_")
    assert await world.credentials.authenticate(key) == Caller(
        workspace="acme",
        kind="api_key",
        credential_id=key_id,
        scopes=frozenset({"users", "rooms"}),
    )
    with pytest.raises(NotFound):
        await world.credentials.create_key("nobody", "server")
    with pytest.raises(ValidationFailed):
        await world.credentials.create_key("acme", "server", ("everything",))  # type: ignore[arg-type]


async def test_an_operator_key_belongs_to_nobody(world: World) -> None:
    key_id, key = await world.credentials.create_key("acme", "ops", ALL_SCOPES, operator=True)
    assert await world.credentials.authenticate(key) == Caller(
        workspace="", kind="operator", credential_id=key_id
    )
    assert [each.key_id for each in await world.credentials.list_keys("")] == [key_id]
    assert await world.credentials.list_keys("acme") == ()
    with pytest.raises(NotFound):
        await world.credentials.revoke_key("acme", key_id)
    await world.credentials.revoke_key("", key_id)
    await _refused(world, key)


async def test_a_revoked_key_is_out(world: World, elsewhere: World) -> None:
    key_id, key = await world.credentials.create_key("acme", "server")
    other_id, other = await world.credentials.create_key("acme", "other")
    assert [each.name for each in await world.credentials.list_keys("acme")] == ["server", "other"]
    await elsewhere.credentials.authenticate(key)
    await world.credentials.revoke_key("acme", key_id)
    await _refused(world, key)
    world.clock.forward(4.9)
    await _refused(elsewhere, key)
    assert (await world.credentials.authenticate(other)).credential_id == other_id
    with pytest.raises(NotFound):
        await world.credentials.revoke_key("acme", key_id)
    with pytest.raises(NotFound):
        await world.credentials.revoke_key("globex", other_id)


async def test_a_key_made_by_another_process_works_soon(world: World, elsewhere: World) -> None:
    _, key = await elsewhere.credentials.create_key("acme", "server")
    assert (await world.credentials.authenticate(key)).kind == "api_key"


@pytest.mark.parametrize(
    "token",
    ["", "ts_", "tk_nothing", "ts_" + "a" * 43, "ts_" + "a" * 10_000, "ts_ü", "ts_\udcff", "\0"],
)
async def test_what_is_no_token(world: World, token: str) -> None:
    await _refused(world, token)


async def test_other_things_with_hashes_are_no_tokens(world: World, acme: Workspace) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    await _by_jwt(world, acme)
    await _refused(world, acme.publishable_key)
    await _refused(world, "jti#acme#one")
    body = wire.CreateSession(publishable_key="jti#acme#one")
    with pytest.raises(Unauthorized):
        await world.credentials.create_session(None, body, None, HERE)


async def test_no_token_is_stored(world: World, store: Store, acme: Workspace) -> None:
    await world.user("acme", "cleo")
    opened, _ = await world.session("acme", "cleo")
    visit = await _visit(world, acme)
    _, key = await world.credentials.create_key("acme", "server")
    everything = str([await store.scan(table) for table in TABLES])
    for token in (opened.token, visit.token, key):
        assert len(token) >= 3 + 43
        assert token not in everything
        assert token[3:] not in everything


# Sessions by API key


async def test_a_key_opens_a_session_for_a_user(world: World) -> None:
    await world.user("acme", "max", "manager")
    body = wire.CreateSession(user_id="max", device=wire.Device("Max's phone", "ios"))
    opened = await world.credentials.create_session(KEY, body, None, HERE)
    assert opened.user.role == "manager"
    assert opened.token.startswith("ts_")
    caller = await world.credentials.authenticate(opened.token)
    assert caller == Caller(
        workspace="acme",
        kind="session",
        credential_id=opened.session_id,
        user_id="max",
        role="manager",
        session_id=opened.session_id,
    )
    assert await world.credentials.acknowledged(caller) == "start of max"
    await world.credentials.acknowledge(caller, "later")
    assert await world.credentials.acknowledged(caller) == "later"


async def test_who_opens_no_sessions(world: World, acme: Workspace) -> None:
    await world.user("acme", "ada", "admin")
    _, admin = await world.session("acme", "ada")
    body = wire.CreateSession(user_id="ada")
    for caller in (
        admin,
        msgspec.structs.replace(KEY, scopes=frozenset({"users"})),
        Caller(workspace="", kind="operator", credential_id="op"),
    ):
        with pytest.raises(Forbidden):
            await world.credentials.create_session(caller, body, None, HERE)
    with pytest.raises(NotFound):
        await world.credentials.create_session(key_of("globex"), body, None, HERE)
    with pytest.raises(NotFound):
        await world.credentials.create_session(
            KEY, wire.CreateSession(user_id="nobody"), None, HERE
        )
    for wrong in (
        wire.CreateSession(),
        wire.CreateSession(user_id="ada", jwt="x"),
        wire.CreateSession(user_id="ada", publishable_key=acme.publishable_key),
    ):
        with pytest.raises(ValidationFailed):
            await world.credentials.create_session(KEY, wrong, None, HERE)
    with pytest.raises(Unauthorized):
        await world.credentials.create_session(None, body, None, HERE)
    with pytest.raises(Unauthorized):
        await world.credentials.create_session(
            None, wire.CreateSession(publishable_key="pk_nobody"), None, HERE
        )
    with pytest.raises(ValidationFailed):
        await world.credentials.create_session(None, wire.CreateSession(jwt="x"), None, HERE)
    with pytest.raises(Forbidden):
        await world.credentials.create_session(
            None,
            wire.CreateSession(user_id="ada", publishable_key=acme.publishable_key),
            None,
            HERE,
        )


async def test_a_session_ends_when_its_time_is_over(world: World) -> None:
    await world.user("acme", "cleo")
    opened, caller = await world.session("acme", "cleo")
    world.clock.forward(SESSION_LIFE_S - 1)
    await world.credentials.authenticate(opened.token)
    world.clock.forward(1)  # while the lookup still remembers it
    await _refused(world, opened.token)
    assert (await world.credentials.list_sessions(caller)).items == []
    with pytest.raises(Unauthorized):
        await world.credentials.acknowledged(caller)


async def test_devices_are_listed_newest_first_and_signed_out_one_by_one(
    world: World, elsewhere: World
) -> None:
    await world.user("acme", "cleo")
    await world.user("acme", "carl")
    devices = []
    for _ in range(5):
        devices.append(await world.session("acme", "cleo"))
        world.clock.forward(1)
    _, stranger = await world.session("acme", "carl")
    _, caller = devices[1]
    world.online_sessions.add(devices[3][0].session_id)
    found: list[wire.Session] = []
    cursor: str | None = None
    while not found or cursor is not None:
        page = await world.credentials.list_sessions(caller, limit=2, cursor=cursor)
        found += page.items
        cursor = page.next
    assert [each.session_id for each in found] == [
        opened.session_id for opened, _ in reversed(devices)
    ]
    assert [each.is_current for each in found] == [False, False, False, True, False]
    assert [each.is_online for each in found] == [False, True, False, False, False]

    gone, gone_caller = devices[0]
    await elsewhere.credentials.authenticate(gone.token)
    with pytest.raises(NotFound):
        await world.credentials.revoke_session(stranger, gone.session_id)
    await world.credentials.revoke_session(caller, gone.session_id)
    assert world.revoked == [("acme", "cleo", gone.session_id)]
    await _refused(world, gone.token)
    with pytest.raises(Unauthorized):
        await world.credentials.acknowledge(gone_caller, "later")
    world.clock.forward(4.9)
    await _refused(elsewhere, gone.token)
    for opened, _ in devices[1:]:
        await world.credentials.authenticate(opened.token)
    with pytest.raises(NotFound):
        await world.credentials.revoke_session(caller, gone.session_id)
    for call in (
        world.credentials.list_sessions(KEY),
        world.credentials.revoke_session(KEY, gone.session_id),
        world.credentials.acknowledged(KEY),
    ):
        with pytest.raises(Forbidden):
            await call


async def test_too_many_sessions_end_the_oldest(world: World, store: Store) -> None:
    await world.user("acme", "cleo")
    tokens = []
    for _ in range(SESSIONS_PER_USER_MAX + 2):
        tokens.append((await world.session("acme", "cleo"))[0].token)
        world.clock.forward(1)
    for token in tokens[:2]:
        await _refused(world, token)
    for token in (tokens[2], tokens[-1]):
        await world.credentials.authenticate(token)
    assert len((await store.query(SESSIONS, "acme#cleo")).items) == SESSIONS_PER_USER_MAX
    assert len(world.revoked) == 2


async def test_no_session_slips_through_while_a_user_is_deactivated(
    world: World, elsewhere: World
) -> None:
    await world.user("acme", "cleo")
    opening = [asyncio.create_task(elsewhere.session("acme", "cleo")) for _ in range(20)]
    await world.users.delete(KEY, "cleo")
    outcomes = await asyncio.gather(*opening, return_exceptions=True)
    assert all(isinstance(each, tuple | Conflict | Unauthorized) for each in outcomes)
    page = await world.store.query(SESSIONS, "acme#cleo")
    assert page.items == []


# Identity tokens


async def test_a_jwt_makes_a_customer_and_a_session_once(world: World, acme: Workspace) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    opened = await _by_jwt(
        world, acme, name="Cleo", email="c@example.com", attributes={"plan": "pro"}, role="admin"
    )
    caller = await world.credentials.authenticate(opened.token)
    assert (caller.user_id, caller.role) == ("cleo", "customer")
    stored = await world.users.get(KEY, "cleo")
    assert (stored.name, stored.email, stored.attributes) == (
        "Cleo",
        "c@example.com",
        {"plan": "pro"},
    )
    with pytest.raises(Unauthorized):
        await _by_jwt(world, acme)
    with pytest.raises(Unauthorized):
        await _by_jwt(world, acme, sub="carl")
    world.clock.forward(1)
    await _by_jwt(world, acme, jti="two", attributes={"seats": 3})
    again = await world.users.get(KEY, "cleo")
    assert (again.name, again.attributes) == ("Cleo", {"plan": "pro", "seats": 3})


async def test_of_many_exchanges_of_one_jwt_one_succeeds(
    world: World, elsewhere: World, acme: Workspace
) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    outcomes = await asyncio.gather(
        *(_by_jwt(each, acme) for each in (world, elsewhere) for _ in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, wire.NewSession) for each in outcomes) == 1
    assert sum(isinstance(each, Unauthorized) for each in outcomes) == 15
    assert len((await world.store.query(SESSIONS, "acme#cleo")).items) == 1


async def test_many_jwts_of_one_new_user_at_once(
    world: World, elsewhere: World, acme: Workspace
) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    opened = await asyncio.gather(
        *(_by_jwt((world, elsewhere)[n % 2], acme, jti=f"j{n}", name="Cleo") for n in range(10))
    )
    assert len({each.session_id for each in opened}) == 10
    assert len((await world.store.scan(USERS)).items) == 1


async def test_a_jwt_counts_once_in_its_workspace_alone(world: World, acme: Workspace) -> None:
    globex = await world.workspaces.create("Globex", "globex")
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    with pytest.raises(Unauthorized):
        await _by_jwt(world, globex)
    await world.workspaces.update("globex", jwt=("HS256", SECRET))
    await _by_jwt(world, acme)
    await _by_jwt(world, globex)


async def test_a_used_jwt_is_remembered_as_long_as_it_holds(world: World, acme: Workspace) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    expires = world.clock() // 1000 + 600
    await _by_jwt(world, acme, exp=expires)
    for _ in range(6):
        world.clock.forward(99)
        with pytest.raises(Unauthorized):
            await _by_jwt(world, acme, exp=expires)


@pytest.mark.parametrize("role", ["manager", "admin", "bot"])
async def test_a_jwt_of_staff_needs_permission(
    world: World, acme: Workspace, role: wire.Role
) -> None:
    await world.user("acme", "max", role)
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    with pytest.raises(Forbidden):
        await _by_jwt(world, acme, sub="max")
    await world.workspaces.update("acme", is_jwt_for_managers=True)
    if role == "bot":
        with pytest.raises(Forbidden):
            await _by_jwt(world, acme, sub="max")
    else:
        opened = await _by_jwt(world, acme, sub="max")
        assert (await world.credentials.authenticate(opened.token)).role == role
        opened = await _by_jwt(world, acme, sub="new", jti="two")
        assert (await world.credentials.authenticate(opened.token)).role == "customer"


async def test_a_jwt_of_a_deactivated_user_opens_nothing(world: World, acme: Workspace) -> None:
    await world.workspaces.update("acme", jwt=("HS256", SECRET))
    await world.user("acme", "cleo")
    await world.users.delete(KEY, "cleo")
    with pytest.raises(Unauthorized):
        await _by_jwt(world, acme)
    with pytest.raises(ValidationFailed):
        await _by_jwt(world, acme, sub="carl", attributes={"big": [[[[[[1]]]]]]})
    assert await world.users.find("acme", "carl") is None


# Visitors


async def test_a_visitor_is_stored_with_their_first_message(
    world: World, elsewhere: World, acme: Workspace, store: Store
) -> None:
    opened = await _visit(world, acme)
    caller = await world.credentials.authenticate(opened.token)
    assert (caller.role, caller.kind, caller.user_id) == ("customer", "session", opened.user.id)
    assert (await store.scan(USERS)).items == []
    await asyncio.gather(
        *(each.credentials.ensure_stored(caller) for each in (world, elsewhere) for _ in range(5))
    )
    (item,) = (await store.scan(USERS)).items
    assert (item["user_id"], item["is_anonymous"], item["role"]) == (
        opened.user.id,
        True,
        "customer",
    )
    await world.users.patch(KEY, opened.user.id, wire.PatchUser(name="Vera"))
    await world.credentials.ensure_stored(caller)
    assert (await world.users.get(KEY, opened.user.id)).name == "Vera"
    await world.users.delete(KEY, opened.user.id)
    await _refused(world, opened.token)
    await world.credentials.ensure_stored(KEY)


async def test_visitors_come_from_allowed_origins(world: World, acme: Workspace) -> None:
    await _visit(world, acme, "https://anywhere.example")
    await world.workspaces.update(
        "acme", allowed_origins=["https://shop.example"], jwt=("HS256", SECRET)
    )
    await _visit(world, acme, "https://shop.example")
    for origin in (None, "null", "https://shop.example.evil.example", "http://shop.example"):
        with pytest.raises(Forbidden):
            await _visit(world, acme, origin)
    await _by_jwt(world, acme)  # an app has no origin


async def test_visits_are_limited(world: World, acme: Workspace) -> None:
    for _ in range(30):
        await _visit(world, acme)
    with pytest.raises(RateLimited):
        await _visit(world, acme)
    guess = wire.CreateSession(publishable_key="pk_guess")
    for _ in range(300):
        with pytest.raises(Unauthorized):
            await world.credentials.create_session(None, guess, None, "192.0.2.9")
    with pytest.raises(RateLimited):
        await world.credentials.create_session(None, guess, None, "192.0.2.9")


async def test_a_session_costs_few_rows(world: World, store: Store, acme: Workspace) -> None:
    before = len((await store.scan(TOKENS)).items)
    await _visit(world, acme)
    assert len((await store.scan(TOKENS)).items) == before + 1
    assert len((await store.scan(SESSIONS)).items) == 1
