#!/usr/bin/env bash
# Changes kitfs here and there, and looks whether a test notices. A change that no test notices is a missing test:
# docs/mutants.md has the shares so far. cargo-mutants names the changes; scripts/mutants.py makes and judges them.
#
#   scripts/mutants.sh [-n COUNT] [-s SEED] [ROOM]…    a sample of COUNT changes (24) of rooms (fetch cache source
#                                                      layer kit fs daemon/hydrate)
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh
need_build_tools
need_package patch patch || fail "patch is missing"
need_package python3 python3 || fail "python3 is missing"
command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
exec python3 scripts/mutants.py "$@"
