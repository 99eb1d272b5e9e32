#!/usr/bin/env bash
# Changes kitfs here and there, and looks whether a test notices (cargo-mutants). A change that no test notices is a
# missing test: docs/mutants.md has the shares so far.
#
#   scripts/mutants.sh [-n COUNT] [-s SEED] [ROOM]…    a sample of COUNT changes (24) of rooms (fetch cache source
#                                                      layer kit fs daemon/hydrate)
#
# One copy of the sources and one target folder: a change costs one incremental build of the library and of the test
# binaries that belong to its room. The same seed gives the same sample of the same sources.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh
need_build_tools

count=24
seed=1
while getopts n:s: option; do
    case $option in
    n) count=$OPTARG ;;
    s) seed=$OPTARG ;;
    *) fail "usage: scripts/mutants.sh [-n COUNT] [-s SEED] [ROOM]…" ;;
    esac
done
shift $((OPTIND - 1))
rooms=("$@")
[ ${#rooms[@]} -gt 0 ] || rooms=(fetch cache source layer kit fs daemon/hydrate)

# The test binaries that belong to a room, and the tests of the library below the room.
binaries_of() { # ROOM
    case $1 in
    fetch) echo "fetch" ;;
    cache) echo "cache fetch" ;;
    source) echo "source_conformance registry" ;;
    layer) echo "tar_tools fuzz_targets" ;;
    kit) echo "reference_model packing" ;;
    fs) echo "reference_model tensors" ;;
    daemon/hydrate) echo "" ;;
    *) fail "no test binaries are known for the room $1" ;;
    esac
}

command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants

# A line of a list is `src/ROOM/FILE.rs:LINE:COLUMN: CHANGE`. Formatting and tests are no use.
listed() {
    local room
    for room in "${rooms[@]}"; do
        cargo mutants --list --in-place --file "src/$room/**/*.rs" --exclude '**/tests*' \
            --exclude-re 'impl (fmt::)?(Debug|Display)' | sed "s|^|$room\t|"
    done
}
# Each line gets the place that its text and the seed give it.
sample=$(listed | while IFS= read -r line; do
    printf '%s\t%s\n' "$(printf '%s %s' "$seed" "$line" | sha256sum | cut -c1-16)" "$line"
done | sort | sed -n "1,${count}p" | cut -f2-)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$scratch"
missed=0 caught=0 unviable=0 timeouts=0
report=$scratch/report
while IFS=$'\t' read -r room mutant; do
    binaries=()
    for binary in $(binaries_of "$room"); do binaries+=(--test "$binary"); done
    # A `(` or `[` in the name of a change is meant as it is.
    name=$(printf '%s' "$mutant" | sed 's/[][().*+?^$|{}\\]/\\&/g')
    outcome=0
    (
        cd "$scratch"
        CARGO_TARGET_DIR="$scratch/target" nice -n 15 cargo mutants --in-place --baseline skip --timeout 300 \
            --no-shuffle --output "$scratch" --re "^$name\$" -- --locked --lib "${binaries[@]}" >"$report" 2>&1
    ) || outcome=$?
    # The exit codes of cargo-mutants: 2 not noticed, 3 timed out, 4 the tests fail without a change.
    case $outcome in
    2) missed=$((missed + 1)) && echo "MISSED   $mutant" ;;
    3) timeouts=$((timeouts + 1)) && echo "timeout  $mutant" ;;
    0)
        if grep -q "1 unviable" "$report"; then
            unviable=$((unviable + 1)) && echo "unviable $mutant"
        else
            caught=$((caught + 1)) && echo "caught   $mutant"
        fi
        ;;
    *) cat "$report" >&2 && fail "cargo-mutants failed ($outcome)" ;;
    esac
done <<<"$sample"

viable=$((caught + missed + timeouts))
say "$missed of $viable viable changes were not noticed ($timeouts timed out, $unviable did not compile), seed $seed"
[ "$missed" -eq 0 ]
