"""Loads every tensor of a sharded safetensors model into numpy, as its index tells.

Without a folder it only imports, so that the libraries are in the page cache.
"""

import hashlib
import json
import os
import sys
import time

import numpy
from safetensors import safe_open

if len(sys.argv) > 1:
    folder, tensors = sys.argv[1], {}
    started = time.perf_counter()
    with open(os.path.join(folder, "model.safetensors.index.json")) as file:
        index = json.load(file)["weight_map"]
    for shard in sorted(set(index.values())):
        with safe_open(os.path.join(folder, shard), framework="np") as opened:
            for key in opened.keys():
                tensors[key] = opened.get_tensor(key)
    seconds = time.perf_counter() - started
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(numpy.ascontiguousarray(tensors[key]).view(numpy.uint8))
    size = sum(it.nbytes for it in tensors.values())
    print(json.dumps({"seconds": seconds, "bytes": size, "crc": digest.hexdigest()}))
