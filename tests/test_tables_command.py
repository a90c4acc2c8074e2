"""`tidings tables`, as a person would run it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.command_line import run_tidings
from tests.engines import new_address, remove_tables
from tidings.storage.definitions import Throughput, creation, terraform
from tidings.storage.tables import TABLES


@pytest.mark.slow
def test_tables_are_made_once() -> None:
    address = new_address()
    store = address.url
    try:
        refused = run_tidings("users", "list", "--store", store)
        assert refused.code == 1
        assert f"tidings tables create --store {store}" in refused.errors
        made = run_tidings("tables", "create", "--store", store, "--provisioned", "5:6")
        assert made.code == 0, made.errors
        assert sorted(made.output.split()) == sorted(f"{address.prefix}.{t.name}" for t in TABLES)
        again = run_tidings("tables", "create", "--store", store)
        assert (again.code, again.output) == (0, "")
        key = run_tidings("keys", "create", "--store", store)
        assert key.code == 0, key.errors
    finally:
        asyncio.run(remove_tables(address))


def test_the_embedded_store_needs_none() -> None:
    outcome = run_tidings("tables", "create")
    assert (outcome.code, outcome.output) == (0, "")
    assert "makes its own" in outcome.errors


def test_definitions_are_printed() -> None:
    printed = run_tidings("tables", "print", "--store", "dynamodb://eu-west-2?prefix=mine")
    assert json.loads(printed.output) == [creation(table, "mine") for table in TABLES]
    provisioned = run_tidings("tables", "print", "--terraform", "--provisioned", "10:20")
    assert provisioned.output == terraform(TABLES, "tidings", Throughput(10, 20))


def test_odd_capacities_are_wrong_usage() -> None:
    for text in ("10", "0:5"):
        assert run_tidings("tables", "print", "--provisioned", text).code == 2
