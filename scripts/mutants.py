#!/usr/bin/env python3
"""Makes a sample of changes to kitfs, one after the other, and runs the tests that belong to the changed room.

One copy of the sources and one target folder: a change costs one incremental build of the library, and of the test
binaries only if the tests in the room itself notice nothing. The same seed gives the same sample of the same sources.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# The test binaries that belong to a room.
BINARIES = {
    "fetch": ["fetch"],
    "cache": ["cache", "fetch"],
    "source": ["source_conformance", "registry"],
    "layer": ["tar_tools", "fuzz_targets"],
    "kit": ["reference_model", "packing"],
    "fs": ["reference_model", "tensors"],
    "daemon/hydrate": [],
}
# Seconds for one build and its tests: the slowest binary takes one minute on two idle cores.
PATIENCE = 600


def changes(room):
    """The changes of a room that cargo-mutants knows."""
    command = ["cargo", "mutants", "--list", "--json", "--diff", "--in-place", "--file", f"src/{room}/**/*.rs"]
    command += ["--exclude", "**/tests*", "--exclude-re", "impl (fmt::)?(Debug|Display)"]
    listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    # cargo-mutants filters some kinds by no file.
    below = [it for it in listed if it["file"].startswith(f"src/{room}/") and "/tests" not in it["file"]]
    return [(room, it) for it in below]


def cargo_test(folder, *arguments, output=subprocess.DEVNULL):
    """The exit code of the tests; None if they do not end."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(folder / "target"))
    command = ["nice", "-n", "15", "cargo", "test", "--quiet", "--locked", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return None


def judge(folder, room):
    """The verdict on a change that is in the sources."""
    if cargo_test(folder, "--no-run", "--lib") != 0:
        return "unviable"
    binaries = [word for binary in BINARIES[room] for word in ("--test", binary)]
    module = room.replace("/", "::") + "::"
    for arguments in (["--lib", "--", module], ["--lib", *binaries]):
        code = cargo_test(folder, *arguments)
        if code is None:
            return "timeout"
        if code != 0:
            return "caught"
    return "MISSED"


def main():
    """Prints a line for each change, and the sums."""
    parser = argparse.ArgumentParser(prog="scripts/mutants.sh")
    parser.add_argument("-n", dest="count", type=int, default=24)
    parser.add_argument("-s", dest="seed", default="1")
    parser.add_argument("rooms", nargs="*", metavar="ROOM")
    given = parser.parse_args()
    rooms = given.rooms or list(BINARIES)
    for room in rooms:
        if room not in BINARIES:
            parser.error(f"no test binaries are known for the room {room}")
    # The name of a change and the seed decide its place in the sample.
    found = [change for room in rooms for change in changes(room)]
    found.sort(key=lambda it: hashlib.sha256(f"{given.seed} {it[1]['name']}".encode()).digest())
    sums = dict.fromkeys(["caught", "MISSED", "timeout", "unviable"], 0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tracked = subprocess.run(["git", "ls-files", "-z"], check=True, stdout=subprocess.PIPE).stdout
        for name in tracked.decode().split("\0"):
            if name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, folder / name, follow_symlinks=False)
        binaries = sorted({binary for room in rooms for binary in BINARIES[room]})
        every = ["--lib", *(word for binary in binaries for word in ("--test", binary))]
        if cargo_test(folder, *every, output=sys.stderr) != 0:
            sys.exit("tests fail without a change")
        for room, change in found[: given.count]:
            file = folder / change["file"]
            before = file.read_bytes()
            patched = subprocess.run(
                ["patch", "--quiet", str(file)], input=change["diff"].encode(), stdout=subprocess.DEVNULL
            )
            if patched.returncode != 0:
                sys.exit(f"the change cannot be made: {change['name']}")
            word = judge(folder, room)
            file.write_bytes(before)
            sums[word] += 1
            print(f"{word:8} {change['name']}", flush=True)
    viable = sum(sums.values()) - sums["unviable"]
    print(
        f"{sums['MISSED']} of {viable} viable changes were not noticed ({sums['timeout']} timed out, "
        f"{sums['unviable']} did not compile), seed {given.seed}, of {len(found)} changes"
    )
    sys.exit(1 if sums["MISSED"] else 0)


if __name__ == "__main__":
    main()
