#!/usr/bin/env bash
# nginx serves a mount: ETags tell versions apart, ranges and conditional requests work, `--replace` needs no reload.
# seconds: 15
. "$(dirname "$0")/../../lib.sh"

common need_package nginx nginx-light || leave_out "nginx is missing"
common need_package curl curl || leave_out "curl is missing"
PATH=$PATH:/usr/sbin
start_registry
repository=$REGISTRY/team/model

# Both versions have files of the same size, and kit writes the same date (1970) into each archive.
for version in 1 2; do
    mkdir -p "$WORK/v$version/model"
    filled 3000000 "weights of version $version" >"$WORK/v$version/model/weights.bin"
    printf 'the same in both\n' >"$WORK/v$version/README.md"
    cat >"$WORK/v$version/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: model, version: $version.0.0}
model: {name: model, path: model}
docs:
  - {path: README.md}
END
    pack_and_push "$WORK/v$version" "$repository:v$version"
done

say "nginx serves the mount; its workers are other users, so the mount needs --allow-other if root mounts"
others=()
[ "$(id -u)" -ne 0 ] || others=(--allow-other)
show kitfs mount "${others[@]}" "$repository:v1" "$WORK/mnt"
# Another process may take the port between the choice and the start.
port=$(free_port)
sed "s|PORT|$port|; s|ROOT|$WORK/mnt|" "$HERE/nginx.conf" >"$WORK/nginx.conf"
nginx -p "$WORK" -c "$WORK/nginx.conf" -e "$WORK/nginx-error.log"
wait_for 30 answers "$port"
url=http://127.0.0.1:$port

# fetch NAME PATH [OPTION…]: writes the body to $WORK/NAME; prints the status.
fetch() {
    curl -sS --max-time 60 -o "$WORK/$1" -D "$WORK/$1.headers" -w '%{http_code}\n' "${@:3}" "$url/$2"
}
header() { sed -n "s/^$2: \(.*\)\r\$/\1/Ip" "$WORK/$1.headers"; }
same() { cmp "$1" "$2" >&2 && echo same; }

assert_equal "$(fetch first model/weights.bin)" 200 "version 1"
assert_equal "$(same "$WORK/first" "$WORK/v1/model/weights.bin")" same "its bytes"
etag=$(header first ETag)
modified=$(header first Last-Modified)
fetch readme README.md >"$WORK/status"
readme_etag=$(header readme ETag)
assert_equal "$(fetch again model/weights.bin -H "If-None-Match: $etag")" 304 "the same ETag again"
assert_equal "$(fetch again model/weights.bin -H "If-Modified-Since: $modified")" 304 "the same date again"
assert_equal "$(fetch part model/weights.bin -H "Range: bytes=1000000-1999999")" 206 "a range"
dd if="$WORK/v1/model/weights.bin" of="$WORK/part.expected" bs=1000000 skip=1 count=1 status=none
assert_equal "$(same "$WORK/part" "$WORK/part.expected")" same "its bytes"
assert_equal "$(fetch ranges model/weights.bin -H "Range: bytes=0-9,2999990-")" 206 "two ranges"
assert_equal "$(fetch beyond model/weights.bin -H "Range: bytes=3000000-")" 416 "a range beyond the end"

say "version 2 takes the place of version 1; nginx is not told"
show kitfs mount --replace "${others[@]}" "$repository:v2" "$WORK/mnt"
assert_equal "$(fetch second model/weights.bin -H "If-None-Match: $etag")" 200 "the old ETag"
assert_equal "$(same "$WORK/second" "$WORK/v2/model/weights.bin")" same "the bytes of version 2"
assert_equal "$(fetch second model/weights.bin -H "If-Modified-Since: $modified")" 200 "the old date"
# A download that began in version 1 must not go on with the bytes of version 2.
assert_equal "$(fetch whole model/weights.bin -H "Range: bytes=1000000-" -H "If-Range: $etag")" 200 "If-Range with the old ETag"
assert_equal "$(fetch part model/weights.bin -H "Range: bytes=1000000-1999999" -H "If-Range: $(header second ETag)")" 206 "If-Range with the new ETag"
assert_equal "$(fetch readme README.md -H "If-None-Match: $readme_etag")" 304 "a file of a layer that both versions share"

say "back to version 1: clients that still have it need not download it again"
show kitfs mount --replace "${others[@]}" "$repository:v1" "$WORK/mnt"
assert_equal "$(fetch again model/weights.bin -H "If-None-Match: $etag")" 304 "the ETag of version 1"
