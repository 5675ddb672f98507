#!/bin/sh
# Installs what building, testing and showing Holdfast needs and this machine does not have, after saying what and why.
#
#   xtask/setup.sh [build] [demo] [test] [lint]     (`make setup` is all of it; each target of make calls its own part once)
#
# It may be run again at any time, also after it was interrupted: each step looks first whether it is already done.
# Packages come from apt and need root or sudo; everything else goes to target/tools. It asks no questions.
#
#   host build    cargo on PATH if it is new enough (rustup's or another), else Debian's
#   BPF build     Debian's rustc-web with rust-web-src where apt has it, else rustup's nightly with rust-src;
#                 HOLDFAST_BPF_TOOLCHAIN=<prefix> overrides (see bpf/loader/build.rs)
#   bpf-linker    built against the LLVM of that rustc (Debian: llvm-<n>-dev; elsewhere: LLVM_PREFIX=<prefix>)
#
# The last step writes target/tools/env, which the Makefile reads before each command, and target/tools/for-<part>, the
# mark that the part is there.
set -eu

BPF_LINKER_VERSION=0.13.0
NEXTEST_VERSION=0.9.143
# The first that knows everything in .config/nextest.toml.
NEXTEST_OLDEST=0.9.100

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tools=$root/target/tools
log=$tools/setup.log
rust_version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")

# Where Debian has servers, which a user's own PATH may leave out.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# at_least 1.96.0 1.91: whether the first version is not older than the second.
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -CV; }

# The version that a tool prints as its second word; nothing if it does not run (a rustup proxy without a toolchain).
version_of() { "$@" --version 2>/dev/null | awk 'NR == 1 { print $2 }'; }

# Runs a command with its output in the log; shows the end of the log if it fails.
logged() {
    printf '\n+ %s\n' "$*" >>"$log"
    "$@" >>"$log" 2>&1 && return
    tail -n 30 "$log" >&2
    fail "failed: $* (all of its output: $log)"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        logged "$@"
    elif have sudo; then
        logged sudo "$@"
    else
        fail "this needs root and there is no sudo; as root, run: $*"
    fi
}

# Whether a part is to be set up.
asked() { case " $parts " in *" $1 "*) ;; *) return 1 ;; esac; }

