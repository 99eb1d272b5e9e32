"""Loads a data set of a mount with Hugging Face datasets: labels.py WAY FOLDER.

Prints the labels that it has, and the sum of a column that `map` computes. Ways: parquet, json (both copy into the
cache of `datasets`), streaming (no copy), disk (`load_from_disk`: maps the Arrow files of the mount).
"""

import collections
import sys

import datasets

datasets.disable_progress_bars()


def load(way, folder):
    if way == "disk":
        return datasets.load_from_disk(f"{folder}/data/arrow")
    kind = "json" if way == "json" else "parquet"
    name = "train.jsonl" if way == "json" else "train.parquet"
    return datasets.load_dataset(
        kind, data_files=f"{folder}/data/{name}", split="train", streaming=way == "streaming"
    )


def length(row):
    return {"length": len(row["label"]) + row["number"]}


way, folder = sys.argv[1:]
data = load(way, folder)
if way == "disk":
    # `map` keeps its result beside the Arrow files, and the mount is read-only. A name elsewhere would be taken for
    # the next version, too: `datasets` trusts a name that it was given. So the result stays in memory.
    mapped = data.map(length, keep_in_memory=True)
else:
    mapped = data.map(length)
labels = collections.Counter(row["label"] for row in data)
print(*(f"{label}={count}" for label, count in sorted(labels.items())), sum(row["length"] for row in mapped))
