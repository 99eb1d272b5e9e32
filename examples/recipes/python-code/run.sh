#!/usr/bin/env bash
# Python runs code of a mount: byte code is kept elsewhere, and a new version is never run from old byte code.
# seconds: 10
. "$(dirname "$0")/../../lib.sh"

common need_package python3 python3 || leave_out "python3 is missing"
start_registry
repository=$REGISTRY/team/tool
# The modules of both versions have one size, and kit writes one date (1970) into each archive.
for version in 1 2; do
    mkdir -p "$WORK/v$version/code/tool"
    printf 'def answer():\n    return "version %s"\n' "$version" >"$WORK/v$version/code/tool/__init__.py"
    cat >"$WORK/v$version/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: tool, version: $version.0.0}
code:
  - {path: code}
END
    pack_and_push "$WORK/v$version" "$repository:v$version"
done

# The example itself writes no byte code.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$WORK/mnt/code PYTHONPYCACHEPREFIX=$WORK/pycache
answer() { python3 -c 'import tool; print(tool.answer())'; }
byte_code() { find "$PYTHONPYCACHEPREFIX$WORK/mnt" -name '*.pyc' -printf '%i %T@\n'; }

show kitfs mount "$repository:v1" "$WORK/mnt"
assert_equal "$(answer)" "version 1" "the code"
first=$(byte_code)
assert_equal "$(wc -l <<<"$first")" 1 "files of byte code in PYTHONPYCACHEPREFIX"
assert_equal "$(answer)" "version 1" "again"
[ "$(byte_code)" = "$first" ] || fail "the byte code was written again"

say "version 2 takes the place of version 1: its module has another date, so its source is compiled"
show kitfs mount --replace "$repository:v2" "$WORK/mnt"
assert_equal "$(answer)" "version 2" "the code"
show kitfs mount --replace "$repository:v1" "$WORK/mnt"
assert_equal "$(answer)" "version 1" "the code"

say "without PYTHONPYCACHEPREFIX no byte code is kept, because the mount is read-only"
unset PYTHONPYCACHEPREFIX
assert_equal "$(answer)" "version 1" "the code"
