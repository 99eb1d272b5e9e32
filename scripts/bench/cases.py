"""The cases of the engine: reads, programs that read, and bars. A bar is a bound that a row has to reach.

A read names files of the mount by `@`.
"""

import contextlib
import statistics

from kits import big_file, prepare, shards
from measuring import (Bar, Case, Row, by_curl, compare, confirmed, first_byte, from_copy,
                       from_folder, mounted, throughput)
from processes import drop_caches
from servers import Way
from subjects import Kitfs, Ratarmount, Rclone, reader

MIB = 1 << 20
FILE = "weights.bin"
# The cache's unit: docs/format/chunks.md.
CHUNK = 256 << 10


def engine(bench):
    """All cases, by name; kits are made when a case asks for them."""
    big = lambda: prepare(bench, f"big-{bench.big_mib}m", big_file(bench.big_mib * MIB))
    parts = lambda: prepare(
        bench, f"shards-{bench.shard_mib}m", shards(10, bench.shard_mib * MIB))
    rate, rtt = bench.rate, bench.rtt_ms / 1000

    def whole(subject, shaped, *mode):
        return lambda _, at: mounted(bench, big(), subject, shaped, *fill(mode, at), "@" + FILE,
                                     whole=FILE)

    def fill(mode, at):
        return [bench.seed + at if it == "SEED" else it for it in mode]

    def peers(shaped, *mode):
        # Where readers jump, ratarmount fetches 35 x what is read, and a round takes an hour.
        those = (Ratarmount, Rclone) if mode == ("sequential",) else (Rclone,)
        return [Row(f"{it.__name__.lower()} mount", whole(it, shaped, *mode))
                for it in those if bench.peers]

    def of_link(least):
        return Bar("of the link's rate", lambda it, _: throughput(it) / rate, least=least)

    memory = Bar("peak RSS MiB", lambda it, _: it["rss"], most=bench.memory_mib + 64,
                 of=max)
    cpu = Bar("CPU s/GiB", lambda it, _: it["cpu"] / it["bytes"] * (1 << 30), most=2.0)
    ratio = lambda it, base: it["seconds"] / base["seconds"]
    speed = lambda it, base: throughput(it) / throughput(base)

    @contextlib.contextmanager
    def filled():
        """A mount whose file is all in the cache and confirmed."""
        with Kitfs(bench, big(), bench.registry.port) as subject:
            reader(bench, "sequential", f"{subject.folder}/{FILE}")
            confirmed(subject)
            # Once, and not from the pages of the first read.
            drop_caches()
            compare(bench, big(), subject.folder, FILE)
            yield subject

    def cached(hot):
        return lambda subject, _: from_folder(bench, subject, ["sequential", "@" + FILE], hot)

    def restarted(*options):
        def read(subject, _):
            subject.restart(*options)
            return from_folder(bench, subject, ["sequential", "@" + FILE], False)
        return read

    def native(hot):
        return lambda *_: from_copy(bench, big(), "sequential", "@" + FILE, hot=hot)

    block = min(64, bench.big_mib // 8) * MIB
    shuffled = ["mmap", block, "SEED"]

    optional = lambda *rows: list(rows) if bench.peers else []

    def slices(subject):
        mode = lambda at: ["slices", 0.05, bench.seed + at]
        names = [f"shard-{at:02}.bin" for at in range(10)]
        if subject is None:
            return lambda _, at: from_copy(bench, parts(), *mode(at), *("@" + it for it in names))
        if subject == "http":
            return lambda _, at: bare(bench, parts(), names, mode(at))
        return lambda _, at: mounted(
            bench, parts(), subject, True, *mode(at), *("@" + it for it in names))

    def header_and_run(subject, least, most):
        mode = lambda at: ["header-and-run", 64 << 10, least, most, bench.seed + at]
        names = [f"shard-{at:02}.bin" for at in range(10)]
        if subject == "http":
            return lambda _, at: bare(bench, parts(), names, mode(at))
        return lambda _, at: mounted(
            bench, parts(), subject, True, *mode(at), *("@" + it for it in names))

    def header_and_runs(name, least, most):
        what = f"{least} MiB" if least == most else f"{least} to {most} MiB"
        least, most = least * MIB, most * MIB
        return Case(name, f"64 KiB and then {what} somewhere in each of 10 shards, shaped link", [
            Row("the same ranges by http", header_and_run("http", least, most)),
            Row("kitfs", header_and_run(Kitfs, least, most), [
                Bar("fetched/read", lambda it, _: it["fetched"] / it["bytes"], most=1.15),
                memory]),
            *optional(Row("rclone mount", header_and_run(Rclone, least, most))),
        ])

    def scattered(subject):
        mode = lambda at: ["random", 200, CHUNK, bench.seed + at]
        if subject is None:
            return lambda _, at: from_copy(bench, big(), *mode(at), "@" + FILE)
        if subject == "http":
            return lambda _, at: bare(bench, big(), [FILE], mode(at))
        return lambda _, at: mounted(bench, big(), subject, True, *mode(at), "@" + FILE)

    p50 = lambda it, _=None: statistics.median(it["latencies"]) * 1000
    size = f"{bench.big_mib} MiB"
    return [
        Case("cold-loopback", f"{size} from end to end, cold, loopback", [
            Row("curl to disk", lambda *_: by_curl(bench, big(), False)),
            Row("kitfs", whole(Kitfs, False, "sequential"),
                [Bar("x curl", ratio, most=1.15), cpu, memory]),
            *peers(False, "sequential"),
        ]),
        Case("cold-shaped", f"{size} from end to end, cold, shaped link", [
            Row("curl to disk", lambda *_: by_curl(bench, big(), True)),
            Row("kitfs", whole(Kitfs, True, "sequential"), [of_link(0.95), memory]),
            *peers(True, "sequential"),
        ]),
        Case("cached", f"{size}, all in the cache", [
            Row("ext4 copy, from disk", native(False)),
            Row("kitfs, from disk", cached(False), [Bar("x ext4", speed, least=0.95), memory]),
            Row("ext4 copy, hot", native(True)),
            Row("kitfs, hot", cached(True), [Bar("x ext4", speed, least=0.9)],
                against="ext4 copy, hot"),
        ], filled),
        Case("restarted", f"{size}, all in the cache, from disk, right after a restart of the daemon", [
            Row("ext4 copy", native(False)),
            Row("kitfs", restarted(), [Bar("x ext4", speed, least=0.95), memory]),
            Row("kitfs mount --recheck", restarted("--recheck"), []),
        ], filled),
        Case("readers-8", f"8 readers at 8 offsets of {size}, cold, loopback", [
            Row("kitfs, 1 reader", whole(Kitfs, False, "sequential")),
            Row("kitfs, 8 readers", whole(Kitfs, False, "offsets", 8),
                [Bar("x one reader", speed, least=0.9), memory]),
            *peers(False, "offsets", 8),
        ]),
        Case("mmap-shuffled", f"mmap of {size}, blocks of {block // MIB} MiB in shuffled order, "
             "cold, shaped link", [
                 Row("kitfs", whole(Kitfs, True, *shuffled), [of_link(0.85), memory]),
                 *peers(True, *shuffled),
             ]),
        Case("slices", f"5 % of each of 10 shards of {bench.shard_mib} MiB, shaped link", [
            Row("the same ranges by http", slices("http")),
            Row("kitfs", slices(Kitfs), [
                Bar("fetched/read", lambda it, _: it["fetched"] / it["bytes"], most=1.3),
                Bar("x (bytes/rate + 6 RTT)",
                    lambda it, _: it["seconds"] / (it["bytes"] / rate + 6 * rtt), most=2.0),
                memory]),
            *optional(Row("rclone mount", slices(Rclone))),
            Row("ext4 copy, from disk", slices(None)),
        ]),
        header_and_runs("header-and-run", 8, 8),
        header_and_runs("header-and-runs", 8, 32),
        Case("first-byte", "`kitfs mount`, no daemon, to the first byte, shaped link", [
            Row("kitfs", lambda *_: first_byte(bench, big(), FILE), [
                Bar("s", lambda it, _: it["seconds"], most=8 * rtt + 0.15), memory]),
        ]),
        Case("random-4k", f"200 reads of 4 KiB at random places of {size}, cold, shaped link", [
            Row("the same ranges by http", scattered("http")),
            Row("kitfs", scattered(Kitfs), [
                Bar("p50 ms", p50, most=1500 * rtt + 1000 * CHUNK / rate), memory]),
            *optional(Row("ratarmount mount", scattered(Ratarmount)),
                      Row("rclone mount", scattered(Rclone))),
            Row("ext4 copy, from disk", scattered(None)),
        ]),
    ]


def bare(bench, kit, names, mode):
    """The ranges of a read by plain http from nginx, over one connection of the shaped link."""
    with Way(bench, bench.nginx, True) as way:
        urls = [f"http://127.0.0.1:{way.port}/{kit.copy_path}/{name}" for name in names]
        sample = reader(bench, *mode, *urls)
        sample["requests"], sample["fetched"] = way.counts()
    return sample
