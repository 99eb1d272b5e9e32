"""The measured programs: kitfs, and the peers that a user would pick.

Each is a context: entered, the kit's files can be read below `folder`; left, nothing runs and
nothing is mounted. `pid` is the process that serves.
"""

import json
import os
import shutil
import subprocess
import time

from processes import (Process, cpu_seconds, end_foreign, is_mounted, peak_rss_mib, run,
                       unmount)


class Subject:
    """A mount on an empty folder, with a scratch folder that is new and goes with it."""

    def __init__(self, bench):
        self.bench = bench
        self.scratch = bench.new_path("scratch")
        self.folder = bench.new_path("mount")
        self.pid = None

    def __enter__(self):
        for folder in (self.scratch, self.folder):
            os.makedirs(folder)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        unmount(self.folder)
        os.rmdir(self.folder)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def cpu(self):
        return cpu_seconds(self.pid)

    def peak(self):
        return peak_rss_mib(self.pid)


class Kitfs(Subject):
    """kitfs with an empty cache and a daemon of its own. Nothing is fetched that is not read or
    foreseen: background hydration is off, so that amplification says what reading costs."""

    def __init__(self, bench, kit, port, options=()):
        super().__init__(bench)
        self.reference = kit.reference(port)
        self.options = list(options)
        self.env = dict(bench.environment(), KITFS_CACHE_DIR=self.scratch)

    def command(self):
        return [self.bench.kitfs, "mount", "--hydrate", "none", "--memory", self.bench.memory,
                *self.options, self.reference, self.folder]

    def start(self):
        started = time.perf_counter()
        run(self.command(), env=self.env)
        self.mount_seconds = time.perf_counter() - started
        self.find_daemon()

    def find_daemon(self):
        status = json.loads(run([self.bench.kitfs, "daemon", "status", "--json"], env=self.env))
        self.keeper, self.pid = status["pid"], status["worker_pid"]
        return status

    def restart(self, *options):
        """Ends the mount and its daemon, and mounts again from the same cache."""
        self.stop()
        unmount(self.folder)
        self.options = list(options)
        self.start()

    def state(self):
        """The state of the kit's bytes: `confirmed` when all were checked against its digests."""
        return self.find_daemon()["mounts"][0]["state"]

    def stop(self):
        stopped = subprocess.run([self.bench.kitfs, "daemon", "stop"], env=self.env,
                                 stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        if stopped.returncode != 0 and self.pid:
            unmount(self.folder)
            end_foreign(self.keeper, self.bench.kitfs)


class NotMounted(Kitfs):
    """kitfs with nothing started: the measured command mounts."""

    def start(self):
        pass


class Peer(Subject):
    """A program that mounts and stays in the foreground."""

    def start(self):
        self.log = os.path.join(self.bench.work, f"{type(self).__name__.lower()}.log")
        self.process = Process(self.command(), self.log, env=self.environment())
        self.pid = self.process.child.pid
        self.process.wait_until(lambda: is_mounted(self.folder), type(self).__name__)

    def environment(self):
        return self.bench.environment()

    def stop(self):
        unmount(self.folder)
        if hasattr(self, "process"):
            self.process.end()


class Ratarmount(Peer):
    """ratarmount over http: the layer's tar as it is, behind nginx."""

    def __init__(self, bench, kit, port):
        super().__init__(bench)
        self.url = f"http://127.0.0.1:{port}/{kit.blob_path()}"

    def command(self):
        return [self.bench.python_tool("ratarmount"), "-f", "--index-file", ":memory:", self.url,
                self.folder]


class Rclone(Peer):
    """`rclone mount` of the unpacked files behind nginx, with its full cache."""

    def __init__(self, bench, kit, port):
        super().__init__(bench)
        self.url = f"http://127.0.0.1:{port}/{kit.copy_path}/"

    def command(self):
        return ["rclone", "mount", ":http:", self.folder, "--http-url", self.url, "--read-only",
                "--vfs-cache-mode", "full", "--cache-dir", self.scratch, "--config", "/dev/null"]


class Copy:
    """The unpacked copy on the same disk: what native means."""

    pid = None

    def __init__(self, kit):
        self.folder = kit.copy

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def reader(bench, *arguments, env=None, python=None):
    """Runs a reader to its end; returns what it measured."""
    argv = [python or bench.python, os.path.join(bench.scripts, "reading.py"), *map(str, arguments)]
    return json.loads(run(argv, env=env or bench.environment()))


