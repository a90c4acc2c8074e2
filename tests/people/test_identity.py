"""Identity tokens: what one pinned key accepts, and everything that it must not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.people.clocks import START_MS
from tests.stores import EVERY_STORE
from tidings.errors import Unauthorized, ValidationFailed
from tidings.people.identity import Claims, JwtAlgorithm, check_key, read_identity

STORES = EVERY_STORE


NOW_S = START_MS // 1000
SECRET = "a secret that is at least 32 bytes long"
RSA_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def _pem(key: Any) -> str:
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


RSA_PEM = _pem(RSA_KEY.public_key())
EC_PEM = _pem(EC_KEY.public_key())
GOOD = {"sub": "cleo", "exp": NOW_S + 300, "jti": "one"}
KEYS: list[tuple[JwtAlgorithm, Any, str]] = [
    ("HS256", SECRET, SECRET),
    ("RS256", RSA_KEY, RSA_PEM),
    ("ES256", EC_KEY, EC_PEM),
]


def sign(claims: dict[str, Any], **headers: Any) -> str:
    return jwt.encode(claims, SECRET, "HS256", headers=headers or None)


def _read(token: str, algorithm: JwtAlgorithm = "HS256", key: str = SECRET) -> Claims:
    return read_identity(token, algorithm=algorithm, key=key, workspace="acme", now_s=NOW_S)


def _base64(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize(("algorithm", "private", "public"), KEYS)
def test_each_algorithm_with_its_key(algorithm: JwtAlgorithm, private: Any, public: str) -> None:
    check_key(algorithm, public)
    claims = _read(jwt.encode({**GOOD, "name": "Cleo"}, private, algorithm), algorithm, public)
    assert (claims.sub, claims.jti, claims.name) == ("cleo", "one", "Cleo")


@pytest.mark.parametrize(("algorithm", "private", "_public"), KEYS)
@pytest.mark.parametrize(("pinned", "_private", "public"), KEYS)
def test_only_the_pinned_algorithm(
    algorithm: JwtAlgorithm,
    private: Any,
    _public: str,
    pinned: JwtAlgorithm,
    _private: Any,
    public: str,
) -> None:
    token = jwt.encode(GOOD, private, algorithm)
    if algorithm == pinned:
        assert _read(token, pinned, public).sub == "cleo"
    else:
        with pytest.raises(Unauthorized):
            _read(token, pinned, public)


def test_a_public_key_is_no_secret() -> None:
    """The classic confusion: HS256 signed with the RSA public key that everybody knows."""
    import hashlib
    import hmac

    signing_input = f"{_base64({'alg': 'HS256', 'typ': 'JWT'})}.{_base64(GOOD)}"
    digest = hmac.new(RSA_PEM.encode(), signing_input.encode(), hashlib.sha256).digest()
    for pinned, key in (("RS256", RSA_PEM), ("HS256", SECRET)):
        with pytest.raises(Unauthorized):
            _read(f"{signing_input}.{_base64(digest)}", pinned, key)  # type: ignore[arg-type]


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW_S},
    "long expired": {"exp": NOW_S - 3600},
    "too far ahead": {"exp": NOW_S + 660},
    "for ever": {"exp": 2**62},
    "expiry as text": {"exp": str(NOW_S + 300)},
    "no expiry": {"exp": None},
    "not yet valid": {"nbf": NOW_S + 60},
    "issued in the future": {"iat": NOW_S + 60},
    "no subject": {"sub": None},
    "empty subject": {"sub": ""},
    "subject that is no id": {"sub": "a#b"},
    "long subject": {"sub": "a" * 65},
    "subject as a number": {"sub": 7},
    "no jti": {"jti": None},
    "empty jti": {"jti": ""},
    "jti as a number": {"jti": 7},
    "name as a list": {"name": ["Cleo"]},
    "no email": {"email": "nobody"},
    "attributes as text": {"attributes": "pro"},
}


@pytest.mark.parametrize("what", BAD_CLAIMS)
def test_claims_that_are_refused(what: str) -> None:
    claims = {**GOOD, **BAD_CLAIMS[what]}
    with pytest.raises(Unauthorized) as refused:
        _read(sign({name: value for name, value in claims.items() if value is not None}))
    assert refused.value.detail == "This identity token is not accepted."


def _unsigned(algorithm: str) -> Callable[[], str]:
    return lambda: f"{_base64({'alg': algorithm})}.{_base64(GOOD)}."


def _tampered() -> str:
    header, _, signature = sign(GOOD).split(".")
    return f"{header}.{_base64({**GOOD, 'sub': 'ada'})}.{signature}"


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "none": _unsigned("none"),
    "None": _unsigned("None"),
    "unsigned": _unsigned("HS256"),
    "another secret": lambda: jwt.encode(GOOD, "another secret of more than 32 bytes", "HS256"),
    "stronger algorithm": lambda: jwt.encode(GOOD, SECRET * 2, "HS512"),
    "tampered": _tampered,
    "unknown key id": lambda: sign(GOOD, kid="another key"),
    "critical extension": lambda: sign(GOOD, crit=["exotic"], exotic=1),
    "empty": lambda: "",
    "dots": lambda: "..",
    "text": lambda: "not a token at all",
    "not ascii": lambda: "ü.ü.ü",
    "surrogate": lambda: "\ud800.a.b",
    "payload is a list": lambda: jwt.PyJWS().encode(b"[1]", SECRET, "HS256"),
    "payload is no json": lambda: jwt.PyJWS().encode(b"\xff\xfe", SECRET, "HS256"),
    "payload is deep": lambda: jwt.PyJWS().encode(
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", SECRET, "HS256"
    ),
    "lone surrogate": lambda: jwt.PyJWS().encode(
        json.dumps({**GOOD, "name": "\ud800"}).encode(), SECRET, "HS256"
    ),
    "header is a list": lambda: f"{_base64([1])}.{_base64(GOOD)}.x",
    "algorithm is a list": lambda: f"{_base64({'alg': ['HS256']})}.{_base64(GOOD)}.AAAA",
    "algorithm is missing": lambda: f"{_base64({})}.{_base64(GOOD)}.AAAA",
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_tokens_that_are_refused(what: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        _read(BAD_TOKENS[what]())
    assert refused.value.detail == "This identity token is not accepted."


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=64))
def test_no_bytes_do_more_than_be_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    for algorithm, _, key in KEYS:
        with pytest.raises(Unauthorized):
            _read(f"{_base64(header)}.{_base64(payload)}.{_base64(signature)}", algorithm, key)


def test_a_key_id_may_name_the_workspace_and_clocks_may_differ_a_little() -> None:
    claims = {**GOOD, "exp": NOW_S + 603, "nbf": NOW_S + 3, "iat": NOW_S + 3, "aud": "anything"}
    assert _read(sign(claims, kid="acme")).sub == "cleo"


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("HS256", "too short"),
        ("HS256", RSA_PEM),
        ("HS256", "x" * 9_000),
        ("RS256", SECRET),
        ("RS256", EC_PEM),
        (
            "RS256",
            _pem(rsa.generate_private_key(public_exponent=65_537, key_size=1_024).public_key()),
        ),
        (
            "RS256",
            RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        ),
        ("ES256", RSA_PEM),
        ("ES256", _pem(ec.generate_private_key(ec.SECP384R1()).public_key())),
    ],
)
def test_keys_that_no_workspace_may_have(algorithm: JwtAlgorithm, key: str) -> None:
    with pytest.raises(ValidationFailed):
        check_key(algorithm, key)
