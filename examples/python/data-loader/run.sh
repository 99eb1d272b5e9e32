#!/usr/bin/env bash
# Workers of a data loader, forked and spawned, and pandas, pyarrow and DuckDB read a kit by its address.
#
# EXAMPLES_TORCH_PYTHON names an interpreter that has PyTorch, fsspec and pip, such as one of a venv. Without it
# `multiprocessing` stands in for DataLoader: PyTorch's wheel has 539 MB, and its CUDA libraries have more than 2 GB.
# seconds: 60
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
need_kitfs_package
start_registry
reference=$REGISTRY/team/events:v1
mkdir "$WORK/v1"
"$PYTHON" "$HERE/make_data.py" "$WORK/v1"
cat >"$WORK/v1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: events}
datasets:
  - {name: images, path: images}
  - {name: tables, path: tables}
END
pack_and_push "$WORK/v1" "$reference"
torch_python=${EXAMPLES_TORCH_PYTHON:-$PYTHON}
# One line if both epochs are the same.
loader() { "$torch_python" -W ignore "$HERE/loader.py" "$@" 2 | uniq; }
query() { "$PYTHON" "$HERE/query.py" "$@"; }

show kitfs daemon start --listen 127.0.0.1:0
workers=4
expected=$(loader "$WORK/v1" fork "$workers")
name=$("$torch_python" "$HERE/loader.py" name)
images=$(du --bytes --summarize "$WORK/v1/images" | cut -f1)

for method in fork spawn; do
    say "$workers workers ($method) of $name read 400 images by kitfs://, two epochs in random order"
    before=$(sent_bytes)
    assert_equal "$(loader "kitfs://$reference" "$method" "$workers")" "$expected" "samples and checksum of both epochs"
    # The archive has a header of 512 bytes and padding for each file. The second method finds all in the cache.
    assert_at_most $(($(sent_bytes) - before)) $((images * 5 / 4)) "bytes that came, of $images"
done

say "the same workers read a mount, which ends with this script"
show kitfs mount --while-pid $$ "$reference" "$WORK/mnt"
assert_equal "$(loader "$WORK/mnt" fork "$workers")" "$expected" "samples and checksum of both epochs"

size=$(stat --format %s "$WORK/v1/tables/events.parquet")
for engine in pandas pyarrow duckdb; do
    say "$engine reads two of five columns by kitfs://"
    kitfs umount --all >/dev/null
    kitfs daemon stop >/dev/null
    kitfs cache clear >/dev/null
    kitfs daemon start --listen 127.0.0.1:0 >/dev/null
    # The headers of 400 images lie in every chunk of their layer, so opening the kit brings these chunks.
    kitfs ls "$reference" >/dev/null
    before=$(sent_bytes)
    assert_equal "$(query "$engine" "kitfs://$reference")" "$(query "$engine" "$WORK/v1")" "the sum"
    assert_at_most $(($(sent_bytes) - before)) $((size * 3 / 5)) "bytes that came, of $size"
done
