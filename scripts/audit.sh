#!/usr/bin/env bash
# Checks all crates with cargo-deny, by the rules of deny.toml.
#
#   scripts/audit.sh                            everything; needs the advisory database from GitHub
#   scripts/audit.sh bans licenses sources      without network
#
# Not a part of .ci/run: cargo-deny takes longer to build than kitfs, and a new advisory must not fail a change that has
# nothing to do with it. .github/workflows/audit.yml runs the script weekly and when Cargo.lock changes.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

# The version that the rules were tried with.
CARGO_DENY_VERSION=0.20.2

need_build_tools
if ! command -v cargo-deny >/dev/null; then
    say "installing cargo-deny $CARGO_DENY_VERSION"
    cargo install --locked "cargo-deny@$CARGO_DENY_VERSION"
fi
cargo deny --locked check "$@"
