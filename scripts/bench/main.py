"""The driver of scripts/bench.sh: makes kits and servers, runs the cases, prints the tables."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

import tools
from cases import engine
from processes import Failed, claim_memory, drop_caches
from profiling import profile
from programs import programs
from report import table
from servers import Nginx, Registry
from subjects import Kitfs


class Bench:
    """A run: its sizes, binaries, folders and servers."""

    def __init__(self, options):
        quick = options.quick
        self.big_mib, self.shard_mib = (256, 43) if quick else (2048, 430)
        self.tensor_mib, self.images = (8, 200) if quick else (64, 2000)
        self.rounds = options.rounds or (1 if quick else 5)
        self.rtt_ms, self.rate = options.rtt_ms, options.rate_mbit * 125_000
        self.memory_mib = options.memory_mib
        self.memory = f"{self.memory_mib}MiB"
        self.seed = options.seed
        self.peers, self.torch, self.llama = options.peers, options.torch, options.llama
        self.kitfs, self.link_binary = options.kitfs, options.link
        self.home = os.path.abspath(options.home)
        self.scripts = os.path.dirname(os.path.abspath(__file__))
        self.python, self.venv_python = sys.executable, None
        self.work = self.registry = self.nginx = None
        self.paths = 0

    @contextlib.contextmanager
    def running(self):
        os.makedirs(os.path.join(self.home, "registry"), exist_ok=True)
        # A run that was killed leaves its folder behind; mounts in it are not ours to end.
        self.work = tempfile.mkdtemp(prefix="run-", dir=self.home)
        try:
            with Registry(self.work, os.path.join(self.home, "registry")) as self.registry:
                with Nginx(self.work, self.home) as self.nginx:
                    yield self
        finally:
            shutil.rmtree(self.work, ignore_errors=True)

    def environment(self):
        """Nothing of the caller's environment but the path."""
        return {"PATH": os.environ["PATH"], "HOME": self.work, "XDG_RUNTIME_DIR": self.work,
                "LANG": "C.UTF-8", "PYTHONHASHSEED": "1"}

    def new_path(self, name):
        self.paths += 1
        return os.path.join(self.work, f"{name}-{self.paths}")

    def remove(self, folder):
        shutil.rmtree(folder)

    def python_tool(self, name):
        return os.path.join(self.home, "venv/bin", name)

    def server_of(self, subject_class):
        return self.registry if issubclass(subject_class, Kitfs) else self.nginx

    def claim_memory(self):
        """Before a sample: room for the biggest kit in the cache, in FUSE's pages and in curl's."""
        claim_memory(2 * self.big_mib + 1536)

    def say(self, text):
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def measure(bench, case):
    """Runs the rounds of a case; each round takes the rows in another order."""
    samples = {row.label: [] for row in case.rows}
    # With memory full of earlier reads, every written page costs an eviction.
    drop_caches()
    with case.setup() if case.setup else contextlib.nullcontext() as state:
        for at in range(bench.rounds):
            turn = at % len(case.rows)
            for row in case.rows[turn:] + case.rows[:turn]:
                sample = row.measure(state, at)
                samples[row.label].append(sample)
                bench.say(f"{case.name} {at + 1}/{bench.rounds} {row.label}: "
                          f"{sample['seconds']:.3f} s")
            agree(case, [samples[row.label][at] for row in case.rows])
    return samples


def agree(case, samples):
    sums = {str(it["crc"]) for it in samples if "crc" in it}
    if len(sums) > 1:
        raise Failed(f"{case.name}: not everyone read the same bytes")


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh", description="Measures kitfs beside curl, ext4 and peers.",
        epilog="Needs root: it empties the page cache before each measurement.")
    parser.add_argument("--case", nargs="+", action="extend", metavar="NAME",
                        help="only these cases; `--case list` names them")
    parser.add_argument("--rounds", type=int, help="rounds of each case (5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="an eighth of the bytes, one round")
    parser.add_argument("--rtt-ms", type=float, default=20, help="of the shaped link (20)")
    parser.add_argument("--rate-mbit", type=int, default=1000, help="of the shaped link (1000)")
    parser.add_argument("--memory-mib", type=int, default=512, help="kitfs --memory (512)")
    parser.add_argument("--seed", type=int, default=1, help="of what is read where (1)")
    parser.add_argument("--no-peers", dest="peers", action="store_false",
                        help="without ratarmount and rclone")
    parser.add_argument("--skip-torch", dest="torch", action="store_false",
                        help="without torch, which takes 5 GB to install")
    parser.add_argument("--skip-llama", dest="llama", action="store_false",
                        help="without llama-cpp-python, which takes ten minutes to compile")
    parser.add_argument("--profile", action="store_true",
                        help="no cases: where the daemon's processor time goes in a cold read")
    parser.add_argument("--json", metavar="FILE", help="write every sample to this file too")
    parser.add_argument("--kitfs", metavar="FILE", help="the binary (built from here)")
    parser.add_argument("--link", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Shells start what runs in the background with the interrupt ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(options)
    groups = [("The engine", engine(bench)), ("Real programs", programs(bench))]
    names = [case.name for _, cases in groups for case in cases]
    chosen = options.case or names
    if unknown := set(chosen) - set(names):
        print(f"no such case: {', '.join(sorted(unknown))}; there are: {' '.join(names)}",
              file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        raise Failed("root is needed to empty the page cache: run it by sudo")
    os.makedirs(bench.home, exist_ok=True)
    wanted = dict(tools.ALWAYS)
    wanted |= tools.TORCH if "torch-data" in chosen else {}
    wanted |= tools.LLAMA if "llama" in chosen else {}
    if options.profile:
        with bench.running():
            profile(bench)
        return 0
    bench.venv_python = tools.install(bench, wanted)
    results, failures = {}, []
    try:
        with bench.running():
            for case in (it for _, cases in groups for it in cases if it.name in chosen):
                try:
                    results[case.name] = measure(bench, case)
                # The other cases can still be measured. Ctrl-C is no Exception.
                except Exception as error:
                    said = error if isinstance(error, Failed) else traceback.format_exc()
                    bench.say(f"{case.name} failed: {said}")
                    failures.append(case.name)
    finally:
        show(bench, groups, results, options.json)
    if failures:
        raise Failed(f"failed: {' '.join(failures)}")
    return 0


def show(bench, groups, results, file):
    link = f"{bench.rtt_ms:g} ms round trip, {bench.rate * 8 / 1e9:g} Gbit/s"
    print(f"\nMedians (minimum-maximum) of {bench.rounds} interleaved rounds; the shaped link has "
          f"{link}; kitfs runs with --memory {bench.memory} --hydrate none.\n")
    for title, cases in groups:
        done = [(case, results[case.name]) for case in cases if case.name in results]
        if done:
            print(table(title, done))
    if file:
        with open(file, "w") as out:
            json.dump(results, out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
