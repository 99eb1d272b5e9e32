#!/usr/bin/env python3
"""Kills the processes of a daemon under readers, for as long as you like: see scripts/soak.sh."""

import argparse
import hashlib
import http.server
import io
import json
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

PAGE = 4096
PIECE = 1 << 20
# Enough for some seconds of slow reads in each file.
BIG_FILES, BIG_BYTES = 4, 24 << 20
SMALL_FILES = 200
# A reader that waits for longer has been forgotten.
LONGEST_READ_SECONDS = 60
# Taken from a cgroup of 128 MiB by another program. A worker under readers needs more than is left.
HOG_MIB = 112
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def parsed():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kitfs", required=True)
    parser.add_argument("--mode", choices=MODES, default="worker")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--interval", type=float, default=0.15, help="mean seconds between two kills")
    parser.add_argument("--mounts", type=int, default=0, help="mounts of the daemon (1; 50 and 200 in their modes)")
    parser.add_argument("--mib-per-second", type=float, default=60, help="of the registry")
    return parser.parse_args()


class Kit:
    """A kit of big files and small ones, in memory and in an unpacked copy."""

    def __init__(self, folder, seed):
        source = random.Random(seed)
        self.folder, self.blobs, layers = folder, {}, []
        for index in range(BIG_FILES):
            name = f"weights/shard-{index}"
            layers.append(("modelpart" if index else "model", [(name, source.randbytes(BIG_BYTES))]))
        small = [(f"data/{index:03}.txt", source.randbytes(source.randrange(20_000))) for index in range(SMALL_FILES)]
        layers.append(("dataset", small))
        described = []
        for role, files in layers:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name, content in files:
                    # The path as in kits without annotations: relative to the folder of the layer's path.
                    member = tarfile.TarInfo(name.removeprefix("weights/"))
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    path = os.path.join(folder, name)
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    with open(path, "wb") as file:
                        file.write(content)
            described.append({"mediaType": f"application/vnd.kitops.modelkit.{role}.v1.tar",
                              **self.add(packed.getvalue())})
        kitfile = {"manifestVersion": "1.0.0", "package": {"name": "soak"},
                   "model": {"path": layers[0][1][0][0], "parts": [{"path": files[0][0]} for _, files in layers[1:BIG_FILES]]},
                   "datasets": [{"name": "small", "path": "data"}]}
        config = {"mediaType": "application/vnd.kitops.modelkit.config.v1+json", **self.add(json.dumps(kitfile).encode())}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": described}
        self.manifest = json.dumps(manifest).encode()

    def add(self, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return {"digest": digest, "size": len(content)}


class Registry(http.server.ThreadingHTTPServer):
    """A slow registry with one kit."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, kit, bytes_per_second):
        super().__init__(("127.0.0.1", 0), Answer)
        self.kit, self.bytes_per_second = kit, bytes_per_second
        self.lock, self.free_at = threading.Lock(), time.monotonic()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def wait_for(self, length):
        with self.lock:
            self.free_at = max(self.free_at, time.monotonic()) + length / self.bytes_per_second
            pause = self.free_at - time.monotonic()
        time.sleep(max(0, pause))

    def handle_error(self, request, client_address):
        """Workers that are killed break their connections."""


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        what, name = self.path.split("/")[-2:] if self.path != "/v2/" else ("", "")
        content = self.server.kit.manifest if what == "manifests" else self.server.kit.blobs.get(name)
        if content is None:
            content, status = b"{}", 200 if self.path == "/v2/" else 404
            return self.answer(status, content, {})
        headers = {"Content-Type": MANIFEST_TYPE if what == "manifests" else "application/octet-stream"}
        if what == "manifests":
            headers["Docker-Content-Digest"] = "sha256:" + hashlib.sha256(content).hexdigest()
        wanted = self.headers.get("Range")
        if not wanted:
            return self.answer(200, content, headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, memoryview(content)[first:last + 1], headers)

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(content), 1 << 16):
            piece = content[at:at + (1 << 16)]
            self.server.wait_for(len(piece))
            self.wfile.write(piece)

    def log_message(self, *_):
        pass


def drop_pages(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def check(path, found, expected):
    if found != expected:
        raise AssertionError(f"wrong bytes in {path}: {len(found)} of {len(expected)}")


def read_all(path, expected, _):
    with open(path, "rb", buffering=0) as file:
        at = 0
        while piece := file.read(PIECE):
            check(path, piece, expected[at:at + len(piece)])
            at += len(piece)
    check(path, b"" if at == len(expected) else b"short", b"")
    drop_pages(path)


def read_directly(path, expected, source):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, PIECE)
    try:
        for _ in range(12):
            at = source.randrange(len(expected) // PAGE) * PAGE
            length = os.preadv(descriptor, [memory], at)
            check(path, memory[:length], expected[at:at + length])
    finally:
        os.close(descriptor)


def read_mapped(path, expected, source):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for _ in range(12):
            at = source.randrange(len(expected))
            check(path, mapped[at:at + PIECE], expected[at:at + PIECE])
    drop_pages(path)


def read_small(path, _, source):
    folder, copy = path[0], path[1]
    for _ in range(20):
        name = f"data/{source.randrange(SMALL_FILES):03}.txt"
        with open(os.path.join(folder, name), "rb") as file, open(os.path.join(copy, name), "rb") as other:
            check(name, file.read(), other.read())
        drop_pages(os.path.join(folder, name))


def list_files(path, _, source):
    folder = path[0]
    names = os.listdir(os.path.join(folder, "data"))
    check(folder, sorted(names), [f"{index:03}.txt" for index in range(SMALL_FILES)])
    index = source.randrange(BIG_FILES)
    check(folder, os.stat(os.path.join(folder, f"weights/shard-{index}")).st_size, BIG_BYTES)
    time.sleep(0.005)


READERS = [read_all, read_directly, read_mapped, read_small, list_files, read_all, read_directly, read_mapped]


def crowd(read, places, copy, seed, is_over, rounds, longest):
    """A hundred readers in one process. They read little and pause, so they need the daemon, not the processor."""
    failed = []

    def one(number):
        source = random.Random(seed * 1000 + number)
        try:
            while not is_over.is_set():
                read((source.choice(places), copy), None, source)
                rounds.value += 1
                is_over.wait(source.uniform(0, 10))
        except BaseException:
            failed.append(number)
            raise

    threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(1 if failed else 0)


def reader(read, places, copy, seed, is_over, rounds, longest):
    source = random.Random(seed)
    shards = []
    for index in range(BIG_FILES):
        with open(os.path.join(copy, f"weights/shard-{index}"), "rb") as file:
            shards.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    while not is_over.is_set():
        place, index = source.choice(places), source.randrange(BIG_FILES)
        began = time.monotonic()
        if read in (read_small, list_files):
            read((place, copy), None, source)
        else:
            read(os.path.join(place, f"weights/shard-{index}"), shards[index], source)
        longest.value = max(longest.value, time.monotonic() - began)
        rounds.value += 1


class Daemon:
    def __init__(self, arguments, folder, registry):
        self.kitfs, self.folder = arguments.kitfs, folder
        self.reference = f"127.0.0.1:{registry.server_address[1]}/org/soak:v1"
        self.places = []

    def run(self, *words):
        command = [self.kitfs, *words, "--cache-dir", f"{self.folder}/cache"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def mount(self, count):
        for index in range(count):
            place = f"{self.folder}/mount-{index}"
            self.run("mount", "--hydrate", "none", self.reference, place)
            self.places.append(place)

    def pid(self, lock):
        """The process that holds a lock of the cache folder; 0 if it is just being replaced."""
        try:
            with open(f"{self.folder}/cache/{lock}") as file:
                pid = int(file.read() or 0)
            with open(f"/proc/{pid}/cmdline") as file:
                return pid if f"{self.folder}/cache" in file.read() else 0
        except (OSError, ValueError):
            return 0

    def kill(self, lock):
        pid = self.pid(lock)
        if not pid:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def kill_workers(daemon, source, arguments, ends_at):
    kills = 0
    while time.monotonic() < ends_at:
        time.sleep(source.uniform(0, 2 * arguments.interval))
        kills += daemon.kill("lock")
    return kills


def kill_both(daemon, source, arguments, ends_at):
    """Never both at once: their mounts would be dead."""
    kills = 0
    while time.monotonic() < ends_at:
        time.sleep(source.uniform(0, 2 * arguments.interval))
        if source.random() < 0.5:
            kills += daemon.kill("lock")
            continue
        # The next one needs a worker that lives, and that worker a moment.
        daemon.run("daemon", "status")
        before = daemon.pid("keeper.lock")
        kills += daemon.kill("keeper.lock")
        while time.monotonic() < ends_at and daemon.pid("keeper.lock") in (0, before):
            time.sleep(0.01)
        time.sleep(0.2)
        daemon.run("daemon", "status")
    return kills


def prefer_to_kill(pid):
    """Makes the kernel's OOM killer choose this process, which may not be the largest of its cgroup."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def run_out_of_memory(daemon, source, arguments, ends_at):
    """A program in the daemon's cgroup takes memory. The kernel then kills the worker."""
    group = daemon.cgroup
    hog = ("import time\n"
           "while True:\n held=bytearray(b'x'*(1<<20))*MIB\n time.sleep(SECONDS)\n del held\n time.sleep(SECONDS)\n")
    hog = hog.replace("MIB", str(HOG_MIB)).replace("SECONDS", str(arguments.interval))
    enter = f"echo $$ > {group}/cgroup.procs; exec python3 -c \"$1\""
    start = lambda: subprocess.Popen(["sh", "-c", enter, "sh", hog])
    process = start()
    kills, worker = 0, 0
    try:
        while time.monotonic() < ends_at:
            time.sleep(0.02)
            now = daemon.pid("lock")
            kills += bool(now and worker and now != worker)
            if now and now != worker:
                prefer_to_kill(now)
            if process.poll() is not None:
                process = start()
            worker = now or worker
    finally:
        process.kill()
        process.wait()
    return kills


def keep_reading(daemon, source, arguments, ends_at):
    time.sleep(max(0, ends_at - time.monotonic()))
    return 0


MODES = {
    "worker": (1, kill_workers),
    "keeper": (1, kill_both),
    "mounts": (50, kill_workers),
    "memory": (1, run_out_of_memory),
    "flat": (200, keep_reading),
}


def usage(pid):
    """Descriptors, threads and memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return descriptors, int(fields["Threads"]), int(fields["VmRSS"].split()[0]) // 1024


def limited_cgroup():
    """A memory cgroup of 128 MiB; both versions of the interface."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = f"{parent}/kitfs-soak-{os.getpid()}"
        try:
            os.mkdir(group)
            with open(f"{group}/{limit}", "w") as file:
                file.write(str(128 << 20))
            return group
        except OSError as error:
            problem = error
            if os.path.isdir(group):
                os.rmdir(group)
    sys.exit(f"soak: no memory cgroup can be made here: {problem}")


def stuck():
    """Processes of kitfs, and readers, in state D."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                name, rest = file.read().rsplit(") ", 1)
        except OSError:
            continue
        if rest[0] == "D" and ("kitfs" in name or "python" in name):
            found.append(name + ")")
    return found


def main():
    arguments = parsed()
    count, kill = MODES[arguments.mode]
    count = arguments.mounts or count
    source = random.Random(arguments.seed)
    print(f"mode {arguments.mode}, seed {arguments.seed}, {arguments.seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="kitfs-soak-") as folder:
        copy = os.path.join(folder, "copy")
        kit = Kit(copy, arguments.seed)
        daemon = Daemon(arguments, folder, Registry(kit, arguments.mib_per_second * (1 << 20)))
        if arguments.mode == "memory":
            daemon.cgroup = limited_cgroup()
            enter = f"echo $$ > {daemon.cgroup}/cgroup.procs; exec \"$@\""
            start = [arguments.kitfs, "daemon", "start", "--memory", "32MiB", "--cache-dir", f"{folder}/cache"]
            subprocess.run(["sh", "-c", enter, "sh", *start], check=True, stdout=subprocess.DEVNULL)
        try:
            daemon.mount(count)
            is_fine = soak(daemon, copy, kill, source, arguments)
        finally:
            subprocess.run([arguments.kitfs, "daemon", "stop", "--cache-dir", f"{folder}/cache"],
                           stdout=subprocess.DEVNULL)
            for place in daemon.places:
                if os.path.ismount(place):
                    subprocess.run(["umount", "-l", place])
            if arguments.mode == "memory":
                time.sleep(1)
                os.rmdir(daemon.cgroup)
    sys.exit(0 if is_fine else 1)


def soak(daemon, copy, kill, source, arguments):
    is_flat = arguments.mode == "flat"
    kinds = [list_files, read_small] * 5 if is_flat else READERS
    is_over = multiprocessing.Event()
    readers = []
    for index, read in enumerate(kinds):
        rounds, longest = multiprocessing.Value("q", 0, lock=False), multiprocessing.Value("d", 0, lock=False)
        words = (read, daemon.places, copy, arguments.seed + index, is_over, rounds, longest)
        process = multiprocessing.Process(target=crowd if is_flat else reader, args=words, daemon=True)
        process.start()
        readers.append((read.__name__, process, rounds, longest))
    began = time.monotonic()
    samples = []
    if is_flat:
        pieces = 6
        for piece in range(pieces):
            time.sleep(arguments.seconds / pieces)
            samples.append(usage(daemon.pid("lock")) + usage(daemon.pid("keeper.lock")))
            print("worker: {} descriptors, {} threads, {} MiB; keeper: {} descriptors, {} threads, {} MiB".format(
                *samples[-1]), flush=True)
    kills = kill(daemon, source, arguments, began + arguments.seconds)
    is_over.set()
    failures = []
    deadline = time.monotonic() + LONGEST_READ_SECONDS
    for name, process, rounds, longest in readers:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.exitcode is None:
            failures.append(f"{name} still waits")
            process.kill()
        elif process.exitcode != 0:
            failures.append(f"{name} ended with {process.exitcode}")
        if longest.value > LONGEST_READ_SECONDS:
            failures.append(f"{name} took {longest.value:.0f} s")
        if rounds.value == 0:
            failures.append(f"{name} has read nothing")
    failures += [f"in state D: {name}" for name in stuck()]
    dead = [place for place in daemon.places if not os.path.isdir(os.path.join(place, "weights"))]
    failures += [f"dead: {place}" for place in dead]
    if samples:
        for what, first, last in zip(("descriptors", "threads", "MiB") * 2, samples[1], samples[-1]):
            if last > first * 1.2 + 8:
                failures.append(f"{what} grow from {first} to {last}")
    rounds = sum(rounds.value for _, _, rounds, _ in readers)
    slowest = max(longest.value for _, _, _, longest in readers)
    count = len(readers) * (100 if is_flat else 1)
    print(f"{kills} kills, {count} readers, {rounds} rounds, longest round {slowest:.1f} s, "
          f"{len(failures)} failures", flush=True)
    for failure in failures[:20]:
        print(f"  {failure}", flush=True)
    return not failures


if __name__ == "__main__":
    main()
