"""Sessions and users over HTTP: who becomes whom, what pages look like, how one is signed out."""

from __future__ import annotations

import pytest

from tests.api.conftest import Site
from tests.stores import BOTH_STORES

STORES = BOTH_STORES


async def test_a_user_is_made_once(site: Site) -> None:
    key = await site.key()
    body = {"id": "ada", "role": "customer", "name": "Ada", "attributes": {"plan": "pro"}}
    made = await site.call("POST", "/v1/users", key, body)
    again = await site.call("POST", "/v1/users", key, {**body, "name": "Eve"})
    assert (made.status, again.status) == (201, 200)
    assert made.json == again.json
    assert made.json["attributes"] == {"plan": "pro"}


async def test_a_patch_leaves_what_it_does_not_name(site: Site) -> None:
    key = await site.key()
    body = {"id": "ada", "role": "customer", "name": "Ada", "email": "ada@example.com"}
    await site.call("POST", "/v1/users", key, body)
    patched = await site.call("PATCH", "/v1/users/ada", key, {"name": "Countess"})
    assert (patched.json["name"], patched.json["email"]) == ("Countess", "ada@example.com")
    patched = await site.call("PATCH", "/v1/users/ada", key, {"email": None})
    assert patched.json["email"] is None
    stored = await site.call("GET", "/v1/users/ada", key)
    assert stored.json == patched.json


async def test_a_list_comes_in_pages_whose_cursors_are_sealed(site: Site) -> None:
    key = await site.key()
    for number in range(5):
        body = {"id": f"u{number}", "role": "customer", "name": f"User {number}"}
        await site.call("POST", "/v1/users", key, body)
    seen: list[str] = []
    query = "limit=2"
    for _ in range(10):
        page = (await site.call("GET", f"/v1/users?{query}", key)).json
        assert len(page["items"]) <= 2
        seen += [user["id"] for user in page["items"]]
        if page["next"] is None:
            break
        query = f"limit=2&cursor={page['next']}"
    assert seen == [f"u{number}" for number in range(5)]
    cursor = (await site.call("GET", "/v1/users?limit=2", key)).json["next"]
    for wrong in (cursor[:-1], cursor[:-1] + "!", "A" + cursor, "x", "%00"):
        refused = await site.call("GET", f"/v1/users?limit=2&cursor={wrong}", key)
        assert (refused.status, refused.json["code"]) == (400, "validation_failed"), wrong
    other_filter = await site.call("GET", f"/v1/users?role=bot&cursor={cursor}", key)
    assert other_filter.status == 400


async def test_users_are_found_by_role_and_by_how_their_name_begins(site: Site) -> None:
    key = await site.key()
    for name, role in (("Ada", "manager"), ("Adam", "customer"), ("Eve", "customer")):
        await site.call("POST", "/v1/users", key, {"id": name, "role": role, "name": name})

    async def found(query: str) -> list[str]:
        page = await site.call("GET", f"/v1/users?{query}", key)
        return [user["id"] for user in page.json["items"]]

    assert await found("role=customer") == ["Adam", "Eve"]
    assert await found("q=ad") == ["Ada", "Adam"]
    assert await found("q=ad&role=manager") == ["Ada"]
    assert await found("online=true") == []


async def test_a_session_is_one_device_and_can_be_signed_out(site: Site) -> None:
    phone, laptop = await site.user("ada"), await site.user("ada")
    listed = (await site.call("GET", "/v1/sessions", laptop)).json
    assert [each["is_current"] for each in listed["items"]].count(True) == 1
    (other,) = [each for each in listed["items"] if not each["is_current"]]
    gone = await site.call("DELETE", f"/v1/sessions/{other['session_id']}", laptop)
    assert (gone.status, gone.raw) == (204, b"")
    assert (await site.call("GET", "/v1/sessions", phone)).status == 401
    assert (await site.call("GET", "/v1/sessions", laptop)).status == 200
    again = await site.call("DELETE", f"/v1/sessions/{other['session_id']}", laptop)
    assert again.status == 404


async def test_a_session_says_who_it_is(site: Site) -> None:
    token = await site.user("ada", "admin")
    me = await site.call("GET", "/v1/me", token)
    assert me.status == 200
    assert (me.json["id"], me.json["role"]) == ("ada", "admin")
    assert (me.json["unread"], me.json["mentions"]) == (0, 0)


async def test_a_deactivated_user_is_out(site: Site) -> None:
    key, token = await site.key(), await site.user("ada")
    assert (await site.call("DELETE", "/v1/users/ada", key)).status == 204
    assert (await site.call("GET", "/v1/me", token)).status == 401
    refused = await site.call("POST", "/v1/sessions", key, {"user_id": "ada"})
    assert (refused.status, refused.json["code"]) == (409, "conflict")


async def test_a_visitor_needs_no_more_than_the_publishable_key(site: Site) -> None:
    workspace = await site.service.people.workspaces.get(site.workspace)
    assert workspace is not None
    body = {"publishable_key": workspace.publishable_key}
    opened = await site.call("POST", "/v1/sessions", json=body)
    assert opened.status == 201
    assert opened.json["user"]["role"] == "customer"
    me = await site.call("GET", "/v1/me", opened.json["token"])
    assert me.json["id"] == opened.json["user"]["id"]
    named = await site.call("POST", "/v1/sessions", json={**body, "user_id": "ada"})
    assert (named.status, named.json["code"]) == (403, "forbidden")


async def test_only_allowed_origins_open_sessions(site: Site) -> None:
    workspace = await site.service.people.workspaces.update(
        site.workspace, allowed_origins=["https://shop.example"]
    )
    body = {"publishable_key": workspace.publishable_key}
    for origin, status in (("https://shop.example", 201), ("https://evil.example", 403)):
        opened = await site.call("POST", "/v1/sessions", json=body, headers={"Origin": origin})
        assert opened.status == status, origin


@pytest.mark.parametrize(
    "body", [{}, {"publishable_key": "pk_none"}, {"user_id": "ada"}, {"jwt": "a.b.c"}]
)
async def test_nobody_gets_in_without_a_credential(site: Site, body: dict[str, str]) -> None:
    answer = await site.call("POST", "/v1/sessions", json=body)
    assert answer.status in (400, 401)
    assert "token" not in answer.json
