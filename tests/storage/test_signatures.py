"""Signatures, held to those of AWS's own library."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

from botocore.auth import S3SigV4QueryAuth, SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from tidings.storage.credentials import Keys
from tidings.storage.signatures import CONTENT_TYPE, Signer, signed_link

_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
_moments = st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(tzinfo=UTC)
)


def signed_by_aws(host: str, keys: Keys, target: str, body: bytes, moment: datetime) -> str:
    request = AWSRequest(
        "POST",
        f"http://{host}/",
        {"content-type": CONTENT_TYPE, "x-amz-target": target},
        data=body,
    )
    credentials = Credentials(keys.access_key, keys.secret_key, keys.token)
    with patch("botocore.auth.get_current_datetime", lambda: moment):
        SigV4Auth(credentials, "dynamodb", "eu-west-1").add_auth(request)
    return str(request.headers["Authorization"])


@given(
    host=st.sampled_from(("dynamodb.eu-west-1.amazonaws.com", "127.0.0.1:8000", "[::1]:8000")),
    keys=st.builds(Keys, _text, _text, st.none() | _text),
    body=st.binary(max_size=200),
    moment=_moments,
)
def test_a_signature_is_the_one_that_aws_would_make(
    host: str, keys: Keys, body: bytes, moment: datetime
) -> None:
    target = "DynamoDB_20120810.TransactWriteItems"
    headers = Signer("eu-west-1", host).headers(keys, target, body, moment)
    assert headers["authorization"] == signed_by_aws(host, keys, target, body, moment)


def test_the_derived_key_follows_the_day_and_the_secret() -> None:
    signer = Signer("eu-west-1", "localhost:8000")
    moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    for keys in (Keys("id", "one"), Keys("id", "two"), Keys("id", "one")):
        for later_s in (0, 1, 86_400, 0):
            signed = moment + timedelta(seconds=later_s)
            assert signer.headers(keys, "t", b"{}", signed)["authorization"] == signed_by_aws(
                "localhost:8000", keys, "t", b"{}", signed
            )


@given(
    base=st.sampled_from(("https://b.s3.eu-west-1.amazonaws.com", "http://127.0.0.1:9000/b")),
    keys=st.builds(Keys, _text, _text, st.none() | _text),
    method=st.sampled_from(("GET", "PUT", "HEAD", "DELETE")),
    life_s=st.integers(1, 604_800),
    headers=st.fixed_dictionaries({}, optional={"Content-Type": _text, "If-None-Match": _text}),
    query=st.dictionaries(st.sampled_from(("response-content-type", "versionId", "a b")), _text),
    moment=_moments,
)
def test_a_link_is_the_one_that_aws_would_make(
    base: str,
    keys: Keys,
    method: str,
    life_s: int,
    headers: dict[str, str],
    query: dict[str, str],
    moment: datetime,
) -> None:
    url = f"{base}/blob_01a2.thumbnail"
    link = signed_link(
        keys,
        method,
        url,
        region="eu-west-1",
        moment=moment,
        life_s=life_s,
        headers=headers,
        query=query,
    )
    request = AWSRequest(method, url, dict(headers), params=dict(query))
    credentials = Credentials(keys.access_key, keys.secret_key, keys.token)
    with patch("botocore.auth.get_current_datetime", lambda: moment):
        S3SigV4QueryAuth(credentials, "s3", "eu-west-1", expires=life_s).add_auth(request)
    asked, signed = (dict(parse_qsl(urlsplit(each).query)) for each in (link, request.url))
    assert asked == signed
