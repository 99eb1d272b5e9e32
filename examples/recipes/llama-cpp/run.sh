#!/usr/bin/env bash
# llama.cpp loads a GGUF file from a mount: by mmap, by read and by O_DIRECT, with the answers of an unpacked copy.
# seconds: 60
. "$(dirname "$0")/../../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
repository=$REGISTRY/team/tiny
for version in 1 2; do
    mkdir -p "$WORK/v$version/model"
    cat >"$WORK/v$version/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: tiny, version: $version.0.0}
model: {name: tiny, path: model, framework: llama.cpp, format: gguf}
END
    "$PYTHON" "$HERE/make_gguf.py" "$WORK/v$version/model/tiny.gguf" "$version"
    pack_and_push "$WORK/v$version" "$repository:v$version"
done
size=$(stat --format %s "$WORK/v1/model/tiny.gguf")

# complete MODE FILE: the first line says whether the file is mapped.
complete() {
    "$PYTHON" "$HERE/answer.py" "$1" "$2" "What is a kit?" "Once upon a time" 2>"$WORK/llama.log" ||
        fail "llama.cpp: $(tail -n 3 "$WORK/llama.log")"
}
same() { [ "$(tail -n 1 "$1")" = "$(tail -n 1 "$2")" ] && echo same; }

complete mmap "$WORK/v1/model/tiny.gguf" >"$WORK/v1.answers"
complete mmap "$WORK/v2/model/tiny.gguf" >"$WORK/v2.answers"
[ "$(same "$WORK/v1.answers" "$WORK/v2.answers")" = "" ] || fail "both versions answer alike"

say "mmap, which is llama.cpp's default, from a mount that has no bytes yet ($size bytes)"
show kitfs mount --hydrate none "$repository:v1" "$WORK/mnt"
before=$(sent_bytes)
complete mmap "$WORK/mnt/model/tiny.gguf" >"$WORK/answers"
assert_equal "$(head -n 1 "$WORK/answers")" mapped "the model file"
assert_equal "$(same "$WORK/answers" "$WORK/v1.answers")" same "answers and probabilities, against the copy"
assert_at_most $(($(sent_bytes) - before)) $((size * 11 / 10)) "bytes that came: each once"

say "the other ways of loading, once the file is complete and the kernel may read it by itself"
for mode in none direct_io; do
    complete "$mode" "$WORK/mnt/model/tiny.gguf" >"$WORK/answers"
    assert_equal "$(same "$WORK/answers" "$WORK/v1.answers")" same "answers with load mode $mode"
done
assert_at_most $(($(sent_bytes) - before)) $((size * 11 / 10)) "bytes that came in all"

say "the same ways from a mount that has no bytes"
kitfs umount "$WORK/mnt"
for mode in none direct_io; do
    kitfs cache clear >/dev/null
    kitfs mount --hydrate none "$repository:v1" "$WORK/mnt" >/dev/null
    complete "$mode" "$WORK/mnt/model/tiny.gguf" >"$WORK/answers"
    assert_equal "$(same "$WORK/answers" "$WORK/v1.answers")" same "answers with load mode $mode"
    kitfs umount "$WORK/mnt"
done

say "version 2 takes the place of version 1"
kitfs mount "$repository:v1" "$WORK/mnt" >/dev/null
show kitfs mount --replace "$repository:v2" "$WORK/mnt"
complete mmap "$WORK/mnt/model/tiny.gguf" >"$WORK/answers"
assert_equal "$(same "$WORK/answers" "$WORK/v2.answers")" same "answers of version 2"
