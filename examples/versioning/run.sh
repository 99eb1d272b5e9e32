#!/usr/bin/env bash
# Git for the code, a kit for data and model: checkout, bisect over versions, and a comment for a review.
# seconds: 30
. "$(dirname "$0")/../lib.sh"

common need_package git git || leave_out "git is missing"
versions=12
# Any version but the first may be the bad one.
first_bad=$((RANDOM % (versions - 1) + 2))

start_registry
repository=$REGISTRY/team/classifier
# The example uses no configuration of the user.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=Ada GIT_AUTHOR_EMAIL=ada@example.com GIT_COMMITTER_NAME=Ada GIT_COMMITTER_EMAIL=ada@example.com
git init -q -b main work
cp "$HERE"/project/* work
echo kit >work/.gitignore

commits=()
for version in $(seq "$versions"); do
    python3 "$HERE/make_kit.py" "kits/$version" "$version" "$first_bad"
    pack_and_push "kits/$version" "$repository:v$version" >>"$WORK/pushes"
    echo "$repository@$(tail -n 1 "$WORK/push.log")" >work/kit.ref
    # Code changes between versions, too.
    echo "Version $version" >work/NOTES
    git -C work add .
    git -C work commit -q -m "kit: version $version"
    commits[version]=$(git -C work rev-parse HEAD)
done
rm -r kits
cd work

say "a commit names its kit by digest: a checkout has code, data and model that belong together"
show git log --oneline -3 --format=%s
show cat kit.ref
show cat check.sh
digest=$(sed 's/.*@//' kit.ref)
before=$(sent_bytes)
show git checkout -q main~11
show kitfs run "$(cat kit.ref)" kit -- python3 evaluate.py kit
[ "$(sed 's/.*@//' kit.ref)" != "$digest" ] || fail "the checkout has the kit of main"

say "a tag moves, the commit stays with its kit"
show git checkout -q main
kitfs tag --force "$repository:v1" "$repository:v$versions" >/dev/null
show kitfs run "$(cat kit.ref)" kit -- python3 evaluate.py kit
assert_equal "$(kitfs run "$(cat kit.ref)" kit -- sed -n 's/^  version: //p' kit/Kitfile)" \
    "1.$versions.0" "the version in the kit of main"

say "the accuracy fell: which commit is to blame?"
show git bisect start main main~11
show git bisect run ./check.sh
found=$(git rev-parse refs/bisect/bad)
show git bisect reset
assert_equal "$(git show -s --format=%s "$found")" "$(git show -s --format=%s "${commits[first_bad]}")" "bisect found"
# The evaluation reads neither the vocabulary nor other versions.
assert_at_most $(($(sent_bytes) - before)) 1000000 "bytes of $((versions * 8)) MiB that the registry sent"
echo "$repository:v99" >kit.ref
status=0
./check.sh 2>"$WORK/check.log" || status=$?
git checkout -q kit.ref
assert_equal "$status" 125 "exit code of check.sh for a kit that is not there (bisect skips the commit)"
assert_equal "$(kitfs status --json | grep -c mountpoint || true)" 0 "mounts that are left"

say "the comment that a CI job would have written into the review"
show ./review-comment.sh "$found~1" "$found" | tee "$WORK/comment"
grep -q "changed.*model/weights.json" "$WORK/comment" || fail "the comment does not name the weights"
! grep -q "changed.*words.bin" "$WORK/comment" || fail "the comment names the vocabulary, which is the same"
assert_equal "$(./review-comment.sh "$found" "$found")" "" "no change of the kit, no comment"
