"""Every error that Tidings reports, each with a stable code; what is not here is a bug."""

from __future__ import annotations

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One field of a request that could not be accepted."""

    field: str
    detail: str


class TidingsError(Exception):
    """Something went wrong that the caller can act on.

    The class docstring of each kind is its default message. `code` is stable and part of the
    public contract; `tidings.problems` maps it to an HTTP status and a close code.
    """

    code = "internal"

    def __init__(self, detail: str = "", *, errors: tuple[FieldError, ...] = ()) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        self.errors = errors
        super().__init__(self.detail)


class ValidationFailed(TidingsError):
    """The request is not valid."""

    code = "validation_failed"


class Unauthorized(TidingsError):
    """The credential is missing, unknown, expired or revoked."""

    code = "unauthorized"


class Forbidden(TidingsError):
    """The caller may not do this."""

    code = "forbidden"


class NotFound(TidingsError):
    """There is no such thing, or the caller may not see it."""

    code = "not_found"


class Conflict(TidingsError):
    """The request does not fit the present state."""

    code = "conflict"


class TooLarge(TidingsError):
    """The request is larger than the limit."""

    code = "too_large"


class IdempotencyMismatch(TidingsError):
    """This client_id was used before with another body."""

    code = "idempotency_mismatch"


class RateLimited(TidingsError):
    """Too many requests."""

    code = "rate_limited"

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unavailable(TidingsError):
    """The service can't answer just now; the same request may be sent again."""

    code = "unavailable"

    def __init__(self, detail: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
