"""Files over HTTP: uploading them, and getting them by links that end soon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import BadHttpMessage
from msgspec import UNSET, Meta, Struct, UnsetType

from tidings import wire
from tidings.api.decoding import refuse
from tidings.api.endpoints import Call, Callers, Nothing, Section
from tidings.api.exchanges import EXCHANGE
from tidings.api.parameters import given
from tidings.blobs.files import WRITE_BYTES
from tidings.ids import Id

TICKET_CHARACTERS_MAX = 2_048
SANDBOX = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""For bytes that people sent: should a browser take them for a page, it may do nothing."""

SECTION = Section(
    "Files",
    "An entry holds links to files, never their bytes. Who may read an entry may read its files.",
)


class BlobPath(Struct, frozen=True):
    """A file."""

    blob_id: Id


class TicketPath(Struct, frozen=True):
    """What a link of this service ends with."""

    ticket: Annotated[str, Meta(min_length=1, max_length=TICKET_CHARACTERS_MAX)]


class BlobQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which bytes."""

    room_id: (
        Annotated[
            Id,
            Meta(
                description="Where the caller reads it, as the links in entries say. Without it "
                "some fifty of the entries that hold the file are looked at."
            ),
        ]
        | UnsetType
    ) = UNSET
    thumbnail: Annotated[bool, Meta(description="The small picture instead.")] = False


@SECTION.endpoint("POST", "/v1/blobs", scope="messages", status=201)
async def create_blob(call: Call[Nothing, Nothing, wire.CreateBlob]) -> wire.NewBlob:
    """Begin to upload a file.

    The reply says where and how the bytes are to be sent, within an hour. A message can link to the
    file once they are there; what no message links to goes after a day.
    """
    call.features.limits.count_upload(call.caller, call.body.size)
    blob = await call.features.blobs.create(call.caller, call.body)
    upload = blob.upload
    if not upload.url.startswith("/"):
        return blob
    upload = wire.Upload(upload.method, f"{_origin(call.request)}{upload.url}", upload.headers)
    return wire.NewBlob(blob.blob_id, upload)


@SECTION.endpoint("PUT", "/v1/uploads/{ticket}", callers=Callers.LINK, body_media_type="*/*")
async def upload_bytes(call: Call[TicketPath, Nothing, Nothing]) -> None:
    """Send the bytes of a file.

    The link is the permission. All of them are kept, or none; sending them again is refused as a
    conflict once they are there.
    """
    await call.features.blobs.receive(call.path.ticket, _chunks(call.request))


@SECTION.endpoint("GET", "/v1/blobs/{blob_id}", scope="messages", status=302)
async def get_blob(call: Call[BlobPath, BlobQuery, Nothing]) -> web.StreamResponse:
    """Get a file by a redirect to a link that ends soon."""
    link = await _link(call)
    return web.Response(status=302, headers={"Location": link.url})


@SECTION.endpoint("GET", "/v1/blobs/{blob_id}/link", scope="messages")
async def get_blob_link(call: Call[BlobPath, BlobQuery, Nothing]) -> wire.BlobLink:
    """Get a link to a file that needs no credential.

    Such as for `<img>`. It works for five to ten minutes, and is the same for five."""
    link = await _link(call)
    if not link.url.startswith("/"):
        return link
    return wire.BlobLink(f"{_origin(call.request)}{link.url}", link.expires_at)


@SECTION.endpoint("GET", "/v1/downloads/{ticket}", callers=Callers.LINK, media_type="*/*")
async def download_bytes(call: Call[TicketPath, Nothing, Nothing]) -> web.StreamResponse:
    """Get the bytes of a file, or a range of them.

    The link is the permission. Known pictures, sounds and films are shown; everything else is
    bytes to be saved."""
    path, how, age_s = await call.features.blobs.open_download(call.path.ticket)
    call.request[EXCHANGE].content_security_policy = SANDBOX
    return web.FileResponse(
        path,
        headers={
            "Content-Type": how.type,
            "Content-Disposition": how.disposition,
            "Cache-Control": f"private, max-age={age_s}, immutable",
            "Cross-Origin-Resource-Policy": "cross-origin",
        },
    )


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises ValidationFailed where it breaks off."""
    try:
        async for chunk in request.content.iter_chunked(WRITE_BYTES):
            yield chunk
    except (ConnectionError, ClientPayloadError, BadHttpMessage, web.RequestPayloadError):
        raise refuse("body", "It broke off.") from None


async def _link(call: Call[BlobPath, BlobQuery, Nothing]) -> wire.BlobLink:
    return await call.features.blobs.link(
        call.caller,
        call.path.blob_id,
        room_id=given(call.query.room_id),
        is_thumbnail=call.query.thumbnail,
    )


def _origin(request: web.Request) -> str:
    """Where the caller reaches this service, for the caller's own use.

    A proxy that ends TLS says so; whoever else says so gets links that don't work.
    """
    is_secure = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
    return f"{'https' if is_secure else 'http'}://{request.host}"
