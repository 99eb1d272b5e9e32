#!/usr/bin/env bash
# A pipeline of GitLab and its twin of GitHub Actions: train on a mounted data set, pack and push the model, serve it,
# measure it, clean up. Each job fails once and is killed once. Then as an ordinary user, and in a user namespace.
# seconds: 130
. "$(dirname "$0")/../lib.sh"

need_python "$HERE/requirements.txt"
start_registry
mkdir -p data-kit runner/image
"$PYTHON" "$HERE/make_data.py" data-kit/data
cat >data-kit/Kitfile <<'KITFILE'
manifestVersion: 1.0.0
package: {name: fashion, version: 1.0.0}
datasets:
  - {name: images, path: data}
KITFILE
pack_and_push data-kit "$REGISTRY/team/fashion:v1"

# The runner's machine: kitfs, python3 with its packages, and a cache for all pipelines. Every user may read it.
cp -rL "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/{numpy*,yaml,_yaml} runner/image
cp -L "$(command -v kitfs)" runner/image/kitfs
cp -r "$HERE/project" "$HERE/pipeline.py" runner
port=$(free_port)
chmod -R a+rX runner

# of_machine USER COMMAND…: the machine of `me`, of an ordinary user (`other`), or of root of a user `namespace`.
of_machine() {
    local as=$1 command=()
    shift
    mkdir -p "$as/tmp"
    case $as in
    other)
        chown 65534:65534 "$as" "$as/tmp"
        command=(setpriv --reuid 65534 --regid 65534 --clear-groups)
        ;;
    namespace) command=(unshare -Urm) ;;
    esac
    "${command[@]}" env HOME="$WORK/$as" TMPDIR="$WORK/$as/tmp" PYTHONPATH="$WORK/runner/image" \
        KITFS_CACHE_DIR="$WORK/$as/cache" KITFS_RUNTIME_DIR="$WORK/$as/run" KITOPS_HOME="$WORK/$as/kitops" \
        PATH="$WORK/runner/image:$PATH" "$@"
}
# pipeline USER FILE [OPTION…]: runs a pipeline.
pipeline() {
    local as=$1 file=$2
    shift 2
    of_machine "$as" env REGISTRY="$REGISTRY" CI_COMMIT_SHORT_SHA=4f1c0de SERVER_PORT="$port" \
        DEPLOY_DIR="$WORK/$as/deploy" PIPELINE="$as" \
        python3 runner/pipeline.py "runner/project/$file" runner/project "$as/job" "$@"
}

# The processes of a user's pipelines.
processes_of() {
    local environment
    for environment in $(grep -lsxzF "PIPELINE=$1" /proc/[0-9]*/environ || true); do
        tr '\0' ' ' <"${environment%environ}cmdline" 2>/dev/null || true
        echo
    done
}
# Prints what the pipelines of a user have left. The daemon of the cache serves all pipelines of the machine, and ends
# by itself after ten minutes without mounts.
left_by() {
    # Each mount namespace has mounts of its own.
    cat /proc/[0-9]*/mountinfo 2>/dev/null | grep -oF " $WORK/$1/" | sed 's/^/mount below/' | sort -u || true
    of_machine "$1" kitfs status --json | grep mountpoint || true
    processes_of "$1" | grep -v "kitfs daemon " | sed -n 's/^./process &/p' || true
    find "$1" -mindepth 1 -maxdepth 1 ! -name cache ! -name kitops ! -name run ! -name tmp | sed 's/^/file /'
    # Not find(1): root may not look into another user's mount.
    ls -A "$1/tmp" | sed 's/^/temporary file /'
}
has_left() { [ -n "$(left_by "$1")" ]; }
left_by_has() { left_by "$1" | grep "$2" >/dev/null; }
has_left_nothing() { ! has_left "$1"; }

