#!/usr/bin/env bash
# rsync copies a mount: a second run copies nothing, and a new version copies only what changed.
# seconds: 10
. "$(dirname "$0")/../../lib.sh"

common need_package rsync rsync || leave_out "rsync is missing"
start_registry
repository=$REGISTRY/team/data

make() { # VERSION LABELS
    mkdir -p "$WORK/v$1/images" "$WORK/v$1/labels"
    for number in $(seq 200); do
        filled 20000 "image $number" >"$WORK/v$1/images/$number.raw"
    done
    filled 50000 "$2" >"$WORK/v$1/labels/train.txt"
    cat >"$WORK/v$1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: data, version: $1.0.0}
datasets:
  - {name: images, path: images}
  - {name: labels, path: labels}
END
    pack_and_push "$WORK/v$1" "$repository:v$1"
}
# The labels have the same size in both versions: only their dates can tell them apart.
make 1 "cat"
make 2 "dog"

# copy: copies the mount; lists the files that rsync transferred.
copy() { rsync -a --out-format='%n' "$WORK/mnt/" "$WORK/copy/" | grep -v '/$' || true; }
count() { if [ -n "$1" ]; then wc -l <<<"$1"; else echo 0; fi; }

show kitfs mount "$repository:v1" "$WORK/mnt"
assert_equal "$(count "$(copy)")" 202 "files that the first run copied"
assert_same_tree "$WORK/mnt" "$WORK/copy" "the copy of version 1"
before=$(sent_bytes)
assert_equal "$(count "$(copy)")" 0 "files that the second run copied"
assert_equal $(($(sent_bytes) - before)) 0 "bytes that came for it"

say "a new version; its labels have the size of the old ones"
before=$(sent_bytes)
show kitfs mount --replace "$repository:v2" "$WORK/mnt"
assert_equal "$(copy | sort | tr '\n' ' ')" "Kitfile labels/train.txt " "files that changed"
assert_same_tree "$WORK/mnt" "$WORK/copy" "the copy of version 2"
assert_at_most $(($(sent_bytes) - before)) 100000 "bytes that came for them"
assert_equal "$(count "$(copy)")" 0 "files that one more run copied"

say "back to version 1"
show kitfs mount --replace "$repository:v1" "$WORK/mnt"
assert_equal "$(copy | sort | tr '\n' ' ')" "Kitfile labels/train.txt " "files that changed"
assert_same_tree "$WORK/mnt" "$WORK/copy" "the copy of version 1"
