# The two commands of the README, `make run` and `make test`, each work first on a fresh clone.
# PYTHON=... picks an interpreter; ARGS=... goes to the command, e.g. make run ARGS="train.num_epochs=3"; JOBS=... is how
# many processes run the tests.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
ARGS ?=
JOBS ?= 3

.PHONY: help run test check format lint types contracts tests env constraints clean format-check

help:
	@echo "make run     data, ablate, train, evaluate, register; prints the result"
	@echo "make test    everything CI checks: format, lint, types, import contracts, tests"
	@echo "make format  rewrite the code in the house format"
	@echo "make env     the environment alone, in $(VENV)"

run: env
	@$(BIN)/assay run ablation.in_run=true $(ARGS)

test: check

check: format-check lint contracts
	@$(MAKE) --no-print-directory -j 2 types tests || { echo "Types or tests failed: see above, also before the tests."; exit 1; }

format-check: env
	@$(BIN)/ruff format --check --quiet . || { echo "Not in the house format: run 'make format'."; exit 1; }

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: env
	$(BIN)/ruff check --quiet .

types: env
	$(BIN)/mypy

contracts: env
	$(BIN)/lint-imports --config pyproject.toml

tests: env
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The stamp is older than the constraints, or the interpreter is gone: make the environment again.
env:
	@if [ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null \
	  && [ $(STAMP) -nt constraints.txt ] && [ $(STAMP) -nt pyproject.toml ]; then :; else $(MAKE) --no-print-directory $(STAMP)-now; fi

.PHONY: $(STAMP)-now
# The pinned pip first: the one that comes with Python takes a third longer. pip would compile on one core, and the tests
# of packages too. What is not compiled here, is when it is imported.
$(STAMP)-now:
	@set -e; \
	python=''; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python >= 3.11 with venv was found (tried: $(PYTHON) python3 python3.13 python3.12 python3.11 python)."; \
	  echo "Install one (Debian: apt install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python"; \
	  exit 2; \
	fi; \
	echo "Making the environment in $(VENV) with $$($$python --version) (once; about two minutes)."; \
	$$python -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt pip; \
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'; \
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing)/' $(VENV)/lib || :; \
	touch $(STAMP)

# Resolve again within pyproject.toml's ranges and write the result down; names that only another platform needs keep
# their pins. Review the diff: it changes every run key.
constraints: env
	@$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/resolved.json --editable '.[dev,benchmarks]'
	@$(BIN)/python -c 'import json, pathlib, re; \
	  file = pathlib.Path("constraints.txt"); lines = file.read_text().splitlines(); \
	  pins = dict(line.split("==") for line in lines if "==" in line and line[0] != "#"); \
	  items = [item["metadata"] for item in json.load(open("$(VENV)/resolved.json"))["install"]]; \
	  pins |= {re.sub(r"[-_.]+", "-", i["name"].lower()): i["version"].split("+")[0] for i in items}; \
	  pins.pop("assay"); \
	  head = [line for line in lines if line.startswith("#")]; \
	  file.write_text("\n".join(head + [f"{n}=={v}" for n, v in sorted(pins.items())]) + "\n")'

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
