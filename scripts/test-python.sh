#!/usr/bin/env bash
# Tests the Python package in python/: pytest over a registry and a daemon, mypy, ruff.
#
#   scripts/test-python.sh [PYTEST-ARGUMENT]…     such as `-k mount`
#
# The tools come from PyPI, as wheels, into the target folder, once. KITFS names the binary, else the debug build is
# taken, and made where it is missing. PYTHON names the interpreter (python3). The last lines name the parts
# that were left out; exit code 77 where that is all.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

left_out() {
    printf 'left out: %s\n' "$*"
    exit 77
}

need_package python3 python3 || left_out "python3 is missing"
python=${PYTHON:-python3}
need_build_tools
target=$(target_folder)

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.prefix)')
venv=$target/python-$({ echo "$version" && cat python/tests/requirements.txt; } | sha256sum | cut -c1-16)
if [ ! -e "$venv/complete" ]; then
    say "tools from PyPI"
    rm -rf "$venv"
    mkdir -p "$target"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        install_package venv python3-venv && "$python" -m venv "$venv" || left_out "python3-venv is missing"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: \
        -r python/tests/requirements.txt || left_out "the packages of python/tests/requirements.txt cannot be installed"
    touch "$venv/complete"
fi

# The package as users get it, not its folder.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps \
    --force-reinstall ./python

if [ -z "${KITFS:-}" ]; then
    KITFS=$target/debug/kitfs
    [ -e "$KITFS" ] || cargo build --locked --bin kitfs
fi
KITFS=$(realpath "$KITFS")
export KITFS

chosen=() reasons=()
if ! need_fuse; then
    chosen+=(-m "not fuse")
    reasons+=("tests of mounts: $FUSE_PROBLEM")
fi
need_package docker-registry docker-registry || reasons+=("docker-registry is missing, so \`kitfs serve\` was the registry")

cd python
status=0
say "ruff"
"$venv/bin/ruff" check --quiet . || status=$?
"$venv/bin/ruff" format --quiet --check --diff . || status=$?
say "mypy --strict"
"$venv/bin/mypy" || status=$?
say "pytest"
"$venv/bin/python" -m pytest -q "${chosen[@]}" "$@" || status=$?

if [ "${#reasons[@]}" -gt 0 ]; then
    say "LEFT OUT"
    printf '  %s\n' "${reasons[@]}"
fi
exit "$status"
