"""Processes and mounts that a run starts, and their end.

Everything that is started is ended by its number, in the reverse order, also after Ctrl-C; nothing
is ever searched for by name.
"""

import mmap
import os
import re
import signal
import socket
import subprocess
import time

# How long a server or a mount may take until it answers: far more than any needs.
START_SECONDS = 60
# How long a process may take to end before it is killed.
END_SECONDS = 20
# How long one measured command may take: the slowest case, 2 GiB at 1 Gbit/s, takes 20 s.
MEASURED_SECONDS = 900

TICKS = os.sysconf("SC_CLK_TCK")

# madvise(2), Linux 5.14; mmap does not name it.
MADV_POPULATE_WRITE = 23


class Failed(Exception):
    """A needed step failed; the message names it."""


class Process:
    """A process of ours in a group of its own, so that Ctrl-C does not reach it before we end it."""

    def __init__(self, argv, log, env=None, stdout=None):
        self.name = os.path.basename(argv[0])
        self.log = log
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=stdout or out, stderr=out, env=env,
                start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def wait_until(self, ready, what):
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{what} does not start; its output: {tail(self.log)}")
            time.sleep(0.005)


def tail(path, size=2000):
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def run(argv, env=None, timeout=MEASURED_SECONDS):
    """Runs a command that has to succeed; returns what it printed."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=env,
                              timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(map(str, argv[:6]))} … did not end within {timeout} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace")[-2000:]
        raise Failed(f"{' '.join(map(str, argv[:6]))} … ended with {done.returncode}: {said}")
    return done.stdout


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def is_mounted(path):
    path = os.path.realpath(path).replace(" ", "\\040")
    with open("/proc/self/mounts") as mounts:
        return any(line.split(" ")[1] == path for line in mounts)


def unmount(path):
    """Unmounts what is at `path`, by force if need be."""
    if is_mounted(path):
        subprocess.run(["fusermount3", "-uq", path], check=False)
    if is_mounted(path):
        subprocess.run(["fusermount3", "-uzq", path], check=False)


def family(pid):
    """A process and all below it."""
    found, open_pids = [], [pid]
    while open_pids:
        pid = open_pids.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    open_pids += map(int, children.read().split())
        except OSError:
            pass
    return found


def cpu_seconds(pid):
    """Processor time of a process and all below it, children that ended included."""
    total = 0
    for one in family(pid):
        try:
            with open(f"/proc/{one}/stat") as stat:
                fields = stat.read().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def peak_rss_mib(pid):
    """The most memory that a process and all below it had (the sum of their peaks)."""
    total = 0
    for one in family(pid):
        try:
            with open(f"/proc/{one}/status") as status:
                total += sum(int(it) for it in re.findall(r"VmHWM:\s+(\d+) kB", status.read()))
        except OSError:
            continue
    return total / 1024


def end_foreign(pid, binary):
    """Ends a process that is not our child, if it still is this very binary."""
    try:
        if os.path.samefile(f"/proc/{pid}/exe", binary):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def drop_caches():
    """Empties the page cache: what is read next comes from the disk."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def claim_memory(most_mib):
    """Touches free memory before a measurement, without evicting page cache. The host of a virtual machine takes back
    freed memory. It gives the memory again page by page, in the time of the process that touches a page."""
    with open("/proc/meminfo") as meminfo:
        free_kib = int(re.search(r"MemFree:\s+(\d+) kB", meminfo.read())[1])
    size = min(most_mib, free_kib // 1024 * 9 // 10) << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(MADV_POPULATE_WRITE)
        except OSError:
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 0
