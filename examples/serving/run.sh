#!/usr/bin/env bash
# Two versions of a model behind one server: canary, swap and roll-back under load, with killed workers and a registry
# that is down.
# seconds: 45
. "$(dirname "$0")/../lib.sh"

# Each phase lasts until the load has asked this many more times.
requests_a_phase=600

need_python "$HERE/requirements.txt"
start_registry
repository=$REGISTRY/team/recommender

say "two versions, which share the embeddings and differ in the head"
"$PYTHON" "$HERE/make_model.py" "$WORK/v1" "$WORK/v2"
pack_and_push "$WORK/v1" "$repository:v1"
pack_and_push "$WORK/v2" "$repository:v2"

say "both are mounted; the server maps the weights from the mounts"
mkdir "$WORK/models"
show kitfs mount --hydrate none "$repository:v1" "$WORK/models/stable"
show kitfs mount --hydrate none "$repository:v2" "$WORK/models/canary"
first_digest=$(digest_of "$WORK/models/stable")
port=$(free_port)
"$PYTHON" "$HERE/server.py" "$port" "$WORK/models/stable" "$WORK/models/canary" >"$WORK/server.log" 2>&1 &
wait_for 60 answers "$port"

touch "$WORK/load.log"
"$PYTHON" "$HERE/load.py" "$port" "$WORK/load.log" 7 &
load=$!

mark() { echo "$(date +%s.%N) $*" >>"$WORK/phases"; }
asked() { wc -l <"$WORK/load.log"; }
has_asked() { [ "$(asked)" -ge "$1" ]; }
ask_more() { wait_for 300 has_asked $(($(asked) + $1)); }
# The load goes on for a while in a phase of this name.
phase() {
    mark "$*"
    ask_more "$requests_a_phase"
}
request() { python3 -c 'import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[2], method=sys.argv[1])).read().decode())' "$1" "http://127.0.0.1:$port$2"; }
stable_is() { request GET /versions | grep -q "\"stable\": \"$1\""; }
worker_is_not() { local pid; pid=$(daemon_number worker_pid) && [ -n "$pid" ] && [ "$pid" != "$1" ]; }
kill_worker() {
    worker=$(daemon_number worker_pid)
    kill -9 "$worker"
}

say "the worker of the daemon is killed three times while bytes arrive; requests wait for the next worker"
before=$(sent_bytes)
mark "1.0.0=100"
for _ in 1 2 3; do
    sent=$(sent_bytes)
    ask_more 20
    assert_at_least $(($(sent_bytes) - sent)) 1 "bytes that came from the registry before this kill"
    kill_worker
    wait_for 60 worker_is_not "$worker"
done

say "the canary gets a tenth of the requests, then a half"
phase 1.0.0=100
mark transition
request PUT /share/10
phase 1.0.0=90 2.0.0=10
mark transition
request PUT /share/50
phase 1.0.0=50 2.0.0=50
kit_bytes=$(stat --format %s "$WORK"/v?/head/* "$WORK/v1/embeddings/table.safetensors" | awk '{ sum += $1 } END { print sum }')
# Each layer has a header of its own, and each kill costs the chunks that are on their way, 8 MiB at most.
assert_at_most $(($(sent_bytes) - before)) $((kit_bytes + 24 * 1024 * 1024)) "bytes for both versions, sent by the registry"

say "what the swap changes (the exit code is 1 if there is a difference, as of diff)"
status=0
show kitfs diff "$WORK/models/stable" "$repository:v2" || status=$?
assert_equal "$status" 1 "exit code"
assert_equal "$(kitfs diff --name-only "$WORK/models/stable" "$repository:v2" | tr '\n' ' ')" \
    "Kitfile head/head.safetensors " "files that differ"

say "version 2 takes the place of version 1 under load"
before=$(sent_bytes)
mark "transition: --replace"
show kitfs mount --replace --hydrate none "$repository:v2" "$WORK/models/stable"
wait_for 60 stable_is 2.0.0
request PUT /share/0
phase 2.0.0=100
assert_at_most $(($(sent_bytes) - before)) 0 "bytes for the swap"

say "a version that is not there changes nothing"
assert_fails_with "$repository:v3" kitfs mount --replace "$repository:v3" "$WORK/models/stable"
assert_fails_with "sha256:00000000" kitfs mount --replace \
    "$repository@sha256:$(printf '%064d' 0)" "$WORK/models/stable"
phase 2.0.0=100

say "back to the first version, by its digest; the registry is down, and the worker is killed at the same moment"
kill "$REGISTRY_PID"
wait "$REGISTRY_PID" || true
mark "transition: roll-back"
kill_worker
show kitfs mount --replace --hydrate none "$repository@$first_digest" "$WORK/models/stable"
wait_for 60 stable_is 1.0.0
phase 1.0.0=100
assert_at_most $(($(sent_bytes) - before)) 0 "bytes for the swap and the roll-back"
kill -TERM "$load"
wait "$load"

say "each answer was checked"
"$PYTHON" "$HERE/report.py" "$WORK/load.log" "$WORK/phases" "$WORK/v1" "$WORK/v2"
