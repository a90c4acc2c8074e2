"""`tidings nodes`, which sees from outside who lives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import run_tidings, running_service


@pytest.mark.slow
def test_it_lists_who_lives_and_names_who_fell_silent(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'tidings.db'}"
    assert run_tidings("keys", "create", "--store", store).code == 0
    with running_service(store) as one, running_service(store) as other:
        addresses = {each.url.removeprefix("http://") for each in (one, other)}
        listed = run_tidings("nodes", "--store", store, "--json")
        assert listed.code == 0, listed.errors
        assert {node["address"] for node in json.loads(listed.output)["items"]} == addresses
        for each in (one, other):
            each.process.kill()  # nobody is left who would remove their rows
            each.process.wait()
        listed = run_tidings("nodes", "--store", store, "--watch", "1")
        assert listed.code == 0, listed.errors
        for address in addresses:
            assert address not in listed.output
            assert address in listed.errors


def test_it_wants_a_store_that_is_there(tmp_path: Path) -> None:
    missing = run_tidings("nodes", "--store", f"sqlite:///{tmp_path / 'none.db'}")
    assert missing.code == 1
    assert missing.errors.count("\n") == 1
