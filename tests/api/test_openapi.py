"""The OpenAPI document says what is there, and all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import schemathesis

from tests.api.conftest import Site
from tests.api.trials import TRIALS
from tidings.api import openapi
from tidings.api.endpoints import Callers, Nothing
from tidings.api.sections import SECTIONS
from tidings.problems import KINDS

ENDPOINTS = [endpoint for section in SECTIONS for endpoint in section.endpoints]
DOCUMENT = openapi.document(SECTIONS)


def references(value: Any) -> Iterator[str]:
    """Every `$ref` in it."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_it_is_served_and_can_be_read(site: Site) -> None:
    answer = await site.call("GET", "/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == openapi.document((*SECTIONS, TRIALS))
    schema = schemathesis.openapi.from_dict(answer.json)
    assert len(list(schema.get_all_operations())) == len(ENDPOINTS) + len(TRIALS.endpoints)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert found
    for reference in found:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_no_schema_is_left_over() -> None:
    for name in DOCUMENT["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in set(references(DOCUMENT)), name


def test_every_endpoint_is_described_and_named_once() -> None:
    names = [endpoint.name for endpoint in ENDPOINTS]
    assert len(set(names)) == len(names)
    for endpoint in ENDPOINTS:
        assert endpoint.summary, endpoint.name
        assert len(endpoint.summary) <= 60, endpoint.name


def test_paths_and_their_parameters_agree() -> None:
    for endpoint in ENDPOINTS:
        named = re.findall(r"{(\w+)}", endpoint.path)
        assert named == list(endpoint.path_type.__struct_fields__), endpoint.name


def test_queries_and_bodies_take_nothing_unknown() -> None:
    for endpoint in ENDPOINTS:
        for given in (endpoint.query_type, endpoint.body_type):
            assert given is Nothing or given.__struct_config__.forbid_unknown_fields, given


def test_an_api_key_always_needs_a_scope() -> None:
    for endpoint in ENDPOINTS:
        if endpoint.callers is Callers.WORKSPACE:
            assert endpoint.scope is not None, endpoint.name
        if endpoint.path.startswith("/v1/"):
            assert endpoint.callers is not Callers.OPEN, endpoint.name


def test_every_problem_is_explained_where_its_type_points() -> None:
    assert set(DOCUMENT["components"]["responses"]) == set(KINDS)
