#!/bin/sh
# Stop hook: the platform calls it as root after the session of a user. The user's changes stay.
#
#   stop.sh USER
set -eu
here=$(dirname "$0")
kitfs umount "$PLATFORM/homes/$1"
"$here/quota.sh" release "$1"
