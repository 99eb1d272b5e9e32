#!/usr/bin/env python3
"""Measures how long a reader waits when the process that serves its mount is killed.

    scripts/pauses.py REF [REF…] [--kills 100] [--mounts 1] [--kitfs target/release/kitfs]

Mounts each REF in turns with a cache of its own and reads the largest file of the first mount from end to end, again and again, 1 MiB at a
time; the kernel drops the pages after each round. Meanwhile the worker is killed with SIGKILL at random
moments. Prints the median, the 99th percentile and the longest of the pauses: for each kill, the longest
read that ended within a second after it.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time

PIECE = 1 << 20


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", metavar="REF", nargs="+")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--mounts", type=int, default=1, help="mounts of the daemon (1)")
    parser.add_argument("--log", type=int, default=0, metavar="LINES", help="last lines of the log to show")
    parser.add_argument("--kitfs", default="target/release/kitfs")
    return parser.parse_args()


def largest_file(folder):
    paths = (os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    return max(paths, key=os.path.getsize)


class Reader(threading.Thread):
    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.reads, self.is_over = path, [], False

    def run(self):
        while not self.is_over:
            descriptor = os.open(self.path, os.O_RDONLY)
            at = 0
            while not self.is_over:
                began = time.monotonic()
                length = len(os.pread(descriptor, PIECE, at))
                self.reads.append((time.monotonic(), time.monotonic() - began))
                if length == 0:
                    break
                at += length
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main():
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        kitfs = lambda *words: subprocess.run(
            [arguments.kitfs, *words, "--cache-dir", f"{folder}/cache"], check=True, capture_output=True).stdout
        places = [f"{folder}/mount-{index}" for index in range(arguments.mounts)]
        for reference in arguments.references:
            kitfs("warm", reference)
        for index, place in enumerate(places):
            reference = arguments.references[index % len(arguments.references)]
            kitfs("mount", reference, place, "--no-passthrough")
        try:
            measure(kitfs, Reader(largest_file(places[0])), arguments.kills)
            with open(f"{folder}/cache/daemon.log") as log:
                for line in log.readlines()[-arguments.log:] if arguments.log else []:
                    print(line, end="")
        finally:
            kitfs("daemon", "stop")


def measure(kitfs, reader, kills):
    reader.start()
    killed = []
    for _ in range(kills):
        worker = json.loads(kitfs("daemon", "status", "--json"))["worker_pid"]
        time.sleep(random.uniform(0.2, 0.4))
        os.kill(worker, signal.SIGKILL)
        killed.append(time.monotonic())
        time.sleep(1)
    reader.is_over = True
    reader.join()
    pauses = []
    for moment in killed:
        after = [length for end, length in reader.reads if moment <= end <= moment + 1]
        pauses.append(max(after, default=1) * 1000)
    pauses.sort()
    quantile = lambda share: pauses[min(len(pauses) - 1, int(share * len(pauses)))]
    print(f"{kills} kills: median {statistics.median(pauses):.0f} ms, 99th percentile {quantile(0.99):.0f} ms, "
          f"longest {pauses[-1]:.0f} ms")


if __name__ == "__main__":
    main()
