#!/bin/sh
# Starts the server, which maps the weights from a mount. Server and mount outlive the job and end together.
set -eu
mkdir -p "$DEPLOY_DIR"
cp serve.py images.py ci/start-server.sh "$DEPLOY_DIR"
cd "$DEPLOY_DIR"
# The server holds the lock. A second one would not start.
setsid --fork flock --nonblock server.lock ./start-server.sh </dev/null >server.log 2>&1

seconds=60
until python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])))' "$SERVER_PORT" 2>/dev/null; do
    seconds=$((seconds - 1))
    if [ "$seconds" -eq 0 ] || { [ -e server.pid ] && ! kill -0 "$(cat server.pid)" 2>/dev/null; }; then
        echo "the server does not start:" >&2
        cat server.log >&2
        exit 1
    fi
    sleep 1
done
