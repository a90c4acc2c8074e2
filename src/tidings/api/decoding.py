"""Requests to typed values: what the wire may hold is checked here, once, for all endpoints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from aiohttp import web

from tidings.errors import FieldError, TidingsError, TooLarge, Unauthorized, ValidationFailed

BODY_BYTES_MAX = 1024 * 1024
"""The largest body; the longest text with every character escaped is 96 KB."""
BODY_TIMEOUT_S = 20.0
"""How long a body may take to arrive."""
QUERY_FIELDS_MAX = 50
AUTHORIZATION_CHARACTERS_MAX = 8_192
_JSON_TYPES = frozenset({"application/json"})
_PATCH_TYPES = frozenset({"application/merge-patch+json", "application/json"})

T = TypeVar("T")
_at_path = re.compile(r"^(?P<detail>.*) - at `(?:key` in `)?\$\.?(?P<path>.*)`$", re.DOTALL)
_half_escape = re.compile(r"%(?![0-9A-Fa-f]{2})")
_named = re.compile(r"(?:missing required|contains unknown) field `(?P<name>[^`]*)`")


class UnsupportedMediaType(TidingsError):
    """The body has to be JSON, and Content-Type has to say so."""

    code = "unsupported_media_type"


def field_error(error: msgspec.ValidationError, place: str) -> FieldError:
    """Which field msgspec refused, and why; `place` names what is checked as a whole."""
    text = str(error)
    path = ""
    if match := _at_path.match(text):
        text, path = match["detail"], match["path"]
    if match := _named.search(text):
        path = f"{path}.{match['name']}".lstrip(".")
    return FieldError(path or place, text)


def refuse(field: str, detail: str) -> ValidationFailed:
    """The error that names one field."""
    return ValidationFailed(errors=(FieldError(field, detail),))


def convert(texts: Mapping[str, str], type_: type[T], place: str) -> T:
    """Texts of a path or a query as a struct. Raises ValidationFailed."""
    try:
        return msgspec.convert(texts, type_, strict=False)
    except msgspec.ValidationError as error:
        raise ValidationFailed(errors=(field_error(error, place),)) from None


def check_escapes(raw: str, place: str) -> None:
    """Whether a path or a query is percent-encoded UTF-8 (RFC 3986). Raises ValidationFailed."""
    if "%" not in raw:
        return
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise refuse(place, "It is not UTF-8.") from None
    if _half_escape.search(raw):
        raise refuse(place, "A % begins an escape of two hexadecimal digits.")


def parse_query(raw: str) -> dict[str, str]:
    """The parameters of a query string, each once. Raises ValidationFailed."""
    check_escapes(raw, "query")
    try:
        pairs = parse_qsl(
            raw, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX
        )
    except ValueError:
        raise refuse("query", "It has too many parameters.") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise refuse("query", "A parameter is there more than once.")
    return parameters


def read_token(request: web.Request) -> str | None:
    """The bearer token (RFC 6750); None without a header. Raises Unauthorized for another one."""
    given = request.headers.getall("Authorization", ())
    if not given:
        return None
    scheme, _, token = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Authorization has to be `Bearer` and one token.")
    if len(token) > AUTHORIZATION_CHARACTERS_MAX:
        raise Unauthorized
    return token.strip()


async def read_body(request: web.Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The body as its type. Raises TooLarge, UnsupportedMediaType, ValidationFailed."""
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise TooLarge(f"A body may have {BODY_BYTES_MAX} bytes.")
    if request.content.is_eof():
        raw = await _read(request)
    else:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await _read(request)
        except TimeoutError:
            raise refuse("body", "It did not arrive in time.") from None
    accepted = _PATCH_TYPES if request.method == "PATCH" else _JSON_TYPES
    if raw and request.content_type not in accepted:
        raise UnsupportedMediaType(f"Content-Type has to be {' or '.join(sorted(accepted))}.")
    return decode(raw, decoder)


def decode(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON as its type. Raises ValidationFailed."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise ValidationFailed(errors=(field_error(error, "body"),)) from None
    except UnicodeDecodeError:
        raise refuse("body", "It is not UTF-8.") from None
    except msgspec.DecodeError as error:
        raise refuse("body", f"It is not JSON: {error}." if raw else "It is missing.") from None
    except RecursionError:
        raise refuse("body", "It is nested too deeply.") from None


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"A body may have {BODY_BYTES_MAX} bytes.") from None
    except web.RequestPayloadError:
        raise refuse("body", "It is not encoded as its headers say.") from None