# checked CODE USER FILE [OPTION…]: runs a pipeline, and checks its exit code (`any`: whatever it is) and that nothing is
# left.
checked() {
    local expected=$1 as=$2 status=0 left tenths=100
    shift
    pipeline "$@" >pipeline.log 2>&1 || status=$?
    [ "$expected" = any ] || [ "$status" -eq "$expected" ] || fail "exit code $status of the pipeline: $(cat pipeline.log)"
    # kitfs ends the mount of a killed job a moment later.
    until has_left_nothing "$as" || [ "$tenths" -eq 0 ]; do
        tenths=$((tenths - 1))
        sleep 0.1
    done
    left=$(left_by "$as")
    [ -z "$left" ] || fail "the pipeline has left: $left: $(cat pipeline.log)"
    printf 'ok: nothing is left after: %s\n' \
        "$(sed -n 's/^job \(.*\),.*/\1/p' pipeline.log | sed 's/exit code 0/ok/' | paste -sd, | sed 's/,/, /g')"
}
# killed USER JOB: a job is killed at a random moment.
killed() {
    local milliseconds
    milliseconds=$(sed -n "s/^job $2: exit code 0, \([0-9]*\)\.\([0-9]*\) s/\1\20/p" success.log)
    milliseconds=$((10#$milliseconds * (10 + RANDOM % 70) / 100))
    # The job may be faster than it was, and end before.
    until
        checked any "$1" .gitlab-ci.yml --kill "$2:$(printf '%d.%03d' $((milliseconds / 1000)) $((milliseconds % 1000)))"
        grep -q "^job $2: killed" pipeline.log
    do
        milliseconds=$((milliseconds / 2))
    done
}

users=(me)
# Only root can become another user.
[ "$(id -u)" -ne 0 ] || users+=(other)
if unshare -Urm true 2>/dev/null; then users+=(namespace); else say "this machine forbids user namespaces"; fi

say "the pipeline of GitLab"
pipeline me .gitlab-ci.yml 2>&1 | tee success.log
has_left_nothing me || fail "the pipeline has left: $(left_by me)"

say "its twin of GitHub Actions, on the same machine: the data set is in the cache"
before=$(sent_bytes)
checked 0 me github-workflow.yml
assert_at_most $(($(sent_bytes) - before)) 65536 "bytes that came from the registry"

for as in "${users[@]}"; do
    case $as in
    me) say "as $(id -un)" ;;
    other) say "as another user, without rights" ;;
    namespace) say "as root of a user namespace" ;;
    esac
    # The check itself is checked: it has to see a job that runs.
    of_machine "$as" env PIPELINE="$as" setsid \
        sh -c "echo \$\$ >$as/tmp/job.pid; exec kitfs run $REGISTRY/team/fashion:v1 -- sleep 600" >job.log 2>&1 &
    for what in '^mount below' mountpoint process '^temporary file kitfs-run-'; do
        wait_for 60 left_by_has "$as" "$what"
    done
    kill -9 -- "-$(cat "$as/tmp/job.pid")"
    rm "$as/tmp/job.pid"
    wait_for 60 has_left_nothing "$as"

    checked 0 "$as" .gitlab-ci.yml
    # A kit that is not there, a registry that is not there, an accuracy that is too low, a command that is missing.
    checked 1 "$as" .gitlab-ci.yml --set "train:DATA_KIT=$REGISTRY/team/fashion:v9"
    checked 1 "$as" .gitlab-ci.yml --set "build:MODEL_KIT=127.0.0.1:1/team/classifier:v1"
    checked 1 "$as" .gitlab-ci.yml --set "deploy:MODEL_KIT=$REGISTRY/team/classifier:v9"
    checked 1 "$as" .gitlab-ci.yml --set "inference:MINIMUM_ACCURACY=1.01"
    checked 0 "$as" .gitlab-ci.yml --set "cleanup:PATH=/nowhere"
    for job in train build deploy inference cleanup; do
        killed "$as" "$job"
    done
    of_machine "$as" kitfs daemon stop >/dev/null
    left=$(processes_of "$as")
    assert_equal "${left:-none}" none "processes after kitfs daemon stop"
done
