# Everything a contributor runs. `make` alone tells what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Labs need root. Building does not: only what runs in or starts a lab gets it.
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
AS_ROOT := $(if $(ROOT),--config 'target."cfg(all())".runner = "sudo -E"',)
DEB_TOOLS := mmdebstrap:mmdebstrap debian-archive-keyring:/usr/share/keyrings/debian-archive-keyring.gpg \
	gcc:cc util-linux:nsenter libc6-dev:/usr/include/stdlib.h age:age zstd:zstd
# What packages are made with, and manifests and profiles are tested with.
DEB_TOOLS_DIST := dpkg:dpkg-deb rpm:rpmbuild apparmor:apparmor_parser binutils:objdump python3-venv:python3
TOOLS := target/tools
# The end-to-end suites. No test of another crate has one of these names.
SUITES := $(basename $(notdir $(wildcard integration/tests/*.rs) $(patsubst %/main.rs,%,$(wildcard integration/tests/*/main.rs))))
STATIC := x86_64-unknown-linux-gnu

define cargo
command -v cargo >/dev/null || { echo "cargo is missing: install Rust $$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer, for example with rustup" >&2; exit 1; }
endef
# Installs those of some package:program pairs whose program, or file, is missing.
define apt
missing=(); for pair in $(1); do \
	command -v "$${pair#*:}" >/dev/null || [ -e "$${pair#*:}" ] || missing+=("$${pair%%:*}"); \
done; \
if [ "$${#missing[@]}" -gt 0 ]; then \
	$(ROOT) apt-get update -q && $(ROOT) apt-get install -qy --no-install-recommends "$${missing[@]}"; \
fi
endef

.PHONY: help deps tools build check test unit e2e faults soak fuzz demo bench lab dist clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## Install what building and the lab need (apt); does nothing when all is there
	@$(call cargo)
	@$(call apt,$(DEB_TOOLS))

tools: ## Install what packages and manifests are made and tested with (apt, and pip below target/)
	@$(call apt,$(DEB_TOOLS_DIST))
	@command -v kubectl >/dev/null || echo "kubectl is not installed: manifests will not be tested" >&2
	@[ $(TOOLS)/requirements.txt -nt configs/tests/manifests/requirements.txt ] || { \
		python3 -m venv $(TOOLS) && \
		$(TOOLS)/bin/pip install --quiet --disable-pip-version-check -r configs/tests/manifests/requirements.txt && \
		cp configs/tests/manifests/requirements.txt $(TOOLS); \
	}

build: deps ## Build the shim and the command, optimised, into target/release
	cargo build --release --workspace --bins

check: ## Formatting, lints, documentation and shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --all-targets --features kybernate-hooks/otel -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	if command -v shellcheck >/dev/null; then shellcheck integration/lab/*.sh configs/install_shim.sh configs/package/*.sh configs/package/debian/p* fuzz/*.sh .ci/run; else echo "shellcheck is not installed: scripts not checked"; fi
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: dependencies not checked"; fi

test: unit e2e ## All tests: unit, and end to end on both Debian labs

unit: deps ## Tests that need neither root nor a lab
	cargo test --workspace --lib --bins
	cargo test --workspace --exclude kybernate-integration --test '*'
	cargo test --workspace --doc

# With the features of the workspace everything is built once, and not once for each selection.
e2e: deps ## End-to-end suites in labs, as root; SUITES=hooks ARGS=trixie/ runs a part
	cargo build --workspace --all-targets
	cargo test --workspace --no-fail-fast $(AS_ROOT) $(SUITES:%=--test %) -- $(ARGS)

faults: deps ## The whole matrix of faults, as root; prints its table
	cargo build --workspace --all-targets
	KYBERNATE_FAULTS=all cargo test --workspace --test faults $(AS_ROOT) -- $(ARGS)

soak: deps ## Thirty containers under load for MINUTES (60), as root; SEED=N repeats a run
	cargo build --workspace --all-targets
	KYBERNATE_SOAK_MINUTES=$(or $(MINUTES),60) $(if $(SEED),KYBERNATE_SOAK_SEED=$(SEED)) \
		cargo test --workspace --test soak $(AS_ROOT) -- --nocapture $(ARGS)

SECONDS ?= 60
fuzz: deps ## Fuzz all parsers for SECONDS=60 each, or TARGETS='archive mux'; installs cargo-fuzz
	fuzz/run.sh $(SECONDS) $(TARGETS)

demo: build ## Checkpoint a container, delete it, and see it go on
	$(ROOT) target/release/kybernate-demo

bench: build ## Measure against the stock shim, and write docs/benchmarks.md
	@[ -x target/release/kybernate-bench ] || { echo "there is no benchmark in this version" >&2; exit 1; }
	$(ROOT) target/release/kybernate-bench

lab: build ## A shell in a lab, with containerd and our shim
	$(ROOT) target/release/kybernate-lab $(ARGS)

dist: deps tools ## Packages of a release, into dist/: tar, .deb, .rpm, image, chart, bill of materials
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --bins --target $(STATIC)
	cargo build --release --locked --bin kybernate-cuda
	mkdir -p target/dist && find target/$(STATIC)/release -maxdepth 1 -type f -executable -exec cp '{}' target/dist/ ';'
	@# It loads the driver's library, which a static program can't.
	cp target/release/kybernate-cuda target/dist/
	configs/package/dist.sh target/dist dist

clean: ## Remove what was built, and the labs' roots
	cargo clean
	rm -rf dist
	$(ROOT) rm -rf --one-file-system .lab
