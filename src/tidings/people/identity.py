"""Identity tokens: a customer's own server says who somebody is (JWT, RFC 7519 and RFC 8725).

A workspace has one key, pinned to one algorithm; what a token says about its own algorithm or
key changes nothing. A token is short-lived and good for one session.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tidings import wire
from tidings.errors import Unauthorized, ValidationFailed
from tidings.ids import Id

JwtAlgorithm = Literal["HS256", "RS256", "ES256"]

LIFE_S_MAX = 600
"""How far ahead an identity token may expire."""
LEEWAY_S = 5
"""How far the clock of the server that signed a token may be ahead of ours."""
SECRET_BYTES_MIN = 32
"""Bytes of an HS256 secret (RFC 7518, section 3.2)."""
RSA_BITS_MIN = 2_048
"""Bits of an RS256 key (RFC 7518, section 3.3)."""
KEY_CHARACTERS_MAX = 8_192

_NOT_ACCEPTED = "This identity token is not accepted."

Instant = Annotated[float, Meta(ge=0, le=2**40)]
"""Seconds since 1970 (a NumericDate of RFC 7519)."""


class Claims(msgspec.Struct, frozen=True):
    """What an identity token must and may say; other claims are ignored."""

    sub: Id
    exp: Instant
    jti: Annotated[str, Meta(min_length=1, max_length=256)]
    nbf: Instant = 0
    iat: Instant = 0
    name: wire.Name | UnsetType = UNSET
    email: wire.Email | None | UnsetType = UNSET
    attributes: dict[str, Any] | UnsetType = UNSET


_decode_claims = msgspec.json.Decoder(Claims).decode


def read_identity(
    token: str, *, algorithm: JwtAlgorithm, key: str, workspace: str, now_s: float
) -> Claims:
    """The claims of a token that the workspace's key signed and that holds now.

    A `kid` in its header, if there is one, must be the workspace's id. Raises Unauthorized,
    always with the same words: what was wrong is for the owner of the key to find out.
    """
    import jwt  # takes a tenth of a second, and many services never need it

    try:
        signed = jwt.PyJWS().decode_complete(token, key, algorithms=[algorithm])
        claims = _decode_claims(signed["payload"])
    except (jwt.PyJWTError, msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Unauthorized(_NOT_ACCEPTED) from error
    is_timely = (
        now_s < claims.exp <= now_s + LIFE_S_MAX + LEEWAY_S
        and claims.nbf <= now_s + LEEWAY_S
        and claims.iat <= now_s + LEEWAY_S
    )
    if not is_timely or signed["header"].get("kid", workspace) != workspace:
        raise Unauthorized(_NOT_ACCEPTED)
    return claims


def check_key(algorithm: JwtAlgorithm, key: str) -> None:
    """Accept a key for an algorithm: a long enough secret, or a public key in PEM of its kind.

    Raises ValidationFailed, for private keys too: they have no business in this service.
    """
    if len(key) > KEY_CHARACTERS_MAX:
        raise ValidationFailed(f"A key has at most {KEY_CHARACTERS_MAX} characters.")
    if algorithm == "HS256":
        if len(key.encode()) < SECRET_BYTES_MIN:
            raise ValidationFailed(f"An HS256 secret has at least {SECRET_BYTES_MIN} bytes.")
        if "-----BEGIN " in key:
            raise ValidationFailed("An HS256 secret is not a key in PEM.")
        return
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValidationFailed(f"{algorithm} needs a public key in PEM.") from error
    if algorithm == "RS256":
        if not isinstance(public, rsa.RSAPublicKey) or public.key_size < RSA_BITS_MIN:
            raise ValidationFailed(f"RS256 needs an RSA key of at least {RSA_BITS_MIN} bits.")
    elif not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise ValidationFailed("ES256 needs a key on the curve P-256.")
