#!/usr/bin/env bash
# Measures one system daemon with many users: each mounts one data set and reads all of it. Prints the bytes that the
# registry sent, and the daemon's memory. Needs root and /dev/fuse. Runs in mount and network namespaces of its own,
# because the users have no entry in the machine's /etc/passwd.
#
#   scripts/users.sh [USERS] [KITFS]      50 users; KITFS is a binary, else a release build of this folder
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh
need_fuse || fail "$FUSE_PROBLEM"
[ "$(id -u)" -eq 0 ] || fail "this needs root"

users=${1:-50}
if [ -z "${KITFS_USERS_INSIDE:-}" ]; then
    if [ $# -gt 1 ]; then
        kitfs=$(realpath "$2")
    else
        need_build_tools
        cargo build --release --locked
        kitfs=$(target_folder)/release/kitfs
    fi
    KITFS_USERS_INSIDE=1 exec unshare --mount --propagation private "$0" "$users" "$kitfs"
fi
kitfs=$2
first=60000
memory_mib=128
bytes=$((45 * 1024 * 1024))

work=$(mktemp -d)
chmod 755 "$work"
finish() {
    for number in $(seq "$first" $((first + users - 1))); do
        umount -l "$work/$number/mnt" 2>/dev/null || true
    done
    KITFS_RUNTIME_DIR=$work/run "$kitfs" daemon stop --system --cache-dir "$work/cache" >/dev/null || true
    [ -z "${server:-}" ] || kill "$server"
    rm -rf --one-file-system "$work"
}
trap finish EXIT

# fusermount3 looks for the name of its user.
cp /etc/passwd "$work/passwd"
for number in $(seq "$first" $((first + users - 1))); do
    echo "kitfs$number:x:$number:$first::$work/$number:/bin/sh" >>"$work/passwd"
    mkdir -p "$work/$number/mnt"
    chown -R "$number:$first" "$work/$number"
done
mount --bind "$work/passwd" /etc/passwd

python3 scripts/data_set.py "$work/kits/data" "$bytes"
"$kitfs" serve "oci:$work/kits" --listen 127.0.0.1:0 >"$work/serve" &
server=$!
for _ in $(seq 100); do
    grep -q ':v1' "$work/serve" && break
    sleep 0.1
done
reference=$(grep -o '127.0.0.1:[0-9]*/[^ ]*:v1' "$work/serve" | head -1)

export KITFS_RUNTIME_DIR=$work/run
"$kitfs" daemon start --system --group "$first" --cache-dir "$work/cache" --memory "${memory_mib}MiB"
as_user() {
    local number=$1
    shift
    env -i "PATH=$PATH" "HOME=$work/$number" "KITFS_RUNTIME_DIR=$work/run" \
        setpriv --reuid "$number" --regid "$first" --clear-groups "$@"
}
readers=()
for number in $(seq "$first" $((first + users - 1))); do
    (
        as_user "$number" "$kitfs" mount "$reference" "$work/$number/mnt" >/dev/null
        as_user "$number" sh -c "find '$work/$number/mnt' -type f -exec cat {} + | wc -c" >"$work/$number.read"
    ) &
    readers+=($!)
done
for reader in "${readers[@]}"; do wait "$reader" || fail "a user could not read"; done

status=$("$kitfs" daemon status --system --json --cache-dir "$work/cache")
field() { python3 -c 'import json, sys; print(eval("json.load(sys.stdin)" + sys.argv[1]))' "$1" <<<"$status"; }
worker=$(field '["worker_pid"]')
rss=$(awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$worker/status")
fetched=$(field '["fetch"]["fetched_bytes"]')
printf '%s users read %s bytes each: fetched %s bytes, most memory %s MiB with --memory %s MiB\n' \
    "$users" "$(sort -u "$work"/*.read | tr '\n' ' ')" "$fetched" "$rss" "$memory_mib"
[ "$fetched" -lt $((bytes * 11 / 10)) ] || fail "the data set was fetched more than once"
[ "$rss" -le $((memory_mib + 64)) ] || fail "the daemon took more than its budget and 64 MiB"
