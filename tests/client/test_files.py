"""Files with the client: sent from memory or disk, linked to, and got back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.api.conftest import Opening, Site, open_site, pytest_asyncio_loop_factories, store_url
from tests.blobs.conftest import picture
from tidings.client import Client, NotFound, TooLarge, ValidationFailed, download, upload

__all__ = ["open_site", "pytest_asyncio_loop_factories", "store_url"]


@pytest.fixture
async def site(open_site: Opening, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(blobs=f"file:{tmp_path}/blobs") as site:
        yield site


async def test_files_are_sent_and_got(site: Site, tmp_path: Path) -> None:
    ann_token, eve_token = await site.user("ann"), await site.user("eve")
    path = tmp_path / "holiday.png"
    path.write_bytes(picture(600, 300))
    async with Client(site.url, ann_token) as ann:
        eve = ann.as_session(eve_token)
        room = await ann.create_room("group", title="Trips")
        blobs = [
            await upload(ann, path, "image/png"),
            await upload(ann, b"a,b\n1,2\n", "text/csv", name="numbers.csv"),
        ]
        entry = await ann.post_message(room.id, "look", blobs=blobs)
        assert [(each.blob_id, each.name) for each in entry.blobs] == [
            (blobs[0], "holiday.png"),
            (blobs[1], "numbers.csv"),
        ]
        assert await download(ann, blobs[0], room_id=room.id) == path.read_bytes()
        assert await download(ann, blobs[1]) == b"a,b\n1,2\n"
        small = await download(ann, blobs[0], thumbnail=True)
        assert small[8:12] == b"WEBP"
        with pytest.raises(NotFound):
            await download(eve, blobs[0], room_id=room.id)
        with pytest.raises(ValidationFailed):
            await upload(ann, b"<script>", "image/png")
        with pytest.raises(TooLarge):
            await ann.create_blob("large", "image/png", 10**9)
        async with ann.live() as device:
            await device.until(lambda state: room.id in state.rooms)
            await ann.delete_message(room.id, entry.seq)
            await device.until(lambda state: state.rooms[room.id].head == entry.seq + 1)
            log = await ann.messages(room.id, after=0)
            await device.settled(deadline_s=10)
            assert device.rooms[room.id].log() == log.items
            assert log.items[0].blobs == []


async def test_bytes_whose_answer_was_lost_are_sent_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [True]
    request = aiohttp.ClientSession.request

    def losing(self: aiohttp.ClientSession, method: str, url: object, **more: object) -> object:
        return _Lost(request(self, method, url, **more), lost)  # type: ignore[arg-type]

    async with Client(site.url, await site.user("ann")) as ann:
        monkeypatch.setattr(aiohttp.ClientSession, "request", losing)
        blob_id = await upload(ann, b"once", "text/plain")
        monkeypatch.undo()
        assert lost == []
        assert await download(ann, blob_id) == b"once"


class _Lost:
    """A request whose first answer to an upload never comes."""

    def __init__(self, context: object, lost: list[bool]) -> None:
        self._context = context
        self._lost = lost

    async def __aenter__(self) -> aiohttp.ClientResponse:
        reply: aiohttp.ClientResponse = await self._context.__aenter__()  # type: ignore[attr-defined]
        if reply.method == "PUT" and self._lost:
            self._lost.pop()
            raise aiohttp.ServerDisconnectedError
        return reply

    async def __aexit__(self, *error: object) -> None:
        await self._context.__aexit__(*error)  # type: ignore[attr-defined]
