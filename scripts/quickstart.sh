#!/usr/bin/env bash
# Builds kitfs and mounts a kit.
#
#   scripts/quickstart.sh                     a small sample kit, served from this folder; nothing stays
#   scripts/quickstart.sh REF DIR [OPTION]…   your own kit, which stays mounted at DIR
#
# KITFS_PROFILE=dev builds faster and without optimisation.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

# Where the caller stands, for a DIR relative to it.
caller=$PWD
cd "$(dirname "$0")/.."
. scripts/common.sh

if [ $# -eq 1 ]; then
    fail "a reference and a folder are needed: scripts/quickstart.sh REF DIR"
fi

need_build_tools
need_fuse || fail "$FUSE_PROBLEM"

profile=${KITFS_PROFILE:-release}
say "building kitfs (profile $profile)"
cargo build --locked --bin kitfs --profile "$profile"
kitfs=$(target_folder)/${profile/#dev/debug}/kitfs

if [ $# -ge 2 ]; then
    reference=$1 folder=$2
    shift 2
    case "$folder" in /*) ;; *) folder=$caller/$folder ;; esac
    case "$reference" in oci:/*) ;; oci:*) reference=oci:$caller/${reference#oci:} ;; esac
    mkdir -p "$folder"
    say "mounting $reference at $folder"
    "$kitfs" mount "$reference" "$folder" "$@"
    ls -l "$folder"
    "$kitfs" status
    say "mounted; unmount it with: $kitfs umount $folder"
    exit 0
fi

work=$(mktemp -d)
mountpoint=$work/model
server=
export KITFS_CACHE_DIR=$work/cache

clean_up() {
    status=$?
    set +e
    trap - EXIT
    "$kitfs" daemon stop >/dev/null 2>&1
    if grep -qs " $mountpoint " /proc/self/mounts; then
        fusermount3 -uz "$mountpoint"
    fi
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null
        wait "$server" 2>/dev/null
    fi
    if [ "$status" -ne 0 ]; then
        echo "quickstart failed; what was said:" >&2
        cat "$work/serve.log" "$work/cache/daemon.log" >&2 2>/dev/null
    fi
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "serving the sample kit tests/golden/article from a registry in this machine"
"$kitfs" serve oci:tests/golden/article --listen 127.0.0.1:0 >"$work/serve.log" 2>&1 &
server=$!
reference=
for _ in $(seq 200); do
    reference=$(grep -om1 '127\.0\.0\.1:[1-9][0-9]*/article:v1' "$work/serve.log" || true)
    [ -n "$reference" ] && break
    kill -0 "$server" 2>/dev/null || fail "kitfs serve ended"
    sleep 0.05
done
[ -n "$reference" ] || fail "kitfs serve does not say what it serves"

say "kitfs mount $reference $mountpoint"
mkdir "$mountpoint"
"$kitfs" mount "$reference" "$mountpoint"

say "the tree"
ls -lR "$mountpoint"

say "a file"
head -n 5 "$mountpoint/data/dataset.csv"

say "kitfs status"
"$kitfs" status

say "kitfs umount $mountpoint"
"$kitfs" umount "$mountpoint"

say "It works. Mount your own kit: scripts/quickstart.sh REF DIR"
