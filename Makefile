# People and CI run the same targets. Each does what it needs first and is quick the second time.
# Needs: Python >= 3.11, cargo, a C compiler, git. Everything else lands in .venv, .tools and target.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := $(CURDIR)/.venv
TOOLS := $(CURDIR)/.tools
CARGO_DENY_VERSION := 0.20.2
VERSITYGW_VERSION := v1.7.0
FSX_VERSION := 0.3.2
TORCH_VERSION := 2.13.0
FUZZ_CASES ?= 2000
# Most tests of Python wait for a process to start or for a disk: more than processors.
TEST_WORKERS ?= 3

export PATH := $(VENV)/bin:$(TOOLS)/bin:$(PATH)
export VIRTUAL_ENV := $(VENV)

# What maturin sets, for cargo: whenever these change, all that knows Python is built again.
as-maturin = PYO3_PYTHON=$(VENV)/bin/python PYTHON_SYS_EXECUTABLE=$(VENV)/bin/python PYO3_BUILD_EXTENSION_MODULE=1 \
	PYO3_ENVIRONMENT_SIGNATURE=$$(python -c 'import sys; print("cpython-%d.%d-64bit" % sys.version_info[:2])') \
	$(addprefix PYO3_CONFIG_FILE=,$(firstword $(wildcard $(CURDIR)/target/maturin/pyo3-config-*.txt)))

# What is released has none of the faults that tests ask for: see crates/types/src/faults.rs.
define CANNOT_FAIL
import sys, zipfile
for name in sys.argv[1:]:
    with zipfile.ZipFile(name) as wheel:
        for part in wheel.namelist():
            assert b"FAULTS_ON_PURPOSE" not in wheel.read(part), f"{part} in {name} can be told to fail"
endef
export CANNOT_FAIL

COMMA := ,
say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help setup demo test check bench measured soak wheel docs clean
.PHONY: core-dev core-release test-rust test-python advisories lock format servers programs torch

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: core-dev servers $(TOOLS)/.cargo-deny-$(CARGO_DENY_VERSION) ## everything the other targets need

demo: core-release ## the main job against a simulated remote, measured; no account, no root
	$(call say,demo)
	@penstock demo $(ARGS)

test: test-rust test-python ## every test but the soak

torch: $(VENV)/.requirements ## what the tests of data loaders need: several gigabytes
	@python -c 'import torch' 2> /dev/null || pip install --quiet "torch==$(TORCH_VERSION)"

test-rust: $(VENV)/.requirements servers
	$(call say,Rust tests)
	@$(as-maturin) cargo test --workspace --locked --no-fail-fast

test-python: core-dev servers
	$(call say,Python tests)
	@pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/.requirements $(TOOLS)/.cargo-deny-$(CARGO_DENY_VERSION) ## formats, lints, types, import rules, licences
	$(call say,rustfmt)
	@cargo fmt --all --check
	$(call say,ruff)
	@ruff format --check --quiet .
	@ruff check --quiet .
	$(call say,import rules)
	@lint-imports --no-cache | tail -n 4
	@pytest -q -p no:cacheprovider tests/unit/test_architecture.py
	$(call say,mypy)
	@mypy
	$(call say,cargo-deny)
	@cargo-deny --log-level error check --hide-inclusion-graph bans licenses sources
	$(call say,clippy)
	@$(as-maturin) cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

format: $(VENV)/.requirements ## rewrite what the formatters would
	@cargo fmt --all
	@ruff format --quiet .
	@ruff check --quiet --fix .

bench: core-release ## the bars, both sides from one run, or WHAT=mount alone; results go to benchmarks/results
	$(call say,benchmarks)
	@status=0; python -m benchmarks.run $(WHAT) $(ARGS) || status=$$?; python docs/_extensions/measured.py; exit $$status

measured: $(VENV)/.requirements ## put what was measured last into README.md
	@python docs/_extensions/measured.py --write

soak: FEATURES := --features faults
soak: core-release servers ## what takes long: a million checked reads, long fuzzing
	$(call say,a million checked reads and hundreds of kills)
	@pytest -m soak --timeout 7200 -o faulthandler_timeout=0 $(ARGS)
	$(call say,every decoder and model against $(FUZZ_CASES) random cases each)
	@PROPTEST_CASES=$(FUZZ_CASES) $(as-maturin) cargo test --workspace --locked --lib --test faults --no-fail-fast

