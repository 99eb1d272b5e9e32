#!/usr/bin/env bash
# Builds the Debian package, with manual pages and completion scripts.
#
#   scripts/build-deb.sh [OPTION OF cargo deb]…     target/debian/kitfs_VERSION_ARCHITECTURE.deb
#
# KITFS_BINARY=FILE packages a program that was built before, such as the static one of scripts/build-static.sh.
# KITFS_PROFILE=dev builds faster and without optimisation.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

# The version that this script was tried with.
CARGO_DEB_VERSION=3.8.0

need_build_tools
if ! command -v cargo-deb >/dev/null; then
    say "installing cargo-deb $CARGO_DEB_VERSION"
    cargo install --locked "cargo-deb@$CARGO_DEB_VERSION"
fi

program=${KITFS_BINARY:-}
if [ -z "$program" ]; then
    profile=${KITFS_PROFILE:-release}
    cargo build --locked --bin kitfs --profile "$profile"
    program=$(target_folder)/${profile/#dev/debug}/kitfs
fi

say "manual pages and completion scripts"
# The folder that Cargo.toml names, wherever the target folder is.
stage=target/deb
rm -rf "$stage"
mkdir -p "$stage/completions"
cp "$program" "$stage/kitfs"
strip "$stage/kitfs"
"$stage/kitfs" man --all "$stage/man"
"$stage/kitfs" completions bash >"$stage/completions/kitfs.bash"
"$stage/kitfs" completions zsh >"$stage/completions/_kitfs"
"$stage/kitfs" completions fish >"$stage/completions/kitfs.fish"

cargo deb --no-build --no-strip --no-dbgsym --locked "$@"
