"""Loads a data set of a mount with Hugging Face datasets: labels.py WAY FOLDER.

Prints the labels that it has, and the sum of a column that `map` computes. Ways: parquet, json (both copy into the
cache of `datasets`), streaming (no copy), disk (`load_from_disk`: maps the Arrow files of the mount; `map` keeps its result in memory), disk-beside (its
result lies beside the Arrow files), disk-named (its result has a name that is given).
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


def code(row):
    return {"code": ord(row["label"][0]) + row["number"]}


way, folder = sys.argv[1:]
data = load("disk" if way.startswith("disk") else way, folder)
if way == "disk":
    mapped = data.map(code, keep_in_memory=True)
elif way == "disk-named":
    mapped = data.map(code, cache_file_name=f"{datasets.config.HF_DATASETS_CACHE}/named.arrow")
else:
    mapped = data.map(code)
labels = collections.Counter(row["label"] for row in data)
print(*(f"{label}={count}" for label, count in sorted(labels.items())), sum(row["code"] for row in mapped))
