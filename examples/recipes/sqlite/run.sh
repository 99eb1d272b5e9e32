#!/usr/bin/env bash
# SQLite reads a database of a mount: `immutable=1` lets it open the read-only file, and an index saves most bytes.
# seconds: 15
. "$(dirname "$0")/../../lib.sh"

common need_package python3 python3 || leave_out "python3 is missing"
start_registry
repository=$REGISTRY/team/catalogue

make() { # VERSION NAME
    mkdir -p "$WORK/v$1/data"
    cat >"$WORK/v$1/Kitfile" <<END
manifestVersion: 1.0.0
package: {name: catalogue, version: $1.0.0}
datasets:
  - {name: catalogue, path: data}
END
    python3 "$HERE/make_database.py" "$WORK/v$1/data/catalogue.db" "$2"
    pack_and_push "$WORK/v$1" "$repository:v$1"
}
make 1 ada
make 2 eve
size=$(stat --format %s "$WORK/v1/data/catalogue.db")

show kitfs mount --hydrate none "$repository:v1" "$WORK/mnt"
ask() { python3 "$HERE/ask.py" "$1" "$2"; }
database="file:$WORK/mnt/data/catalogue.db"

say "a row by its key, of a database of $size bytes"
before=$(sent_bytes)
assert_equal "$(ask "$database?immutable=1" "SELECT name FROM item WHERE id = 123456")" "ada 123456" "the row"
assert_at_most $(($(sent_bytes) - before)) $((4 * 1024 * 1024)) "bytes that came for it"
assert_equal "$(ask "$database?immutable=1" "SELECT count(*), sum(id) FROM item")" "300000 45000150000" "all rows"
assert_equal "$(ask "$database?immutable=1" "PRAGMA integrity_check")" ok "SQLite's own check"

say "without immutable=1 a database in WAL mode cannot be opened: SQLite wants to write beside it"
assert_fails_with "unable to open database file" ask "$database?mode=ro" "SELECT 1 FROM item LIMIT 1"
say "nothing can be written"
assert_fails_with "readonly database" ask "$database?immutable=1" "DELETE FROM item"

say "a new version: a connection from before stays with its version, a new one has the new rows"
name="SELECT name FROM item WHERE id = 123456"
python3 "$HERE/ask.py" "$database?immutable=1" "$name" "$WORK/replaced" >"$WORK/held" &
held=$!
wait_for 60 grep -q ada "$WORK/held"
show kitfs mount --replace --hydrate none "$repository:v2" "$WORK/mnt"
assert_equal "$(ask "$database?immutable=1" "$name")" "eve 123456" "the row, asked by a new connection"
touch "$WORK/replaced"
wait "$held"
assert_equal "$(tail -n 1 "$WORK/held")" "ada 123456" "the row, asked by the old connection"
