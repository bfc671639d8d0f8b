# SPDX-License-Identifier: GPL-2.0

# The verbs of this project. The kernel's build does not read this file, but Kbuild.

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Verbs may use the same objects and guests, so they run one after the other.
.NOTPARALLEL:

# A prepared kernel tree to build against; without it, the stock kernel.
KDIR ?=
# More arguments for what a verb runs.
ARGS ?=

# How long devices are taken away and given back.
STRESS_SECONDS ?= 600
# How long each campaign goes on, and what its randomness starts from.
SOAK_SECONDS ?= 600
SOAK_SEED ?= $(shell date +%s)

in_root := qemu/in-root
runner := $(in_root) build/target/release/runner
results := build/results

.PHONY: help
help: ## List the verbs
	@printf 'pmem-rs: a persistent memory driver in Rust. Verbs of make:\n\n'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | column -t -s '|'
	@printf '\nWhat they download and prepare is kept in %s (PMEM_RS_CACHE).\n' \
		"$${PMEM_RS_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/pmem-rs}"

.PHONY: demo
demo: build/env runner ## Boot the stock kernel with the driver and show a DAX mount that survives
	@$(runner) demo --env build/env --results $(results)

.PHONY: check
check: ## Run host tests, lints and all guest tests on the stock kernel
	@tests/check stock

.PHONY: check-debug
check-debug: ## Run lints and some guest tests with a kernel that has all checkers (its first build: 15 minutes)
	@tests/check debug

.PHONY: check-full
check-full: ## As both, and all guest tests on the kernel with all checkers, which takes hours
	@tests/check stock debug-full

.PHONY: modules
modules: ## Build pmem_rs.ko for the stock kernel, or for a prepared tree: make modules KDIR=...
	@if [[ -n "$(KDIR)" ]]; then \
		qemu/module "$(KDIR)"; \
	else \
		kdir=$$(qemu/kdir); qemu/module "$$kdir"; \
	fi

.PHONY: stress
stress: build/env runner ## Take devices away under load and give them back: make stress STRESS_SECONDS=3600
	@$(runner) check --env build/env --results $(results) --stress-seconds $(STRESS_SECONDS) $(ARGS) revoke_stress

.PHONY: soak
soak: ## Run all campaigns, each for a time: make soak SOAK_SECONDS=3600 SOAK_SEED=1 (ARGS=crash:stock: some)
	@tests/soak $(SOAK_SECONDS) $(SOAK_SEED) $(ARGS)

.PHONY: coverage
coverage: build/env runner ## See which lines of the driver the guest tests reach, half an hour: docs/coverage.md
	@$(runner) coverage --env build/env --results $(results) $(ARGS)

.PHONY: compare
compare: build/env runner ## Take devices away with nd_pmem and with pmem_rs, for a table (ARGS=reader: some cells)
	@$(runner) compare --env build/env --results $(results) $(ARGS)

.PHONY: bench
bench: build/env runner ## Measure what both drivers cost, on a quiet machine (ARGS='--mode count read_4k': some of it)
	@$(runner) bench --env build/env --results $(results) $(ARGS)

.PHONY: kernel-bugs
kernel-bugs: build/env runner ## See whether nd_pmem still has the bugs of docs/kernel-bugs.md
	@$(runner) kernel-bugs --env build/env --results $(results)

.PHONY: shell
shell: build/env runner ## Boot a guest with the module loaded and a prompt (ARGS=--help: options)
	@$(runner) shell --env build/env $(ARGS)

.PHONY: lint
lint: ## Check format, kernel clippy, rustdoc, shell scripts, panics and unsafe code
	@tests/lint

.PHONY: rust-analyzer
rust-analyzer: ## Write rust-project.json, so that editors understand the module
	@qemu/rust-analyzer

.PHONY: env
env: ## Print the paths of what was built as KEY=value, building it first
	@qemu/env

.PHONY: clean
clean: ## Remove what was built in the checkout
	@rm -rf --one-file-system build rust-project.json

.PHONY: distclean
distclean: clean ## Also remove the cache: build root, kernels, guest images
	@qemu/distclean

# Not verbs, but what verbs need.

.PHONY: build/env
build/env:
	@qemu/env >/dev/null

.PHONY: runner
runner:
	@$(in_root) cargo build --quiet --locked --release --workspace
