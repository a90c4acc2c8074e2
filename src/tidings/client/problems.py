"""What can go wrong for a client: one exception for each code of the contract."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ClientError(Exception):
    """Everything that the client raises on purpose."""


class Unreachable(ClientError):
    """No answer came: the connection failed or the deadline passed.

    Whether the service did what was asked is not known; calls that carry a `client_id`, and those
    that change nothing when made twice, may be made again.
    """


class Problem(ClientError):
    """The service answered with a problem (RFC 9457).

    `code` is the stable name of what happened, `status` the HTTP status, `errors` the fields that
    were not accepted, `retry_after_s` how long the service wants to be left alone.
    """

    code: ClassVar[str | None] = None

    def __init__(
        self,
        code: str,
        status: int,
        detail: str = "",
        *,
        errors: tuple[dict[str, str], ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        self.problem_code = code
        self.status = status
        self.detail = detail
        self.errors = errors
        self.retry_after_s = retry_after_s
        super().__init__(f"{code} ({status}): {detail}" if detail else f"{code} ({status})")

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: the service did not carry it out."""
        return self.problem_code in PASSING_CODES


class ValidationFailed(Problem):
    """The request is not valid; `errors` names the fields."""

    code = "validation_failed"


class Unauthorized(Problem):
    """The token is missing, unknown, expired or revoked."""

    code = "unauthorized"


class Forbidden(Problem):
    """The caller may not do this."""

    code = "forbidden"


class NotFound(Problem):
    """There is no such thing, or the caller may not see it."""

    code = "not_found"


class Conflict(Problem):
    """The request does not fit the present state."""

    code = "conflict"


class TooLarge(Problem):
    """The request is larger than the limit."""

    code = "too_large"


class IdempotencyMismatch(Problem):
    """This client_id was used before with another body."""

    code = "idempotency_mismatch"


class RateLimited(Problem):
    """Too many requests; nothing was done."""

    code = "rate_limited"


class Unavailable(Problem):
    """The service can't answer just now."""

    code = "unavailable"


PASSING_CODES = frozenset({"rate_limited", "unavailable"})
_CODES = {
    400: "validation_failed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    422: "idempotency_mismatch",
    429: "rate_limited",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}
_KINDS: dict[str, type[Problem]] = {
    kind.code: kind for kind in Problem.__subclasses__() if kind.code is not None
}


def problem_from(
    body: dict[str, Any], *, status: int = 0, retry_after_s: float | None = None
) -> Problem:
    """The exception for a problem document; an unknown code is a plain `Problem`."""
    code = str(body.get("code") or "internal")
    seconds = body.get("retry_after_s", retry_after_s)
    return _KINDS.get(code, Problem)(
        code,
        int(body.get("status") or status),
        str(body.get("detail") or body.get("title") or ""),
        errors=tuple(body.get("errors") or ()),
        retry_after_s=None if seconds is None else float(seconds),
    )


def problem_of_reply(status: int, body: bytes, retry_after: str | None) -> Problem:
    """The exception for an HTTP reply that is no success, whoever on the way wrote it."""
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = None
    if not isinstance(decoded, dict):
        decoded = {"code": _CODES.get(status, "internal")}
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return problem_from(decoded, status=status, retry_after_s=seconds)
