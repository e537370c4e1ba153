# robret: `make help` lists what there is.

PYTHON  ?= python3
VENV    ?= .venv
DATASET ?= fashion-mnist openmoji
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.robret-installed
STYLE   := $(BIN)/ruff check . && $(BIN)/ruff format --check .

# One thread a process: results repeat to the last digit, and two processes share two cores fairly.
export OMP_NUM_THREADS = 1

# What runs is the library of this checkout, wherever pip has installed one.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help book html chapters check test data bench clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo "Settings: PYTHON=$(PYTHON)  VENV=$(VENV)  (conda users: VENV=\$$CONDA_PREFIX)"

book: data ## install, get the data, run every stale chapter at quick scale, render the book
	@$(BIN)/python book/execute.py $(CHAPTERS)
	@$(BIN)/python book/render.py --executed

html: $(STAMP) ## render the stored outputs without running anything
	@$(BIN)/python book/render.py

chapters: data ## run the chapters again and store their outputs (some: CHAPTERS="02 04")
	@$(BIN)/python book/execute.py --store $(CHAPTERS)

check: data ## while you work: style and the fast unit tests (about a minute)
	$(STYLE)
	$(BIN)/python -m pytest -n 2 -m "not slow and not book"

test: data ## check everything: style, units, notebooks, the rendered book (10 to 20 minutes)
	$(STYLE)
	$(BIN)/python -m pytest -n 2 -m "not book"
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg \
		--nbval-cell-timeout 3600 --nbval-kernel-startup-timeout 3600 -p tests.patient_notebooks chapters
	$(BIN)/python book/render.py
	$(BIN)/python -m pytest -n 2 -m book

data: $(STAMP) ## get, verify and convert what the chapters need; or DATASET=cub, another of data_scripts, or several
	@$(foreach script,$(subst -,_,$(DATASET)),$(BIN)/python data_scripts/$(script).py &&) true

bench: data ## measure what a step of each attack and defense costs, and the metrics
	$(BIN)/python -m tests.benchmarks.attack_cost --write
	$(BIN)/python -m tests.benchmarks.defense_cost --write
	$(BIN)/python -m tests.benchmarks.hash_defense_cost --write
	$(BIN)/python -m tests.benchmarks.metrics_cost --write
	$(BIN)/python -m tests.benchmarks.hamming_cost --write

clean: ## remove what was built; the environment and the data stay
	rm -rf book/_build .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(MAKE) --no-print-directory $(BIN)/pip
	@$(BIN)/python -I book/own_environment.py
	@echo "installing into $(VENV); the first time takes a few minutes (torch and CUDA are several GB) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "robret needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq python3-venv; } || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian: sudo apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
