# The commands of the course. Needs Python 3.11, 3.12 or 3.13 and make (tried with 4.3, written for the 3.81 of macOS too).
#
# PYTHON=python3.12  the Python to build with        TORCH=cpu  smaller downloads on Linux without an NVIDIA GPU
# VENV=.venv         where the environment goes      GPU=1      add requirements-gpu.lock (Linux, NVIDIA)

PYTHON ?=
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.stamp$(if $(GPU),-gpu)
LOCKS = requirements.lock $(if $(GPU),requirements-gpu.lock)
NBTOOLS = $(BIN)/python -m nbtools.cli
UV_HTTP_TIMEOUT ?= 120
export UV_HTTP_TIMEOUT

ifeq ($(MAKECMDGOALS)$(NB),run)
$(error say which notebook, as in: make run NB=01)
endif

# uv does not read pip's settings: hand it the index (a classroom's mirror, say) that pip was told to use, if there is one.
INDEX = $${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}}}
UV = UV_DEFAULT_INDEX="$(INDEX)" $(BIN)/uv

# TORCH=cpu takes torch from PyTorch's own index, without some 3 GB of CUDA libraries. Not tried by us: we had no such index.
ifeq ($(TORCH),cpu)
SYNC = grep -vE '^(nvidia-|cuda-|triton==)' requirements.lock > $(VENV)/cpu.lock && $(UV) pip sync --torch-backend cpu $(VENV)/cpu.lock
else
SYNC = $(UV) pip sync $(LOCKS)
endif

# The first of these that fits: right version, venv's ensurepip there (Debian splits it off), on a Mac not an Intel build.
FITS = import ensurepip, platform, sys; \
  sys.exit(not (3, 11) <= sys.version_info < (3, 14) or sys.platform + platform.machine() == "darwinx86_64")
FIND_PYTHON = for p in $(or $(PYTHON),python3 python3.12 python3.11 python3.13); do \
    if $$p -c '$(FITS)' 2>/dev/null; then echo $$p; exit 0; fi; \
    seen="$$seen; $$p is $$($$p -V 2>/dev/null || echo not there)"; \
  done; \
  echo "No Python that fits$$seen. The course needs 3.11, 3.12 or 3.13 with its venv module (on Debian: apt install" \
    "python3-venv; on a Mac: an arm64 build); name one with: make PYTHON=/path/to/python3.12" >&2; exit 1

.PHONY: help lab run fetch doctor env test test-colab test-gpu report locks clean
.DEFAULT_GOAL := help

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

lab: env ## build the environment, fetch what lessons 00 and 01 need, open JupyterLab on the course
	@$(NBTOOLS) fetch --lessons 00 01
	@$(NBTOOLS) lab

run: env ## run one notebook headless, as in `make run NB=01`: executed copy, HTML, result table
	@$(NBTOOLS) fetch --lessons $(NB)
	@$(NBTOOLS) run $(NB)

fetch: env ## download all models and data of the course, for a workshop; afterwards it runs without network
	@$(NBTOOLS) fetch

doctor: env ## say whether this machine is ready, and how to mend what is not
	@$(NBTOOLS) doctor

test: env .venv-colab/.stamp ## run all tests: style, package, notebooks, contract, old widgets, browser
	@$(NBTOOLS) fetch
	@$(NBTOOLS) test

test-colab: env .venv-colab/.stamp ## run the widget tests with the ipywidgets and IPython of Colab
	@$(NBTOOLS) test colab

test-gpu: env ## run every notebook under the gpu profile (needs a CUDA GPU)
	@$(NBTOOLS) fetch
	@NBTOOLS_PROFILE=gpu $(NBTOOLS) test notebooks

report: env ## make the tables and figures of results/ anew
	@$(NBTOOLS) report

env: $(STAMP) ## build or update .venv from requirements.lock
	@echo "Environment ready in $(VENV) ($$($(BIN)/python -V)); activate it with: source $(BIN)/activate"

$(STAMP): $(LOCKS) pyproject.toml
	@$(BIN)/python -c 'import pip' 2>/dev/null || { \
	  p=$$($(FIND_PYTHON)) || exit 1; \
	  echo "== Making $(VENV) with $$p ($$($$p -V))"; $$p -m venv --clear $(VENV); }
	@echo "== Installing the packages of $(LOCKS) (some 5.6 GB on Linux; what is downloaded is kept if this stops)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	@[ -t 2 ] || quiet=--quiet; $(SYNC) $$quiet --python $(BIN)/python || { echo "make env: not finished; mend the error above and run it again" >&2; exit 1; }
	@$(UV) pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv-colab/.stamp: $(STAMP) tests/requirements-colab.txt
	@echo "== Making .venv-colab, with the ipywidgets and IPython of Colab"
	@$(UV) venv --quiet --clear --python $(BIN)/python .venv-colab
	@$(UV) pip sync --quiet --python .venv-colab/bin/python tests/requirements-colab.txt
	@touch $@

# Change constraints.txt or pyproject.toml, then: make locks env test. FLAGS=--upgrade moves what is not in constraints.txt too.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command "make locks" $(FLAGS)
locks: ## compile requirements.lock, requirements-gpu.lock and tests/requirements-colab.txt
	@test -x $(BIN)/uv || { echo "make locks: there is no $(BIN)/uv yet; run make env first" >&2; exit 1; }
	@$(COMPILE) -c constraints.txt --extra lab --extra test pyproject.toml -o requirements.lock
	@$(COMPILE) -c requirements.lock --extra gpu pyproject.toml -o requirements-gpu.lock
	@$(COMPILE) tests/requirements-colab.in -o tests/requirements-colab.txt
	@wc -l requirements.lock requirements-gpu.lock tests/requirements-colab.txt

clean: ## remove build/ and the tools' caches; the environment, models and data stay
	@rm -rf build .pytest_cache .ruff_cache *.egg-info
	@find nbtools tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	@echo "Removed build/ and caches. Kept: $(VENV) and what make fetch brought."
