"""Blobs: files that entries link to, from their upload until nobody holds them any more.

What a blob is stands in the store, its bytes on a shelf. A blob waits for its bytes, is then
`stored` and can be attached, and is `going` from the moment at which it is known that no entry
holds it: that is looked at a day after it was made, and when an entry let go of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tidings import wire
from tidings.blobs.drawing import Drawings
from tidings.blobs.files import FileShelf
from tidings.blobs.kinds import PICTURES, THUMBNAIL_TYPE, Served, is_as_said, served
from tidings.blobs.shelves import Shelf
from tidings.chat import access
from tidings.chat.attachments import (
    ABOUT,
    HELD,
    LEFT_BLOBS,
    STORED,
    Fitness,
    Stored,
    place_in,
    place_of,
)
from tidings.chat.messages import Messages
from tidings.clock import Clock, rfc3339
from tidings.cluster.schedule import Schedule, plan_due
from tidings.errors import (
    Conflict,
    FieldError,
    NotFound,
    RateLimited,
    TooLarge,
    Unavailable,
    ValidationFailed,
)
from tidings.ids import IdMaker
from tidings.people.callers import Caller
from tidings.storage.interface import (
    Absent,
    ConditionFailed,
    Delete,
    Equals,
    Exists,
    Item,
    Key,
    Put,
    Store,
    Update,
)
from tidings.storage.tables import BLOBS, ENTRIES, blob_key

BLOB_BYTES_MAX = 25 * 1024 * 1024
"""The largest file."""
USER_UPLOADS_MAX = 10
"""Uploads of one user that this process takes at once."""
UPLOAD_LIFE_S = 3_600
"""How long an upload link is good."""
LINK_LIFE_S = 300
"""How long a download link is good at least; twice as long at most."""
UNHELD_LIFE_S = 24 * 3_600
"""When it is looked whether any entry holds a new blob."""
PLACES_LOOKED_MAX = 50
"""Entries that are looked at for a reader who doesn't say in which room they read."""
UNHELD = "unheld_blob"
"""What the schedule calls that look; its subject is the blob's key."""

_WAITING, _GOING = "waiting", "going"
_THUMBNAIL = ".thumbnail"


class Blob(msgspec.Struct, frozen=True):
    """What a blob is."""

    blob_id: str
    state: str
    uploader_id: str | None
    """None where an API key uploaded it."""
    name: str
    type: str
    size: int
    width: int | None = None
    height: int | None = None
    has_thumbnail: bool = False
    attached: int = 0

    def stored(self) -> Stored:
        """What an entry keeps of it."""
        kept: Stored = {
            "blob_id": self.blob_id,
            "name": self.name,
            "type": self.type,
            "size": self.size,
        }
        if self.has_thumbnail:
            kept |= {"width": self.width, "height": self.height, "has_thumbnail": True}
        return kept


