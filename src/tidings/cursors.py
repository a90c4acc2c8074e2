"""Opaque cursors: values that a client hands back, sealed so that only unchanged ones count."""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Any

import msgspec

from tidings.errors import ValidationFailed

_SEAL_BYTES = 12
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(strict=True).decode


class Cursors:
    """Seals and opens cursors with the store's own secret, so they survive restarts.

    `purpose` says what a cursor is for (whose list, which filters): one that was made for another
    purpose does not open.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _seal(self, purpose: str, body: bytes) -> bytes:
        sealed = blake2b(purpose.encode(), key=self._secret, digest_size=_SEAL_BYTES)
        sealed.update(b"\0" + body)
        return sealed.digest()

    def seal(self, purpose: str, value: Any) -> str:
        """Text of letters, digits, `-` and `_` that holds the value."""
        body = _encode(value)
        return _text(self._seal(purpose, body) + body)

    def open(self, purpose: str, text: str) -> Any:
        """The value. Raises ValidationFailed for a text that `seal` did not make for it."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            body = raw[_SEAL_BYTES:]
            is_sealed = hmac.compare_digest(raw[:_SEAL_BYTES], self._seal(purpose, body))
            if is_sealed and _text(raw) == text:  # the last letter may have bits to spare
                return _decode(body)
        except (binascii.Error, ValueError):
            pass
        raise ValidationFailed("This cursor is not one that the service gave out.")


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
