#!/usr/bin/env bash
# One model, five versions of a data set: each comes from a writable view of the one before, and is trained on from a mount.
# seconds: 40
. "$(dirname "$0")/../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
kit=$REGISTRY/team/patterns

# The machine of the data team has a cache of its own.
on_data_machine() {
    KITFS_CACHE_DIR=$WORK/data/cache KITFS_RUNTIME_DIR=$WORK/data/run KITOPS_HOME=$WORK/data/kitops "$@"
}
kept_bytes() { find "$WORK/registry" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }'; }
# For each version, the bytes that the registry keeps because of it.
kept=()
# next_version N STEP…: changes the data by a step of dataset.py, in a view of the version before.
next_version() {
    local version=$1 before action=$2
    shift 2
    before=$(kept_bytes)
    on_data_machine show kitfs mount --overlay="changes$version" "$kit:v$((version - 1))" "edit$version"
    show python dataset.py "$action" "edit$version" "$@"
    on_data_machine show kitfs pack "edit$version" -t "$kit:v$version"
    on_data_machine show kitfs push "$kit:v$version"
    on_data_machine kitfs umount "edit$version"
    kept[version]=$(($(kept_bytes) - before))
}
python() { "$PYTHON" "$HERE/$1" "${@:2}"; }

say "the first version: two classes are missing, and labels are wrong"
show python dataset.py make first
before=$(kept_bytes)
on_data_machine pack_and_push first "$kit:v1"
kept[1]=$(($(kept_bytes) - before))

say "each correction is a version"
next_version 2 relabel part1 3
next_version 3 relabel part1 0
next_version 4 add
next_version 5 relabel part2 8
on_data_machine kitfs daemon stop >/dev/null

say "the same model on each version, from the mount, on a machine with an empty cache"
printf '%-8s %-9s %12s %12s %12s\n' version accuracy size fetched kept >table
last=0 fetched=() total=0
for version in 1 2 3 4 5; do
    before=$(sent_bytes)
    kitfs mount "$kit:v$version" "v$version" >/dev/null
    accuracy=$(python train.py "v$version")
    fetched[version]=$(($(sent_bytes) - before))
    size=$(find "v$version" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
    total=$((total + size))
    printf '%-8s %-9s %12s %12s %12s\n' "v$version" "$accuracy" "$size" "${fetched[version]}" "${kept[version]}" >>table
    awk -v now="$accuracy" -v last="$last" 'BEGIN { exit !(now > last) }' || fail "v$version is no better: $accuracy, before $last"
    last=$accuracy
done

say "what changed between the versions"
for version in 2 3 4 5; do
    status=0
    show kitfs diff "v$((version - 1))" "v$version" || status=$?
    assert_equal "$status" 1 "exit code, as of diff"
done

say "accuracy, and bytes: of the version, from the registry for it, kept by the registry for it"
cat table
part2=$(stat --format %s v5/images/part2/images.npy)
# Labels are some KiB, and each version has a manifest and a config.
for version in 2 3 5; do
    assert_at_most "${fetched[version]}" 100000 "bytes fetched for v$version, which has the images of v$((version - 1))"
    assert_at_most "${kept[version]}" 100000 "bytes kept for v$version"
done
assert_at_most "${fetched[4]}" $((part2 + 100000)) "bytes fetched for v4, which adds $part2 bytes of images"
sum=$((fetched[1] + fetched[2] + fetched[3] + fetched[4] + fetched[5]))
assert_at_most "$sum" $((size + 500000)) "bytes fetched for all five, where copies would have $total"
