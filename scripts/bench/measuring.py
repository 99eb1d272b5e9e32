"""How one row of a table is measured: one sample a round, with all its columns."""

import os
import statistics
import subprocess
import time

from processes import Failed, drop_caches, run
from servers import Way
from subjects import Copy, Kitfs, NotMounted, reader

# How long the digest of a layer may take after its last byte is read.
CONFIRM_SECONDS = 60
# An access log has the last request a moment after its answer has come.
LOG_SECONDS = 0.2


class Row:
    """A line of a table: `measure(state, round)` gives a sample, a dict of columns."""

    def __init__(self, label, measure, bars=(), against=None):
        self.label, self.measure, self.bars = label, measure, list(bars)
        # The row that the ratio is taken to; None is the first of the case.
        self.against = against


class Bar:
    """The bound for a row, in the median of the rounds (or in the worst, by `of=max`);
    `figure(sample, baseline)`."""

    def __init__(self, what, figure, most=None, least=None, of=statistics.median):
        self.what, self.figure, self.most, self.least = what, figure, most, least
        self.of = of

    def judge(self, samples, baselines):
        value = self.of(list(map(self.figure, samples, baselines)))
        good = value <= self.most if self.least is None else value >= self.least
        limit = f"<= {self.most:.3g}" if self.least is None else f">= {self.least:.3g}"
        return good, f"{self.what} {value:.3g} {limit}"


class Case:
    def __init__(self, name, title, rows, setup=None):
        self.name, self.title, self.rows, self.setup = name, title, rows, setup


def throughput(sample):
    return sample["bytes"] / sample["seconds"]


def mounted(bench, kit, subject_class, shaped, *arguments, whole=None):
    """A read by a fresh mount with an empty cache. `whole` names the file that is read as a whole:
    then the processor time counts until the daemon has confirmed it, and it is compared."""
    server = bench.server_of(subject_class)
    with Way(bench, server, shaped) as way:
        with subject_class(bench, kit, way.port) as subject:
            kit.into_memory(by_nginx=server is bench.nginx)
            before = subject.cpu()
            sample = reader(bench, *in_folder(subject.folder, arguments))
            if whole and isinstance(subject, Kitfs):
                sample["confirmed"] = confirmed(subject)
            sample["cpu"] = subject.cpu() - before
            sample["rss"] = subject.peak()
            if whole and isinstance(subject, Kitfs):
                compare(bench, kit, subject.folder, whole)
        time.sleep(LOG_SECONDS)
        sample["requests"], sample["fetched"] = way.counts()
    return sample


def in_folder(folder, arguments):
    """The arguments of a read, with `@NAME` as the file of that name in the folder."""
    return [f"{folder}/{it[1:]}" if str(it).startswith("@") else it for it in arguments]


def confirmed(subject):
    """Waits until the daemon says that every byte was checked; returns how long that took."""
    started = time.monotonic()
    while subject.state() != "confirmed":
        if time.monotonic() - started > CONFIRM_SECONDS:
            raise Failed(f"the kit is {subject.state()} a minute after its last byte")
        time.sleep(0.02)
    return time.monotonic() - started


def compare(bench, kit, folder, *names):
    """Compares files of a mount with the copy, by their digests."""
    for name in names:
        copy, here = (reader(bench, "check", os.path.join(it, name))["crc"]
                      for it in (kit.copy, folder))
        if copy != here:
            raise Failed(f"{name} read from {folder} is not what was packed")


def by_curl(bench, kit, shaped):
    """`curl` of the layer's blob to a file on the same disk."""
    target = bench.new_path("curl")
    with Way(bench, bench.registry, shaped) as way:
        kit.into_memory()
        started = time.perf_counter()
        run(["curl", "-sf", "-o", target, kit.blob_url(way.port)], env=bench.environment())
        sample = {"seconds": time.perf_counter() - started, "bytes": os.path.getsize(target)}
        time.sleep(LOG_SECONDS)
        sample["requests"], sample["fetched"] = way.counts()
    os.remove(target)
    return sample


def by_curl_and_tar(bench, kit, then, warm_up):
    """Downloads and unpacks every layer, then runs `then(folder)`: the kit without a mount."""
    target = bench.new_path("unpacked")
    os.mkdir(target)
    with Way(bench, bench.registry, False) as way:
        warm_up()
        kit.into_memory()
        started = time.perf_counter()
        for layer in range(len(kit.layers)):
            with subprocess.Popen(["curl", "-sf", kit.blob_url(way.port, layer)],
                                  stdout=subprocess.PIPE) as curl:
                subprocess.run(["tar", "x", "-C", target], stdin=curl.stdout, check=True)
                if curl.wait() != 0:
                    raise Failed("curl failed")
        unpacked = time.perf_counter() - started
        sample = then(target)
        sample["seconds"] += unpacked
        time.sleep(LOG_SECONDS)
        sample["requests"], sample["fetched"] = way.counts()
    bench.remove(target)
    return sample


def from_copy(bench, kit, *arguments, hot=False):
    """The same read of the unpacked copy."""
    return from_folder(bench, Copy(kit), arguments, hot)


def from_folder(bench, subject, arguments, hot):
    files = in_folder(subject.folder, arguments)
    drop_caches()
    bench.claim_memory()
    if hot:
        reader(bench, *files)
    before = subject.cpu() if subject.pid else None
    sample = reader(bench, *files)
    if subject.pid:
        sample["cpu"], sample["rss"] = subject.cpu() - before, subject.peak()
    return sample


def first_byte(bench, kit, name):
    """From `kitfs mount` typed, no daemon running, to the first byte of a file."""
    with Way(bench, bench.registry, True) as way:
        with NotMounted(bench, kit, way.port) as subject:
            kit.into_memory()
            # The binary is read from the disk once: what is measured is the network.
            run([bench.kitfs, "--version"])
            path = os.path.join(subject.folder, name)
            sample = reader(bench, "first", path, *subject.command(), env=subject.env)
            subject.find_daemon()
            sample["cpu"], sample["rss"] = subject.cpu(), subject.peak()
        sample["requests"], sample["fetched"] = way.counts()
    return sample
