#!/usr/bin/env bash
# A training platform: 200 users edit one data set, each in a view of their own, with a limit of space and an audit.
# seconds: 130
. "$(dirname "$0")/../lib.sh"

[ "$(id -u)" -eq 0 ] || leave_out "a platform's hooks need root"
common need_package setpriv util-linux || leave_out "setpriv is missing"

users=200
first=20001
last=$((first + users - 1))
files=6000
export PLATFORM=$WORK/platform QUOTA_MIB=8
hooks=$PLATFORM/hooks

start_registry
export DATASET=$REGISTRY/team/photos:v1
mkdir -p kit/photos "$hooks"
cp "$HERE"/{quota,spawn,stop,audit}.sh "$hooks"
python3 "$HERE/make_data.py" kit/photos "$files"
cat >kit/Kitfile <<'KITFILE'
manifestVersion: 1.0.0
package: {name: photos, version: 1.0.0}
datasets:
  - {name: photos, path: photos}
KITFILE
pack_and_push kit "$DATASET"
kit_bytes=$(find registry -path '*/blobs/*/data' -printf '%s\n' | awk '{ sum += $1 } END { print sum }')

# as USER COMMAND…: runs a command in the view of a user.
as() {
    local user=$1
    shift
    (cd "$PLATFORM/homes/$user" && exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@")
}
# Microseconds.
now() { echo "${EPOCHREALTIME/./}"; }
seconds_since() { awk -v us=$(($(now) - $1)) 'BEGIN { printf "%.1f s\n", us / 1e6 }'; }

say "the platform starts, and makes $users accounts"
show "$hooks/quota.sh" start
started=$(now)
for user in $(seq "$first" "$last"); do "$hooks/quota.sh" add "$user"; done
echo "space for $users users: $(seconds_since "$started")"

say "the spawn hook runs for each user"
before=$(sent_bytes)
started=$(now)
show "$hooks/spawn.sh" "$first"
for user in $(seq $((first + 1)) "$last"); do "$hooks/spawn.sh" "$user" >spawn.log 2>&1 || fail "$(cat spawn.log)"; done
echo "$users views: $(seconds_since "$started")"
largest=$(du -sk "$PLATFORM"/volumes/*/changes | awk '$1 > most { most = $1 } END { print most }')
assert_at_most "$largest" 100 "KiB of the largest folder of changes before the first edit"

say "each user reads a share of the images, and all labels"
started=$(now)
share=$((files / users))
for user in $(seq "$first" "$last"); do
    from=$(((user - first) * share + 2))
    as "$user" sh -c 'cd photos && sed -n "$1,$2s/,.*//p" labels.csv | xargs cat >/dev/null' read "$from" $((from + share - 1))
done
echo "reading: $(seconds_since "$started")"
assert_same_tree kit/photos "$PLATFORM/homes/$last/photos" "the view of the last user"
assert_at_most $(($(sent_bytes) - before)) "$kit_bytes" "bytes that the registry sent to $users users"

say "each user edits the same file"
for user in $(seq "$first" "$last"); do
    as "$user" sh -c 'echo "images/of-$0.raw,$0" >>photos/labels.csv' "$user"
done
right=0
for user in $(seq "$first" "$last"); do
    added=$(as "$user" tail -n +$((files + 2)) photos/labels.csv)
    [ "$added" != "images/of-$user.raw,$user" ] || right=$((right + 1))
done
assert_equal "$right" "$users" "users who see their own line, and no other"

say "a user cannot look into the view or the changes of another"
assert_fails_with "Permission denied" as "$first" ls "$PLATFORM/homes/$last"
assert_fails_with "Permission denied" as "$first" ls "$PLATFORM/volumes/$last"

say "one user fills the limit; the others go on"
greedy=$((first + 1))
assert_fails_with "No space left on device" as "$greedy" dd if=/dev/zero of=photos/big bs=1M count=$((2 * QUOTA_MIB))
assert_at_most "$(du -sk "$PLATFORM/volumes/$greedy/changes" | cut -f1)" $((QUOTA_MIB * 1024)) "KiB of changes of user $greedy"
as "$greedy" cat photos/images/7/00007.raw | cmp - kit/photos/images/7/00007.raw || fail "user $greedy cannot read"
echo "ok: user $greedy reads images"
written=0
for user in $(seq "$first" "$last"); do
    [ "$user" -ne "$greedy" ] || continue
    as "$user" sh -c 'head -c 65536 /dev/zero >photos/notes && rm photos/notes' && written=$((written + 1))
done
assert_equal "$written" $((users - 1)) "other users who can write"
as "$greedy" rm photos/big
as "$greedy" sh -c 'head -c 1000000 /dev/zero >photos/small'
echo "ok: user $greedy has removed the file, and can write again"

say "the audit: who changed what"
as "$first" sh -c 'cd photos/images && rm 3/00003.raw && mv 4/00004.raw 4/cat.raw && echo new >5/00005.raw && chmod 600 6/00006.raw'
"$hooks/audit.sh" >audit.txt
grep -E "^($first|$greedy|$last) " audit.txt
assert_equal "$(grep -c 'C  *photos/labels.csv$' audit.txt)" "$users" "users who changed the labels"
assert_equal "$(grep -vc 'photos/labels.csv$' audit.txt)" 5 "other changes"

say "a session ends and starts again: the changes are there, in the user's view only"
show "$hooks/stop.sh" "$first"
"$hooks/spawn.sh" "$first"
assert_equal "$(as "$first" cat photos/images/5/00005.raw)" new "the image that user $first changed"
"$hooks/audit.sh" "$first" | cmp - <(grep "^$first " audit.txt) || fail "the audit of user $first is another one"
echo "ok: the audit of user $first is the same"

say "user $first takes one change back"
"$hooks/stop.sh" "$first" >/dev/null
"$hooks/quota.sh" add "$first"
show kitfs overlay reset "$PLATFORM/volumes/$first/changes" photos/images/5/00005.raw
"$hooks/spawn.sh" "$first" >/dev/null
as "$first" cat photos/images/5/00005.raw | cmp - kit/photos/images/5/00005.raw || fail "the image has not come back"
echo "ok: the image of the kit is there again"
assert_at_most $(($(sent_bytes) - before)) "$kit_bytes" "bytes that the registry sent in all"

say "disk of a user with these edits, and the platform's end"
du -sk "$PLATFORM"/volumes/*/changes | awk '{ sum += $1 } END { printf "changes: %d KiB for each user\n", sum / NR }'
images=$(find "$PLATFORM" -name '*.ext4' -exec du -k {} +)
[ -z "$images" ] || awk '{ sum += $1 } END { printf "volumes: %d KiB for each user\n", sum / NR }' <<<"$images"
for user in $(seq "$first" "$last"); do "$hooks/stop.sh" "$user" >/dev/null; done
"$hooks/quota.sh" stop
assert_equal "$(grep -c " $WORK/" /proc/self/mountinfo || true)" 0 "mounts that are left"
