#!/bin/sh
# The data set is mounted for this command, and the mount ends with it.
set -eu
mkdir -p out
kitfs run "$DATA_KIT" -- python3 train.py out
