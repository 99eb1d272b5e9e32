#!/usr/bin/env bash
# Runs the examples: examples/*/run.sh, examples/python/*/run.sh and examples/recipes/*/run.sh. Each one checks its own
# outcome.
#
#   scripts/examples.sh [--quick] [--list] [NAME…]     such as `serving` or `recipes/duckdb`
#
#   --quick   only examples that declare less than two minutes
#   --list    prints the names and the declared seconds
#
# Prints a line for each example, and the output of those that fail. The first run downloads Python packages;
# KITFS_EXAMPLES_CACHE names the folder that keeps them. KITFS names the binary, else the newest build of this
# folder is taken.
set -euo pipefail

cd "$(dirname "$0")/.."
. scripts/common.sh

quick_seconds=120
quick= list= names=()
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=1 ;;
    --list) list=1 ;;
    -h | --help)
        sed -n '2,12s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    -*) fail "$1: unknown option; see scripts/examples.sh --help" ;;
    *)
        name=${1#examples/}
        name=${name%/}
        [ -e "examples/$name/run.sh" ] || fail "there is no examples/$name/run.sh; --list prints the names"
        names+=("$name")
        ;;
    esac
    shift
done
if [ "${#names[@]}" -eq 0 ]; then
    for script in examples/*/run.sh examples/python/*/run.sh examples/recipes/*/run.sh; do
        [ -e "$script" ] || continue
        name=${script#examples/}
        names+=("${name%/run.sh}")
    done
fi

logs=$(mktemp -d)
running=
# A signal ends the example that runs, and waits until its supervisor has cleaned up.
stop() {
    trap '' INT TERM HUP
    if [ -n "$running" ]; then
        kill -TERM "$running" 2>/dev/null || true
        wait "$running" || true
    fi
    exit "$1"
}
trap 'rm -rf "$logs"' EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

passed=0 failed=0 left_out=()
for name in "${names[@]}"; do
    script=examples/$name/run.sh
    declared=$(sed -n 's/^# seconds: \([0-9]*\)$/\1/p' "$script")
    [ -n "$declared" ] || fail "$script does not declare its time (\`# seconds: N\`)"
    [ -z "$quick" ] || [ "$declared" -lt "$quick_seconds" ] || continue
    if [ -n "$list" ]; then
        printf '%-28s %4s s\n' "$name" "$declared"
        continue
    fi
    log=$logs/${name//\//-}
    started=$SECONDS status=0
    # Ten times as long: machines are loaded. Ten minutes more: packages are downloaded and built.
    timeout --kill-after=60 $((declared * 10 + 600)) "$script" >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running" || status=$?
    running=
    case $status in
    0)
        passed=$((passed + 1)) word=PASS
        ;;
    77)
        word=LEFT
        left_out+=("$name: $(sed -n 's/^left out: //p' "$log" | tail -n1)")
        ;;
    *)
        failed=$((failed + 1)) word=FAIL
        ;;
    esac
    printf '%s %-28s %4s s\n' "$word" "$name" $((SECONDS - started))
    if [ "$word" = FAIL ]; then
        printf '  (exit code %s)\n' "$status"
        tail -n 60 "$log" | sed 's/^/  | /'
    fi
done
[ -z "$list" ] || exit 0
if [ "${#left_out[@]}" -gt 0 ]; then
    say "LEFT OUT"
    printf '  %s\n' "${left_out[@]}"
fi
printf '%s examples passed, %s failed, %s left out\n' "$passed" "$failed" "${#left_out[@]}"
[ "$failed" -eq 0 ]
