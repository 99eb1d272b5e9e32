# Functions that the examples share. The first line of each run.sh sources this file. The script then runs in a work
# folder ($WORK), with a cache of its own, and supervise.sh removes all of it at the end.
#
# run.sh declares its time on a machine with two cores by a line `# seconds: N`.

if [ -z "${EXAMPLE_WORK:-}" ]; then
    exec "$(dirname "${BASH_SOURCE[0]}")/supervise.sh" "$0" "$@"
fi
set -euo pipefail
# A command that ends the script without a word of its own is named.
trap 'status=$?; [ "$status" -eq 0 ] || [ -n "$SAID" ] || echo "error: exit code $status of: $BASH_COMMAND" >&2' EXIT
SAID=

WORK=$EXAMPLE_WORK
EXAMPLES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname "$EXAMPLES")
# The example's own folder.
HERE=$EXAMPLE_FOLDER
# The interpreter; see need_python.
PYTHON=python3

say() { printf '\n# %s\n' "$*"; }

# Prints a command and runs it, for the page.
show() {
    local word
    printf '$'
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:@=,+-]* | '') printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@"
}

fail() {
    SAID=1
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Ends the example without a result: the machine lacks something.
leave_out() {
    SAID=1
    printf 'left out: %s\n' "$*"
    exit 77
}

# Runs a function of scripts/common.sh.
common() { (cd "$REPOSITORY" && . scripts/common.sh && "$@") 1>&2; }

# --- assertions: ACTUAL EXPECTED WHAT ---
assert_equal() {
    [ "$1" = "$2" ] || fail "$3: expected '$2', got '$1'"
    printf 'ok: %s: %s\n' "$3" "$1"
}
assert_at_most() {
    [ "$1" -le "$2" ] || fail "$3: expected at most $2, got $1"
    printf 'ok: %s: %s (at most %s)\n' "$3" "$1" "$2"
}
assert_at_least() {
    [ "$1" -ge "$2" ] || fail "$3: expected at least $2, got $1"
    printf 'ok: %s: %s (at least %s)\n' "$3" "$1" "$2"
}
assert_same_tree() { # FOLDER FOLDER WHAT
    diff -r "$1" "$2" >&2 || fail "$3: the folders differ"
    printf 'ok: %s: the same files and bytes\n' "$3"
}
# The command must fail, and say a text.
assert_fails_with() { # TEXT COMMAND…
    local text=$1 output
    shift
    ! output=$("$@" 2>&1) || fail "this should have failed: $*"
    case $output in
    *"$text"*) printf 'ok: refused: %s\n' "$text" ;;
    *) fail "this should have failed with '$text': $*: $output" ;;
    esac
}

# filled BYTES TEXT: the text again and again.
filled() { (set +o pipefail && yes "$2" | head -c "$1"); }

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    local tenths=$(($1 * 10))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$tenths" -gt 0 ] || fail "this did not come: $*"
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

# A TCP port of 127.0.0.1 that nobody listens on.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Starts an empty registry. Sets REGISTRY to its host and port.
start_registry() {
    local port attempt
    common need_package docker-registry docker-registry || leave_out "docker-registry is missing"
    # Another process may take the port first.
    for attempt in 1 2 3; do
        port=$(free_port)
        mkdir -p "$WORK/registry"
        cat >"$WORK/registry.yml" <<END
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $WORK/registry}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$port"}
END
        docker-registry serve "$WORK/registry.yml" >"$WORK/registry.log" 2>&1 &
        REGISTRY_PID=$!
        for _ in $(seq 300); do
            kill -0 "$REGISTRY_PID" 2>/dev/null || continue 2
            if answers "$port"; then
                REGISTRY=127.0.0.1:$port
                return 0
            fi
            sleep 0.1
        done
    done
    fail "docker-registry does not start: $(tail -n 3 "$WORK/registry.log")"
}

# need_python REQUIREMENTS: sets PYTHON to an interpreter with these packages. They are installed once for
# all runs, in KITFS_EXAMPLES_CACHE (~/.cache/kitfs-examples).
need_python() {
    local cache=${KITFS_EXAMPLES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kitfs-examples}
    local version folder
    common need_package python3 python3 || leave_out "python3 is missing"
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.prefix)')
    folder=$cache/python-$({ echo "$version" && cat "$1"; } | sha256sum | cut -c1-16)
    PYTHON=$folder/bin/python
    mkdir -p "$cache"
    (
        flock 9
        [ ! -e "$folder/complete" ] || exit 0
        rm -rf "$folder"
        if ! python3 -m venv "$folder" >/dev/null 2>&1; then
            common install_package venv python3-venv && python3 -m venv "$folder" || exit 1
        fi
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$1" || exit 1
        touch "$folder/complete"
    ) 9>"$folder.lock" >&2 || leave_out "the Python packages of $(basename "$(dirname "$1")") cannot be installed"
}

# Installs the package `kitfs` of this repository for this run. The requirements of the example have hatchling.
need_kitfs_package() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps \
        --target "$WORK/packages" "$REPOSITORY/python" >&2 || fail "the package in python/ cannot be installed"
    export PYTHONPATH=$WORK/packages${PYTHONPATH:+:$PYTHONPATH}
}

# pack_and_push FOLDER REF: packs a folder with a Kitfile and sends the kit, in one line of output.
pack_and_push() {
    kitfs pack "$1" -t "$2" >"$WORK/pack.log" 2>&1 || fail "$(cat "$WORK/pack.log")"
    kitfs push "$2" >"$WORK/push.log" 2>&1 || fail "$(cat "$WORK/push.log")"
    head -n 1 "$WORK/push.log"
}

# A number of `kitfs daemon status --json`, such as fetched_bytes or requests.
daemon_number() { kitfs daemon status --json | sed -n "s/^ *\"$1\": \([0-9]*\),*\$/\1/p" | head -n1; }
# All bytes that the daemon has fetched since it was started.
fetched_bytes() { daemon_number fetched_bytes; }

# The bytes of blobs that the registry has sent: its own count, from its access log.
sent_bytes() { awk '$6 == "\"GET" && $7 ~ /\/blobs\// { sum += $10 } END { printf "%d\n", sum }' "$WORK/registry.log"; }

# The digest of the kit that is mounted at a folder.
digest_of() {
    python3 -c 'import os, sys; print(os.getxattr(sys.argv[1], "user.kitfs.digest").decode())' "$1"
}