wheel: $(VENV)/.requirements ## one wheel with everything in it, in dist
	$(call say,wheel)
	@maturin build --release --locked --out dist
	@python -c "$$CANNOT_FAIL" dist/*.whl
	@ls -lh dist/*.whl

docs: core-dev ## the documentation, in docs/_build/html
	$(call say,docs)
	@sphinx-build --quiet --fail-on-warning --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

advisories: $(TOOLS)/.cargo-deny-$(CARGO_DENY_VERSION) ## known holes in dependencies; fetches the advisory database
	@cargo-deny fetch db 2> /dev/null \
		|| { echo "the RustSec advisory database cannot be fetched from here: nothing was checked" >&2; exit 1; }
	@cargo-deny check advisories

lock: $(VENV)/.requirements ## choose the development requirements anew, within the bounds of pyproject.toml
	@cd $(CURDIR) && uv pip compile --quiet --upgrade pyproject.toml --group tools --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" -o requirements-dev.txt

clean: ## remove whatever the other targets made
	rm -rf target dist docs/_build .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f python/penstock/_core*.so

# The compiled module is copied into python/penstock. Both builds may take turns: cargo keeps both. What is tested can
# fail on purpose (crates/types/src/faults.rs); what is measured and released cannot.
core-dev: FEATURES := --features faults
core-dev: $(VENV)/.installed
	@maturin develop --quiet --locked --skip-install $(FEATURES)

core-release: CORE_PROFILE := --release
core-release: $(VENV)/.installed
	@maturin develop --quiet --locked --skip-install --release $(FEATURES)

# Entry points, the console script and the link to the sources; needed again only when the metadata changes.
$(VENV)/.installed: $(VENV)/.requirements pyproject.toml Cargo.toml
	$(call say,the package in .venv$(if $(CORE_PROFILE),$(COMMA) in release: this takes some minutes once))
	@PIP_QUIET=1 maturin develop --quiet --locked $(CORE_PROFILE) $(FEATURES)
	@touch $@

$(VENV)/.requirements: requirements-dev.txt
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Penstock needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@for tool in cargo cc git; do command -v $$tool > /dev/null \
		|| { echo "Penstock needs $$tool to build: install it and run make again" >&2; exit 1; }; done
	$(call say,Python requirements in .venv)
	@[ -x $(VENV)/bin/python ] || "$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# A program, not a library: no optimisation, built in under a minute.
$(TOOLS)/.cargo-deny-$(CARGO_DENY_VERSION):
	$(call say,cargo-deny in .tools)
	@mkdir -p $(TOOLS)
	@[ "$$($(TOOLS)/bin/cargo-deny --version 2> /dev/null)" = "cargo-deny $(CARGO_DENY_VERSION)" ] \
		|| CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --profile dev --root $(TOOLS) \
			cargo-deny@$(CARGO_DENY_VERSION)
	@touch $@

# A second S3 server for the contract suite. Without Go its row skips and says so.
servers:
ifneq ($(shell command -v go),)
servers: $(TOOLS)/.versitygw-$(VERSITYGW_VERSION)
endif
servers: $(TOOLS)/.fsx-$(FSX_VERSION)
# What tests of mounts run: only root can bring it, and without it they skip and say so.
ifeq ($(shell id -u)-$(if $(wildcard /dev/fuse),fuse)-$(if $(shell command -v apt-get),apt),0-fuse-apt)
ifneq ($(words $(shell command -v fusermount3 rsync fio)),3)
servers: programs
endif
endif

programs:
	$(call say,fusermount3$(COMMA) rsync$(COMMA) fio)
	@install="apt-get install -y -q --no-install-recommends fuse3 rsync fio"; \
	$$install > /dev/null 2>&1 || { apt-get update -q > /dev/null; $$install > /dev/null; }

# Tests a file system by operations at random. Built as cargo-deny is.
$(TOOLS)/.fsx-$(FSX_VERSION):
	$(call say,fsx in .tools)
	@mkdir -p $(TOOLS)
	@[ "$$($(TOOLS)/bin/fsx --version 2> /dev/null)" = "fsx $(FSX_VERSION)" ] \
		|| CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --profile dev --root $(TOOLS) fsx@$(FSX_VERSION)
	@rm -f $(TOOLS)/.fsx-*
	@touch $@

$(TOOLS)/.versitygw-$(VERSITYGW_VERSION):
	$(call say,versitygw in .tools)
	@mkdir -p $(TOOLS)/bin
	@GOBIN=$(TOOLS)/bin go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION)
	@touch $@
