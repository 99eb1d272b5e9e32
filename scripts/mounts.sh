#!/usr/bin/env bash
# Measures idle mounts: memory, threads and open files of the daemon with 1, 20 and 200 mounts of a
# small kit, and after all are unmounted.
#
#   scripts/mounts.sh [KITFS]      KITFS is a binary; without it, a release build of this folder
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh
need_fuse || fail "$FUSE_PROBLEM"

if [ $# -gt 0 ]; then
    kitfs=$(realpath "$1")
else
    need_build_tools
    cargo build --release --locked
    kitfs=$(target_folder)/release/kitfs
fi
kit=oci:$PWD/tests/golden/article:v1
# Threads that were started for one piece of work end after ten idle seconds.
settle_seconds=12

work=$(mktemp -d)
export KITFS_CACHE_DIR=$work/cache
finish() {
    "$kitfs" daemon stop >/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

"$kitfs" daemon start >/dev/null
pid=$(cat "$KITFS_CACHE_DIR/lock")

row() { # LABEL
    sleep "$settle_seconds"
    local rss
    rss=$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$pid/status")
    printf '| %s | %s | %s | %s |\n' "$1" "$rss" \
        "$(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)" \
        "$(find "/proc/$pid/fd" -mindepth 1 -maxdepth 1 | wc -l)"
}

echo '| mounts | RSS, MiB | threads | open files |'
echo '| --- | --- | --- | --- |'
mounted=0
for count in 1 20 200; do
    while [ "$mounted" -lt "$count" ]; do
        mounted=$((mounted + 1))
        mkdir "$work/$mounted"
        "$kitfs" mount --hydrate none "$kit" "$work/$mounted" >/dev/null
    done
    row "$count"
done
for number in $(seq "$mounted"); do
    "$kitfs" umount "$work/$number"
done
row "0, after 200"
