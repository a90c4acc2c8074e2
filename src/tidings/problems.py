"""The one map from errors to what callers see: RFC 9457 problems with their HTTP statuses."""

from __future__ import annotations

import msgspec

from tidings import wire
from tidings.errors import TidingsError

PROBLEM_TYPE_PREFIX = "/docs#problem-"
"""A problem's `type` points to its explanation in this service's own documentation."""


class Kind(msgspec.Struct, frozen=True):
    """How one code is told."""

    status: int
    title: str


KINDS: dict[str, Kind] = {
    "validation_failed": Kind(400, "The request is not valid"),
    "unauthorized": Kind(401, "The credential is missing or not valid"),
    "forbidden": Kind(403, "The caller may not do this"),
    "not_found": Kind(404, "There is no such thing"),
    "method_not_allowed": Kind(405, "The resource has no such method"),
    "conflict": Kind(409, "The request does not fit the present state"),
    "too_large": Kind(413, "The request is too large"),
    "unsupported_media_type": Kind(415, "The body has a type that is not accepted"),
    "idempotency_mismatch": Kind(422, "The client_id was used with another body"),
    "rate_limited": Kind(429, "Too many requests"),
    "internal": Kind(500, "Something went wrong on our side"),
    "unavailable": Kind(503, "The service can't answer just now"),
}


def problem_of(error: TidingsError) -> wire.Problem:
    """The error as its caller sees it."""
    kind = KINDS[error.code]
    return wire.Problem(
        type=PROBLEM_TYPE_PREFIX + error.code,
        title=kind.title,
        status=kind.status,
        code=error.code,
        detail=error.detail,
        errors=[{"field": each.field, "detail": each.detail} for each in error.errors],
    )


def internal_problem(request_id: str) -> wire.Problem:
    """What a caller learns of an error that nobody foresaw: how to ask about it, and no more."""
    return problem_of(TidingsError(f"The log knows more under request {request_id}."))
