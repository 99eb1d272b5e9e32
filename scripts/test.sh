#!/usr/bin/env bash
# Runs every test. Installs the packages that they need (fuse3, fuse-overlayfs, docker-registry, skopeo,
# libarchive-tools) where that is allowed. The last lines name the tests that were left out, and why.
#
#   scripts/test.sh [NAME]…    only tests whose names contain NAME
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

need_build_tools
left_out=()

# Tests that mount are in binaries of their own, which can be left out.
tests=()
for file in tests/*.rs tests/*/main.rs; do
    [ -e "$file" ] || continue
    name=${file#tests/}
    name=${name%/main.rs}
    tests+=("${name%.rs}")
done

leave_out() { # BINARY REASON
    local kept=() name
    for name in "${tests[@]}"; do
        [ "$name" = "$1" ] || kept+=("$name")
    done
    tests=("${kept[@]}")
    left_out+=("tests/$1: $2")
}

# Tests of a real registry have `real_registry` in their names.
skipped=()
registry_problem=
need_package docker-registry docker-registry || registry_problem="docker-registry is missing"
need_package skopeo skopeo || registry_problem="${registry_problem:+$registry_problem, }skopeo is missing"
if [ -n "$registry_problem" ]; then
    skipped+=(--skip real_registry)
    left_out+=("tests of a real registry: $registry_problem")
fi
# Tests of archives that bsdtar packs have `bsdtar` in their names.
if ! need_package bsdtar libarchive-tools; then
    skipped+=(--skip bsdtar)
    left_out+=("tests of bsdtar's archives: bsdtar is missing")
fi
# Tests of writable views have `overlays` in their names.
if ! need_package fuse-overlayfs fuse-overlayfs; then
    skipped+=(--skip overlays_as_root)
    left_out+=("tests of writable views: fuse-overlayfs is missing")
fi
# Tests of the daemon's page in a browser have `in_chromium` in their names.
if ! command -v chromium >/dev/null; then
    skipped+=(--skip in_chromium)
    left_out+=("tests of the daemon's page: chromium is missing")
fi
# Tests with the programs of others have the names of these. No package has them.
for other in kit oras; do
    variable=KITFS_TEST_${other^^}
    if [ -z "${!variable:-}" ]; then
        skipped+=(--skip "by_$other")
        left_out+=("tests with $other: $variable names no program")
    fi
done
# Tests that need root have `as_root` in their names.
if [ "$(id -u)" -ne 0 ]; then
    skipped+=(--skip as_root)
    left_out+=("tests of passthrough, small disks, namespaces and other users: they need root")
    leave_out tar_tools "only root reads and dates folders of any mode, as the tools extract them"
fi
if ! need_fuse; then
    leave_out end_to_end "$FUSE_PROBLEM"
    leave_out fuse "$FUSE_PROBLEM"
    leave_out http "$FUSE_PROBLEM"
    leave_out otlp "$FUSE_PROBLEM"
fi

# With every feature: only then the tests of all of them run.
arguments=(--all-features --lib --bins)
for name in "${tests[@]}"; do
    arguments+=(--test "$name")
done

status=0
say "cargo test ${arguments[*]}"
# nohup and `&` in a script leave signals ignored, and tests send these.
env --default-signal=HUP,INT,QUIT \
    cargo test --locked --no-fail-fast "${arguments[@]}" -- "${skipped[@]}" "$@" || status=$?
say "cargo test --doc"
cargo test --locked --all-features --doc -- "$@" || status=$?

# Kills under readers, the same ones each time.
if [ $# -eq 0 ] && [ -z "$FUSE_PROBLEM" ]; then
    if command -v python3 >/dev/null; then
        say "scripts/soak.sh"
        scripts/soak.sh --mode short --seconds 36 --seed 13 --kitfs "$(target_folder)/debug/kitfs" || status=1
    else
        left_out+=("scripts/soak.sh: python3 is missing")
    fi
fi

# The Python package, over a registry and a daemon.
if [ $# -eq 0 ]; then
    say "scripts/test-python.sh"
    python_status=0
    KITFS=$(target_folder)/debug/kitfs scripts/test-python.sh || python_status=$?
    case $python_status in
    0) ;;
    77) left_out+=("scripts/test-python.sh: see its last line") ;;
    *) status=1 ;;
    esac
fi

if [ "$status" -ne 0 ]; then
    say "some tests FAILED"
elif [ "${#left_out[@]}" -eq 0 ]; then
    say "every test ran and passed"
else
    say "the tests that ran have passed"
fi
if [ "${#left_out[@]}" -gt 0 ]; then
    say "LEFT OUT"
    printf '  %s\n' "${left_out[@]}"
fi
exit "$status"
