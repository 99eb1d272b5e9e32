"""Writes a small model as Hugging Face lays one out: make_model.py FOLDER.

Twelve layers in three shards of safetensors, an index of the shards, and a config.
"""

import json
import os
import sys

import numpy
from safetensors.numpy import save_file

LAYERS, SHARDS, WIDTH = 12, 3, 512

folder = sys.argv[1]
os.makedirs(folder)
random = numpy.random.default_rng(1)
places = {}
for shard in range(SHARDS):
    file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
    tensors = {}
    for layer in range(shard * LAYERS // SHARDS, (shard + 1) * LAYERS // SHARDS):
        name = f"model.layers.{layer}"
        tensors[f"{name}.weight"] = random.standard_normal((WIDTH, WIDTH), numpy.float32) / WIDTH**0.5
        tensors[f"{name}.bias"] = random.standard_normal(WIDTH, numpy.float32)
    save_file(tensors, f"{folder}/{file}")
    places.update(dict.fromkeys(tensors, file))
with open(f"{folder}/model.safetensors.index.json", "w", encoding="utf-8") as file:
    json.dump({"metadata": {}, "weight_map": places}, file)
with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
    json.dump({"num_hidden_layers": LAYERS, "hidden_size": WIDTH}, file)
