"""Files over HTTP: sent, linked to by messages, read by who reads the room, and gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.api.conftest import Site, soon
from tests.blobs.conftest import picture, post, room_of, uploaded
from tests.stores import BOTH_STORES
from tidings.blobs.blobs import UNHELD
from tidings.chat.attachments import ABOUT, Fitness
from tidings.clock import system_clock
from tidings.cluster.schedule import SHARDS, plan_due
from tidings.people.callers import Caller
from tidings.storage.interface import Delete
from tidings.storage.tables import BLOBS, SCHEDULE, blob_key

STORES = BOTH_STORES
HTML = b"<script>alert(document.domain)</script>"


async def test_a_picture_is_sent_linked_to_and_read(site: Site) -> None:
    ann, ben = await site.user("ann"), await site.user("ben")
    room_id = await room_of(site, ann, "ben")
    body = picture(1200, 900)
    blob_id = await uploaded(site, ann, body, name="Holiday ☀.png")

    posted = await post(site, ann, room_id, blob_id)
    assert posted.status == 201, posted
    assert posted.json["text"] is None
    (link,) = posted.json["blobs"]
    url = f"/v1/blobs/{blob_id}?room_id={room_id}"
    assert link == {
        "blob_id": blob_id,
        "name": "Holiday ☀.png",
        "type": "image/png",
        "size": len(body),
        "url": url,
        "width": 1200,
        "height": 900,
        "thumbnail_url": f"{url}&thumbnail=true",
    }
    listed = await site.call("GET", f"/v1/rooms/{room_id}/messages", ben)
    assert listed.json["items"][-1] == posted.json
    inbox = await site.call("GET", "/v1/inbox", ben)
    assert inbox.json["items"][0]["preview"] == "Holiday ☀.png"
    assert inbox.json["items"][0]["unread"] == 1

    async with site.http.get(
        site.url + url, headers={"Authorization": f"Bearer {ben}"}, allow_redirects=False
    ) as redirect:
        assert redirect.status == 302
        assert redirect.headers["Cache-Control"] == "no-store"
        location = redirect.headers["Location"]
    got = await site.call("GET", location)
    assert (got.status, got.raw) == (200, body)
    assert got.headers["Content-Type"] == "image/png"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Content-Disposition"] == "inline; filename*=UTF-8''Holiday%20%E2%98%80.png"
    some = await site.call("GET", location, headers={"Range": "bytes=1-3"})
    assert (some.status, some.raw) == (206, b"PNG")

    small = await site.call("GET", link["thumbnail_url"], ben)
    with Image.open(BytesIO(small.raw)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (480, 360))
    shown = await site.call("GET", f"/v1/blobs/{blob_id}/link?room_id={room_id}", ben)
    same = await site.call("GET", f"/v1/blobs/{blob_id}/link", ben)
    assert shown.json["url"].startswith(site.url)
    assert shown.json["url"] == same.json["url"], (
        "a link stays for a while, so browsers can keep it"
    )
    assert (await site.call("GET", shown.json["url"].removeprefix(site.url))).raw == body


async def test_only_readers_of_a_room_that_holds_it_read_a_file(site: Site) -> None:
    ann, ben, eve = [await site.user(each) for each in ("ann", "ben", "eve")]
    cus = await site.user("cus", "customer")
    room_id = await room_of(site, ann, "ben")
    blob_id = await uploaded(site, ann, b"plain", "text/plain")
    path = f"/v1/blobs/{blob_id}"
    absent = await site.call("GET", "/v1/blobs/blob_0", eve)
    assert absent.status == 404

    async def sees(token: str) -> bool:
        answers = [
            await site.call("GET", each, token)
            for each in (path, f"{path}/link", f"{path}?room_id={room_id}")
        ]
        statuses = {answer.status for answer in answers}
        assert statuses in ({200}, {404}), answers
        if statuses == {404}:
            assert answers[0].raw == absent.raw
        return statuses == {200}

    assert await sees(ann), "before it is attached, its uploader may look at it"
    assert not await sees(ben)
    assert (await post(site, eve, await room_of(site, eve), blob_id)).fields == ["blobs"]
    assert (await post(site, ann, room_id, blob_id)).status == 201
    assert [await sees(each) for each in (ann, ben, eve, cus)] == [True, True, False, False]

    other = await room_of(site, eve, "ben")
    assert (await post(site, eve, other, blob_id)).fields == ["blobs"]
    assert (await post(site, ben, other, blob_id)).status == 201, "who may read it may pass it on"
    assert (await site.call("GET", f"{path}?room_id={room_id}", eve)).status == 404
    for readable in (path, f"{path}?room_id={other}"):
        assert (await site.call("GET", readable, eve)).status == 200

    left = await site.call("DELETE", f"/v1/rooms/{room_id}/members/ann", ann)
    assert left.status == 204
    assert not await sees(ann), "who left the room reads its files no more, their own included"


async def test_who_joined_later_reads_no_files_of_before(site: Site) -> None:
    ann, ben = await site.user("ann"), await site.user("ben")
    room_id = await room_of(site, ann, history="since_join")
    blob_id = await uploaded(site, ann, b"plain", "text/plain")
    assert (await post(site, ann, room_id, blob_id)).status == 201
    await site.call("POST", f"/v1/rooms/{room_id}/members", ann, {"user_id": "ben"})
    assert (await site.call("GET", f"/v1/blobs/{blob_id}?room_id={room_id}", ben)).status == 404
    assert (await post(site, ann, room_id, blob_id, client_id="again")).status == 201
    assert (await site.call("GET", f"/v1/blobs/{blob_id}?room_id={room_id}", ben)).status == 200


async def test_a_deleted_message_lets_its_files_go(site: Site, folder: Path) -> None:
    ann, ben = await site.user("ann"), await site.user("ben")
    room_id = await room_of(site, ann, "ben")
    lone, shared = [await uploaded(site, ann, picture(60, 40)) for _ in range(2)]
    both = await post(site, ann, room_id, lone, shared, text="look")
    assert (await post(site, ben, room_id, shared, client_id="too")).status == 201
    path = f"/v1/rooms/{room_id}/messages/{both.json['seq']}"
    deleted = await site.call("DELETE", path, ann)
    assert (deleted.status, deleted.json["blobs"]) == (200, [])
    for suffix in ("", f"?room_id={room_id}"):
        assert (await site.call("GET", f"/v1/blobs/{lone}{suffix}", ben)).status == 404
        assert (await site.call("GET", f"/v1/blobs/{shared}{suffix}", ben)).status == 200

    async def are_gone() -> bool:
        names = {each.name for each in folder.rglob("*") if each.is_file()}
        return names == {shared, f"{shared}.thumbnail"}

    await soon(are_gone)
    again = await post(site, ann, room_id, lone, shared, text="look")
    assert (again.status, again.json["seq"]) == (200, both.json["seq"]), "it was accepted before"
    assert (await post(site, ann, room_id, lone, client_id="new")).fields == ["blobs"]


async def test_an_erased_author_leaves_no_files(site: Site, folder: Path) -> None:
    ann, ben, key = await site.user("ann"), await site.user("ben"), await site.key()
    room_id = await room_of(site, ben, "ann")
    for number in range(3):
        blob_ids = [await uploaded(site, ann, b"mine", "text/plain") for _ in range(2)]
        assert (await post(site, ann, room_id, *blob_ids, client_id=f"c{number}")).status == 201
    kept = await uploaded(site, ben, b"his", "text/plain")
    assert (await post(site, ben, room_id, kept)).status == 201
    erased = await site.call("DELETE", "/v1/users/ann?erase=true", key)
    assert erased.status == 204

    async def is_done() -> bool:
        listed = await site.call("GET", f"/v1/rooms/{room_id}/messages", ben)
        held = [blob["blob_id"] for entry in listed.json["items"] for blob in entry["blobs"]]
        return held == [kept] and {f.name for f in folder.rglob("*") if f.is_file()} == {kept}

    await soon(is_done)


async def test_what_no_message_links_to_goes_after_a_day(site: Site, folder: Path) -> None:
    ann = await site.user("ann")
    room_id = await room_of(site, ann)
    held, unheld = [await uploaded(site, ann, b"abc", "text/plain") for _ in range(2)]
    assert (await post(site, ann, room_id, held)).status == 201
    store = site.service.store
    due = [
        item for shard in range(SHARDS) for item in (await store.query(SCHEDULE, str(shard))).items
    ]
    assert {item["kind"] for item in due} == {UNHELD}
    keys = {blob_key(site.workspace, each) for each in (held, unheld)}
    assert {item["subject"] for item in due} == keys
    day_ms = 24 * 3600 * 1000
    for item in due:
        left_ms = int(item["due"].partition("#")[0]) - system_clock()
        assert day_ms - 60_000 < left_ms <= day_ms
        await store.write(plan_due(UNHELD, item["subject"], 0, 1))

    async def is_gone() -> bool:
        return {each.name for each in folder.rglob("*") if each.is_file()} == {held}

    await soon(is_gone)
    assert (await site.call("GET", f"/v1/blobs/{unheld}", ann)).status == 404
    assert (await site.call("GET", f"/v1/blobs/{held}", ann)).status == 200


async def test_a_message_with_many_files_in_a_full_room_is_one_commit(site: Site) -> None:
    ann = await site.user("ann")
    others = [f"u{number}" for number in range(23)]
    for each in others:
        await site.user(each)
    room_id = await room_of(site, ann, *others)
    blob_ids = [await uploaded(site, ann, b"abc", "text/plain") for _ in range(20)]
    posted = await post(site, ann, room_id, *blob_ids, client_id="all")
    assert posted.status == 201
    assert [blob["blob_id"] for blob in posted.json["blobs"]] == blob_ids
    answers = await asyncio.gather(
        *(post(site, ann, room_id, blob_ids[0], client_id=f"c{n}") for n in range(10))
    )
    assert {answer.status for answer in answers} == {201}
    path = f"/v1/rooms/{room_id}/messages/{posted.json['seq']}"
    assert (await site.call("DELETE", path, ann)).status == 200
    assert (await site.call("GET", f"/v1/blobs/{blob_ids[1]}", ann)).status == 404
    assert (await site.call("GET", f"/v1/blobs/{blob_ids[0]}", ann)).status == 200


async def test_a_file_that_goes_at_the_last_moment_is_not_linked_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await site.user("ann")
    room_id = await room_of(site, ann)
    blob_id = await uploaded(site, ann, b"abc", "text/plain")
    kept = await uploaded(site, ann, b"abc", "text/plain")
    messages = site.service.chat.messages
    look_up = messages._attachable

    async def look_up_too_early(caller: Caller, author: Caller, ids: Sequence[str]) -> Fitness:
        fitness = await look_up(caller, author, ids)
        await site.service.store.write(Delete(BLOBS, (blob_key(site.workspace, blob_id), ABOUT)))
        return fitness

    monkeypatch.setattr(messages, "_attachable", look_up_too_early)
    refused = await post(site, ann, room_id, kept, blob_id, client_id="late")
    assert (refused.status, refused.fields) == (400, ["blobs"])
    listed = await site.call("GET", f"/v1/rooms/{room_id}/messages", ann)
    assert listed.json["items"] == []
    assert (await post(site, ann, room_id, kept, client_id="late")).status == 201


async def test_rooms_of_one_user_may_link_to_one_file_at_once(site: Site) -> None:
    ann = await site.user("ann")
    rooms = [await room_of(site, ann) for _ in range(12)]
    blob_id = await uploaded(site, ann, b"abc", "text/plain")
    answers = await asyncio.gather(
        *(
            post(site, ann, room_id, blob_id, client_id=f"c{n % 3}")
            for n, room_id in enumerate(rooms)
        )
    )
    assert {answer.status for answer in answers} == {201}
    for room_id in rooms:
        found = await site.call("GET", f"/v1/blobs/{blob_id}?room_id={room_id}", ann)
        assert found.status == 200
