#!/usr/bin/env bash
# Runs the script of one example in a work folder of its own, and cleans up after it.
#
#   examples/supervise.sh SCRIPT [--record]
#
# `--record` writes the script's output into its page, between the markers of record.py. Exit codes: that of
# the script; 77 if the machine lacks what the example needs.
#
# Nothing is left after success, failure or a kill: no process, mount or folder. Each process of the example
# inherits EXAMPLE_WORK and starts in the work folder; the supervisor ends all processes that have one of them. A
# second process cleans up if the supervisor is killed with -9.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# A process gets this long to end by itself before it is killed.
grace_tenths=20

# The processes of the example in the work folder $1. A daemon may overwrite its environment with a title (nginx
# does), so a working directory or an argument in the work folder counts, too. The folder's name is unique.
processes_of() {
    {
        grep -lsxzF "EXAMPLE_WORK=$1" /proc/[0-9]*/environ || true
        grep -lsF "$1/" /proc/[0-9]*/cmdline || true
        find /proc/[0-9]* -maxdepth 1 -name cwd \( -lname "$1" -o -lname "$1[/ ]*" \) 2>/dev/null || true
    } | cut -d/ -f3 | sort -un | grep -vx "$$" || true
}

# The mounts below the folder $1, the innermost first.
mounts_below() {
    awk -v below="$1/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac
}

# Ends the processes of the example in $1: by SIGTERM, then by SIGKILL.
end_processes() {
    local signal pids
    for signal in TERM KILL; do
        for _ in $(seq "$grace_tenths"); do
            pids=$(processes_of "$1")
            [ -n "$pids" ] || return 0
            # Again and again: one that is ended may have started another one meanwhile.
            # shellcheck disable=SC2086 # one argument for each process
            kill "-$signal" $pids 2>/dev/null || true
            sleep 0.1
        done
    done
}

# Ends all of the example in $1 and removes the folder. Prints what kitfs should have removed.
clean() {
    local work=$1 mountpoint
    if [ -x "$work/bin/kitfs" ]; then
        timeout 60 "$work/bin/kitfs" daemon stop --cache-dir "$work/cache" >/dev/null 2>&1 || true
    fi
    end_processes "$work"
    mounts_below "$work" | while read -r mountpoint; do
        mountpoint=$(printf '%b' "$mountpoint")
        echo "a mount was left at $mountpoint"
        umount -l "$mountpoint" 2>/dev/null || fusermount3 -uz "$mountpoint" || true
    done
    chmod -R u+rwX "$work" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}

if [ "$1" = --clean-after ]; then
    trap '' INT TERM HUP
    tail --pid="$2" -f /dev/null
    [ ! -d "$3" ] || clean "$3"
    exit
fi

script=$(realpath "$1")
record=${2:-}
case $record in
'' | --record) ;;
*)
    echo "error: $record: the only option is --record" >&2
    exit 2
    ;;
esac

repository=$(dirname "$examples")
need() { # FUNCTION [ARGUMENT…]: runs a function of scripts/common.sh
    (cd "$repository" && . scripts/common.sh && "$@" && [ -z "${FUSE_PROBLEM:-}" ]) 1>&2
}
if ! need need_fuse; then
    echo "left out: kits cannot be mounted here ($(cd "$repository" && . scripts/common.sh && need_fuse >/dev/null 2>&1 || echo "$FUSE_PROBLEM"))"
    exit 77
fi

# The binary: KITFS, the newest build of this folder, the one of PATH.
newest=$(ls -t "$repository"/target/{release,debug}/kitfs 2>/dev/null | head -n1 || true)
kitfs=${KITFS:-${newest:-$(command -v kitfs || true)}}
if [ ! -x "$kitfs" ]; then
    echo "error: there is no kitfs: run \`cargo build --release\`, or set KITFS to a binary" >&2
    exit 1
fi
kitfs=$(realpath "$kitfs")

work=$(mktemp -d "${TMPDIR:-/tmp}/kitfs-example.XXXXXX")
work=$(realpath "$work")
setsid "${BASH_SOURCE[0]}" --clean-after $$ "$work" </dev/null >/dev/null 2>&1 &
chmod 755 "$work"
mkdir "$work/bin" "$work/docker"
ln -s "$kitfs" "$work/bin/kitfs"

status=0 child=
finish() {
    trap '' INT TERM HUP
    trap - EXIT
    [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
    left=$(clean "$work")
    if [ -n "$left" ]; then
        echo "$left" >&2
        [ "$status" -ne 0 ] || status=1
    fi
    exit "$status"
}
trap finish EXIT
trap 'status=130; exit' INT
trap 'status=143; exit' TERM
trap 'status=129; exit' HUP

export EXAMPLE_WORK=$work EXAMPLE_FOLDER
EXAMPLE_FOLDER=$(dirname "$script")
# Neither the kits and credentials of the user nor a system daemon take part.
export KITFS_CACHE_DIR=$work/cache KITFS_RUNTIME_DIR=$work/run KITOPS_HOME=$work/kitops DOCKER_CONFIG=$work/docker
export PATH=$work/bin:$PATH LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1

# Job control gives the script a process group of its own, so a signal reaches all of it at once.
set -m
if [ -n "$record" ]; then
    (cd "$work" && exec bash "$script") </dev/null >"$work/output" 2>&1 &
else
    (cd "$work" && exec bash "$script") </dev/null &
fi
child=$!
set +m
wait "$child" || status=$?
if [ -n "$record" ]; then
    cat "$work/output"
    [ "$status" -ne 0 ] || python3 "$examples/record.py" "$script" "$work/output" "$work" || status=$?
fi
