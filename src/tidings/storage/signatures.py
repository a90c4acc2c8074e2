"""Signatures of requests to DynamoDB, as AWS asks for them: Signature Version 4.

Follows "Create a signed AWS API request" in the AWS Identity and Access Management User Guide, for
the one shape of request that DynamoDB takes; the tests hold it to botocore's. The library for this
(aiodynamo) encodes the body again for each attempt, signs the host without its port, and can't be
told what time it is, which a clock that is wrong needs.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

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
            key = f"AWS4{secret_key}".encode()
            for part in (date, self._region, _SERVICE, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived_from, self._derived = (secret_key, date), key
        return self._derived
