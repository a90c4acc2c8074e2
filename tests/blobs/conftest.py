"""A service with a folder, or a bucket, of its own for files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.conftest import (
    Answer,
    Opening,
    Site,
    open_site,
    pytest_asyncio_loop_factories,
    store_url,
)
from tidings.cluster import schedule

__all__ = ["open_site", "pytest_asyncio_loop_factories", "store_url"]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is done soon."""
    monkeypatch.setattr(schedule, "LOOK_PAUSE_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where this test's files are."""
    return tmp_path / "blobs"


@pytest.fixture
async def site(open_site: Opening, folder: Path) -> AsyncIterator[Site]:
    """A service on that folder."""
    async with open_site(blobs=f"file:{folder}") as site:
        yield site


def picture(width: int = 1200, height: int = 900, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture."""
    into = BytesIO()
    Image.new("RGB", (width, height), (10, 120, 200)).save(into, kind, **options)
    return into.getvalue()


async def begin(site: Site, token: str, body: bytes, type_: str, name: str = "file") -> Any:
    """A new blob for these bytes."""
    asked = {"name": name, "type": type_, "size": len(body)}
    made = await site.call("POST", "/v1/blobs", token, asked)
    assert made.status == 201, made
    return made.json


async def send(site: Site, upload: dict[str, Any], body: bytes) -> Answer:
    """The bytes of an upload, sent as it says."""
    assert upload["method"] == "PUT"
    path = upload["url"].removeprefix(site.url)
    return await site.call("PUT", path, data=body, headers=upload["headers"])


async def uploaded(
    site: Site, token: str, body: bytes, type_: str = "image/png", name: str = "file"
) -> str:
    """The id of a blob whose bytes are there."""
    blob = await begin(site, token, body, type_, name)
    answer = await send(site, blob["upload"], body)
    assert answer.status == 204, answer
    blob_id: str = blob["blob_id"]
    return blob_id


async def post(site: Site, token: str, room_id: str, *blob_ids: str, **more: Any) -> Answer:
    """A message that links to blobs."""
    body = {"client_id": f"c-{'-'.join(blob_ids)}"[:64], "blobs": list(blob_ids)} | more
    return await site.call("POST", f"/v1/rooms/{room_id}/messages", token, body)


async def room_of(site: Site, token: str, *member_ids: str, **more: Any) -> str:
    """A new private room."""
    body = {"kind": "group", "title": "room", "member_ids": list(member_ids)} | more
    made = await site.call("POST", "/v1/rooms", token, body)
    assert made.status == 201, made
    room_id: str = made.json["id"]
    return room_id
