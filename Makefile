# What to run from a fresh clone: "make demo", "make test". "make help" lists the rest.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# To choose the interpreter: make venv PYTHON=/path/to/python3 (default: the system's own, or the newest on PATH
# that can do it).
PYTHON ?=
# make test ARGS="-k tree -x", make benchmarks ARGS=--smoke
ARGS ?=
# make demo KEEP=1 leaves the demo mounted.
KEEP ?=

# Tests run in this many processes: they wait for servers and mounts as often as for a core. As root, where 8 GiB of
# memory are free, they write to memory; with TESTS_ON_DISK=1 to /tmp, where what a failed test has left stays.
TESTERS ?= $(shell expr $$(nproc) + 1)

BUILD_PACKAGES := python3 python3-venv python3-dev gcc libc6-dev pkgconf libfuse3-dev fuse3
TEST_PACKAGES := attr libcap2-bin git rsync squashfs-tools squashfuse zstd iproute2 nftables nginx-light squid autofs systemd-container \
	bubblewrap busybox-static catatonit charliecloud crun docker-compose docker.io podman runc uidmap

# The tests that last longer with --long.
LONG := soak or switches or storm

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv lint test test-long demo benchmarks format clean packages test-packages fuse

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## set up: system packages, .venv, the project in it
	@echo "==> $(VENV) is ready: $$($(BIN)/python --version) ('make clean' first to choose another with PYTHON=...)"

test: test-packages fuse lint ## check everything: linters, types, imports, then all tests (ARGS="-k name" for some)
	@echo "==> tests"
	@scripts/run-tests $(BIN)/python $(TESTERS) $(ARGS)

test-long: test-packages fuse $(READY) ## an hour of soak, a minute of kills, a thousand switches: one after the other
	@$(BIN)/python -bb -m pytest --long -k '$(LONG)' $(ARGS)

lint: $(READY) ## run ruff, mypy and import-linter
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "cvfs: files to reformat: run 'make format'" >&2; exit 1; }
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import-linter"
	@PYTHONPATH=. $(BIN)/lint-imports

format: $(READY) ## rewrite the code the way 'make lint' wants it
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

demo: fuse $(READY) ## publish, serve and mount a real Python environment and run from it (KEEP=1 leaves it mounted)
	@$(BIN)/python demo/run.py $(if $(KEEP),--keep) $(ARGS)

benchmarks: test-packages fuse $(READY) ## measure, beside ext4, tar and squashfs (ARGS=--smoke: only that it runs)
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv and everything built or cached here
	@rm -rf --one-file-system $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -xdev -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	@scripts/install-system-packages $(BUILD_PACKAGES)

test-packages:
	@scripts/install-system-packages $(BUILD_PACKAGES) $(TEST_PACKAGES)

fuse: packages
	@scripts/check-fuse

$(READY): setup.cfg pyproject.toml scripts/make-venv | packages
	@scripts/make-venv $(VENV) $(PYTHON)
	@touch $@
