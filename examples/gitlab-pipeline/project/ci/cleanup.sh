#!/bin/sh
# Ends the server, and with it its mount. Works after any end of the jobs before, and may run twice.
set -eu
[ -d "$DEPLOY_DIR" ] || exit 0
cd "$DEPLOY_DIR"
# The lock is free when the server and its mount have ended, also if it had not yet written its number.
tenths=300
until flock --nonblock server.lock true; do
    [ "$tenths" -gt 0 ] || { echo "the server does not end" >&2; exit 1; }
    tenths=$((tenths - 1))
    [ ! -s server.pid ] || kill "$(cat server.pid)" 2>/dev/null || true
    sleep 0.1
done
rm -rf "$DEPLOY_DIR"
