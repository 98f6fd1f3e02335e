# Everything this project does, from a fresh clone: each target sets up what it needs. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# Config files, later ones over earlier ones; none: config.yaml, the embedded demo.
CONFIG ?=
# More arguments for snakemake, such as SNAKEMAKE_ARGS="--dry-run" or "--workflow-profile profiles/slurm".
SNAKEMAKE_ARGS ?=
# Where the benchmarks work, and a folder of JPEG files for them; none: made photos.
DEVICE ?= cpu
PHOTOS ?=
BENCH ?= results/benchmarks
FUZZ_ARGS ?= --inputs 100000
PYTEST_ARGS ?= -n $(CORES) --dist loadfile

BIN := $(VENV)/bin
LOCKS := requirements-dev.txt requirements-build.txt pyproject.toml
STAMP := $(VENV)/.installed
BENCH_ARGS = --device $(DEVICE) $(if $(PHOTOS),--photos $(PHOTOS))
SNAKEFILES := Snakefile workflow
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install test fuzz bench bench-gpu lint docs format audit lock schema unlock clean FORCE

help: ## list the targets
	@grep -hE '^[^ :=]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  %-22s %s\n", $$1, $$2}'

# Any result by its path. Snakemake decides what has to be done for it.
results/table5.csv: ## the comparison table; CONFIG="a.yaml b.yaml" for another experiment than the demo
# Snakemake cannot report on jobs that still run: it is called again when all are done, and reads their results then.
results/report.zip: $(STAMP) FORCE ## tables, figures, training curves, run times and configuration, to unzip and read in a browser
	@rrm check $(or $(CONFIG),config.yaml) > /dev/null
	@snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG)) $(SNAKEMAKE_ARGS) -- all pages
	@snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG)) --report $@ -- all pages

# The configuration is read safely first: Snakemake takes one with a certain key for a program (docs/supply_chain.md).
results/%: $(STAMP) FORCE
	@rrm check $(or $(CONFIG),config.yaml) > /dev/null
	@snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG)) $(SNAKEMAKE_ARGS) -- $@

install: $(STAMP) ## virtual environment with the locked packages, in .venv

test: $(STAMP) ## all tests
	@python -m pytest $(PYTEST_ARGS)

fuzz: $(STAMP) ## 100,000 inputs for every reader, which takes a night; FUZZ_ARGS="--reader mask --inputs 5000 --seed 7"
	@python -m tests.fuzz $(FUZZ_ARGS)

bench: $(STAMP) ## speed and memory of CRF, mining and energy against pydensecrf; a training step by parts; crops and segmented photos a second; PHOTOS=folder, DEVICE=cuda
	@for how in '1 0' '$(CORES) 0' '$(CORES) $(CORES)'; do \
	  set -- $$how; echo "+ $$1 threads, $$2 busy processes"; \
	  python -m benchmarks.filtering --threads $$1 --busy $$2 $(BENCH_ARGS) --out $(BENCH)/filtering_$$1_$$2.json; \
	done
	@for what in training_step checkpoints memory segmenting; do \
	  echo "+ $$what"; python -m benchmarks.$$what --threads $(CORES) $(BENCH_ARGS) --out $(BENCH)/$$what.json; \
	done
	@echo "+ input_pipeline"; python -m benchmarks.input_pipeline --workers $(CORES) $(if $(PHOTOS),--photos $(PHOTOS)) \
	  --out $(BENCH)/input_pipeline.json
	@echo "+ small_jobs"; python -m benchmarks.small_jobs --cores $(CORES) --out $(BENCH)/small_jobs.json

bench-gpu: $(STAMP) ## all that is to be measured on a GPU, in 15 minutes, into results/benchmarks/gpu; PHOTOS=folder
	@python -m benchmarks.gpu $(if $(PHOTOS),--photos $(PHOTOS)) --out results/benchmarks/gpu

lint: $(STAMP) ## all linters, nothing is changed
	@status=0; \
	for check in 'ruff check' 'ruff format --check' mypy 'snakefmt --check $(SNAKEFILES)' 'snakemake --lint' \
	  'pre-commit validate-config'; do \
	  echo "+ $$check"; $$check || status=1; \
	done; exit $$status

docs: $(STAMP) ## the documentation as a site, in site/; any warning is a fault
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

format: $(STAMP) ## mend what linters can mend
	ruff format
	ruff check --fix
	snakefmt $(SNAKEFILES)

audit: $(STAMP) ## ask the package index for advisories about every locked package
	@$(BIN)/uv venv --quiet --clear $(VENV)/audit
	@$(BIN)/uv pip install --quiet --require-hashes --python $(VENV)/audit/bin/python -r requirements-audit.txt
	@status=0; for lock in requirements-dev.txt requirements-build.txt requirements-audit.txt requirements-fuzz.txt; do \
	  echo "+ pip-audit $$lock"; \
	  $(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off $(AUDIT_ARGS) -r $$lock || status=1; \
	done; exit $$status

schema: $(STAMP) ## write workflow/schemas/config.schema.json and docs/configuration.md from the models
	@rrm schema > workflow/schemas/config.schema.json.tmp
	@mv workflow/schemas/config.schema.json.tmp workflow/schemas/config.schema.json
	@rrm schema --markdown > docs/configuration.md.tmp
	@mv docs/configuration.md.tmp docs/configuration.md

# The lock is for CPython 3.11 or newer on Linux; every package is pinned with its hashes.
# With LOCK_ARGS empty, versions stay as they are in the files.
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --generate-hashes --no-annotate --no-emit-index-url \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 $(LOCK_ARGS)
RUNTIME_LOCK = pyproject.toml --extra workflow --extra tensorboard --extra export --extra video

lock: $(STAMP) ## renew the requirements files; LOCK_ARGS=--upgrade for newer versions
	$(COMPILE) $(RUNTIME_LOCK) --output-file requirements.txt
	$(COMPILE) $(RUNTIME_LOCK) --group dev --constraint requirements.txt --output-file requirements-dev.txt
	$(COMPILE) --group fuzz --output-file requirements-fuzz.txt
	$(COMPILE) requirements-build.in --output-file requirements-build.txt
	$(COMPILE) requirements-audit.in --output-file requirements-audit.txt

unlock: $(STAMP) ## take away the lock that a killed run has left; no other run may work in this folder
	@snakemake $(if $(CONFIG),--configfile $(CONFIG)) --unlock

clean: ## remove caches and build products; results and .venv stay
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.git/*' -prune -exec rm -rf {} +

# The stamp holds the digest of the lock files it was made from, so that a git checkout alone installs nothing.
# pydensecrf2 is compiled on this machine, with pinned and hashed tools: they are installed first and used without isolation
# (pip refuses the unpinned build requirements of a source package once a constraint brings hashes).
$(STAMP): $(LOCKS)
	@digest=$$(cat $(LOCKS) | sha256sum); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$digest" ]; then touch $@; exit 0; fi; \
	if [ ! -x $(BIN)/python ]; then \
	  for python in $${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 ''; do \
	    if [ -z "$$python" ]; then echo 'make: expected Python 3.11 or newer, got none: install it or set PYTHON=' >&2; exit 1; fi; \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	  done; \
	  command -v c++ g++ clang++ >/dev/null || { echo 'make: expected a C++ compiler (pydensecrf2 is compiled), got none: install g++' >&2; exit 1; }; \
	  echo "make: setting up $(VENV) with $$python"; "$$python" -m venv $(VENV); \
	fi; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-build.txt; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-build-isolation -r requirements-dev.txt; \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	echo "$$digest" > $@
