#!/usr/bin/env bash
# Tries kitfs as in containers, without a container engine: the static program in an empty root, with the capabilities
# that Docker gives, and mounts that reach the host and another container.
#
#   scripts/test-container.sh PROGRAM     the static program of scripts/build-static.sh
#
# Needs root and /dev/fuse. The namespaces, capabilities and propagation are those of Dockerfile and deploy/compose.yml.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

[ $# -eq 1 ] || fail "usage: scripts/test-container.sh PROGRAM"
[ "$(id -u)" -eq 0 ] || fail "only root can make containers by hand: run this script as root"
need_fuse || fail "$FUSE_PROBLEM"
program=$1

# The capabilities of `docker run --cap-add SYS_ADMIN`.
CAPABILITIES=+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap,+sys_admin

work=$(mktemp -d)
# The reader has another user.
chmod 755 "$work"
serve= container=
clean_up() {
    status=$?
    set +e
    trap - EXIT
    [ -z "$container" ] || kill -KILL "$container" 2>/dev/null
    [ -z "$serve" ] || kill "$serve" 2>/dev/null
    [ "$status" -eq 0 ] || cat "$work"/*.log >&2
    wait 2>/dev/null
    umount -l "$work/models/kit" "$work/models" 2>/dev/null
    rm -rf --one-file-system "$work"
    exit "$status"
}
trap clean_up EXIT

until_true() { # WORDS COMMAND…
    local words=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "$words did not come about within 30 s"
        sleep 0.1
    done
}

"$program" serve oci:tests/golden/article --listen 127.0.0.1:0 >"$work/serve.log" 2>&1 &
serve=$!
until_true "the registry" grep -q '127\.0\.0\.1:[1-9]' "$work/serve.log"
reference=$(grep -om1 '127\.0\.0\.1:[1-9][0-9]*/article:v1' "$work/serve.log")

# The host's folder, as Docker wants it for `rshared`.
mkdir "$work/models" "$work/cache"
mount --bind "$work/models" "$work/models"
mount --make-rshared "$work/models"
mkdir "$work/models/kit"

# in_container COMMAND…: as the first process of a container with nothing but the program. $work/pid gets its number.
cat >"$work/container" <<'CONTAINER'
work=$1 program=$2 capabilities=$3
shift 3
root=$work/root
mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir "$root/dev" "$root/proc" "$root/cache" "$root/models" "$root/tmp"
cp "$program" "$root/kitfs"
touch "$root/dev/fuse" "$root/dev/null"
mount --bind /dev/fuse "$root/dev/fuse"
mount --bind /dev/null "$root/dev/null"
mount -t proc proc "$root/proc"
mount --bind "$work/cache" "$root/cache"
mount --rbind "$work/models" "$root/models"
exec env -i ${KITFS_CACHE_DIR:+"KITFS_CACHE_DIR=$KITFS_CACHE_DIR"} setpriv --bounding-set "-all,$capabilities" \
    --inh-caps "-all,$capabilities" "$(command -v chroot)" "$root" /kitfs "$@"
CONTAINER
in_container() {
    # Docker keeps the propagation of the host where a volume is rshared.
    unshare --mount --propagation unchanged --pid --fork --kill-child bash -eu "$work/container" "$work" "$program" "$CAPABILITIES" "$@"
}

# The first process in the container: the child of unshare(1), which is the child of the shell behind $container.
first_process() { pgrep -P "$(pgrep -P "$container")"; }

say "a container from scratch without a place for the cache"
said=$(in_container ls "$reference" 2>&1) && fail "it works without a cache folder: $said"
case "$said" in *--cache-dir*) echo "$said" ;; *) fail "the message names no way out: $said" ;; esac

say "a container from scratch lists a kit"
export KITFS_CACHE_DIR=/cache
in_container ls "$reference"

say "the daemon as the first process"
in_container daemon start --foreground >"$work/daemon.log" 2>&1 &
container=$!
until_true "the daemon" grep -q ready "$work/daemon.log"
# The health check of the image, in the container's namespaces.
first=$(first_process)
status=$(nsenter --mount --pid --root --target "$first" /kitfs daemon status --cache-dir /cache)
echo "$status"
kill -TERM "$first"
wait "$container" || fail "the daemon ends with exit code $?"
container=

say "a mount of the container reaches the host and another container"
in_container mount --foreground --allow-other "$reference" /models/kit >"$work/mount.log" 2>&1 &
container=$!
# A reader that was there before: `rslave`.
unshare --mount --propagation slave sh -c '
    until [ -e "$1/kit/data/dataset.csv" ]; do sleep 0.1; done
    setpriv --reuid 65534 --regid 65534 --clear-groups cmp "$1/kit/data/dataset.csv" "$2"
' sh "$work/models" /dev/null >"$work/reader.log" 2>&1 &
reader=$!
until_true "the mount on the host" grep -q " $work/models/kit fuse.kitfs " /proc/self/mounts
head -n 2 "$work/models/kit/data/dataset.csv"
wait "$reader" && fail "the reader found an empty file" || true
grep -q 'EOF on /dev/null\|differ' "$work/reader.log" || fail "the reader cannot read: $(cat "$work/reader.log")"

say "SIGTERM ends the container, and its mount everywhere"
kill -TERM "$(first_process)"
wait "$container" || fail "the container ends with exit code $?"
container=
until_true "the end of the mount on the host" sh -c "! grep -q ' $work/models/kit fuse.kitfs ' /proc/self/mounts"
say "kitfs works in containers"
