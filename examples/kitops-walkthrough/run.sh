#!/usr/bin/env bash
# The quick start of KitOps with kitfs: pack, push, list, info, a mount in place of unpack, a second version from
# a writable view, both versions side by side, and a roll-back by digest.
# seconds: 40
. "$(dirname "$0")/../lib.sh"

need_python "$EXAMPLES/recipes/llama-cpp/requirements.txt"
start_registry
kit=$REGISTRY/team/quick-start
question="What is a kit?"
cp -r "$HERE/project" project
mkdir project/model
"$PYTHON" "$EXAMPLES/recipes/llama-cpp/make_gguf.py" project/model/tiny.gguf 1

# Runs prompt.py of a folder.
ask() { "$PYTHON" "$1/prompt.py" "$question" 2>"$WORK/llama.log" || fail "llama.cpp: $(tail -n 3 "$WORK/llama.log")"; }
# All bytes of blobs that the registry has sent, and all that it keeps.
kept_bytes() { find "$WORK/registry" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }'; }
moved_bytes() { echo $(($(sent_bytes) + $(kept_bytes))); }

say "pack and push, as with kit"
show kitfs pack project -t "$kit:v1"
show kitfs push "$kit:v1"
show kitfs list "$kit"
show kitfs info "$kit:v1"

say "a mount in place of kit unpack: llama.cpp maps the weights from it"
before=$(sent_bytes)
show kitfs mount "$kit:v1" v1
first=$(ask v1)
echo "prompt.py: $first"
assert_equal "$(ask project)" "$first" "the answer from the folder that was packed"
weights=$(stat --format %s project/model/tiny.gguf)
assert_at_most $(($(sent_bytes) - before)) $((weights + weights / 100)) "bytes that came for weights of $weights"

# Another machine has neither the cache nor the packed kit of this one.
on_laptop() {
    KITFS_CACHE_DIR=$WORK/laptop/cache KITFS_RUNTIME_DIR=$WORK/laptop/run KITOPS_HOME=$WORK/laptop/kitops "$@"
}
say "on another machine: a second version, from a writable view of the first"
before=$(moved_bytes)
on_laptop show kitfs mount --overlay=changes "$kit:v1" edit
show sed -i 's/^TEMPLATE = .*/TEMPLATE = "Question: {} Answer:"/' edit/prompt.py
show sed -i 's/version: 1.0.0/version: 2.0.0/' edit/Kitfile
status=0
on_laptop show kitfs overlay diff edit || status=$?
assert_equal "$status" 1 "exit code: there are changes"
on_laptop show kitfs pack edit -t "$kit:v2"
on_laptop show kitfs push "$kit:v2"
on_laptop kitfs umount edit
on_laptop kitfs daemon stop >/dev/null
assert_at_most $(($(moved_bytes) - before)) 65536 "bytes to and from the registry for version 2"

say "both versions side by side; the second mount has the weights of the first"
before=$(sent_bytes)
show kitfs mount "$kit:v2" v2
second=$(ask v2)
echo "v1/prompt.py: $(ask v1)"
echo "v2/prompt.py: $second"
assert_at_most $(($(sent_bytes) - before)) 65536 "bytes that came for version 2"
show kitfs cp -r "$kit:v2" unpacked
assert_equal "$(ask unpacked)" "$second" "the answer from an unpacked copy of version 2"
[ "$first" != "$second" ] || fail "both versions answer alike"
status=0
show kitfs diff "$kit:v1" "$kit:v2" || status=$?
assert_equal "$status" 1 "exit code, as of diff"

say "a tag for production moves to version 2, then back: by the digest, which nobody can move"
digest=$(digest_of v1)
show kitfs tag "$kit:v2" "$kit:production"
show kitfs mount "$kit:production" live
assert_equal "$(ask live)" "$second" "the answer of production"
before=$(sent_bytes)
show kitfs mount --replace "$kit@$digest" live
show kitfs tag --force "$kit@$digest" "$kit:production"
assert_equal "$(ask live)" "$first" "the answer after the roll-back"
assert_at_most $(($(sent_bytes) - before)) 65536 "bytes that came for the roll-back"
show kitfs list "$kit"
