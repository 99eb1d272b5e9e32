#!/usr/bin/env bash
# DuckDB and pyarrow read the row groups and columns of a parquet file that a question needs, and no others come.
# seconds: 20
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
reference=$REGISTRY/team/table:v1
mkdir -p "$WORK/v1/data"
cat >"$WORK/v1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: table}
datasets:
  - {name: table, path: data}
END
"$PYTHON" "$HERE/make_table.py" "$WORK/v1/data/table.parquet"
pack_and_push "$WORK/v1" "$reference"
say "a parquet file of $(stat --format %s "$WORK/v1/data/table.parquet") bytes: eight row groups of eight columns"

# question ENGINE NAME: asks a fresh mount. Sets FETCHED to the bytes that came for the answer.
question() {
    local before answer
    kitfs mount --hydrate none "$reference" "$WORK/mnt" >/dev/null
    before=$(sent_bytes)
    answer=$("$PYTHON" "$HERE/query.py" "$1" "$2" "$WORK/mnt/data/table.parquet")
    assert_equal "$answer" "$("$PYTHON" "$HERE/query.py" "$1" "$2" "$WORK/v1/data/table.parquet")" "$1, $2"
    FETCHED=$(($(sent_bytes) - before))
    kitfs umount "$WORK/mnt"
    kitfs cache clear >/dev/null
}

mib=$((1024 * 1024))
for engine in duckdb pyarrow; do
    say "$engine"
    # The footer lies in the last chunks (256 KiB each).
    question "$engine" count
    assert_at_most "$FETCHED" $((2 * mib)) "bytes for the footer"
    # Two columns of one row group, 1 MB each, and what is fetched ahead (below).
    question "$engine" one-group
    assert_at_most "$FETCHED" $((20 * mib)) "bytes for two columns of one row group"
    # Eight pieces of 1 MB. To tell that each piece ends there, kitfs fetches ahead once for each mount: what
    # the registry sends in 50 ms. That is much on 127.0.0.1.
    question "$engine" one-column
    assert_at_most "$FETCHED" $((32 * mib)) "bytes for one column"
done
