#!/usr/bin/env bash
# Builds kitfs, installs it for this user, and mounts a kit.
#
#   scripts/quickstart.sh                     a small sample kit, served from this folder; only the program stays
#   scripts/quickstart.sh REF DIR [OPTION]…   your own kit, which stays mounted at DIR
#
# The program goes to ~/.cargo/bin, or to ~/.local/bin where the shell finds programs only there. KITFS_BIN_DIR names
# another folder. KITFS_PROFILE=dev builds faster and without optimisation.
set -euo pipefail

case "${1:-}" in
-h | --help)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

# The caller's folder, for a relative DIR, and the folders in which its shell looks for programs.
caller=$PWD
callers_path=$PATH
cd "$(dirname "$0")/.."
. scripts/common.sh

if [ $# -eq 1 ]; then
    fail "a reference and a folder are needed: scripts/quickstart.sh REF DIR"
fi

# install_program FILE: copies the program to the user's programs, as $kitfs in the folder $bin.
install_program() {
    local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
    bin=${KITFS_BIN_DIR:-}
    if [ -z "$bin" ]; then
        bin=$cargo_bin
        case ":$callers_path:" in
        *":$cargo_bin:"*) ;;
        *":$HOME/.local/bin:"*) bin=$HOME/.local/bin ;;
        esac
    fi
    mkdir -p "$bin"
    # Under another name first: an older kitfs may run.
    cp "$1" "$bin/.kitfs.new"
    mv -f "$bin/.kitfs.new" "$bin/kitfs"
    kitfs=$bin/kitfs
}

# Says how the program is called from here on.
say_installed() {
    if [ "$(PATH=$callers_path type -P kitfs)" = "$kitfs" ]; then
        say "kitfs is installed as $kitfs"
    else
        say "kitfs is installed as $kitfs, where this shell does not look; add its folder: export PATH=\"$bin:\$PATH\""
    fi
}

need_build_tools
need_fuse || fail "$FUSE_PROBLEM"

profile=${KITFS_PROFILE:-release}
say "building kitfs (profile $profile), which takes some minutes the first time"
cargo build --locked --bin kitfs --profile "$profile"
install_program "$(target_folder)/${profile/#dev/debug}/kitfs"

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
    echo "end the mount with: kitfs umount $folder"
    say_installed
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
        echo "quickstart failed; the output was:" >&2
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

say "its files, which kitfs downloads when a program reads them"
(cd "$mountpoint" && find . -type f -printf '%8s  %P\n' | sort -k2)

say "the first lines of data/dataset.csv"
head -n 3 "$mountpoint/data/dataset.csv"

say "kitfs status"
"$kitfs" status

say "kitfs umount $mountpoint"
"$kitfs" umount "$mountpoint"

say "It works. Mount your own kit: kitfs mount REF DIR"
say_installed