# Packages to install, one 'name why' a line.
wanted=
want() { wanted="$wanted$(printf '  %-16s %s' "$1" "$2")
"; }
want_package() { [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ] || want "$1" "$2"; }
want_command() { have "$1" || want "$2" "$3"; }

install_wanted() {
    [ -n "$wanted" ] || return 0
    say "installing from apt:"
    printf '%s' "$wanted"
    apt_refresh
    # An interrupted installation leaves packages unpacked and not configured.
    [ -z "$(dpkg --audit)" ] || as_root dpkg --configure -a
    # shellcheck disable=SC2046 # One word for each package.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=600 $(printf '%s' "$wanted" | awk '{ print $1 }')
    wanted=
}

apt_refreshed=
apt_refresh() {
    [ -z "$apt_refreshed" ] || return 0
    say "apt-get update: the package lists may be missing or old"
    as_root apt-get update -q -o DPkg::Lock::Timeout=600
    apt_refreshed=1
}

is_debian() { have apt-get && grep -qs '^ID=debian$' /etc/os-release; }

# The version of rustc-web that apt would install.
debian_rust() { apt-cache policy rustc-web 2>/dev/null | sed -n 's/^ *Candidate: \([0-9][0-9.]*\).*/\1/p'; }

has_core_source() { [ -f "$1/lib/rustlib/src/rust/library/core/Cargo.toml" ]; }
builds_bpf() {
    [ -x "$1/bin/cargo" ] && [ -x "$1/bin/rustc" ] && has_core_source "$1" &&
        at_least "$(version_of "$1/bin/rustc")" "$rust_version"
}
rustup_nightly() {
    rustc=$(rustup which --toolchain nightly rustc 2>/dev/null) || return 1
    dirname -- "$(dirname -- "$rustc")"
}

# Sets host: the folder of the cargo for the host build, empty if that is Debian's and still to be installed.
choose_host_cargo() {
    for host in $(command -v cargo || :) "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" /usr/bin/cargo; do
        version=$(version_of "$host")
        if [ -n "$version" ] && at_least "$version" "$rust_version"; then
            say "host build: $host $version"
            host=$(dirname -- "$host")
            return
        fi
        [ ! -x "$host" ] || say "$host is ${version:-without a toolchain}, Holdfast needs $rust_version: not used"
    done
    host=
}

# Sets bpf: the prefix of the toolchain for the BPF build; asks apt for it or for the host's where they are missing.
choose_bpf_toolchain() {
    if [ -n "${HOLDFAST_BPF_TOOLCHAIN:-}" ]; then
        bpf=$HOLDFAST_BPF_TOOLCHAIN
        builds_bpf "$bpf" || fail "HOLDFAST_BPF_TOOLCHAIN=$bpf: no bin/cargo and bin/rustc >= $rust_version with the core library's source there"
    elif builds_bpf /usr; then
        bpf=/usr
    elif is_debian && apt_refresh && at_least "$(debian_rust)" "$rust_version"; then
        bpf=/usr
        want_package rustc-web "Rust compiler, for the BPF programs${host:- and the host build}"
        want_package cargo-web "its build tool"
        want_package rust-web-src "its core library's source, which is compiled for the BPF target"
    elif have rustup; then
        bpf=
    else
        fail "no Rust toolchain for the BPF programs: apt here offers rustc-web ${debian_rust:-(none)}, $rust_version is needed (Debian 12 has it in bookworm-security); or install rustup, and this script adds its nightly toolchain with rust-src"
    fi
    [ -n "$host" ] || [ "$bpf" = /usr ] || fail "no cargo >= $rust_version for the host build: rustup toolchain install stable"
}

install_packages() {
    want_command cc gcc "links every Rust program and compiles BLAKE3's assembly"
    [ -f /usr/include/stdio.h ] || want libc6-dev "the C library's headers, for the same"
    [ -d /etc/ssl/certs ] || want ca-certificates "cargo fetches crates over TLS"
    if asked demo || asked test; then
        want_command curl curl "HTTP client of the demo and the tests"
        want_command ip iproute2 "the demo and the tests set up addresses and network namespaces"
    fi
    if asked test; then
        want_command strace strace "a test watches the journal's fdatasync with it"
        want_command promtool prometheus "a test has it read the agent's metrics"
        want_package python3-venv "the Python client of api/examples, which tests run"
        want_command haproxy haproxy "tests reach it through virtual addresses, with curl and Python"
        want_command dnsmasq dnsmasq-base "tests ask it through virtual addresses, with dig"
        want_command dig bind9-dnsutils "the client of that"
    fi
    if asked lint && { [ "$host" = /usr/bin ] || [ -z "$host" ]; }; then
        want_package rustfmt-web "make lint"
        want_package rust-web-clippy "make lint"
    fi
    install_wanted
}

check_commands() {
    have cc || fail "no C compiler (cc): install gcc or clang, it links every Rust program"
    for tool in $(asked demo && echo curl ip) $(asked test && echo curl ip strace haproxy dnsmasq dig); do
        have "$tool" || fail "$tool is not installed: the demo needs curl and ip, the tests strace, haproxy, dnsmasq and dig as well"
    done
}

install_nightly() {
    bpf=$(rustup_nightly) && builds_bpf "$bpf" && return
    say "rustup's nightly toolchain with rust-src: compiles the BPF programs, whose core library comes as source only"
    logged rustup toolchain install nightly --profile minimal --component rust-src
    bpf=$(rustup_nightly) || bpf=
    builds_bpf "$bpf" || fail "rustup's nightly does not build for BPF after it was installed; see: rustup toolchain list"
}

# cargo install into target/tools, free of the caller's build settings; kept build files let an interrupted one go on.
cargo_install() {
    logged env -u RUSTFLAGS -u RUSTC -u RUSTC_WRAPPER -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET \
        cargo install --locked --root "$tools" --target-dir "$tools/build" "$@"
    rm -rf "$tools/build"
}

install_bpf_linker() {
    linker=$(version_of bpf-linker)
    if [ -n "$linker" ] && at_least "$linker" "$BPF_LINKER_VERSION"; then return; fi
    llvm=$("$bpf/bin/rustc" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    if [ "$bpf" = /usr ] && have apt-get; then
        want_package "llvm-$llvm-dev" "LLVM's library, which bpf-linker is built on"
        want_command c++ g++ "LLVM's library needs the C++ library to link with"
        install_wanted
    fi
    prefix=${LLVM_PREFIX:-$(llvm_prefix "$llvm")}
    [ -n "$prefix" ] || fail "LLVM $llvm, which bpf-linker is built on, was not found: install its development package (or set LLVM_PREFIX), or put bpf-linker >= $BPF_LINKER_VERSION on PATH"
    say "bpf-linker $BPF_LINKER_VERSION into target/tools: links the BPF programs (built on $prefix; about a minute)"
    LLVM_PREFIX=$prefix
    export LLVM_PREFIX "LLVM_SYS_${llvm}1_PREFIX=$prefix"
    cargo_install bpf-linker --version "$BPF_LINKER_VERSION" --no-default-features --features "llvm-$llvm"
}

llvm_prefix() {
    for config in "llvm-config-$1" "/usr/lib/llvm-$1/bin/llvm-config" "/usr/lib64/llvm$1/bin/llvm-config" llvm-config; do
        have "$config" || continue
        case $("$config" --version) in "$1".*) "$config" --prefix && return ;; esac
    done
}

install_nextest() {
    asked test || return 0
    nextest=$(version_of cargo nextest)
    if [ -n "$nextest" ] && at_least "$nextest" "$NEXTEST_OLDEST"; then return; fi
    say "cargo-nextest $NEXTEST_VERSION into target/tools: runs the tests (a few minutes)"
    # Unoptimized it is built three times as fast, and it only waits for tests.
    CARGO_PROFILE_DEV_DEBUG=0
    export CARGO_PROFILE_DEV_DEBUG
    cargo_install cargo-nextest --debug --version "$NEXTEST_VERSION" --no-default-features --features default-no-update
}

# The copy of the list says that all of it is there: it is the last that is written.
install_python_packages() {
    asked test || return 0
    requirements=$root/api/examples/python/requirements.txt
    packages=$tools/python
    if cmp -s "$requirements" "$packages/requirements.txt"; then return; fi
    for python in /usr/bin/python3 python3; do
        "$python" -c 'import ensurepip, venv' 2>/dev/null && break
        python=
    done
    [ -n "$python" ] || fail "no Python 3 with venv and pip: the tests run the Python client of api/examples"
    say "gRPC for Python from PyPI into target/tools/python: the Python client of api/examples"
    rm -rf "$packages"
    logged "$python" -m venv "$packages"
    logged "$packages/bin/pip" install --disable-pip-version-check --no-input --requirement "$requirements"
    cp "$requirements" "$packages/"
}

write_env() {
    {
        echo "# Written by xtask/setup.sh when it was finished; read by the Makefile."
        printf "PATH=\"\$PWD/target/tools/bin:%s\$PATH\"\nexport PATH\n" "${host_first:+$host_first:}"
    } >"$tools/env.new"
    mv "$tools/env.new" "$tools/env"
    for part in $parts; do : >"$tools/for-$part"; done
}

parts=${*:-build demo test lint}
for part in $parts; do
    case $part in build | demo | test | lint) ;; *) fail "no part called '$part'; there are: build demo test lint" ;; esac
done
mkdir -p "$tools"
: >"$log"
choose_host_cargo
choose_bpf_toolchain
if have apt-get; then install_packages; fi
check_commands
[ -n "$bpf" ] || install_nightly
host=${host:-/usr/bin}
# A cargo that is not the first on PATH would call another toolchain's rustc.
host_first=
[ "$(command -v cargo)" = "$host/cargo" ] || host_first=$host
PATH=$tools/bin:${host_first:+$host_first:}$PATH
export PATH
install_bpf_linker
install_nextest
install_python_packages
write_env
say "ready for $parts (host cargo in $host, BPF toolchain in $bpf)"
