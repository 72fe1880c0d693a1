# `make demo` and `make test` do all the set-up that they need; everything else is detail.

SHELL := /bin/bash
CARGO ?= cargo
SETUP := scripts/setup

.PHONY: demo test bench-control bench-datapath check fmt fix build setup clean-testbed fuzz help

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: ## installs what is missing (Debian packages, bpf-linker, Envoy, gRPC's clients)
	@$(SETUP)

build: setup ## builds every binary
	@scripts/step "Building the binaries" $(CARGO) build --workspace --bins

demo: build ## two clusters on this machine, joined, serving real traffic (KEEP=1 leaves them running)
	@target/debug/demo $(if $(KEEP),--keep)

test: build ## everything that must hold
	@scripts/step "Running the tests" $(CARGO) test --workspace

bench-control: setup ## the control plane against etcd, in a release build (AREAS="writes loss compile propagation": only those)
	@SETUP_BENCH=1 $(SETUP)
	@scripts/step "Building for speed" $(CARGO) build --release -p control-plane -p bench
	@target/release/bench-control $(AREAS)

bench-datapath: setup ## the kernel data plane against plain links, nftables and iptables (AREAS="packets forward services sockets streams policy cni memory")
	@scripts/step "Building for speed" $(CARGO) build --release -p node-agent -p bench --bin node-agent --bin isthmus-cni --bin bench-datapath
	@target/release/bench-datapath $(AREAS)

check: setup ## formatting, lints, dependencies; never writes
	@SETUP_CHECKS=1 $(SETUP)
	@scripts/step "Formatting" $(CARGO) fmt --all --check
	@scripts/step "Formatting of the kernel programs" $(CARGO) fmt --manifest-path node-agent/ebpf/Cargo.toml --check
	@scripts/step "Lints" $(CARGO) clippy --workspace --all-targets -- -D warnings
	@scripts/step "Dependencies" scripts/deny

fix: ## formats and applies what clippy can mend
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path node-agent/ebpf/Cargo.toml
	@$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

fuzz: ## looks for inputs that break a reader, FUZZ_SECONDS (60) for each of them
	@SETUP_FUZZ=1 $(SETUP)
	@scripts/fuzz

clean-testbed: build ## removes a testbed that a crash or KEEP=1 left behind
	@target/debug/demo --clean
