#!/bin/sh
# Spawn hook: the platform calls it as root before it starts the session of a user.
#
#   spawn.sh USER
#
# DATASET is the reference of the data set, PLATFORM the platform's folder. USER is the user's uid. Gives the user a writable view
# of the data set at $PLATFORM/homes/USER. The changes of an earlier session are there again.
set -eu
here=$(dirname "$0")
"$here/quota.sh" add "$1"
mkdir -p "$PLATFORM/homes"
kitfs mount --overlay="$PLATFORM/volumes/$1/changes" --uid "$1" --gid "$1" "$DATASET" "$PLATFORM/homes/$1"
