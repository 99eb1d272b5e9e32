#!/bin/sh
# For `git bisect run`: is the model of this commit good? 0: good, 1: bad, 125: cannot be tested.
status=0
kitfs run "$(cat kit.ref)" kit -- python3 evaluate.py kit 0.9 || status=$?
case $status in
0) exit 0 ;;
10) exit 1 ;; # evaluate.py: below 0.9
*) exit 125 ;;
esac
