"""A version of the model in a folder: a mount, or a copy."""

import json
import mmap
import os
import re

import numpy


def mapped(path):
    """The only tensor of a safetensors file, mapped and not read."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    header_bytes = int.from_bytes(memory[:8], "little")
    header = json.loads(memory[8 : 8 + header_bytes])
    (tensor,) = [value for name, value in header.items() if name != "__metadata__"]
    begin, end = tensor["data_offsets"]
    array = numpy.frombuffer(memory, numpy.int32, (end - begin) // 4, 8 + header_bytes + begin)
    return array.reshape(tensor["shape"])


class Model:
    def __init__(self, folder):
        with open(os.path.join(folder, "Kitfile"), encoding="utf-8") as file:
            self.version = re.search(r"^  version: (\S+)", file.read(), re.MULTILINE)[1]
        self.table = mapped(os.path.join(folder, "embeddings/table.safetensors"))
        self.head = mapped(os.path.join(folder, "head/head.safetensors")).astype(numpy.int64)

    def answer(self, row):
        return int(self.table[row].astype(numpy.int64) @ self.head)
