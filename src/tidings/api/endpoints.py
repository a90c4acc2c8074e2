"""Endpoints, declared: method, path, types, who may call, and a short function from call to reply.

The router, the checks of every request and the OpenAPI document are made from these declarations.
An endpoint's function takes one `Call` and its annotation says the rest: the types of the path's
parameters, of the query's and of the body come from `Call[…]`, the statuses from what it returns:
a struct is 200, `Created[struct]` 201 or 200, None 204, and a `web.StreamResponse` whatever it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from aiohttp import web

from tidings.api.features import Features
from tidings.errors import Unauthorized
from tidings.people.callers import Caller, Scope


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters, no body."""


PathT = TypeVar("PathT", bound=msgspec.Struct)
QueryT = TypeVar("QueryT", bound=msgspec.Struct)
BodyT = TypeVar("BodyT", bound=msgspec.Struct)
ReplyT = TypeVar("ReplyT")


class Callers(Enum):
    """Which credentials an endpoint takes."""

    OPEN = "open"
    """None is looked at."""
    LINK = "link"
    """None is looked at: the path ends with what the service sealed for this one purpose."""
    OPTIONAL = "optional"
    """One may be sent, and must then be good."""
    SESSION = "session"
    """A session's token."""
    WORKSPACE = "workspace"
    """A session's token, or an API key with the endpoint's scope."""
    OPERATOR = "operator"
    """An operator's key."""


class Call(Generic[PathT, QueryT, BodyT]):
    """One request, decoded and checked, by a caller who may call this endpoint."""

    __slots__ = ("body", "credential", "features", "path", "query", "request")

    def __init__(
        self,
        features: Features,
        request: web.Request,
        credential: Caller | None,
        path: PathT,
        query: QueryT,
        body: BodyT,
    ) -> None:
        self.features = features
        self.request = request
        self.credential = credential
        """Who calls; None where an endpoint needs no credential and none was sent."""
        self.path = path
        self.query = query
        self.body = body

    @property
    def caller(self) -> Caller:
        """Who calls. Raises Unauthorized where nobody said who they are."""
        if self.credential is None:
            raise Unauthorized
        return self.credential


class Created(Generic[ReplyT]):
    """A reply that is 201 for what is new, and 200 for what was there already."""

    __slots__ = ("is_new", "reply")

    def __init__(self, reply: ReplyT, is_new: bool) -> None:
        self.reply = reply
        self.is_new = is_new


class Header(msgspec.Struct, frozen=True):
    """A request header that an endpoint reads, for the documentation."""

    name: str
    description: str


class Endpoint(msgspec.Struct, frozen=True):
    """One declared endpoint."""

    method: str
    path: str
    """A template such as `/v1/rooms/{room_id}`."""
    section: str
    name: str
    """The function's name, which is the OpenAPI operation id."""
    summary: str
    description: str
    run: Callable[[Call[Any, Any, Any]], Awaitable[Any]]
    path_type: type[msgspec.Struct]
    query_type: type[msgspec.Struct]
    body_type: type[msgspec.Struct]
    replies: dict[int, Any]
    """Types of the replies by status; None where there is no body, or not one of JSON."""
    callers: Callers
    scope: Scope | None
    """What an API key needs; None: no API key may call."""
    media_type: str
    """Of a good reply."""
    headers: tuple[Header, ...]
    body_media_type: str | None
    """Of a body that is not JSON and that the endpoint reads itself."""
    is_stream: bool
    """It answers for as long as it likes: its duration is no latency."""

    @property
    def has_body(self) -> bool:
        """Whether a body is expected."""
        return self.body_type is not Nothing

    @property
    def is_metered(self) -> bool:
        """Whether replies say what they cost."""
        return self.path.startswith("/v1/")


EndpointFunction = TypeVar(
    "EndpointFunction", bound=Callable[[Call[Any, Any, Any]], Awaitable[Any]]
)


class Section:
    """Endpoints that belong together, in the order of the documentation."""

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self.description = description
        self.endpoints: list[Endpoint] = []

    def endpoint(
        self,
        method: str,
        path: str,
        *,
        callers: Callers = Callers.WORKSPACE,
        scope: Scope | None = None,
        status: int | None = None,
        media_type: str = "application/json",
        headers: tuple[Header, ...] = (),
        body_media_type: str | None = None,
        is_stream: bool = False,
    ) -> Callable[[EndpointFunction], EndpointFunction]:
        """Declare the decorated function as an endpoint; `status` where it isn't the usual one."""

        def declare(function: EndpointFunction) -> EndpointFunction:
            hints = get_type_hints(function)
            returned = hints.pop("return")
            (call_type,) = hints.values()
            path_type, query_type, body_type = get_args(call_type)
            summary, _, description = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
            self.endpoints.append(
                Endpoint(
                    method=method,
                    path=path,
                    section=self.name,
                    name=function.__name__,
                    summary=summary.replace("\n", " ").rstrip("."),
                    description=description,
                    run=function,
                    path_type=path_type,
                    query_type=query_type,
                    body_type=body_type,
                    replies=_replies(returned, status),
                    callers=callers,
                    scope=scope,
                    media_type=media_type,
                    headers=headers,
                    body_media_type=body_media_type,
                    is_stream=is_stream,
                )
            )
            return function

        return declare


def _replies(returned: Any, status: int | None) -> dict[int, Any]:
    if returned is type(None):
        return {status or 204: None}
    if get_origin(returned) is Created:
        (reply,) = get_args(returned)
        return {201: reply, 200: reply}
    if isinstance(returned, type) and issubclass(returned, web.StreamResponse):
        return {status or 200: None}
    return {status or 200: returned}
