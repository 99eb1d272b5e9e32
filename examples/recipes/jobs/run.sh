#!/usr/bin/env bash
# Mounts that end with a job (`kitfs run`, `--while-pid`) and mounts that follow a tag (`--follow`).
# seconds: 20
. "$(dirname "$0")/../../lib.sh"

start_registry
repository=$REGISTRY/team/prices
for version in 1 2; do
    mkdir -p "$WORK/v$version/data"
    echo "prices of version $version" >"$WORK/v$version/data/prices.txt"
    cat >"$WORK/v$version/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: prices, version: $version.0.0}
datasets:
  - {name: prices, path: data}
END
    pack_and_push "$WORK/v$version" "$repository:v$version"
done
mounts() { grep -c " $WORK/" /proc/self/mountinfo || true; }
is_unmounted() { [ "$(mounts)" -eq 0 ]; }

say "a job: the mount ends with the command, and the exit code is the command's"
show kitfs run "$repository:v1" -- sh -c 'cat "$KITFS_MOUNT/data/prices.txt"'
status=0
kitfs run "$repository:v1" -- sh -c 'exit 7' || status=$?
assert_equal "$status" 7 "exit code of a job that fails"
assert_equal "$(kitfs status --json)" "[]" "mounts after the jobs"

say "two kits for one job"
show kitfs run --kit "$repository:v1:$WORK/old" --kit "$repository:v2:$WORK/new" -- \
    sh -c "! diff $WORK/old/data/prices.txt $WORK/new/data/prices.txt"
assert_equal "$(mounts)" 0 "mounts after the job"

say "a job that is killed leaves no mount, nor does a killed kitfs"
for victim in job kitfs; do
    kitfs run "$repository:v1" "$WORK/job" -- sh -c "echo \$\$ >$WORK/job.pid; exec sleep 600" &
    kitfs_run=$!
    wait_for 30 test -s "$WORK/job.pid"
    case $victim in
    job) kill -9 "$(cat "$WORK/job.pid")" ;;
    kitfs) kill -9 "$kitfs_run" ;;
    esac
    wait_for 30 is_unmounted
    wait "$kitfs_run" 2>/dev/null || true
    assert_equal "$(mounts)" 0 "mounts after kill -9 of the $victim"
    rm "$WORK/job.pid"
done

say "a mount that ends with a process that was there before, such as the shell of a CI job"
sleep 600 &
shell=$!
show kitfs mount --while-pid "$shell" "$repository:v1" "$WORK/mnt"
assert_equal "$(cat "$WORK/mnt/data/prices.txt")" "prices of version 1" "the mount"
kill -9 "$shell"
wait "$shell" 2>/dev/null || true
wait_for 30 is_unmounted
assert_equal "$(mounts)" 0 "mounts after kill -9 of the process"

say "a server that follows a tag: a new version arrives without a command on this machine"
show kitfs tag "$repository:v1" "$repository:stable"
show kitfs mount --follow=1s "$repository:stable" "$WORK/mnt"
exec 3<"$WORK/mnt/data/prices.txt"
show kitfs tag --force "$repository:v2" "$repository:stable"
has_version() { grep -q "version $1" "$WORK/mnt/data/prices.txt"; }
wait_for 60 has_version 2
assert_equal "$(cat "$WORK/mnt/data/prices.txt")" "prices of version 2" "a file that is opened now"
assert_equal "$(cat <&3)" "prices of version 1" "a file that was open"
exec 3<&-
show kitfs tag --force "$repository:v1" "$repository:stable"
wait_for 60 has_version 1
assert_equal "$(cat "$WORK/mnt/data/prices.txt")" "prices of version 1" "after the tag was moved back"
