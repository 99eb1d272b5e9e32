#!/usr/bin/env bash
# A model in safetensors, loaded from a mount and by fsspec. No code of the loader knows of kitfs but the address.
# seconds: 20
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
need_kitfs_package
start_registry
reference=$REGISTRY/team/model:v1
"$PYTHON" "$HERE/make_model.py" "$WORK/v1/weights"
cat >"$WORK/v1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: model}
model: {name: model, path: weights}
END
pack_and_push "$WORK/v1" "$reference"
size=$(du --bytes --summarize "$WORK/v1" | cut -f1)
load() { "$PYTHON" "$HERE/load.py" "$@"; }

say "from a mount, which ends with the block of the program"
before=$(sent_bytes)
assert_equal "$(load mount "$reference")" "$(load folder "$WORK/v1/weights")" "checksum of the model"
assert_at_most $(($(sent_bytes) - before)) $((size * 5 / 4)) "bytes that came, of $size"
assert_equal "$(kitfs status --json)" "[]" "mounts after the program"

say "by fsspec over the daemon's HTTP interface, four of twelve layers"
kitfs daemon stop >/dev/null
kitfs cache clear >/dev/null
kitfs daemon start --listen 127.0.0.1:0 >/dev/null
before=$(sent_bytes)
assert_equal "$(load fsspec "$reference" 4)" "$(load folder "$WORK/v1/weights" 4)" "checksum of four layers"
assert_at_most $(($(sent_bytes) - before)) $((size * 2 / 3)) "bytes that came, of $size"

say "by fsspec and the command, without HTTP"
kitfs daemon stop >/dev/null
kitfs cache clear >/dev/null
before=$(sent_bytes)
assert_equal "$(load fsspec "$reference" 4)" "$(load folder "$WORK/v1/weights" 4)" "checksum of four layers"
assert_at_most $(($(sent_bytes) - before)) $((size * 2 / 3)) "bytes that came, of $size"
