"""The documents are true: what they link to and name exists, and the README's commands work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import lasting_port, run_tidings, running_service

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SOURCES = ROOT / "src" / "tidings"
MADE_ON_USE = {"docs/benchmarks.md"}
"""Files that a command makes when it is first run."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not re.match(r"[a-z]+:", target) and target not in MADE_ON_USE:
            assert (document.parent / target).exists(), target


def test_the_architecture_page_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py|[a-z]+/)`", text))
    assert len(named) > 20
    for name in sorted(named):
        assert (SOURCES / name).exists(), name


def test_the_architecture_page_has_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in SOURCES.glob("*.py")} - {"__init__.py", "demo_story.py"}
    folders = {f"{path.parent.name}/" for path in SOURCES.glob("*/__init__.py")}
    missing = sorted(name for name in modules | folders if f"`{name}`" not in text)
    assert not missing


def test_the_map_in_the_readme_is_the_tree() -> None:
    map_ = re.search(r"## Map\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert map_ is not None
    for line in map_[1].splitlines():
        indent, names = re.match(r"( *)(\S+(?: {2}\S+\.py)?)", line).groups()  # type: ignore[union-attr]
        for name in names.split():
            place = SOURCES / name if indent else ROOT / name
            assert place.exists(), name


def test_the_commands_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Commands") : text.index("## Tests")]
    for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for command in re.findall(r"`(?:tidings )?([a-z]+)", cell):
            assert run_tidings(command, "--help").code == 0, command
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)`?", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_first_steps_of_the_readme(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    steps = text[text.index("## First steps") : text.index("## When one machine")]
    blocks = re.findall(r"```sh\n(.*?)```", steps, re.DOTALL)
    assert len(blocks) == 3
    create_key, serve = blocks[0].splitlines()[1:3]
    assert "tidings keys create" in create_key
    assert serve == "tidings serve --store sqlite:///tidings.db --port 8080"
    port = lasting_port()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    tidings = bin_folder / "tidings"
    tidings.write_text(f'#!/bin/sh\nexec {sys.executable} -m tidings "$@"\n')
    tidings.chmod(0o755)
    script = "\n".join(["set -eu", create_key, 'echo "KEY $KEY"'])
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"}

    def run(script: str, **more: str) -> str:
        finished = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    key = run(script).split("KEY ")[1].strip()
    with running_service(f"sqlite:///{tmp_path / 'tidings.db'}", "--port", str(port)):
        steps = "set -eu\n" + "".join(blocks[1:]).replace("localhost:8080", f"127.0.0.1:{port}")
        output = run(steps, KEY=key)
    assert '"code"' not in output, output
    assert '"text":"Hello, is anybody there?"' in output
    assert re.search(r'"unread":1,"mentions":0', output)
