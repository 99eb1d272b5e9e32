#!/usr/bin/env bash
# Hugging Face datasets over a mount: after `--replace` they show the new version, though they cache what they load.
# seconds: 60
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
repository=$REGISTRY/team/reviews
# Nothing comes from the Hub, and the cache is the example's own.
export HF_HOME=$WORK/hf HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

make() { # VERSION LABEL
    mkdir -p "$WORK/v$1/data"
    "$PYTHON" "$HERE/make_data.py" "$WORK/v$1/data" "$2"
    cat >"$WORK/v$1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: reviews, version: $1.0.0}
datasets:
  - {name: reviews, path: data}
END
    pack_and_push "$WORK/v$1" "$repository:v$1"
}
# The files of both versions have the same names and sizes.
make 1 good
make 2 fair
for name in train.parquet train.jsonl; do
    assert_equal "$(stat --format %s "$WORK/v1/data/$name")" "$(stat --format %s "$WORK/v2/data/$name")" "size of $name in both versions"
done

labels() { "$PYTHON" "$HERE/labels.py" "$1" "$WORK/mnt"; }
# The result of `map` for a version: the sum of 0 to 19,999, and the first letter of the label for each row.
sum_of() { echo $((19999 * 20000 / 2 + 20000 * $(printf '%d' "'$1"))); }
all() { # LABEL: each way of loading shows this version
    local way
    for way in parquet json streaming disk; do
        assert_equal "$(labels "$way")" "$1=20000 $(sum_of "$1")" "$way"
    done
}

show kitfs mount "$repository:v1" "$WORK/mnt"
all good
say "again: the cache of \`datasets\` is used, which names its entries by path and modification time"
entries() { find "$HF_HOME/datasets" -name '*.arrow' | wc -l; }
before=$(entries)
assert_equal "$(labels parquet)" "good=20000 $(sum_of good)" "parquet"
assert_equal "$(entries)" "$before" "files in that cache"

say "\`map\` after \`load_from_disk\` writes beside the Arrow files, unless it is told not to"
assert_fails_with "Read-only file system" labels disk-beside
assert_equal "$(labels disk-named)" "good=20000 $(sum_of good)" "a result with a given name"

say "version 2 takes the place of version 1: no stale cache"
show kitfs mount --replace "$repository:v2" "$WORK/mnt"
all fair
say "but a given name is trusted: the result of version 1 is taken for version 2"
assert_equal "$(labels disk-named)" "fair=20000 $(sum_of good)" "a result with a given name"

say "back to version 1: its date is the one of before, so its cache entries are used again"
before=$(entries)
show kitfs mount --replace "$repository:v1" "$WORK/mnt"
for way in parquet disk; do
    assert_equal "$(labels "$way")" "good=20000 $(sum_of good)" "$way"
done
assert_equal "$(entries)" "$before" "files in that cache"

say "with a writable view \`map\` keeps its result beside the Arrow files, in the upper folder"
kitfs umount "$WORK/mnt"
show kitfs mount --overlay="$WORK/upper" "$repository:v1" "$WORK/view"
view() { "$PYTHON" "$HERE/labels.py" disk-beside "$WORK/view"; }
assert_equal "$(view)" "good=20000 $(sum_of good)" "disk-beside"
results() { find "$WORK/upper" -name 'cache-*.arrow' -printf '%i\n'; }
first=$(results)
assert_equal "$(wc -w <<<"$first")" 1 "results in the upper folder"
assert_equal "$(view)" "good=20000 $(sum_of good)" "again"
[ "$(results)" = "$first" ] || fail "the result was computed again"
kitfs umount "$WORK/view"
