"""Loads the model and prints a checksum of what it computes.

    load.py folder FOLDER            from a folder, as transformers' from_pretrained does
    load.py mount REF                the same, from a mount that ends with the block
    load.py fsspec REF LAYERS        by fsspec, without a mount: only the first LAYERS layers
"""

import json
import math
import os
import sys

import fsspec
import kitfs
import numpy
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
TYPES = {"F32": numpy.float32}


def from_folder(folder):
    """All tensors by name. safetensors maps the files into memory."""
    with open(os.path.join(folder, INDEX), encoding="utf-8") as file:
        places = json.load(file)["weight_map"]
    tensors = {}
    for name in sorted(set(places.values())):
        with safe_open(os.path.join(folder, name), framework="numpy") as shard:
            tensors.update({key: shard.get_tensor(key) for key in shard.keys()})
    return tensors


def from_files(fs, folder, layers):
    """The tensors of the first layers: headers first, then the ranges of these tensors, several at a time."""
    places = json.loads(fs.cat_file(f"{folder}/{INDEX}"))["weight_map"]
    wanted = {f"model.layers.{layer}.{part}" for layer in range(layers) for part in ("weight", "bias")}
    ranges = {}
    for shard in sorted({places[name] for name in wanted}):
        with fs.open(f"{folder}/{shard}") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name in wanted & header.keys():
            begin, end = header[name]["data_offsets"]
            ranges[name] = (f"{folder}/{shard}", 8 + length + begin, 8 + length + end, header[name])
    contents = fs.cat_ranges(*map(list, list(zip(*ranges.values()))[:3]), on_error="raise")
    return {
        name: numpy.frombuffer(content, TYPES[about["dtype"]]).reshape(about["shape"])
        for (name, (_, _, _, about)), content in zip(ranges.items(), contents)
    }


def checksum(tensors, layers):
    """A number that depends on every weight of the first layers."""
    state = numpy.ones(512, numpy.float32)
    for layer in range(layers):
        state = numpy.tanh(tensors[f"model.layers.{layer}.weight"] @ state + tensors[f"model.layers.{layer}.bias"])
    return f"{math.fsum(state.tolist()):.6f}"


def main(way, where, layers="12"):
    if way == "folder":
        tensors = from_folder(where)
    elif way == "mount":
        with kitfs.mount(where, hydrate="none") as kit:
            tensors = from_folder(kit / "weights")
    else:
        tensors = from_files(fsspec.filesystem("kitfs"), f"{where}/weights", int(layers))
    print(checksum(tensors, int(layers)))


main(*sys.argv[1:])
