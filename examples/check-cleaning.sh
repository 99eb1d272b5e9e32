#!/usr/bin/env bash
# Checks that supervise.sh leaves nothing behind, however an example ends: success, failure, SIGTERM, kill -9.
# The example of this check mounts a kit, starts a registry, a process that ignores SIGTERM, and a daemon that has
# nothing of its environment.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.sh" <<END
. "$examples/lib.sh"
echo "\$WORK" >"$folder/work"
start_registry
kitfs mount "oci:$(dirname "$examples")/tests/golden/article:v1" "\$WORK/mount" >/dev/null
(trap '' TERM; while :; do sleep 1; done) &
setsid env -i sleep 613 &
echo \$! >"$folder/daemon"
touch "$folder/ready"
case \$(cat "$folder/ending") in
success) exit 0 ;;
failure) exit 3 ;;
left-out) leave_out "a reason" ;;
*) sleep 600 ;;
esac
END

for ending in success failure left-out TERM KILL; do
    rm -f "$folder/ready" "$folder/work"
    echo "$ending" >"$folder/ending"
    "$examples/supervise.sh" "$folder/run.sh" >"$folder/output" 2>&1 &
    supervisor=$! status=0
    for _ in $(seq 600); do
        [ ! -e "$folder/ready" ] || break
        sleep 0.1
    done
    case $ending in TERM | KILL) kill "-$ending" "$supervisor" ;; esac
    wait "$supervisor" 2>/dev/null || status=$?
    case $ending in
    success) expected=0 ;;
    failure) expected=3 ;;
    left-out) expected=77 ;;
    TERM) expected=143 ;;
    KILL) expected=137 ;;
    esac
    if [ "$status" -ne "$expected" ]; then
        echo "error: $ending: exit code $status instead of $expected: $(cat "$folder/output")" >&2
        exit 1
    fi
    work=$(cat "$folder/work")
    # After kill -9 the second process cleans up, so this may take a while.
    for _ in $(seq 300); do
        left=$(
            [ ! -e "$work" ] || echo "the folder $work"
            grep -F " $work/" /proc/self/mountinfo || true
            grep -lsxzF "EXAMPLE_WORK=$work" /proc/[0-9]*/environ || true
            grep -lsxz 613 "/proc/$(cat "$folder/daemon")/cmdline" || true
        )
        [ -n "$left" ] || break
        # Only kill -9 leaves work for later.
        [ "$ending" = KILL ] || break
        sleep 0.1
    done
    if [ -n "$left" ]; then
        printf 'error: after %s this is left:\n%s\n' "$ending" "$left" >&2
        exit 1
    fi
done
