#!/bin/sh
# Packs the model, with the accuracy that it had, and pushes it.
set -eu
cp Kitfile out/Kitfile
kitfs pack out -t "$MODEL_KIT"
# A pipeline that runs again for the same commit replaces the kit.
kitfs push --force "$MODEL_KIT"
