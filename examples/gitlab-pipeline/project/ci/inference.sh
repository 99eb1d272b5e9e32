#!/bin/sh
# Asks the server about the mounted test set.
set -eu
kitfs run "$DATA_KIT" -- python3 inference.py "http://127.0.0.1:$SERVER_PORT/" "$MINIMUM_ACCURACY"
