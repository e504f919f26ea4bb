# make demo            everything once, on phantom frames   (make demo DATA=path/to/Kvasir-SEG: on real ones)
# make test            the whole test suite                  (real-data tests run where ../shared/data is)
# make test-fast       the quick ones of them
# make lint            ruff and mypy; Biome for the page's JavaScript, where npm is
# make docs            the documentation as a site in site/
# make bench           speed of training, evaluation and inference, against other ways of doing the same

SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c '$(SUITS)' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
# Modules are compiled when they are first imported: compiling all of them takes minutes, and most are never used.
PIP := -m pip install -qq --no-compile
# What the metrics are tested against; without their dependencies, whose pins are older than ours.
REFERENCES := pysodmetrics==1.6.2 monai==1.6.1 surface-distance-based-measures==0.1
BIOME := 2.6.8
DATA ?=
# One more than there are cores: many tests wait for processes that they started.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Images of containers often set it: each of hundreds of processes would then compile every library anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-fast lint docs bench clean
install: .venv/installed

.venv/installed: pyproject.toml
	@$(or $(PYTHON),false) -c '$(SUITS)' \
		|| { echo "polypseg needs Python 3.11 to 3.14; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "installing into .venv (PyTorch is large: a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP) -e '.[dev]'
	@$(BIN)/python $(PIP) --no-deps $(REFERENCES)
	@touch $@

demo: install
	@$(BIN)/polypseg demo --out demo $(if $(DATA),--data "$(DATA)")

# What every commit can wait for: without trainings, exports, the browser, real data.
test-fast: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not real"

test: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@if npx --yes @biomejs/biome@$(BIOME) --version >/dev/null 2>&1; then npx --yes @biomejs/biome@$(BIOME) lint --error-on-warnings; \
		else echo "Biome is not here and cannot be fetched by npx: the page's JavaScript was not linted"; fi

docs: install
	@test -x $(BIN)/mkdocs || $(BIN)/python $(PIP) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo site/index.html

bench: install
	@$(BIN)/python benchmarks/training.py $(if $(DATA),--data "$(DATA)")
	@$(BIN)/python benchmarks/evaluation.py $(if $(DATA),--data "$(DATA)")
	@$(BIN)/python benchmarks/inference.py $(if $(DATA),--data "$(DATA)")

clean:
	rm -rf .venv site demo .pytest_cache .mypy_cache .ruff_cache
