# Everything a developer does, by name. `make` alone lists it.
BIN := .venv/bin

# Services that must be there when tests run: a missing one is a failure, not a skip. `make test REQUIRE=` skips.
REQUIRE ?= all
# How many tests run at once, each file's in one process. Most wait for daemons: two at a time fit on two cores.
PARALLEL ?= -n 2 --dist loadfile
# Passed to pytest: make test PYTEST='-k prefix -x'
PYTEST ?=
# How long `make crash` (300) and `make fuzz` (60) run, and what else they are told:
# make crash SECONDS=3600 SEED=7; make fuzz SECONDS=3600 FUZZ='--target journal-event --seed 7'
SECONDS ?=
SEED ?=
# Passed to the benchmark: make bench BENCH='--quick --only recovery'
BENCH ?=
FUZZ ?=

QEMU_TESTS := tests/integration/test_agent.py tests/integration/test_agent_input.py \
	tests/integration/test_agent_load.py tests/integration/test_main_job.py tests/integration/test_prefix.py \
	tests/integration/test_pause.py tests/integration/test_dirty_lines.py tests/integration/test_discovery.py \
	tests/integration/test_fencing.py tests/integration/test_recovery_of_faults.py \
	tests/integration/test_failover.py tests/integration/test_failback.py tests/integration/test_failover_guest.py \
	tests/crash tests/conformance/nbd

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-qemu10 bench crash fuzz simulate check up down lint types fmt schemas asyncapi lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Debian packages, .venv, Kafka's jars; quick when all is there
	@scripts/setup

demo: setup ## the main job on a real QEMU disk, with everything real; leaves nothing running
	@$(BIN)/python scripts/demo.py

test: setup ## the tests, on real Kafka, Redis and QEMU
	REQUIRE=$(REQUIRE) $(BIN)/pytest $(PARALLEL) -m "not long" $(PYTEST)

test-long: setup ## those of fleets, groups and long logs, which take minutes each
	REQUIRE=$(REQUIRE) $(BIN)/pytest $(PARALLEL) -m long $(PYTEST) tests/integration

test-qemu10: setup ## those that attach to QEMU, on QEMU 10 of Debian's backports
	@scripts/qemu-backports .cache/qemu-10
	PATH=$(CURDIR)/.cache/qemu-10/usr/bin:$$PATH REQUIRE=$(REQUIRE) $(BIN)/pytest $(PARALLEL) -m "not long" $(PYTEST) $(QEMU_TESTS)

simulate: ## seeded faults on a simulated clock: SEEDS=1000000 runs many, SEED=66 repeats one and tells what happened
	@PYTHONPATH=tests $(BIN)/python -m simulation.run $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000) --first $(or $(FIRST),0))

crash: setup ## kill and freeze parts at random under load, for SECONDS; says what was survived
	@$(BIN)/python tests/crash/crash.py --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

fuzz: setup ## hostile input with coverage feedback, for SECONDS in all: NBD, events, bitmaps, state files
	@scripts/fuzzer
	$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(FUZZ)

bench: setup ## figures as ratios to peers of the same run; BENCH=--quick takes a few minutes, BENCH=--page writes docs/performance.md
	@PYTHONPATH=.:tests $(BIN)/python -m bench $(BENCH)

check: lint types ## all that needs no service, in under a minute
	$(BIN)/python schemas/generate.py --check
	$(BIN)/python scripts/asyncapi.py --check
	$(BIN)/pytest -q $(PARALLEL) -m "not kafka and not redis and not qemu" tests/unit tests/conformance

up: setup ## start a stack on this machine
	@$(BIN)/rephub up --detach

down: ## stop it
	@$(BIN)/rephub down

lint: ## ruff and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: ## mypy, strict
	$(BIN)/mypy

fmt: ## format, and fix what can be fixed safely
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: ## write the typed records from the .avsc files
	$(BIN)/python schemas/generate.py

asyncapi: ## write docs/asyncapi.yaml from the .avsc files and the topics
	$(BIN)/python scripts/asyncapi.py

lock: ## pin what pyproject.toml asks for, keeping versions that are pinned
	@scripts/lock

clean: ## remove caches and build results; .venv and jars stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
