"""Files in a bucket: clients send and get them by signed links, past the service."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from io import BytesIO
from urllib.parse import parse_qsl, urlsplit

import pytest
from PIL import Image

from tests.api.conftest import Answer, Opening, Site, soon
from tests.blobs.conftest import begin, picture, post, room_of
from tests.engines import s3_endpoint
from tidings.blobs.kinds import HEAD_BYTES, Served
from tidings.blobs.s3 import BucketShelf
from tidings.clock import system_clock
from tidings.config import S3Address
from tidings.errors import NotFound, Unavailable
from tidings.storage.credentials import Keys
from tidings.storage.signatures import signed_link

pytestmark = pytest.mark.slow

KEYS = Keys("test", "test")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> S3Address:
    """A bucket that is nobody else's, at an engine that checks signatures."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
    return S3Address(f"files-{secrets.token_hex(6)}", endpoint=s3_endpoint())


@pytest.fixture
async def site(open_site: Opening, address: S3Address) -> AsyncIterator[Site]:
    """A service whose files are in the bucket."""
    url = f"s3://{address.bucket}?endpoint={address.endpoint}"
    async with open_site(blobs=url) as site:
        moment = datetime.now(UTC)
        bucket = f"{address.endpoint}/{address.bucket}"
        link = signed_link(KEYS, "PUT", bucket, region="us-east-1", moment=moment, life_s=60)
        async with site.http.put(link) as made:
            assert made.status == 200
        yield site


async def _send(site: Site, upload: dict[str, str | dict[str, str]], body: bytes) -> int:
    headers = upload["headers"]
    assert isinstance(headers, dict)
    assert isinstance(upload["url"], str)
    async with site.http.put(upload["url"], data=body, headers=headers) as answer:
        return answer.status


async def _followed(site: Site, path: str, token: str) -> Answer:
    """What a redirect leads to; the bucket gets no credential of ours."""
    url, headers = site.url + path, {"Authorization": f"Bearer {token}"}
    async with site.http.get(url, headers=headers, allow_redirects=False) as redirect:
        assert redirect.status == 302
        location = redirect.headers["Location"]
    async with site.http.get(location) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def test_a_picture_goes_to_the_bucket_and_back(site: Site, address: S3Address) -> None:
    ann, ben = await site.user("ann"), await site.user("ben")
    room_id = await room_of(site, ann, "ben")
    body = picture(1200, 900)
    blob = await begin(site, ann, body, "image/png", "a b.png")
    blob_id = blob["blob_id"]
    upload = blob["upload"]
    assert upload["url"].startswith(f"{address.endpoint}/{address.bucket}/blob_")
    signed = dict(parse_qsl(urlsplit(upload["url"]).query))["X-Amz-SignedHeaders"]
    assert signed == "content-length;content-type;host;if-none-match"
    assert upload["headers"] == {"Content-Type": "image/png", "If-None-Match": "*"}
    assert (await post(site, ann, room_id, blob_id)).fields == ["blobs"], "nothing was sent yet"

    assert await _send(site, upload, body) == 200
    posted = await post(site, ann, room_id, blob_id)
    assert posted.status == 201, posted
    (link,) = posted.json["blobs"]
    assert (link["width"], link["height"]) == (1200, 900)
    got = await _followed(site, link["url"], ben)
    assert (got.status, got.raw) == (200, body)
    assert got.headers["Content-Type"] == "image/png"
    small = await _followed(site, link["thumbnail_url"], ben)
    with Image.open(BytesIO(small.raw)) as thumbnail:
        assert thumbnail.size == (480, 360)

    shelf = BucketShelf(address, system_clock)
    key = f"{site.workspace}#{blob_id}"
    assert await shelf.size_bytes(key) == len(body)
    path = f"/v1/rooms/{room_id}/messages/{posted.json['seq']}"
    assert (await site.call("DELETE", path, ann)).status == 200

    async def is_gone() -> bool:
        return await shelf.size_bytes(key) is await shelf.size_bytes(f"{key}.thumbnail") is None

    await soon(is_gone)
    await shelf.close()


async def test_bytes_that_are_not_what_was_said_are_forgotten(
    site: Site, address: S3Address
) -> None:
    ann = await site.user("ann")
    room_id = await room_of(site, ann)
    shelf = BucketShelf(address, system_clock)
    for body, type_ in ((b"<script>" * 20, "image/png"), (b"\x89PNG\r\n\x1a\n" * 20, "image/png")):
        blob = await begin(site, ann, body, type_)
        assert await _send(site, blob["upload"], body) == 200
        refused = await post(site, ann, room_id, blob["blob_id"])
        assert refused.fields == ["blobs"]
        assert await shelf.size_bytes(f"{site.workspace}#{blob['blob_id']}") is None
    short = await begin(site, ann, b"x" * 100, "application/zip")
    await shelf.put(f"{site.workspace}#{short['blob_id']}", b"short", "application/zip")
    assert (await post(site, ann, room_id, short["blob_id"])).fields == ["blobs"]
    await shelf.close()


async def test_a_bucket_keeps_and_forgets(site: Site, address: S3Address) -> None:
    shelf = BucketShelf(address, system_clock)
    key, body = "acme#blob_1", bytes(range(256)) * 10
    assert await shelf.size_bytes(key) is None
    with pytest.raises(NotFound):
        await shelf.head(key)
    with pytest.raises(NotFound):
        async with shelf.as_file(key):
            pass
    await shelf.put(key, body, "audio/wav")
    assert await shelf.size_bytes(key) == len(body)
    assert await shelf.head(key) == body[:HEAD_BYTES]
    async with shelf.as_file(key) as path:
        assert path.read_bytes() == body
    assert not path.exists()
    served = Served("application/octet-stream", "attachment; filename*=UTF-8''a%20b")
    expires_at_ms = system_clock() + 300_000
    link = await shelf.download_link(key, served, expires_at_ms)
    assert link == await shelf.download_link(key, served, expires_at_ms)
    async with site.http.get(link) as answer:
        assert await answer.read() == body
        assert answer.headers["Content-Type"] == served.type
        assert answer.headers["Content-Disposition"] == served.disposition
    await shelf.delete(key)
    await shelf.delete(key)
    assert await shelf.size_bytes(key) is None
    await shelf.close()


async def test_a_bucket_that_is_not_there_is_unavailable(address: S3Address) -> None:
    shelf = BucketShelf(S3Address(address.bucket, endpoint="http://127.0.0.1:1"), system_clock)
    with pytest.raises(Unavailable):
        await shelf.size_bytes("acme#blob_1")
    await shelf.close()
