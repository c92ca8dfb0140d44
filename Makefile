# Two commands: `make demo` and `make test`. Both make the environment from the lock first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out
ARGS ?=
# Extras that the environment is made with; tests of libraries that are not there are skipped.
EXTRAS ?= test
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
# Processes that the tests run in; each takes up to 2 GB.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test lint benchmark bench-peers clean

help:
	@echo "make demo       measure the quick suite on embedded data and write the leaderboard"
	@echo "make test       run the tests"
	@echo "make lint       ruff and mypy"
	@echo "make benchmark  the project's own speed, as ratios"
	@echo "make bench-peers  our methods beside other libraries' (installs the extra peers)"
	@echo "make clean      remove what the demo wrote (never the environment)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
		{ echo "tdabench needs Python 3.11.4 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "This Python cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/tdabench suite quick --runs $(OUT)/runs --board $(OUT)/board

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -o addopts= -s $(ARGS)

bench-peers: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,peers]'
	@$(BIN)/python -m tdabench.baselines.peers.bench $(ARGS)

clean:
	rm -rf $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
