# SPDX-License-Identifier: GPL-2.0

# The verbs of this project. The kernel's build reads Kbuild instead of this file.

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Verbs share objects and guests, so they run one after the other.
.NOTPARALLEL:

# Debian's kernel and architecture, for all verbs: KERNEL=7.2, KERNEL=7.3-rt ARCH=arm64 (see
# qemu/config).
KERNEL ?= 7.3
ARCH ?= amd64
export PMEM_RS_KERNEL := $(KERNEL)
export PMEM_RS_ARCH := $(ARCH)
# A prepared kernel tree to build against; without it, Debian's kernel.
KDIR ?=
# Additional arguments for the program that a verb runs.
ARGS ?=

# `debug` for the debug kernel in `make guests`, and `patched` there, in `make compare` and in `make
# kernel-bugs` for a kernel with the patches of upstream/ (docs/testing.md).
KERNEL_BUILD ?=

# The namespaces that `make bench-metal` uses, and `yes` if it may overwrite data on them.
NAMESPACES ?=
OVERWRITE ?=

# The duration of `make stress`.
STRESS_SECONDS ?= 600
# The duration of each campaign, and the seed of its random numbers.
SOAK_SECONDS ?= 600
SOAK_SEED ?= $(shell date +%s)

in_root := qemu/in-root
runner := $(in_root) build/target/release/runner
# The files of the selected kernel.
suffix = $(shell . qemu/lib.sh; . qemu/kernel-names; echo "$$kernel_suffix")
env = build/env$(suffix)
results = build/results$(suffix)

.PHONY: help
help: ## List the verbs
	@printf 'pmem-rs: a persistent memory driver in Rust. Verbs of make:\n\n'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | column -t -s '|'
	@printf '\nDownloads and prepared files are kept in %s (PMEM_RS_CACHE).\n' \
		"$${PMEM_RS_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/pmem-rs}"

.PHONY: demo
demo: build/env runner ## Boot the stock kernel with the driver and show a DAX mount that survives unbind
	@$(runner) demo --env $(env) --results $(results)

.PHONY: check
check: ## Run host tests, lints and all guest tests on the stock kernel
	@tests/check stock

.PHONY: check-debug
check-debug: ## Run lints and some guest tests on the debug kernel, with all checkers (first build: 15 to 30 minutes)
	@tests/check debug

.PHONY: check-full
check-full: ## Run both, with all guest tests on the debug kernel, which takes hours
	@tests/check stock debug-full

.PHONY: check-kernels
check-kernels: ## Test the module on Debian's other kernels and on arm64, and write docs/kernels.md (100 minutes)
	@tests/kernels $(ARGS)

.PHONY: modules
modules: ## Build pmem_rs.ko for the stock kernel, or for a prepared tree: make modules KDIR=...
	@if [[ -n "$(KDIR)" ]]; then \
		qemu/module "$(KDIR)"; \
	else \
		kdir=$$(qemu/kdir); qemu/module "$$kdir"; \
	fi

.PHONY: deb
deb: ## Build the Debian package pmem-rs-dkms, and check it with lintian
	@qemu/deb

.PHONY: check-package
check-package: ## Install the Debian package in Debian trees, let things fail, upgrade and remove it (ARGS=SCENARIO)
	@tests/package/check $(ARGS)

.PHONY: patches
patches: ## Export the patches for the kernel to build/patches, and apply them to Debian's source
	@tests/patches/check

.PHONY: check-patches
check-patches: ## Build what each of these patches changes, and run checkpatch (ARGS=SERIES: some)
	@tests/patches/build $(ARGS)

.PHONY: guests
guests: ## Run some guest suites: make guests ARGS="window lease" (KERNEL_BUILD=debug: on the debug kernel)
	@tests/programs
	@mkdir -p build
	@qemu/env $(KERNEL_BUILD) >/dev/null
	@$(runner) check --env $(env)$(KERNEL_BUILD:%=-%) --results $(results)$(KERNEL_BUILD:%=-%) $(ARGS)

.PHONY: stress
stress: ## Unbind and bind devices under load: make stress STRESS_SECONDS=3600 (KERNEL_BUILD=debug: on the debug kernel)
	@$(MAKE) --no-print-directory guests ARGS="--stress-seconds $(STRESS_SECONDS) $(ARGS) revoke_stress"

.PHONY: soak
soak: ## Run random campaigns: make soak SOAK_SECONDS=3600 SOAK_SEED=1 (ARGS=crash:stock: some)
	@tests/soak $(SOAK_SECONDS) $(SOAK_SEED) $(ARGS)

.PHONY: coverage
coverage: build/env runner ## Write the lines of the driver that guest tests reach to build/results/coverage.md (30 minutes)
	@$(runner) coverage --env $(env) --results $(results) $(ARGS)

.PHONY: compare
compare: runner ## Unbind devices in use with both drivers, for docs/compare.md (ARGS=reader: some cells)
	@mkdir -p build
	@qemu/env $(KERNEL_BUILD) >/dev/null
	@$(runner) compare --env $(env)$(KERNEL_BUILD:%=-%) --results $(results)$(KERNEL_BUILD:%=-%) $(ARGS)

.PHONY: bench
bench: build/env runner ## Measure the cost of both drivers on a quiet machine, for docs/bench.md (ARGS=read_4k: some cases)
	@$(runner) bench --env $(env) --results $(results) $(ARGS)

# sudo does not build, because the results of a build would be root's.
.PHONY: bench-metal
bench-metal: ## Measure both drivers on this machine (docs/bench.md): sudo make bench-metal NAMESPACES="namespace0.0 namespace1.0"
	@[[ -n "$${SUDO_UID:-}" && -x build/target/release/guest ]] || tests/programs
	@build/target/release/guest metal --namespaces "$(NAMESPACES)" --overwrite "$(OVERWRITE)" \
		--module "build/$$(uname -r)/pmem_rs.ko" --results build/results-metal $(ARGS)

.PHONY: kernel-bugs
kernel-bugs: runner ## Check whether nd_pmem still has the bugs of docs/kernel-bugs.md
	@mkdir -p build
	@qemu/env $(KERNEL_BUILD) >/dev/null
	@$(runner) kernel-bugs --env $(env)$(KERNEL_BUILD:%=-%) --results $(results)$(KERNEL_BUILD:%=-%)

.PHONY: shell
shell: build/env runner ## Boot a guest with the module loaded and a prompt (ARGS=--help: options)
	@$(runner) shell --env $(env) $(ARGS)

.PHONY: lint
lint: ## Check format, kernel clippy, rustdoc, shell scripts, panics and unsafe code
	@tests/lint

.PHONY: rust-analyzer
rust-analyzer: ## Write rust-project.json, for rust-analyzer in editors
	@qemu/rust-analyzer

.PHONY: env
env: ## Build what is missing, and print its paths as KEY=value
	@qemu/env

.PHONY: clean
clean: ## Remove build results in the checkout
	@rm -rf --one-file-system build rust-project.json

.PHONY: distclean
distclean: clean ## Also remove the cache: build root, kernels, guest images
	@qemu/distclean

# Targets that verbs depend on.

.PHONY: build/env
build/env:
	@qemu/env >/dev/null

.PHONY: runner
runner:
	@tests/programs
