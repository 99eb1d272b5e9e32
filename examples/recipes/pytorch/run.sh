#!/usr/bin/env bash
# A data loader with forked workers reads a mount: every sample is right, and each byte is fetched once.
#
# EXAMPLES_TORCH_PYTHON names an interpreter that has PyTorch and NumPy, such as /usr/bin/python3 with Debian's package
# python3-torch (150 MB with all that it needs). Without it `multiprocessing` stands in for DataLoader: PyTorch's wheel
# has 539 MB, and its CUDA libraries have more than 2 GB.
# seconds: 30
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
reference=$REGISTRY/team/samples:v1
mkdir -p "$WORK/v1"
"$PYTHON" "$HERE/make_data.py" "$WORK/v1"
cat >"$WORK/v1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: samples}
datasets:
  - {name: images, path: images}
  - {name: features, path: features}
END
pack_and_push "$WORK/v1" "$reference"
PYTHON=${EXAMPLES_TORCH_PYTHON:-$PYTHON}

workers=4
# PyTorch warns of more workers than processors; the recipe wants them.
export PYTHONWARNINGS=ignore
"$PYTHON" "$HERE/loader.py" "$WORK/v1" "$workers" 2 >"$WORK/expected"
size=$(du --bytes --summarize "$WORK/v1" | cut -f1)

say "$workers forked workers read 2,000 samples of a mount, two epochs in random order, with $(head -n 1 "$WORK/expected")"
show kitfs mount "$reference" "$WORK/mnt"
before=$(sent_bytes)
"$PYTHON" "$HERE/loader.py" "$WORK/mnt" "$workers" 1 >"$WORK/epoch"
assert_equal "$(tail -n 1 "$WORK/epoch")" "$(tail -n 1 "$WORK/expected")" "samples and checksum of the first epoch"
# The archives have a header of 512 bytes and padding for each file.
assert_at_most $(($(sent_bytes) - before)) $((size * 3 / 2)) "bytes that came, of $size"
before=$(sent_bytes)
"$PYTHON" "$HERE/loader.py" "$WORK/mnt" "$workers" 2 >"$WORK/epochs"
assert_equal "$(cat "$WORK/epochs")" "$(cat "$WORK/expected")" "two more epochs"
assert_equal $(($(sent_bytes) - before)) 0 "bytes that came for them"

say "the worker of the daemon is killed while the workers of the loader read"
kitfs umount "$WORK/mnt"
kitfs cache clear >/dev/null
kitfs mount --hydrate none "$reference" "$WORK/mnt" >/dev/null
before=$(sent_bytes)
"$PYTHON" "$HERE/loader.py" "$WORK/mnt" "$workers" 2 >"$WORK/epochs" &
loader=$!
has_sent() { [ $(($(sent_bytes) - before)) -ge "$1" ]; }
for megabytes in 2 8 16; do
    wait_for 60 has_sent $((megabytes * 1000000))
    kill -9 "$(daemon_number worker_pid)"
done
wait "$loader"
assert_equal "$(cat "$WORK/epochs")" "$(cat "$WORK/expected")" "two epochs over three killed workers"
