"""The readers: each a process of its own, so that a mount that hangs can be given up.

    python3 reading.py sequential FILE
    python3 reading.py offsets COUNT FILE
    python3 reading.py mmap BLOCK SEED FILE
    python3 reading.py slices FRACTION SEED FILE…
    python3 reading.py header-and-run HEADER LEAST MOST SEED FILE…
    python3 reading.py random COUNT STEP SEED FILE
    python3 reading.py first FILE COMMAND…
    python3 reading.py check FILE…

A FILE of `slices`, `header-and-run` and `random` may be an http URL: the bare ranges, over one connection.

Prints a line of JSON: seconds, bytes, and a checksum of what was read (made after the clock was
stopped), so that two trees can be compared. `sequential`, `offsets` and `mmap` make none: they
read more than can be kept; read the file once more by `check`.
"""

import hashlib
import http.client
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib

PIECE = 1 << 20


def read_range(path, start, end, keep=None):
    # A buffer of whole pages, as cat, cp and dd have it. A buffer of malloc begins 16 bytes behind a
    # page's start. There the kernel copies at a quarter of its rate on some processors (AMD's Zen 3),
    # for every file system, so the copy would hide the file systems' differences.
    view = memoryview(mmap.mmap(-1, PIECE))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        at = start
        while at < end:
            read = os.preadv(descriptor, [view[:min(PIECE, end - at)]], at)
            if read == 0:
                raise OSError(f"{path} ends at {at}, before {end}")
            if keep is not None:
                keep.append(bytes(view[:read]))
            at += read
    finally:
        os.close(descriptor)


class Remote:
    """A file behind http, one connection for all of a server's."""

    connections = {}

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.path = parts.path
        self.connection = self.connections.setdefault(
            parts.netloc, http.client.HTTPConnection(parts.netloc))
        self.size = int(self.request("HEAD").getheader("Content-Length"))

    def request(self, method, headers=None):
        self.connection.request(method, self.path, headers=headers or {})
        answer = self.connection.getresponse()
        if method == "HEAD":
            answer.read()
        return answer

    def read(self, start, end):
        answer = self.request("GET", {"Range": f"bytes={start}-{end - 1}"})
        return answer.read()

    def pieces(self, start, end):
        return [self.read(start, end)]


class Local:
    def __init__(self, path):
        self.path, self.size = path, os.path.getsize(path)

    def pieces(self, start, end):
        kept = []
        read_range(self.path, start, end, kept)
        return kept


def opened(path):
    return Remote(path) if path.startswith("http://") else Local(path)


def sequential(path):
    size = os.path.getsize(path)
    started = time.perf_counter()
    read_range(path, 0, size)
    return {"seconds": time.perf_counter() - started, "bytes": size}


def offsets(count, path):
    """Readers side by side, each of its own part of the file."""
    size, count = os.path.getsize(path), int(count)
    errors = []

    def part(at):
        try:
            read_range(path, size * at // count, size * (at + 1) // count)
        except OSError as error:
            errors.append(error)

    readers = [threading.Thread(target=part, args=(at,)) for at in range(count)]
    started = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    seconds = time.perf_counter() - started
    if errors:
        raise errors[0]
    return {"seconds": seconds, "bytes": size}


def mapped(block, seed, path):
    """Blocks of a mapped file, copied out in shuffled order, as loaders of safetensors do."""
    block = int(block)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        starts = list(range(0, len(whole), block))
        random.Random(int(seed)).shuffle(starts)
        target = memoryview(bytearray(block))
        target[:] = bytes(block)
        started = time.perf_counter()
        with memoryview(whole) as source:
            for start in starts:
                piece = source[start:start + block]
                target[:len(piece)] = piece
                piece.release()
        return {"seconds": time.perf_counter() - started, "bytes": len(whole)}


def slices(fraction, seed, *paths):
    """A run of bytes somewhere in each file."""
    chance, ranges = random.Random(int(seed)), []
    for file in map(opened, paths):
        length = int(file.size * float(fraction))
        start = chance.randrange(file.size - length)
        ranges.append((file, start, start + length))
    return in_order(ranges)


def header_and_run(header, least, most, seed, *paths):
    """The first bytes of each file, and then a run of some length somewhere in it."""
    header, least, most = int(header), int(least), int(most)
    chance, ranges = random.Random(int(seed)), []
    for file in map(opened, paths):
        length = chance.randint(least, most)
        start = chance.randrange(header, file.size - length)
        ranges += [(file, 0, header), (file, start, start + length)]
    return in_order(ranges)


def in_order(ranges):
    started = time.perf_counter()
    # As they come: to put the pieces together is no part of reading, and takes a tenth as long.
    kept = [piece for file, start, end in ranges for piece in file.pieces(start, end)]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": sum(map(len, kept)), "crc": checksum(kept)}


def scattered(count, step, seed, path):
    """4 KiB at random places, no two in the same chunk of `step` bytes."""
    file, kept, latencies = opened(path), [], []
    places = random.Random(int(seed)).sample(range(file.size // int(step)), int(count))
    if isinstance(file, Local):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        file.read = lambda start, end: os.pread(descriptor, end - start, start)
    for place in places:
        started = time.perf_counter()
        # Not at the chunk's start: what a reader asks for is seldom aligned to our chunks.
        piece = file.read(place * int(step) + 8192, place * int(step) + 12288)
        latencies.append(time.perf_counter() - started)
        kept.append(piece)
    return {"seconds": sum(latencies), "bytes": sum(map(len, kept)), "crc": checksum(kept),
            "latencies": latencies}


def first(path, *command):
    """From the start of a command that mounts to the first byte of a file."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    mounted = time.perf_counter() - started
    with open(path, "rb", buffering=0) as file:
        if len(file.read(1)) != 1:
            raise OSError(f"{path} is empty")
    return {"seconds": time.perf_counter() - started, "bytes": 1, "mounted": mounted}


def check(*paths):
    started, size = time.perf_counter(), 0
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(4 * PIECE):
                digest.update(piece)
                size += len(piece)
    return {"seconds": time.perf_counter() - started, "bytes": size, "crc": digest.hexdigest()}


def checksum(pieces):
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc


MODES = {"sequential": sequential, "offsets": offsets, "mmap": mapped, "slices": slices,
         "header-and-run": header_and_run,
         "random": scattered, "first": first, "check": check}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](*sys.argv[2:])))
