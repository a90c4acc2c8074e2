"""Users: made once, seen and changed as roles allow, deactivated and erased everywhere."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec import UNSET

from tests.people.conftest import World, key_of
from tests.stores import EVERY_STORE
from tidings import wire
from tidings.errors import Conflict, Forbidden, NotFound, Unauthorized, ValidationFailed
from tidings.people.callers import Caller
from tidings.people.workspaces import Workspace
from tidings.storage.interface import Store
from tidings.storage.tables import USERS

STORES = EVERY_STORE


KEY = key_of("acme")
pytestmark = pytest.mark.usefixtures("acme")


async def _staff(world: World) -> dict[str, Caller]:
    callers: dict[str, Caller] = {}
    people: tuple[tuple[str, wire.Role], ...] = (
        ("ada", "admin"),
        ("max", "manager"),
        ("cleo", "customer"),
        ("carl", "customer"),
    )
    for user_id, role in people:
        await world.user("acme", user_id, role)
        callers[user_id] = (await world.session("acme", user_id))[1]
    return callers


async def test_a_user_is_made_once_and_then_found_unchanged(world: World) -> None:
    body = wire.CreateUser(
        id="cleo",
        role="customer",
        name="Cleo",
        email="cleo@example.com",
        attributes={"plan": "pro", "gone": None},
    )
    made, is_new = await world.users.create(KEY, body)
    assert is_new
    assert made == wire.User(
        id="cleo",
        name="Cleo",
        role="customer",
        email="cleo@example.com",
        attributes={"plan": "pro"},
        is_deactivated=False,
        is_online=False,
        created_at="2100-01-01T00:00:00.000Z",
    )
    world.clock.forward(10)
    other = wire.CreateUser(id="cleo", role="admin", name="Mallory")
    assert await world.users.create(KEY, other) == (made, False)
    assert await world.users.get(KEY, "cleo") == made


async def test_of_many_who_make_the_same_user_one_does(world: World, elsewhere: World) -> None:
    bodies = [wire.CreateUser(id="cleo", role="customer", name=f"Cleo {n}") for n in range(10)]
    outcomes = await asyncio.gather(
        *((world, elsewhere)[n % 2].users.create(KEY, body) for n, body in enumerate(bodies))
    )
    assert sum(is_new for _, is_new in outcomes) == 1
    assert len({user.name for user, _ in outcomes}) == 1


async def test_who_makes_users(world: World) -> None:
    callers = await _staff(world)
    body = wire.CreateUser(role="customer", name="New")
    made, is_new = await world.users.create(callers["ada"], body)
    assert is_new
    assert made.id.startswith("usr_")
    with pytest.raises(Forbidden):
        await world.users.create(callers["ada"], msgspec.structs.replace(body, id="chosen"))
    for caller in (
        callers["max"],
        callers["cleo"],
        msgspec.structs.replace(KEY, scopes=frozenset({"rooms"})),
        Caller(workspace="", kind="operator", credential_id="op"),
    ):
        with pytest.raises(Forbidden):
            await world.users.create(caller, body)


async def test_who_sees_whom(world: World) -> None:
    callers = await _staff(world)
    world.online.add("cleo")
    for caller in (KEY, callers["ada"], callers["max"], callers["cleo"]):
        whole = await world.users.get(caller, "cleo")
        assert (whole.role, whole.is_online) == ("customer", True)
    with pytest.raises(NotFound) as of_stranger:
        await world.users.get(callers["carl"], "cleo")
    with pytest.raises(NotFound) as of_nobody:
        await world.users.get(callers["carl"], "nobody")
    assert of_stranger.value.detail == of_nobody.value.detail
    world.sharing.add(frozenset(("carl", "cleo")))
    assert await world.users.get(callers["carl"], "cleo") == wire.User(id="cleo", name="Cleo")
    seen = msgspec.json.encode(await world.users.get(callers["carl"], "cleo"))
    assert seen == b'{"id":"cleo","name":"Cleo"}'
    with pytest.raises(NotFound):
        await world.users.get(key_of("globex"), "cleo")
    with pytest.raises(Forbidden):
        await world.users.get(msgspec.structs.replace(KEY, scopes=frozenset()), "cleo")


async def test_a_patch_changes_what_it_names(world: World) -> None:
    body = wire.CreateUser(
        id="cleo", role="customer", name="Cleo", email="c@example.com", attributes={"a": {"b": 1}}
    )
    made, _ = await world.users.create(KEY, body)
    assert await world.users.patch(KEY, "cleo", wire.PatchUser()) == made
    changed = await world.users.patch(
        KEY,
        "cleo",
        wire.PatchUser(email=None, attributes={"a": {"c": 2}, "x": None}, role="manager"),
    )
    assert changed == msgspec.structs.replace(
        made, email=None, attributes={"a": {"b": 1, "c": 2}}, role="manager"
    )
    assert await world.users.get(KEY, "cleo") == changed
    with pytest.raises(ValidationFailed):
        await world.users.patch(KEY, "cleo", wire.PatchUser(attributes={"big": "x" * 20_000}))
    with pytest.raises(NotFound):
        await world.users.patch(KEY, "nobody", wire.PatchUser(name="N"))


async def test_no_patch_of_many_at_once_is_lost(world: World, elsewhere: World) -> None:
    await world.user("acme", "cleo")
    await asyncio.gather(
        *(
            each.users.patch(KEY, "cleo", wire.PatchUser(attributes={f"{name}{number}": number}))
            for name, each in (("a", world), ("b", elsewhere))
            for number in range(3)
        )
    )
    stored = await world.users.get(KEY, "cleo")
    assert stored.attributes == {f"{name}{number}": number for name in "ab" for number in range(3)}


async def test_who_changes_whom(world: World) -> None:
    callers = await _staff(world)
    renamed = wire.PatchUser(name="New name")
    for who in ("max", "cleo"):
        assert (await world.users.patch(callers[who], who, renamed)).name == "New name"
        for patch in (
            wire.PatchUser(role="admin"),
            wire.PatchUser(name="x", role="admin"),
            wire.PatchUser(attributes={}),
            wire.PatchUser(is_deactivated=False),
        ):
            with pytest.raises(Forbidden):
                await world.users.patch(callers[who], who, patch)
    with pytest.raises(Forbidden):
        await world.users.patch(callers["max"], "cleo", renamed)
    with pytest.raises(NotFound):
        await world.users.patch(callers["carl"], "cleo", renamed)
    with pytest.raises(NotFound):
        await world.users.delete(callers["carl"], "cleo")
    with pytest.raises(Forbidden):
        await world.users.delete(callers["max"], "cleo")
    with pytest.raises(Forbidden):
        await world.users.delete(callers["cleo"], "cleo")
    assert (await world.users.patch(callers["ada"], "cleo", wire.PatchUser(role="bot"))).role == (
        "bot"
    )


async def test_a_changed_role_counts_at_once_here_and_soon_elsewhere(
    world: World, elsewhere: World
) -> None:
    await world.user("acme", "max", "manager")
    opened, _ = await world.session("acme", "max")
    assert (await elsewhere.credentials.authenticate(opened.token)).role == "manager"
    await world.users.patch(KEY, "max", wire.PatchUser(role="customer"))
    assert (await world.credentials.authenticate(opened.token)).role == "customer"
    world.clock.forward(4.9)
    assert (await elsewhere.credentials.authenticate(opened.token)).role == "customer"


@pytest.mark.parametrize("way", ["delete", "patch", "erase"])
async def test_a_deactivated_user_is_out(world: World, elsewhere: World, way: str) -> None:
    await world.user("acme", "cleo")
    opened, _ = await world.session("acme", "cleo")
    await elsewhere.credentials.authenticate(opened.token)
    if way == "patch":
        await world.users.patch(KEY, "cleo", wire.PatchUser(is_deactivated=True))
    else:
        await world.users.delete(KEY, "cleo", erase=way == "erase")
    assert ("acme", "cleo", None) in world.revoked
    with pytest.raises(Unauthorized):
        await world.credentials.authenticate(opened.token)
    with pytest.raises(Conflict):
        await world.session("acme", "cleo")
    world.clock.forward(4.9)
    with pytest.raises(Unauthorized):
        await elsewhere.credentials.authenticate(opened.token)
    await world.users.delete(KEY, "cleo")
    if way != "erase":
        await world.users.patch(KEY, "cleo", wire.PatchUser(is_deactivated=False))
        with pytest.raises(Unauthorized):  # their old devices stay signed out
            await world.credentials.authenticate(opened.token)
        await world.session("acme", "cleo")


async def test_erasing_takes_the_data_and_can_go_on_later(world: World, store: Store) -> None:
    await world.users.create(
        KEY,
        wire.CreateUser(
            id="cleo", role="customer", name="Cleo", email="c@example.com", attributes={"a": 1}
        ),
    )
    await world.users.delete(KEY, "cleo", erase=True)
    await world.users.delete(KEY, "cleo", erase=True)
    assert world.erased == [("acme", "cleo")] * 2
    left = await world.users.get(KEY, "cleo")
    assert (left.name, left.email, left.attributes) == ("Erased user", None, {})
    item = await store.get(USERS, ("acme#cleo",))
    assert "Cleo" not in str(item)
    assert "example.com" not in str(item)
    marked = await store.query(USERS, "acme", index="by_erasing", consistent=False)
    assert [each["user_id"] for each in marked.items] == ["cleo"]
    for patch in (wire.PatchUser(is_deactivated=False), wire.PatchUser(name="Cleo")):
        with pytest.raises(Conflict):
            await world.users.patch(KEY, "cleo", patch)
    await world.users.finish_erasing("acme", "cleo")
    assert not (await store.query(USERS, "acme", index="by_erasing", consistent=False)).items


async def test_the_list_by_role_presence_and_beginning(world: World) -> None:
    callers = await _staff(world)
    await world.users.create(
        KEY, wire.CreateUser(id="zoe", role="customer", name="Émile Z", email="Clerk@example.com")
    )
    world.online.update(("cleo", "ada"))
    await world.user("globex", "cleo")

    async def ids(**filters: object) -> list[str]:
        found = await world.users.list(KEY, **filters)  # type: ignore[arg-type]
        assert found.next is None
        return [user.id for user in found.items]

    assert await ids() == ["ada", "carl", "cleo", "max", "zoe"]
    assert await ids(role="customer") == ["carl", "cleo", "zoe"]
    assert await ids(online=True) == ["ada", "cleo"]
    assert await ids(online=False, role="customer") == ["carl", "zoe"]
    assert await ids(q="CLE") == ["cleo", "zoe"]
    assert await ids(q="émile") == ["zoe"]
    assert await ids(q="leo") == []
    assert len((await world.users.list(callers["max"])).items) == 5
    for caller in (callers["cleo"], msgspec.structs.replace(KEY, scopes=frozenset())):
        with pytest.raises(Forbidden):
            await world.users.list(caller)


@pytest.mark.parametrize("limit", [1, 3, 7, 500])
async def test_pages_hold_everybody_once(world: World, limit: int) -> None:
    names = [f"u{number:02}" for number in range(21)]
    for number, user_id in enumerate(names):
        await world.user("acme", user_id, "bot" if number % 3 else "customer")
    for role, expected in ((None, names), ("customer", names[::3])):
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = await world.users.list(KEY, role=role, limit=limit, cursor=cursor)  # type: ignore[arg-type]
            assert len(page.items) <= limit
            found += [user.id for user in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert found == expected


async def test_a_cursor_serves_one_list_of_one_workspace(world: World) -> None:
    for user_id in ("a", "b", "c"):
        await world.user("acme", user_id)
    cursor = (await world.users.list(KEY, limit=1)).next
    assert cursor is not None
    for caller, role in ((KEY, "customer"), (key_of("globex"), None)):
        with pytest.raises(ValidationFailed):
            await world.users.list(caller, role=role, cursor=cursor)  # type: ignore[arg-type]
    with pytest.raises(ValidationFailed):
        await world.users.list(KEY, cursor=cursor[:-1] + "A")


async def test_a_search_looks_through_so_many_and_goes_on(world: World, store: Store) -> None:
    rows = [
        {
            "user": f"acme#u{number:05}",
            "workspace": "acme",
            "user_id": f"u{number:05}",
            "role": "customer",
            "name": "Zed" if number == 4_500 else "Name",
            "created_at": 1,
            "updated_at": 1,
        }
        for number in range(4_600)
    ]
    await store.put_many(USERS, rows)
    found: list[str] = []
    calls = 0
    cursor: str | None = None
    while calls == 0 or cursor is not None:
        page = await world.users.list(KEY, q="zed", cursor=cursor)
        found += [user.id for user in page.items]
        cursor = page.next
        calls += 1
    assert found == ["u04500"]
    assert calls == 3


async def test_find_many_leaves_out_who_is_not_there(world: World) -> None:
    await world.user("acme", "cleo")
    found = await world.users.find_many("acme", ["cleo", "nobody", "cleo"])
    assert {user_id: row.name for user_id, row in found.items()} == {"cleo": "Cleo"}
    assert await world.users.find("acme", "nobody") is None
    await world.user("acme", "nobody")
    assert await world.users.find("acme", "nobody") is not None


async def test_a_visitor_is_somebody_before_they_are_stored(
    world: World, acme: Workspace, store: Store
) -> None:
    opened = await world.credentials.create_session(
        None, wire.CreateSession(publishable_key=acme.publishable_key), None, "192.0.2.1"
    )
    caller = await world.credentials.authenticate(opened.token)
    assert caller.user_id is not None
    me = await world.users.get(caller, caller.user_id)
    assert (me.name, me.role, me.created_at) == ("Visitor", "customer", UNSET)
    with pytest.raises(NotFound):
        await world.users.get(KEY, caller.user_id)
    assert (await store.scan(USERS)).items == []
    renamed = await world.users.patch(caller, caller.user_id, wire.PatchUser(name="Vera"))
    assert renamed.name == "Vera"
    assert (await world.users.get(KEY, caller.user_id)).name == "Vera"
