"""Signatures as AWS asks for them, Version 4: requests to DynamoDB, and links to S3.

Follows "Create a signed AWS API request" in the AWS Identity and Access Management User Guide, for
the one shape of request that DynamoDB takes, and "Authenticating Requests: Using Query Parameters"
in the Amazon S3 API Reference; the tests hold both to botocore's. The library for the first
(aiodynamo) encodes the body again for each attempt, signs the host without its port, and can't be
told what time it is, which a clock that is wrong needs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlsplit

from tidings.storage.credentials import Keys

CONTENT_TYPE = "application/x-amz-json-1.0"

_ALGORITHM = "AWS4-HMAC-SHA256"
_SERVICE = "dynamodb"


class Signer:
    """Signs requests to one host."""

    def __init__(self, region: str, host: str, path: str = "/") -> None:
        """`host` is the header's value, with the port if it is in there."""
        self._region = region
        self._host = host
        self._path = path
        self._derived_from: tuple[str, str] | None = None
        self._derived = b""

    def headers(self, keys: Keys, target: str, body: bytes, moment: datetime) -> dict[str, str]:
        """All headers of a request for that target, such as `DynamoDB_20120810.GetItem`.

        `moment` is the present time in UTC; AWS takes the request for five minutes around it.
        """
        timestamp = moment.strftime("%Y%m%dT%H%M%SZ")
        date = timestamp[:8]
        headers = {
            "content-type": CONTENT_TYPE,
            "host": self._host,
            "x-amz-date": timestamp,
            "x-amz-target": target,
        }
        if keys.token is not None:
            headers["x-amz-security-token"] = keys.token
        names = sorted(headers)
        lines = "".join(f"{name}:{headers[name]}\n" for name in names)
        signed_names = ";".join(names)
        canonical = (
            f"POST\n{self._path}\n\n{lines}\n{signed_names}\n{hashlib.sha256(body).hexdigest()}"
        )
        scope = f"{date}/{self._region}/{_SERVICE}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.digest(
            self._derive(keys.secret_key, date),
            f"{_ALGORITHM}\n{timestamp}\n{scope}\n{digest}".encode(),
            "sha256",
        ).hex()
        headers["authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{scope}, "
            f"SignedHeaders={signed_names}, Signature={signature}"
        )
        return headers

    def _derive(self, secret_key: str, date: str) -> bytes:
        """The key for a day, kept until the day or the secret changes."""
        if self._derived_from != (secret_key, date):
            key = _day_key(secret_key, date, self._region, _SERVICE)
            self._derived_from, self._derived = (secret_key, date), key
        return self._derived


def signed_link(
    keys: Keys,
    method: str,
    url: str,
    *,
    region: str,
    moment: datetime,
    life_s: int,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
) -> str:
    """A link to S3 that anybody may use in that way for `life_s` (at most 7 days) from `moment`.

    Whoever uses it has to send the `headers` as they are. The body is not signed. `url` has no
    query, and a path that needs no escapes.
    """
    timestamp = moment.strftime("%Y%m%dT%H%M%SZ")
    date = timestamp[:8]
    parts = urlsplit(url)
    signed = {"host": parts.netloc} | {name.lower(): each for name, each in (headers or {}).items()}
    names = sorted(signed)
    scope = f"{date}/{region}/s3/aws4_request"
    asked = dict(query or {}) | {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.access_key}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(life_s),
        "X-Amz-SignedHeaders": ";".join(names),
    }
    if keys.token is not None:
        asked["X-Amz-Security-Token"] = keys.token
    encoded = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(asked.items())
    )
    lines = "".join(f"{name}:{signed[name]}\n" for name in names)
    canonical = (
        f"{method}\n{parts.path or '/'}\n{encoded}\n{lines}\n{';'.join(names)}\nUNSIGNED-PAYLOAD"
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    signature = hmac.digest(
        _day_key(keys.secret_key, date, region, "s3"),
        f"{_ALGORITHM}\n{timestamp}\n{scope}\n{digest}".encode(),
        "sha256",
    ).hex()
    return f"{url}?{encoded}&X-Amz-Signature={signature}"


def _day_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """What is signed with on a day."""
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
