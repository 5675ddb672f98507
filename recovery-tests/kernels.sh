#!/bin/sh
# Runs kernel tests on Debian's stock kernels, each in a virtual machine that is emulated, so that no KVM is needed.
#
#   recovery-tests/kernels.sh [linux-image-…-cloud-amd64]...      without arguments: the newest 6.1 and 6.12 that apt has
#
#   TESTS="dns parity"   which test binaries of recovery-tests (a name a word)
#
# Run `make test` before, which builds them. What is needed beside that: apt-get install qemu-system-x86 busybox-static cpio.
# Each kernel is booted with an initramfs that holds busybox, the agent and the tests, says what it says, and is powered off.
# The last line tells how many tests passed on which kernels; the exit code is 0 if all did.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=$root/target/debug
place=$root/target/kernels
tests=${TESTS:-parity policies datagrams peername dns enrolment}
# How long one kernel may take, seconds: an emulated processor is 20 times slower.
timeout=${TIMEOUT:-1500}

say() { printf 'kernels: %s\n' "$*"; }
fail() {
    printf 'kernels: error: %s\n' "$*" >&2
    exit 1
}

for tool in qemu-system-x86_64 busybox cpio strip; do
    command -v "$tool" >/dev/null || fail "no $tool: apt-get install qemu-system-x86 busybox-static cpio binutils"
done
[ -x "$built/holdfast" ] || fail "no $built/holdfast: run make test before"

# The newest package of a series.
newest() { apt-cache search --names-only "^linux-image-$1[.][0-9].*cloud-amd64\$" | awk '{ print $1 }' | sort -V | tail -n 1; }

[ $# -gt 0 ] || set -- "$(newest 6.1)" "$(newest 6.12)"

# A package's files, without installing it.
unpack() {
    [ -d "$place/$1/boot" ] && return
    mkdir -p "$place/$1"
    (cd "$place/$1" && apt-get download "$1" >/dev/null 2>&1) || fail "apt has no $1"
    dpkg -x "$place/$1"/*.deb "$place/$1"
}

# A program and the libraries that it loads.
install_program() {
    mkdir -p "$image$(dirname "$2")"
    strip -o "$image$2" "$1"
    ldd "$1" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' | while read -r library; do
        mkdir -p "$image$(dirname "$library")"
        cp -nL "$library" "$image$library"
    done
}

# What the machine runs as its first and only program.
write_init() {
    cat >"$image/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin CI=true HOLDFAST_BIN=/tests/holdfast HOLDFAST_TABLES=200 RUST_BACKTRACE=0
mkdir -p /proc /sys /dev /tmp /run
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do insmod "$module"; done
echo "kernels: this is Linux $(uname -r)"
/tests/holdfast doctor | cat
for binary in /tests/deps/*; do
    for test in $("$binary" --list --format terse 2>/dev/null | sed -n 's/: test$//p'); do
        if "$binary" --exact "$test" --test-threads 1 >/tmp/said 2>&1; then
            echo "kernels: PASS ${binary##*/} $test"
        else
            cat /tmp/said
            echo "kernels: FAIL ${binary##*/} $test"
        fi
    done
done
echo "kernels: done"
poweroff -f
INIT
    chmod 755 "$image/init"
}

# The newest build of a test.
test_binary() {
    find "$built/deps" -maxdepth 1 -type f -perm -u+x -name "$1-*" ! -name '*.*' -printf '%T@ %p\n' | sort -rn |
        awk 'NR == 1 { print $2 }'
}

make_image() {
    image=$place/image
    rm -rf "$image"
    mkdir -p "$image/bin" "$image/modules"
    cp "$(command -v busybox)" "$image/bin/busybox"
    install_program "$built/holdfast" /tests/holdfast
    install_program "$built/demo" /tests/demo
    install_program "$(command -v ip)" /usr/sbin/ip
    for test in $tests; do
        binary=$(test_binary "$test")
        [ -n "$binary" ] || fail "no test binary $test: run make test before"
        install_program "$binary" "/tests/deps/$test"
    done
    # Sockets are closed through these; they depend on each other in this order.
    number=0
    for module in inet_diag tcp_diag udp_diag; do
        number=$((number + 1))
        find "$place/$1/lib/modules" -name "$module.ko" -exec cp {} "$image/modules/$number-$module.ko" \;
    done
    write_init
    (cd "$image" && find . | cpio --quiet -o -H newc | gzip -1) >"$place/$1.initramfs"
}

boot() {
    timeout "$timeout" qemu-system-x86_64 -accel tcg,thread=multi -M q35 -smp 2 -cpu max -m 3072 -nographic -no-reboot \
        -kernel "$place/$1"/boot/vmlinuz-* -initrd "$place/$1.initramfs" \
        -append "console=ttyS0 quiet panic=-1" </dev/null 2>&1 | tr -d '\r' | tee "$place/$1.log" || true
}

passed=0
failed=0
ran=
for package in "$@"; do
    say "booting $package"
    unpack "$package"
    make_image "$package"
    boot "$package"
    grep -q '^kernels: done$' "$place/$package.log" || fail "$package did not get to its end within $timeout s"
    here=$(grep -c '^kernels: PASS ' "$place/$package.log" || true)
    passed=$((passed + here))
    failed=$((failed + $(grep -c '^kernels: FAIL ' "$place/$package.log" || true)))
    ran="$ran $(sed -n 's/.*kernels: this is Linux //p' "$place/$package.log")"
done
say "$passed passed, $failed failed, on$ran"
[ "$passed" -gt 0 ] && [ "$failed" -eq 0 ]
