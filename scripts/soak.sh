#!/usr/bin/env bash
# Kills the processes of a daemon under readers (read, mmap, O_DIRECT, small files, listing) over a slow registry,
# for as long as you like. Fails at the first wrong byte, error, SIGBUS, process in state D or dead mount.
#
#   scripts/soak.sh [--mode MODE] [--seconds N] [--seed N] [--interval SECONDS] [--kitfs BINARY]
#
#   worker   kill -9 of the worker every 0.15 s, at random moments (the default)
#   keeper   of keeper and worker in turns
#   mounts   of the worker, with 50 mounts
#   memory   the kernel kills the worker in a cgroup of 128 MiB (root)
#   flat     no kills: 200 mounts and 1,000 readers, whose daemon must not grow
#   all      each of them for a fifth of the time
#   short    worker, keeper and mounts, each for a third of the time: scripts/test.sh runs it
#
# The seed is printed. Without --kitfs, a release build of this folder is used.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh
need_fuse || fail "$FUSE_PROBLEM"

mode=worker seconds=600 kitfs= rest=()
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "$1 needs a value"
    case $1 in
    --mode) mode=$2 ;;
    --seconds) seconds=$2 ;;
    --kitfs) kitfs=$(realpath "$2") ;;
    *) rest+=("$1" "$2") ;;
    esac
    shift 2
done
if [ -z "$kitfs" ]; then
    need_build_tools
    cargo build --release --locked
    kitfs=$(target_folder)/release/kitfs
fi
modes=("$mode")
[ "$mode" != all ] || modes=(worker keeper mounts memory flat)
[ "$mode" != short ] || modes=(worker keeper mounts)
status=0
for mode in "${modes[@]}"; do
    python3 scripts/soak.py --kitfs "$kitfs" --mode "$mode" --seconds $((seconds / ${#modes[@]})) \
        ${rest[@]+"${rest[@]}"} || status=1
done
exit "$status"
