# Everything a contributor runs. `make` alone tells what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Labs need root. Building does not: only what runs in or starts a lab gets it.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
AS_ROOT := $(if $(ROOT),--config 'target."cfg(all())".runner = "sudo -E"',)
DEB_TOOLS := mmdebstrap:mmdebstrap debian-archive-keyring:/usr/share/keyrings/debian-archive-keyring.gpg \
	gcc:cc util-linux:nsenter libc6-dev:/usr/include/stdlib.h

.PHONY: help deps build check test unit e2e faults demo bench lab clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## Install what building and the lab need (apt); does nothing when all is there
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust $$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer, for example with rustup" >&2; exit 1; }
	@missing=(); for pair in $(DEB_TOOLS); do \
		command -v "$${pair#*:}" >/dev/null || [ -e "$${pair#*:}" ] || missing+=("$${pair%%:*}"); \
	done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		$(ROOT) apt-get update -q && $(ROOT) apt-get install -qy --no-install-recommends "$${missing[@]}"; \
	fi

build: deps ## Build the shim and the command, optimised, into target/release
	cargo build --release --workspace --bins

check: ## Formatting, lints, documentation and shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	if command -v shellcheck >/dev/null; then shellcheck integration/lab/*.sh configs/install_shim.sh .ci/run; else echo "shellcheck is not installed: scripts not checked"; fi
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: dependencies not checked"; fi

test: unit e2e ## All tests: unit, and end to end on both Debian labs

unit: deps ## Tests that need neither root nor a lab
	cargo test --workspace --exclude kybernate-integration

e2e: deps ## End-to-end suites in labs, as root; ARGS='-- trixie/runc' runs a part
	cargo build --workspace --bins
	cargo test -p kybernate-integration --no-fail-fast $(AS_ROOT) $(ARGS)

faults: deps ## The whole matrix of faults, as root; prints its table
	cargo build --workspace --bins
	KYBERNATE_FAULTS=all cargo test -p kybernate-integration --test faults $(AS_ROOT) -- $(ARGS)

demo: build ## Checkpoint a container, delete it, and see it go on
	$(ROOT) target/release/kybernate-demo

bench: build ## Measure against the stock shim, and write docs/benchmarks.md
	@[ -x target/release/kybernate-bench ] || { echo "there is no benchmark in this version" >&2; exit 1; }
	$(ROOT) target/release/kybernate-bench

lab: build ## A shell in a lab, with containerd and our shim
	$(ROOT) target/release/kybernate-lab $(ARGS)

clean: ## Remove what was built, and the labs' roots
	cargo clean
	$(ROOT) rm -rf --one-file-system .lab
