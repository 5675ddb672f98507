# Holdfast from a clean clone: each target is one command, on a machine that has nothing but make.

TARGET := $(or $(CARGO_TARGET_DIR),target)
# Written by set-up: where cargo and the project's own tools are.
ENV := target/tools/env
CARGO := . $(ENV) && cargo
# What is released runs anywhere: the C library is linked in. With --target, flags are for the target alone.
RELEASE := . $(ENV) && host=$$(rustc -vV | sed -n 's/^host: //p') && RUSTFLAGS="-Ctarget-feature=+crt-static" \
	cargo build --locked --release --target "$$host"
# Crash tests stop the agent at its failpoints; a release build has none.
TEST_FEATURES := --features agent/failpoints
TEST_BUILD := --locked --workspace $(TEST_FEATURES)

.DEFAULT_GOAL := all
.PHONY: all setup test demo lint bench nightly fuzz clean distclean help

all: target/tools/for-build ## Build target/holdfast: one static binary, the BPF programs inside.
	$(RELEASE) --package agent --bin holdfast && cp -f $(TARGET)/$$host/release/holdfast $(TARGET)/holdfast

setup: ## Install what is missing to build and test, after saying what and why.
	@xtask/setup.sh

target/tools/for-%: xtask/setup.sh Cargo.toml api/examples/python/requirements.txt
	@xtask/setup.sh $*

# The test runner's summary comes last: it is what people and CI look for.
test: target/tools/for-test ## Run all tests; those that need the kernel need root, and fail without it if CI=true.
	$(CARGO) run --locked --quiet --package xtask -- edges
	$(CARGO) build $(TEST_BUILD) --bins
	$(CARGO) test $(TEST_BUILD) --doc --quiet
	HOLDFAST_BIN=$(abspath $(TARGET))/debug/holdfast; export HOLDFAST_BIN; $(CARGO) nextest run $(TEST_BUILD)

demo: target/tools/for-demo ## Show a real mesh on this machine's kernel: balance, kill the agent, restart it.
	$(RELEASE) --package agent --package recovery-tests --bin holdfast --bin demo && \
	HOLDFAST_BIN=$(abspath $(TARGET))/$$host/release/holdfast $(TARGET)/$$host/release/demo

lint: target/tools/for-lint ## Formatting, clippy, documentation, dependency edges; cargo-deny if it is installed.
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path bpf/programs/Cargo.toml --check
	$(CARGO) run --locked --quiet --package xtask -- edges
	$(CARGO) clippy $(TEST_BUILD) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings"; export RUSTDOCFLAGS; $(CARGO) doc $(TEST_BUILD) --no-deps
	@. $(ENV) && if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
	else echo "lint: cargo-deny is not installed (cargo install cargo-deny --locked): deny.toml was not checked"; fi

bench: target/tools/for-build ## Run every benchmark in benches/; each measures its floor in the same run.
	for bench in benches/*/Cargo.toml; do $(CARGO) run --locked --release --manifest-path "$$bench" || exit; done

nightly: target/tools/for-test ## Long runs: SIMULATED=<n> seeds of each simulation, KILLED=<n> of real kills.
	$(CARGO) build $(TEST_BUILD) --bins
	HOLDFAST_SEED=random HOLDFAST_SIMULATION_SEEDS=$(or $(SIMULATED),2000); \
	export HOLDFAST_SEED HOLDFAST_SIMULATION_SEEDS; \
	$(CARGO) nextest run $(TEST_BUILD) --profile nightly -E 'package(applier) + package(journal)'
	HOLDFAST_SEED=random HOLDFAST_SEEDS=$(or $(KILLED),50) HOLDFAST_BIN=$(abspath $(TARGET))/debug/holdfast; \
	export HOLDFAST_SEED HOLDFAST_SEEDS HOLDFAST_BIN; \
	$(CARGO) nextest run $(TEST_BUILD) --profile nightly -E 'package(recovery-tests)'

# Without a sanitizer, so that any Rust will do: the fuzzer's own instrumentation is LLVM's.
fuzz: target/tools/for-build ## Run each fuzz target of the journal and the API for SECONDS=<n> (60).
	@. $(ENV) && cargo fuzz --version >/dev/null 2>&1 || { echo >&2 \
	"fuzz: cargo-fuzz is not installed: cargo install cargo-fuzz --locked (and a C++ compiler: apt install g++)"; exit 1; }
	@. $(ENV) && for dir in journal/fuzz api/fuzz; do cargo fuzz list --fuzz-dir $$dir | while read -r target; do \
	cargo fuzz run --fuzz-dir $$dir --sanitizer none "$$target" -- \
	-max_total_time=$(or $(SECONDS),60) -rss_limit_mb=512 -len_control=1 -max_len=8192 </dev/null || exit; \
	done || exit; done

clean: ## Remove what was built, keep the installed tools.
	@[ ! -d target ] || find target -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +

distclean: ## Remove the tools in target/tools as well.
	rm -rf target bpf/programs/target

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12
