"""The set-up: pinned requirements without addresses, and a CI that runs what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt"]


def _pinned(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", text, re.MULTILINE))


def _declared() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {
        "run": project["project"]["dependencies"],
        "dev": project["project"]["optional-dependencies"]["dev"],
        "build": project["build-system"]["requires"],
    }


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", each)[0].lower().replace("_", "-") for each in requirements}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_pinned_with_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", block), block


def test_everything_declared_is_pinned() -> None:
    run, dev, declared = _pinned(REQUIREMENTS[0]), _pinned(REQUIREMENTS[1]), _declared()
    assert _names(declared["run"]) | _names(declared["build"]) <= set(run)
    assert _names(declared["run"]) | _names(declared["dev"]) <= set(dev)
    shared = set(run) & set(dev)
    assert {name: run[name] for name in shared} == {name: dev[name] for name in shared}


def test_ci_runs_the_tests_as_the_readme_says() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    readme = (ROOT / "README.md").read_text()
    for command in commands:
        assert command in readme


def test_make_says_what_there_is() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "run", "check", "test", "quick", "bench"):
        assert f"make {target}" in listed


def test_no_registry_and_no_machine_is_named() -> None:
    """In no file of the project: addresses of package registries, folders of one machine."""
    forbidden = re.compile(
        r"(?:files\.)?python"
        + r"hosted\.org|pypi\."
        + r"org|registry\.npm"
        + r"js|/root"
        + "/|/home"
        + "/"
    )
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and b"\0" not in (data := path.read_bytes()):
            assert not forbidden.search(data.decode(errors="replace")), name