class Blobs:
    """The files of all workspaces, as far as a caller may."""

    def __init__(
        self,
        store: Store,
        shelf: Shelf,
        clock: Clock,
        ids: IdMaker,
        messages: Messages,
        schedule: Schedule,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._clock = clock
        self._ids = ids
        self._messages = messages
        self._drawings = Drawings()
        self._receiving: Counter[str] = Counter()
        """Uploads under way here, by who began them."""
        schedule.on(UNHELD, self._look_at_new)
        schedule.on(LEFT_BLOBS, self._look_at_left)

    # Uploading

    async def create(self, caller: Caller, body: wire.CreateBlob) -> wire.NewBlob:
        """A blob that waits for its bytes. Raises Forbidden, ValidationFailed, TooLarge."""
        access.require_upload(caller)
        if body.size > BLOB_BYTES_MAX:
            raise TooLarge(f"A file has at most {BLOB_BYTES_MAX} bytes.")
        if any(ord(each) < 32 or each in "/\\\x7f" for each in body.name):
            raise _refused("name", "It has no slashes and no control characters.")
        now_ms = self._clock()
        blob_id = self._ids.new("blob")
        key = blob_key(caller.workspace, blob_id)
        item: Item = {
            "blob": key,
            "place": ABOUT,
            "state": _WAITING,
            "uploader_id": caller.user_id,
            "name": body.name,
            "type": body.type,
            "size": body.size,
            "attached": 0,
            "created_at": now_ms,
        }
        due = plan_due(UNHELD, key, now_ms + UNHELD_LIFE_S * 1000, 0)
        upload = await self._shelf.upload_link(
            key, body.type, body.size, now_ms + UPLOAD_LIFE_S * 1000
        )
        await self._store.write(Put(BLOBS, item, when=(Absent(),)), due)
        return wire.NewBlob(blob_id, upload)

    async def receive(self, ticket: str, chunks: AsyncIterator[bytes]) -> None:
        """Take the bytes of an upload link of this service, all or none, durable on return.

        Raises NotFound for a link that is none; Conflict where the bytes are there; TooLarge and
        ValidationFailed for bytes that are not what was announced; Unavailable.
        """
        if not isinstance(self._shelf, FileShelf):
            raise NotFound("There is no such link.")
        allowed = self._shelf.open_upload(ticket)
        key = (allowed.key, ABOUT)
        blob = await self._find(key)
        if blob is None or blob.state == _GOING:
            raise NotFound("There is no such link.")
        if blob.state == STORED:
            raise Conflict("The bytes are there already.")
        if await self._shelf.size_bytes(allowed.key) is None:
            with self._one_more_of(blob.uploader_id):
                await self._shelf.receive(allowed, chunks)
        await self._settle(key, blob)

    @contextmanager
    def _one_more_of(self, uploader_id: str | None) -> Iterator[None]:
        """Let nobody take the places of all others. Raises RateLimited."""
        if uploader_id is not None and self._receiving[uploader_id] >= USER_UPLOADS_MAX:
            raise RateLimited("You are sending too many files at once.")
        self._receiving[uploader_id or ""] += 1
        try:
            yield
        finally:
            self._receiving[uploader_id or ""] -= 1
            self._receiving += Counter()  # drops who sends nothing any more

    async def _settle(self, key: Key, blob: Blob) -> Blob:
        """The blob as `stored`, with its size known and its thumbnail drawn, once for all.

        Bytes that are not what was announced are forgotten. Raises ValidationFailed, NotFound
        where there are none.
        """
        shelved: str = key[0]
        found = await self._shelf.size_bytes(shelved)
        if found is None:
            raise NotFound("The bytes are not there yet.")
        try:
            if found != blob.size:
                raise _refused("body", f"The file was to have {blob.size} bytes.")
            fields = await self._look_into(shelved, blob)
        except ValidationFailed:
            await self._shelf.delete(shelved)
            raise
        try:
            await self._store.write(
                Update(
                    BLOBS, key, set=fields | {"state": STORED}, when=(Equals("state", _WAITING),)
                )
            )
        except ConditionFailed:
            settled = await self._find(key)
            if settled is None or settled.state == _GOING:
                await self._forget(key)
                raise NotFound("This upload came too late.") from None
            return settled
        return msgspec.structs.replace(blob, state=STORED, **fields)

    async def _look_into(self, shelved: str, blob: Blob) -> dict[str, Any]:
        """See that the bytes are of their type, and draw the thumbnail of a picture."""
        if not is_as_said(blob.type, await self._shelf.head(shelved)):
            raise _refused("body", f"These bytes are not {blob.type}.")
        if blob.type not in PICTURES:
            return {}
        async with self._shelf.as_file(shelved) as path:
            drawing = await self._drawings.draw(path)
        await self._shelf.put(shelved + _THUMBNAIL, drawing.thumbnail, THUMBNAIL_TYPE)
        return {"width": drawing.width, "height": drawing.height, "has_thumbnail": True}

    # Attaching

    async def attachable(self, caller: Caller, author: Caller, blob_ids: Sequence[str]) -> Fitness:
        """What an entry of the author's is to keep of these blobs (`chat.attachments.Attachable`).

        Those are unfit that are not there, whose bytes did not come, and that neither the author
        uploaded nor the caller may read.
        """
        blobs = await asyncio.gather(
            *(self._attachable(caller, author, blob_id) for blob_id in blob_ids)
        )
        unfit = [blob_id for blob_id, blob in zip(blob_ids, blobs, strict=True) if blob is None]
        return Fitness([blob.stored() for blob in blobs if blob is not None], tuple(unfit))

    async def _attachable(self, caller: Caller, author: Caller, blob_id: str) -> Blob | None:
        key = _about(caller.workspace, blob_id)
        blob = await self._find(key)
        if blob is None:
            return None
        is_uploader = any(access.is_uploader(each, blob.uploader_id) for each in (caller, author))
        try:
            if blob.state == _WAITING and is_uploader:
                blob = await self._settle(key, blob)
        except (NotFound, ValidationFailed):
            return None
        if blob.state != STORED:
            return None
        return blob if is_uploader or await self._is_shown(caller, blob_id, None) else None

    # Reading

    async def link(
        self, caller: Caller, blob_id: str, *, room_id: str | None, is_thumbnail: bool
    ) -> wire.BlobLink:
        """A link to the bytes, or to a picture's thumbnail, for a caller who may read them.

        Raises NotFound: for what is not there, has no thumbnail, or is not theirs to read.
        """
        key = _about(caller.workspace, blob_id)
        blob = await self._readable(caller, blob_id, room_id)
        if blob is None or blob.state == _GOING:
            raise NotFound("There is no such blob.")
        if blob.state == _WAITING:
            blob = await self._settle(key, blob)
        if is_thumbnail and not blob.has_thumbnail:
            raise NotFound("There is no thumbnail of this blob.")
        shelved, how = key[0], served(blob.type, blob.name)
        if is_thumbnail:
            shelved, how = shelved + _THUMBNAIL, served(THUMBNAIL_TYPE, f"{blob.name}.webp")
        life_ms = LINK_LIFE_S * 1000
        expires_at_ms = (self._clock() // life_ms + 2) * life_ms
        url = await self._shelf.download_link(shelved, how, expires_at_ms)
        return wire.BlobLink(url, rfc3339(expires_at_ms))

    async def open_download(self, ticket: str) -> tuple[Path, Served, int]:
        """The file of a download link of this service, how it is sent, and for how many seconds
        it may be kept. Raises NotFound.
        """
        if not isinstance(self._shelf, FileShelf):
            raise NotFound("There is no such link.")
        key, how, expires_at_ms = self._shelf.open_download(ticket)
        if await self._shelf.size_bytes(key) is None:
            raise NotFound("There is no such file any more.")
        return self._shelf.path(key), how, (expires_at_ms - self._clock()) // 1000

    async def _readable(self, caller: Caller, blob_id: str, room_id: str | None) -> Blob | None:
        """The blob, if the caller may read it.

        Where a room is named the price is the same whether the caller may or there is no such blob.
        """
        blob = await self._find(_about(caller.workspace, blob_id))
        if blob is not None and not blob.attached:
            return blob if access.is_uploader(caller, blob.uploader_id) else None
        is_shown = await self._is_shown(caller, blob_id, room_id)
        return blob if is_shown else None

    async def _is_shown(self, caller: Caller, blob_id: str, room_id: str | None) -> bool:
        """Whether an entry that the caller sees, in that room or in any, links to the blob."""
        prefix = HELD if room_id is None else place_in(room_id)
        page = await self._store.query(
            BLOBS, blob_key(caller.workspace, blob_id), prefix=prefix, limit=PLACES_LOOKED_MAX
        )
        seqs: dict[str, list[int]] = {} if room_id is None else {room_id: []}
        for item in page.items:
            room, seq = place_of(item["place"])
            seqs.setdefault(room, []).append(seq)
        for room, its_seqs in seqs.items():
            if await self._messages.shows(caller, room, its_seqs, blob_id):
                return True
        return False

    # Letting go

    async def _look_at_new(self, subject: str, due_ms: int) -> bool:
        """A day after its making a blob goes that no entry holds."""
        await self._collect((subject, ABOUT))
        return False  # the item is for the schedule to take away

    async def _look_at_left(self, subject: str, due_ms: int) -> bool:
        """An entry lost its content: what nobody else holds goes."""
        room, _, seq = subject.rpartition("#")
        workspace, _, room_id = room.partition("#")
        entry = await self._store.get(ENTRIES, (room, int(seq)))
        blob_ids: Iterable[str] = (entry or {}).get("left_blobs") or ()
        for blob_id in blob_ids:
            key = blob_key(workspace, blob_id)
            await self._store.write(Delete(BLOBS, (key, place_in(room_id, int(seq)))))
            await self._collect((key, ABOUT))
        if blob_ids:
            fields = ("left_blobs",)
            await self._store.write(
                Update(ENTRIES, (room, int(seq)), remove=fields, when=(Exists(),))
            )
        return False

    async def _collect(self, key: Key) -> None:
        """Forget the blob if no entry holds it; also one whose forgetting was broken off.

        Raises Unavailable where it was attached at this moment.
        """
        blob = await self._find(key)
        if blob is None:
            return
        if blob.state != _GOING:
            held = await self._store.query(BLOBS, key[0], prefix=HELD, limit=1)
            if held.items:
                return
            seen = (Equals("attached", blob.attached), Equals("state", blob.state))
            try:
                await self._store.write(Update(BLOBS, key, set={"state": _GOING}, when=seen))
            except ConditionFailed:
                raise Unavailable("The blob has changed meanwhile.") from None
        await self._forget(key)

    async def _forget(self, key: Key) -> None:
        """The bytes first: as long as the row is there they are found again."""
        await self._shelf.delete(key[0] + _THUMBNAIL)
        await self._shelf.delete(key[0])
        await self._store.write(Delete(BLOBS, key))

    async def _find(self, key: Key) -> Blob | None:
        item = await self._store.get(BLOBS, key)
        if item is None:
            return None
        return Blob(
            blob_id=key[0].partition("#")[2],
            state=item["state"],
            uploader_id=item.get("uploader_id"),
            name=item["name"],
            type=item["type"],
            size=item["size"],
            width=item.get("width"),
            height=item.get("height"),
            has_thumbnail=bool(item.get("has_thumbnail")),
            attached=item["attached"],
        )


def _about(workspace: str, blob_id: str) -> Key:
    return blob_key(workspace, blob_id), ABOUT


def _refused(field: str, detail: str) -> ValidationFailed:
    return ValidationFailed(detail, errors=(FieldError(field, detail),))
