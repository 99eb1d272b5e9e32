#!/usr/bin/env bash
# Builds a kitfs that needs no library of the machine, for containers from scratch and for any Linux.
#
#   scripts/build-static.sh [OUTPUT]     [default: target/static/kitfs]
#
# The C library is musl. Its target comes from rustup, its compiler from the package musl-tools.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

caller=$PWD
cd "$(dirname "$0")/.."
. scripts/common.sh

architecture=$(uname -m)
triple=$architecture-unknown-linux-musl
target=$(target_folder)
output=${1:-$target/static/kitfs}
case "$output" in /*) ;; *) output=$caller/$output ;; esac

need_build_tools
need_package musl-gcc musl-tools || fail "a C compiler for musl is needed to build zstd and aws-lc"
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$triple" ]; then
    command -v rustup >/dev/null ||
        fail "this Rust has no standard library for $triple: install Rust by https://rustup.rs"
    rustup target add "$triple"
fi

say "building for $triple"
variable=CC_${triple//-/_}
env "$variable=musl-gcc" cargo build --locked --release --bin kitfs --target "$triple"
mkdir -p "$(dirname "$output")"
cp -f "$target/$triple/release/kitfs" "$output"
strip "$output"

# A program with an interpreter needs the machine's libraries.
if readelf --program-headers "$output" | grep -q INTERP; then
    fail "$output is not static"
fi
say "$output: $(stat -c %s "$output") bytes"
