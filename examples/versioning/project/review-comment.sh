#!/bin/sh
# Prints a comment for a merge request: what a change of kit.ref changes in the kit. review-comment.sh BASE [HEAD]
set -eu
old=$(git show "$1:kit.ref")
new=$(git show "${2:-HEAD}:kit.ref")
[ "$old" != "$new" ] || exit 0

# The exit code is 1 if there is a difference, as of diff, and 2 for trouble.
difference() { kitfs diff "$@" || [ $? -eq 1 ]; }
files=$(difference "$old" "$new")
kitfile=$(difference --kitfile "$old" "$new")
printf '### The kit changes\n\n~~~\n%s\n~~~\n\nIts Kitfile:\n\n~~~\n%s\n~~~\n' "$files" "$kitfile"
