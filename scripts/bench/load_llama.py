"""Loads a GGUF into llama.cpp and evaluates a few tokens, so that every tensor is touched.

Without a folder it only imports, so that the libraries are in the page cache.
"""

import json
import os
import sys
import time
import zlib

import numpy
from llama_cpp import Llama

if len(sys.argv) > 1:
    path = os.path.join(sys.argv[1], "model.gguf")
    started = time.perf_counter()
    model = Llama(path, n_ctx=64, n_batch=8, n_threads=2, logits_all=True, verbose=False, seed=1)
    model.eval([1, 5, 6, 7])
    seconds = time.perf_counter() - started
    crc = zlib.crc32(numpy.asarray(model.scores[:4], dtype=numpy.float32).tobytes())
    print(json.dumps({"seconds": seconds, "bytes": os.path.getsize(path), "crc": crc}))
