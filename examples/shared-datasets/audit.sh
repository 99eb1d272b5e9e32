#!/bin/sh
# Prints who changed what: USER, a letter (A added, C changed, D removed, M mode or date, R renamed), and the path.
#
#   audit.sh [USER…]     [default: all users with a session]
#
# Runs as root. PLATFORM is the platform's folder.
set -eu
if [ $# -eq 0 ]; then
    for view in "$PLATFORM"/homes/*; do
        [ ! -d "$view" ] || set -- "$@" "$(basename "$view")"
    done
fi
list=$(mktemp)
trap 'rm -f "$list"' EXIT
for user in "$@"; do
    # The exit code 1 says that there are changes.
    kitfs overlay diff "$PLATFORM/volumes/$user/changes" >"$list" || [ $? -eq 1 ]
    sed "s/^/$user  /" "$list"
done
