# Everything that one does with a checkout, each a line. Needs Python 3.11 and nothing of ours.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILE := CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/pip-compile --quiet --generate-hashes \
	--strip-extras --allow-unsafe --resolver=backtracking \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help demo run check test quick bench hotspots costs pictures requirements clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/ready ## a service with a sample workspace, and ready links
	$(BIN)/tidings demo

run: .venv/ready ## a service on tidings.db
	$(BIN)/tidings serve

check: .venv/ready-dev ## format, lint, strict types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: .venv/ready-dev tests/web/node_modules ## all tests, two at a time
	$(BIN)/pytest -n 2 --durations 15

quick: .venv/ready-dev ## the fast tests, on the embedded store alone; a minute or two
	TIDINGS_TEST_STORES=sqlite $(BIN)/pytest -m "not slow" -n 2

bench: .venv/ready-dev ## the speed table, appended to docs/benchmarks.md
	$(BIN)/tidings bench

hotspots: .venv/ready-dev ## two hot spots against the plain way, into docs/hot-spots.md; seven minutes
	$(BIN)/python -m benchmarks.hot_spots --document docs/hot-spots.md

costs: .venv/ready-dev ## measure what every call costs, into docs/costs.md
	$(BIN)/python -m tests.costs_page

pictures: .venv/ready-dev ## take the README's pictures anew, into docs/pictures; three minutes
	$(BIN)/python -m tests.web.pictures

requirements: .venv/ready ## compile the pinned requirements anew from pyproject.toml
	$(PIP) install pip-tools
	$(COMPILE) --upgrade --extra dev --output-file requirements-dev.txt pyproject.toml
	$(COMPILE) --upgrade --build-deps-for editable --constraint requirements-dev.txt \
		--output-file requirements.txt pyproject.toml

clean: ## remove the environment and what tools left
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info build

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes --requirement requirements.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(PIP) install --require-hashes --requirement requirements-dev.txt
	@touch $@

tests/web/node_modules: tests/web/package-lock.json
	@if command -v npm >/dev/null; \
	then npm ci --no-audit --no-fund --loglevel=error --prefix $(@D) && touch $@; \
	else echo "npm is missing, so that accessibility tests will be skipped" >&2; fi
