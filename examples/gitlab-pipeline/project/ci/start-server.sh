#!/bin/sh
# The process number stays the same: `exec` makes this shell the command that ends the mount with the server.
echo $$ >server.pid
exec kitfs run "$MODEL_KIT" -- python3 serve.py "$SERVER_PORT"
