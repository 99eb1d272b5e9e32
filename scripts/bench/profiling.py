"""Where the daemon's processor time goes in a cold read over loopback, by perf."""

import contextlib
import os
import signal
import subprocess

from cases import FILE
from kits import big_file, prepare
from measuring import confirmed
from processes import Failed, cpu_seconds, run
from servers import Way
from subjects import Kitfs, reader

# Samples a second of processor time.
FREQUENCY = 1999
CONFIRMING = "kitfs-confirm"

# The parts that samples count for. A sample counts for the first part with a word in one of its frames.
PASS = [
    ("the pass: sha256", ["sha2", "sha256", "compress256"]),
    ("the pass: `pread` of the cache file", ["sys_pread64"]),
    ("the pass: records, seals and the rest", [""]),
]
DATA = [
    ("`pwrite` to the cache file", ["pwritev", "sys_pwrite64"]),
    ("`recv` from the registry, what the kernel does for TCP included",
     ["sys_recvfrom", "sys_recvmsg"]),
    ("replies to FUSE", ["fuse_dev_write", "fuse_dev_do_write", "sys_writev"]),
    ("requests of FUSE", ["fuse_dev_read", "fuse_dev_do_read"]),
    ("`pread` of what is replied", ["sys_pread64"]),
    ("waking, waiting and switching", ["sys_futex", "epoll", "schedule", "eventfd"]),
    ("CRC32C of chunks", ["crc32c", "crc_u64"]),
    ("everything else (HTTP, tokio, allocation, page faults)", [""]),
]


def profile(bench):
    """Reads the big kit once, cold; prints a table."""
    kit = prepare(bench, f"big-{bench.big_mib}m", big_file(bench.big_mib << 20))
    recorded = bench.new_path("perf")
    with Way(bench, bench.registry, False) as way, Kitfs(bench, kit, way.port) as subject:
        kit.into_memory()
        before = cpu_seconds(subject.pid)
        with recording(recorded):
            reader(bench, "sequential", os.path.join(subject.folder, FILE))
            confirmed(subject)
        seconds = cpu_seconds(subject.pid) - before
    script = run(["perf", "script", "-i", recorded, "-F", "comm,pid,ip,sym", "--pid",
                  str(subject.pid)]).decode(errors="replace")
    counts = {name: 0 for name, _ in DATA + PASS}
    for sample in script.split("\n\n"):
        if lines := sample.strip().splitlines():
            counts[kind(lines[0], "\n".join(lines[1:]))] += 1
    total = sum(counts.values())
    if total == 0:
        raise Failed("perf has taken no samples")
    gib = bench.big_mib / 1024
    print(f"\n{seconds / gib:.2f} CPU s/GiB, {total} samples at {FREQUENCY} a second:\n")
    print("| what | share | s/GiB |\n| --- | --- | --- |")
    for name, count in counts.items():
        share = count / total
        print(f"| {name} | {share:.0%} | {share * seconds / gib:.2f} |")


@contextlib.contextmanager
def recording(file):
    """Samples the machine while the block runs: of one process alone, threads that begin meanwhile
    would be missing."""
    perf = subprocess.Popen(
        ["perf", "record", "-q", "-g", "-e", "cpu-clock", "-F", str(FREQUENCY), "-a",
         "-o", file], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        perf.send_signal(signal.SIGINT)
        try:
            _, said = perf.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            perf.kill()
            raise
    # It ends by the signal that it was sent.
    if perf.returncode not in (0, -signal.SIGINT):
        raise Failed(f"perf record ended with {perf.returncode}: {said.decode(errors='replace')}")


def kind(thread, frames):
    kinds = PASS if CONFIRMING in thread else DATA
    return next(name for name, words in kinds if any(word in frames for word in words))
