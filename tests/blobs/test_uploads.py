"""Uploads: whole or not at all, of what was announced, and never run by a browser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from tests.api.conftest import Site, soon
from tests.blobs.conftest import begin, picture, post, room_of, send, uploaded
from tidings.blobs import blobs as blobs_module
from tidings.blobs import files as files_module

HTML = b"<script>alert(document.domain)</script>"


async def test_a_key_uploads_for_its_workspace(site: Site) -> None:
    ann, key = await site.user("ann"), await site.key("messages")
    room_id = await room_of(site, ann)
    blob_id = await uploaded(site, key, b"plain", "text/plain")
    assert (await post(site, ann, room_id, blob_id)).fields == ["blobs"]
    assert (await post(site, key, room_id, blob_id, as_user="ann")).status == 201
    assert (await site.call("GET", f"/v1/blobs/{blob_id}", key)).status == 200
    refused = await site.call("POST", "/v1/blobs", await site.key("rooms"), {})
    assert refused.status == 403


@pytest.mark.parametrize(
    ("body", "status", "fields"),
    [
        ({"name": "a", "type": "image/png", "size": blobs_module.BLOB_BYTES_MAX + 1}, 413, []),
        ({"name": "a", "type": "image/png", "size": 0}, 400, ["size"]),
        ({"name": "a", "type": "png", "size": 1}, 400, ["type"]),
        ({"name": "a", "type": "text/html; charset=utf-8", "size": 1}, 400, ["type"]),
        ({"name": "a/../b", "type": "image/png", "size": 1}, 400, ["name"]),
        ({"name": "a\r\nSet-Cookie: b", "type": "image/png", "size": 1}, 400, ["name"]),
        ({"name": "", "type": "image/png", "size": 1}, 400, ["name"]),
    ],
)
async def test_what_can_not_be_a_file_is_refused(
    site: Site, body: Any, status: int, fields: list[str]
) -> None:
    refused = await site.call("POST", "/v1/blobs", await site.user("ann"), body)
    assert (refused.status, refused.fields) == (status, fields)


async def test_bytes_come_all_or_not_at_all(site: Site, folder: Path) -> None:
    ann = await site.user("ann")
    room_id = await room_of(site, ann)
    body = picture()
    blob = await begin(site, ann, body, "image/png")
    upload = blob["upload"]
    assert (await post(site, ann, room_id, blob["blob_id"])).fields == ["blobs"]
    assert (await send(site, upload, body[:-1])).status == 400
    assert (await send(site, upload, body + b"x")).status == 413
    assert (await send(site, upload, HTML.ljust(len(body)))).status == 400
    assert not [each for each in folder.rglob("*") if each.is_file()]
    forged = {**upload, "url": upload["url"][:-1] + ("A" if upload["url"][-1] != "A" else "B")}
    assert (await send(site, forged, body)).status == 404
    assert (await send(site, upload, body)).status == 204
    assert (await send(site, upload, body[::-1])).status == 409
    assert (await post(site, ann, room_id, blob["blob_id"], client_id="now")).status == 201
    twice = await post(site, ann, room_id, blob["blob_id"], blob["blob_id"], client_id="twice")
    assert twice.fields == ["blobs"]


async def test_of_two_uploads_at_once_one_is_kept(site: Site, folder: Path) -> None:
    ann = await site.user("ann")
    body = b"x" * 300_000
    blob = await begin(site, ann, body, "application/zip")
    answers = await asyncio.gather(*(send(site, blob["upload"], body) for _ in range(5)))
    assert sorted(answer.status for answer in answers)[0] == 204
    assert {answer.status for answer in answers} <= {204, 409}
    assert [each.stat().st_size for each in folder.rglob("*") if each.is_file()] == [len(body)]


async def test_an_upload_that_breaks_off_is_forgotten(site: Site, folder: Path) -> None:
    upload = (await begin(site, await site.user("ann"), b"abc", "text/plain"))["upload"]
    host, port = URL(site.url).host, URL(site.url).port
    path = URL(upload["url"]).raw_path
    operator = await site.key(operator=True)

    async def broke_off() -> bool:
        metrics = (await site.call("GET", "/metrics", operator)).raw.decode()
        assert 'tidings_errors_total{place="' not in metrics, "it is no fault of ours"
        return 'tidings_requests_total{route="/v1/uploads/{ticket}"' in metrics

    for body in (b"Content-Length: 3\r\n\r\na", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: {host}\r\n".encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    await soon(broke_off)

    async def is_clean() -> bool:
        return not [each for each in folder.rglob("*") if each.is_file()]

    await soon(is_clean)
    assert await broke_off()
    assert (await send(site, upload, b"abc")).status == 204


async def test_nobody_takes_the_places_of_all_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "USER_UPLOADS_MAX", 1)
    ann, ben = await site.user("ann"), await site.user("ben")
    going = asyncio.Event()
    begun = asyncio.Event()

    async def slowly() -> Any:
        yield b"ab"
        begun.set()
        await going.wait()
        yield b"c"

    first, second, other = [
        (await begin(site, each, b"abc", "text/plain"))["upload"] for each in (ann, ann, ben)
    ]

    async def send_slowly() -> int:
        async with site.http.put(first["url"], data=slowly()) as answer:
            return answer.status

    sending = asyncio.create_task(send_slowly())
    await begun.wait()
    assert (await send(site, other, b"abc")).status == 204

    async def is_refused() -> bool:
        refused = await send(site, second, b"abx"[:2])
        return refused.status == 429

    await soon(is_refused)
    going.set()
    assert await sending == 204
    assert (await send(site, second, b"abc")).status == 204


async def test_an_upload_that_falls_silent_is_ended(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "SILENCE_TIMEOUT_S", 0.05)
    upload = (await begin(site, await site.user("ann"), b"abc", "text/plain"))["upload"]
    never = asyncio.Event()

    async def slowly() -> Any:
        yield b"ab"
        await never.wait()

    url = upload["url"]
    async with site.http.put(url, data=slowly()) as answer:
        assert answer.status == 400
    assert not [each for each in folder.rglob("*") if each.is_file()]


@pytest.mark.parametrize(
    ("body", "type_", "name"),
    [
        (HTML, "text/html", "page.html"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', "image/svg+xml", "a.svg"),
        (HTML, "application/xhtml+xml", 'a";filename="b.html'),
        (HTML, "text/plain", "a.html"),
    ],
)
async def test_what_could_run_is_only_saved(site: Site, body: bytes, type_: str, name: str) -> None:
    ann = await site.user("ann")
    blob_id = await uploaded(site, ann, body, type_, name)
    got = await site.call("GET", f"/v1/blobs/{blob_id}", ann)
    assert (got.status, got.raw) == (200, body)
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''")
    assert '"' not in got.headers["Content-Disposition"]
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    policy = got.headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy


async def test_a_file_with_another_one_inside_is_not_its_type(site: Site) -> None:
    ann = await site.user("ann")
    for body, type_ in ((HTML, "image/png"), (b"GIF89a" + HTML, "image/gif"), (HTML, "video/mp4")):
        blob = await begin(site, ann, body, type_)
        assert (await send(site, blob["upload"], body)).fields == ["body"]


async def test_links_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "LINK_LIFE_S", 0)
    monkeypatch.setattr(blobs_module, "UPLOAD_LIFE_S", 0)
    ann = await site.user("ann")
    upload = (await begin(site, ann, b"abc", "text/plain"))["upload"]
    assert (await send(site, upload, b"abc")).status == 404


async def test_a_large_room_has_its_files_too(site: Site) -> None:
    ann = await site.user("ann")
    others = [f"u{number}" for number in range(30)]
    tokens = [await site.user(each) for each in others]
    room_id = await room_of(site, ann, *others)
    blob_id = await uploaded(site, ann, picture(30, 20), name="plan.png")
    posted = await post(site, ann, room_id, blob_id)
    assert posted.status == 201

    async def is_previewed() -> bool:
        rows = (await site.call("GET", "/v1/inbox", tokens[-1])).json["items"]
        return [(row["preview"], row["unread"]) for row in rows] == [("plan.png", 1)]

    await soon(is_previewed)
    path = f"/v1/blobs/{blob_id}?room_id={room_id}"
    assert (await site.call("GET", path, tokens[-1])).status == 200
    message = f"/v1/rooms/{room_id}/messages/{posted.json['seq']}"
    assert (await site.call("DELETE", message, ann)).status == 200
    assert (await site.call("GET", path, tokens[-1])).status == 404
