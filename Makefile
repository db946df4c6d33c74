# `make help` lists the commands. PYTHON is any Python from 3.11 on; everything else runs in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
PYTHON ?= python3
STAMP := .venv/.installed
# Most tests wait for servers most of the time, hence more than there are cores.
TEST_PROCESSES ?= 4
# A whole file, and its module's fixtures, to one process.
SIDE_BY_SIDE := --dist loadscope --no-loadscope-reorder
OLDEST_CELERY := .venv/celery-oldest
# Where this is set, each of several processes compiles every test anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help up down env status venv demo check test bench lint format

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

up: $(STAMP) ## start the cluster and the whole system on it, or bring what runs up to date
	@$(PYTHON) -m deploy.local up

down: ## stop the cluster and take away everything it made
	@$(PYTHON) -m deploy.local down

env: ## print export lines for clients on this machine: eval "`make -s env`"
	@$(PYTHON) -m deploy.local env

status: ## show what runs
	@$(PYTHON) -m deploy.local status

demo: up ## follow a lab from request to end on the running system
	@eval "$$($(PYTHON) -m deploy.local env)"; .venv/bin/python -m deploy.demo

check: lint $(OLDEST_CELERY)/.installed ## what every commit passes: lint, types, tests without servers
	@.venv/bin/python -m pytest -q -n 2 $(SIDE_BY_SIDE) tests/unit tests/contract

# A cluster that was not up before the tests is taken down after them, whatever their result. The end-to-end
# tests take parts of the one platform away, so nothing else runs beside them; PYTEST_ARGS is
# one run of its own. The junit files, and the times in them, stay in build/.
test: $(STAMP) $(OLDEST_CELERY)/.installed ## run all tests on the running cluster, or on one started for them
	@if $(PYTHON) -m deploy.local status >/dev/null 2>&1; then after=true; \
	  else after="$(PYTHON) -m deploy.local down"; fi; \
	trap "$$after" EXIT; \
	$(PYTHON) -m deploy.local up; \
	eval "$$($(PYTHON) -m deploy.local env)"; \
	export AUTOLABS_REQUIRE_SERVICES=1; \
	if [ -n "$${PYTEST_ARGS:-}" ]; then .venv/bin/python -m pytest $(PYTEST_ARGS); exit; fi; \
	rm -f build/side-by-side.xml build/end-to-end.xml; \
	.venv/bin/python -m tests.support.cluster.kwok || echo "-> Go on: the tests of fake nodes will say what is missing"; \
	status=0; \
	.venv/bin/python -m pytest -n $(TEST_PROCESSES) $(SIDE_BY_SIDE) \
	  --ignore=tests/e2e --junitxml=build/side-by-side.xml || status=$$?; \
	.venv/bin/python -m pytest tests/e2e --junitxml=build/end-to-end.xml || status=$$?; \
	.venv/bin/python -m tests.times build/side-by-side.xml build/end-to-end.xml || true; \
	exit $$status

bench: up ## print speed and cost beside Celery (about 16 min)
	@eval "$$($(PYTHON) -m deploy.local env)"; .venv/bin/python -m tests.bench $(BENCH_ARGS)

lint: $(STAMP) ## check format, lint rules and types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

format: $(STAMP) ## format the code
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

venv: $(STAMP) $(OLDEST_CELERY)/.installed ## make .venv with everything for development

# Written last, so that an interrupted installation is done again.
$(STAMP): pyproject.toml console/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "-> Install python3-venv with apt (usually 10 s)"; apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; }
	@echo "-> Make .venv (usually 30 s)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e ./console
	@touch $@

# Beside the newest one, which pip would otherwise replace; tests put it on PYTHONPATH.
$(OLDEST_CELERY)/.installed: tests/contract/celery-oldest.txt $(STAMP)
	@echo "-> Install the oldest supported Celery for the tests (usually 5 s)"
	@rm -rf $(OLDEST_CELERY)
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(OLDEST_CELERY) -r $<
	@touch $@
