"""The OpenAPI 3.1 document, made from the declared endpoints and the types of the wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tidings import wire
from tidings.api.endpoints import Callers, Endpoint, Nothing, Section
from tidings.problems import KINDS

TITLE = "Tidings"
VERSION = "1"
"""Of the contract: the `v1` of its paths."""
DESCRIPTION = """\
A messaging backend: gapless logs, exact unread counts, every way of delivery.

Every list takes `limit` (1 to 500) and an opaque `cursor`, and answers with `items` and `next`;
lists of a log page by sequence. Unknown parameters and fields are refused, and numbers outside
their range are never clamped. Errors are RFC 9457 problems with a stable `code`.
"""
_SCHEMA_REF = "#/components/schemas/{name}"
_SECURITY: dict[Callers, list[dict[str, list[str]]]] = {
    Callers.OPEN: [],
    Callers.LINK: [],
    Callers.OPTIONAL: [{}, {"session": []}, {"apiKey": []}],
    Callers.SESSION: [{"session": []}],
    Callers.WORKSPACE: [{"session": []}, {"apiKey": []}],
    Callers.OPERATOR: [{"operatorKey": []}],
}
_STATUS_TEXTS = {
    101: "Switching to the WebSocket protocol",
    200: "Done",
    201: "Made",
    202: "Accepted",
    204: "Done; there is nothing to say",
    302: "It is where Location says",
}
_COST_SOURCE = "`consumed` where the store told the price, `metered` where it was worked out."
_COST = (
    "Price in DynamoDB units: `r=` read units, `w=` write units. Where it is metered, the writes "
    "of indexes count twice in a transaction, as those of items do."
)

Json = dict[str, Any]


def document(sections: Sequence[Section]) -> Json:
    """The whole document. The order is that of the declarations."""
    endpoints = [endpoint for section in sections for endpoint in section.endpoints]
    types = _types(endpoints)
    _, schemas = msgspec.json.schema_components(types, ref_template=_SCHEMA_REF)
    parameters = {
        each.__name__: schemas.pop(each.__name__)
        for each in types
        if any(each in (endpoint.path_type, endpoint.query_type) for endpoint in endpoints)
    }
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, parameters)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": each.name, "description": each.description} for each in sections],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {code: _problem(code) for code in KINDS},
            "headers": _HEADERS,
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _types(endpoints: Iterable[Endpoint]) -> list[type]:
    """Every type that an endpoint names, once."""
    found: dict[type, None] = {wire.Problem: None}
    for endpoint in endpoints:
        replies = [each for each in endpoint.replies.values() if each is not None]
        for each in (endpoint.path_type, endpoint.query_type, endpoint.body_type, *replies):
            if each is not Nothing:
                found[each] = None
    return list(found)


def _operation(endpoint: Endpoint, parameters: dict[str, Json]) -> Json:
    operation: Json = {
        "operationId": endpoint.name,
        "tags": [endpoint.section],
        "summary": endpoint.summary,
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    operation["security"] = _SECURITY[endpoint.callers]
    given = [
        *_parameters("path", endpoint.path_type, parameters),
        *_parameters("query", endpoint.query_type, parameters),
        *(
            {
                "name": header.name,
                "in": "header",
                "description": header.description,
                "schema": {"type": "string"},
            }
            for header in endpoint.headers
        ),
    ]
    if given:
        operation["parameters"] = given
    if endpoint.has_body:
        operation["requestBody"] = _body(endpoint)
    elif endpoint.body_media_type is not None:
        content: Json = {endpoint.body_media_type: {"schema": {}}}
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = _responses(endpoint)
    if endpoint.scope is not None:
        operation["x-scope"] = endpoint.scope
    return operation


def _parameters(place: str, type_: type[msgspec.Struct], schemas: dict[str, Json]) -> list[Json]:
    if type_ is Nothing:
        return []
    schema = schemas[type_.__name__]
    required = schema.get("required", ())
    found = []
    for name, field in schema["properties"].items():
        field = dict(field)
        parameter = {"name": name, "in": place, "required": place == "path" or name in required}
        if "description" in field:
            parameter["description"] = field.pop("description")
        found.append(parameter | {"schema": field})
    return found


def _body(endpoint: Endpoint) -> Json:
    schema = {"$ref": _SCHEMA_REF.format(name=endpoint.body_type.__name__)}
    types = ["application/json"]
    if endpoint.method == "PATCH":
        types.insert(0, "application/merge-patch+json")
    return {"required": True, "content": {each: {"schema": schema} for each in types}}


def _responses(endpoint: Endpoint) -> Json:
    headers: Json = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if endpoint.is_metered:
        for name in ("Tidings-Cost", "Tidings-Cost-Source"):
            headers[name] = {"$ref": f"#/components/headers/{name}"}
    if endpoint.callers not in (Callers.OPEN, Callers.LINK):
        for name in ("RateLimit", "RateLimit-Policy"):
            headers[name] = {"$ref": f"#/components/headers/{name}"}
    responses: Json = {}
    for status, reply in endpoint.replies.items():
        text = _STATUS_TEXTS[status]
        if status == 200 and 201 in endpoint.replies:
            text = "It was there already"
        responses[str(status)] = {"description": text, "headers": headers}
        if reply is not None:
            schema = {"$ref": _SCHEMA_REF.format(name=reply.__name__)}
            responses[str(status)]["content"] = {endpoint.media_type: {"schema": schema}}
        elif status == 200:
            responses[str(status)]["content"] = {endpoint.media_type: {}}
    codes = _codes(endpoint)
    responses |= {str(KINDS[code].status): {"$ref": _response_ref(code)} for code in codes}
    responses["default"] = {"$ref": _response_ref("internal")}
    return responses


def _codes(endpoint: Endpoint) -> list[str]:
    """The problems that an endpoint may answer with, besides those that any may."""
    codes = ["validation_failed"]
    if endpoint.callers not in (Callers.OPEN, Callers.LINK):
        codes += ["unauthorized", "forbidden", "rate_limited"]
    if endpoint.path_type is not Nothing:
        codes.append("not_found")
    if endpoint.method not in ("GET", "HEAD"):
        codes.append("conflict")
    if endpoint.has_body:
        codes += ["too_large", "unsupported_media_type"]
    elif endpoint.body_media_type is not None:
        codes.append("too_large")
    if endpoint.body_type is wire.PostMessage:
        codes.append("idempotency_mismatch")
    codes.append("unavailable")
    return sorted(codes, key=lambda code: KINDS[code].status)


def _response_ref(code: str) -> str:
    return f"#/components/responses/{code}"


def _problem(code: str) -> Json:
    kind = KINDS[code]
    headers: Json = {}
    if code in ("rate_limited", "unavailable"):
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    title = "Any other problem" if code == "internal" else kind.title
    schema = {"$ref": _SCHEMA_REF.format(name="Problem")}
    response: Json = {
        "description": f"{title} (`{code}`)",
        "content": {"application/problem+json": {"schema": schema}},
    }
    return response | {"headers": headers} if headers else response


_HEADERS: Json = {
    "Tidings-Cost": {
        "description": _COST,
        "schema": {"type": "string", "pattern": r"^r=[0-9.e+]+, w=[0-9.e+]+$"},
    },
    "Tidings-Cost-Source": {
        "description": _COST_SOURCE,
        "schema": {"type": "string", "enum": ["consumed", "metered"]},
    },
    "RateLimit-Policy": {
        "description": "The caller's limit: `q` calls in any `w` seconds. Left out where none is.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "Calls left now, `r`, and seconds until one more comes back, `t`.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "X-Request-Id": {
        "description": "Names this request in the service's log.",
        "schema": {"type": "string"},
    },
}

_SECURITY_SCHEMES: Json = {
    "session": {
        "type": "http",
        "scheme": "bearer",
        "description": "A session's token, `ts_…`: one user on one device.",
    },
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `tk_…`: a server that acts for its workspace.",
    },
    "operatorKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An operator's key, `tk_…`: whoever runs this service.",
    },
}
